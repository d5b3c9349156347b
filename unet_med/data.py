"""Cases, preprocessed once into a cache on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.config import PipelineConfig
from unet_med.errors import InputRefusedError, MachineError, NothingUsableError, UnetMedError
from unet_med.geometry import reorient
from unet_med.identity import case_tag
from unet_med.instances.target_parts import write_targets
from unet_med.instances.targets import ObjectTargets, object_targets
from unet_med.io.mapped import fresh, let_go
from unet_med.labels import LabelMap
from unet_med.losses import border_weight_map
from unet_med.manifest import ManifestCase
from unet_med.transforms.preprocess import Prepared, Preprocessor
from unet_med.transforms.resample import LabelSlabs, write_labels
from unet_med.transforms.stains import CHANNELS as COLOURS
from unet_med.transforms.stains import Tint
from unet_med.volume import Volume, bands, slabs

logger = logging.getLogger(__name__)

Progress = Callable[[Iterable[Any], str], Iterable[Any]]
LabelArray = npt.NDArray[np.integer[Any]]

_FOREGROUND_VOXELS = 5000
"""Positions remembered for each label and case, to centre patches on."""
_SLAB_VOXELS = 2**22
"""Voxels of a label that are looked at together."""
_BESIDE = ("weight", "border", "distance")
TEACHER = "teacher"
TEACHER_STEPS = 255
"""How likely a teacher finds a label is kept in steps of one over this."""
ANNOTATED = -1
"""Stands in the place of a label for any voxel that somebody labelled, as background or otherwise."""


@dataclass(frozen=True)
class CachedCase:
    """A preprocessed case on disk, opened as memory maps.

    Attributes:
        id: Id of the case.
        folder: Holds image.npy (C, *s) float32, label.npy (*s), foreground.npy (n, 1 + d), done.json and perhaps
            weight.npy or, of objects, objects.npy, border.npy and distance.npy.
        shape: *s, the network grid.
        spacing_mm: Of the network grid; ``None`` when uncalibrated.
        prior_file: The mask that a cascade's first stage made of it, which depends on the fold; ``None``: no cascade.
        teacher_file: How likely a teacher finds each label, (labels, *s) uint8; ``None``: there is no teacher.
    """

    id: str
    folder: Path
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    prior_file: Path | None = None
    teacher_file: Path | None = None

    def image(self) -> npt.NDArray[np.float32]:
        """Returns (C, *s), memory-mapped."""
        return np.asarray(np.load(self.folder / "image.npy", mmap_mode="r"))

    def label(self) -> npt.NDArray[np.integer[Any]]:
        """Returns (*s) uint8 or uint16, memory-mapped."""
        return np.asarray(np.load(self.folder / "label.npy", mmap_mode="r"))

    def objects(self) -> npt.NDArray[np.integer[Any]] | None:
        """Returns (*s) numbers of objects, memory-mapped; ``None`` where they are not told apart."""
        path = self.folder / "objects.npy"
        return np.asarray(np.load(path, mmap_mode="r")) if path.exists() else None

    def prior(self) -> npt.NDArray[np.integer[Any]] | None:
        """Returns (*s) label values that a cascade's first stage gave it, memory-mapped; ``None`` without a cascade."""
        return None if self.prior_file is None else np.asarray(np.load(self.prior_file, mmap_mode="r"))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Returns ``image``, ``label`` and what else the loss needs: each (channels, *s), memory-mapped.

        That is ``weight`` for a border-weighted loss; ``border`` and ``distance`` where objects are told apart (see
        :class:`unet_med.instances.targets.ObjectTargets`); ``teacher`` where there is one, in steps of
        1 / :data:`TEACHER_STEPS`.
        """
        arrays: dict[str, npt.NDArray[Any]] = {"image": self.image(), "label": self.label()[None]}
        for name in _BESIDE:
            path = self.folder / f"{name}.npy"
            if path.exists():
                arrays[name] = np.asarray(np.load(path, mmap_mode="r"))[None]
        if self.teacher_file is not None:
            arrays[TEACHER] = np.asarray(np.load(self.teacher_file, mmap_mode="r"))
        return arrays

    def foreground(self) -> npt.NDArray[np.int32]:
        """Returns (n, 1 + d): label and position of some labelled voxels.

        Where some voxels are not labelled at all, those of label -1 are places of any voxel that is, be it background.
        """
        return np.asarray(np.load(self.folder / "foreground.npy"))

    @cached_property
    def labels(self) -> tuple[int, ...]:
        """Values of the labels it holds."""
        meta = json.loads((self.folder / "done.json").read_text(encoding="utf-8"))
        known = meta["labels"] if "labels" in meta else np.unique(self.foreground()[:, 0]).tolist()
        return tuple(value for value in known if value > 0)

    @cached_property
    def tint(self) -> Tint | None:
        """How a colour picture goes back to light; ``None`` for all other images."""
        meta = json.loads((self.folder / "done.json").read_text(encoding="utf-8")).get("tint")
        return None if meta is None else Tint(tuple(meta["mean"]), tuple(meta["sd"]), meta["white"])


@dataclass(frozen=True)
class PreparedCases:
    """The cases that could be prepared, and the ones that were refused with their reasons."""

    cases: tuple[CachedCase, ...]
    refused: tuple[tuple[str, UnetMedError], ...]


def prepare_cases(
    cases: Sequence[ManifestCase], config: PipelineConfig, labels: LabelMap, cache: Path, progress: Progress
) -> PreparedCases:
    """Preprocesses cases into ``cache``; what is there already is used again.

    Raises:
        NothingUsableError: if every case is refused.
        MachineError: if the disk is full.
    """
    preprocessor = Preprocessor(config)
    prepared: list[CachedCase] = []
    refused: list[tuple[str, UnetMedError]] = []
    for case in progress(cases, "preparing"):
        try:
            prepared.append(_prepare_case(case, config, labels, preprocessor, cache))
        except InputRefusedError as error:
            logger.warning("%s is left out: %s", case_tag(case.id), error.what)
            refused.append((case.id, error))
    if cases and not prepared:
        first = refused[0][1]
        raise NothingUsableError(
            f"none of the {len(cases)} cases can be used, the first because: {first.what}", first.where, first.remedy
        )
    return PreparedCases(tuple(prepared), tuple(refused))


def _cache_key(case: ManifestCase, config: PipelineConfig, labels: LabelMap) -> str:
    border = config.loss.model_dump(mode="json") if config.loss.kind == "border_cross_entropy" else None
    recipe: list[Any] = [
        dict(case.sha256),
        case.case.frame,
        config.preprocess.model_dump(mode="json"),
        labels.names,
        border,
        case.id,
    ]
    if labels.ignored is not None:
        recipe.append(labels.ignored)
    if case.case.classes is not None:
        recipe.append(sorted(case.case.classes.items()))
    if labels.objects:
        recipe.append({"border_voxels": config.instances.border_voxels, "objects": True})
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()[:20]


def _prepare_case(
    case: ManifestCase, config: PipelineConfig, labels: LabelMap, preprocessor: Preprocessor, cache: Path
) -> CachedCase:
    folder = cache / _cache_key(case, config, labels)
    if not (folder / "done.json").exists():
        stored, volume = case.case.look_label(), case.case.look()
        prepared = preprocessor.prepare(volume)
        spacing, tint = prepared.geometry.spacing_mm, _tint(volume, prepared)
        weighted = config.loss.kind == "border_cross_entropy"  # by all objects of an image at once
        if not stored.in_memory and not weighted:
            parts = _LabelInParts(case, labels, stored, prepared, config.instances.border_voxels)
            write_case(folder, prepared, parts, None, spacing, labels.ignored, tint=tint)
        else:
            label, objects = _on_grid(case, labels, np.asarray(stored.array)[0], preprocessor, prepared)
            weight = None
            if weighted:
                weight = border_weight_map(objects, config.loss.border_w0, config.loss.border_sigma_voxels)
            told_apart = None
            if labels.objects:
                told_apart = objects, object_targets(objects, spacing, config.instances.border_voxels)
            image = prepared.array if prepared.slowest is None else prepared
            write_case(folder, image, label, weight, spacing, labels.ignored, told_apart, tint)
    meta = json.loads((folder / "done.json").read_text(encoding="utf-8"))
    spacing_mm = None if meta["spacing_mm"] is None else tuple(meta["spacing_mm"])
    return CachedCase(case.id, folder, tuple(meta["shape"]), spacing_mm)


def _tint(volume: Volume, prepared: Prepared) -> Tint | None:
    """Returns how a colour picture goes back to light; ``None`` for all other images."""
    if volume.channels != COLOURS or volume.geometry.ndim != 2:
        return None
    scales = prepared.intensities
    highest = max(float(part.max()) for _, _, part in bands(volume.array))
    return Tint(tuple(one.mean for one in scales), tuple(one.sd for one in scales), highest)


def _on_grid(
    case: ManifestCase,
    labels: LabelMap,
    stored: npt.NDArray[np.integer[Any]],
    preprocessor: Preprocessor,
    prepared: Prepared,
) -> tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.integer[Any]]]:
    """Returns labels and objects on the network's grid; where nothing counts objects, each label is one."""
    _check_kind(case, labels)
    label: npt.NDArray[np.integer[Any]]
    if labels.objects:
        objects = preprocessor.prepare_label(stored, prepared)
        label = read_target(case, labels, objects)
    else:
        label = preprocessor.prepare_label(read_target(case, labels, stored), prepared)
        objects = preprocessor.prepare_label(stored, prepared) if case.case.instances else label
    return label, objects if labels.ignored is None else objects * (objects != labels.ignored)


def _check_kind(case: ManifestCase, labels: LabelMap) -> None:
    if labels.objects and not case.case.instances:
        raise InputRefusedError(
            "the label image holds kinds, not numbers of objects",
            case.id,
            "make the manifest with --task instance, or set task to semantic",
        )


class _LabelInParts:
    """The label of a case that is not in memory; is written on the network's grid when it is called.

    Args:
        case: The case.
        labels: What is learnt.
        stored: Its label, not in memory.
        prepared: Its image.
        border_voxels: Of objects, see :func:`unet_med.instances.targets.object_targets`.
    """

    def __init__(
        self, case: ManifestCase, labels: LabelMap, stored: Volume, prepared: Prepared, border_voxels: float
    ) -> None:
        _check_kind(case, labels)
        self._case = case
        self._labels = labels
        self._prepared = prepared
        self._border_voxels = border_voxels
        turned = reorient(stored.array, prepared.order, prepared.flips)
        self._stored = turned[(slice(None), *prepared.box)]

    def __call__(self, folder: Path) -> npt.NDArray[np.integer[Any]]:
        """Writes ``label.npy``, and what is learnt of objects, into a folder; returns the label."""
        label = self._file(folder, "label", target_type(self._labels))
        if self._labels.objects:
            objects = self._file(folder, "objects", np.uint32)
            self._resample(lambda stored: stored, objects)
            self._classify(objects, label)
            targets = ObjectTargets(*(self._file(folder, name, np.uint8) for name in ("border", "distance")))
            write_targets(objects, targets, self._prepared.geometry.spacing_mm, self._border_voxels)
        else:
            self._resample(lambda stored: read_target(self._case, self._labels, stored), label)
        return label

    def _file(self, folder: Path, name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        return fresh(folder / f"{name}.npy", self._prepared.geometry.shape, dtype, fortran_order=True)

    def _resample(self, read: Callable[[LabelArray], LabelArray], out: LabelArray) -> None:
        """Writes what ``read`` makes of the stored values, in the order of their file."""
        axis = self._prepared.slowest or 0
        axes = (axis, *(other for other in range(out.ndim) if other != axis))
        rows = LabelSlabs(self._stored.transpose(0, *(one + 1 for one in axes)), read)
        write_labels(rows, out.transpose(axes))

    def _classify(self, objects: LabelArray, label: LabelArray) -> None:
        """Writes the class of each voxel, and takes voxels that nobody labelled from the objects."""
        for part in slabs(objects, _SLAB_VOXELS):
            numbers = np.array(objects[part])
            label[part] = read_target(self._case, self._labels, numbers)
            if self._labels.ignored is not None:
                objects[part] = np.where(numbers == self._labels.ignored, 0, numbers)
            let_go(objects)
            let_go(label)


def target_type(labels: LabelMap) -> np.dtype[Any]:
    """Returns the type that holds all values which a network learns."""
    return np.dtype(np.uint8 if max(len(labels.labels), labels.ignored or 0) < 2**8 else np.uint16)


def read_target(
    case: ManifestCase, labels: LabelMap, stored: npt.NDArray[np.integer[Any]] | None = None
) -> npt.NDArray[np.uint8 | np.uint16]:
    """Returns the label image of a case with exactly the values of ``labels``; objects become their class.

    Voxels that nobody labelled keep their value, ``labels.ignored``.

    Raises:
        InputRefusedError: if the label image holds a value that is no label.
    """
    stored = case.case.read_label() if stored is None else stored
    if case.case.instances:
        stored = replace(case.case, unlabelled=labels.ignored).classes_of(stored)
    values = np.unique(stored)
    unknown = sorted({int(v) for v in values} - {0, labels.ignored, *(label.index for label in labels.labels)})
    if unknown:
        raise InputRefusedError(
            f"the label image holds {unknown[:5]}, which {'is' if len(unknown) == 1 else 'are'} no label",
            case.id,
            "see `unet-med check` on the manifest",
        )
    return np.asarray(stored, dtype=target_type(labels))


def write_case(
    folder: Path,
    image: npt.NDArray[np.float32] | Prepared,
    label: LabelArray | Callable[[Path], LabelArray],
    weight: npt.NDArray[np.float32] | None,
    spacing: tuple[float, ...] | None,
    ignored: int | None = None,
    objects: tuple[npt.NDArray[np.integer[Any]], ObjectTargets] | None = None,
    tint: Tint | None = None,
) -> None:
    """Writes a prepared case, whole or not at all.

    Args:
        folder: Where :class:`CachedCase` will find it.
        image: (C, *s) float32, normalised; or what it is read from, part by part.
        label: (*s) integers; or what writes ``label.npy`` into a folder, with what is learnt of objects, and returns
            it.
        weight: (*s) float32 or ``None``.
        spacing: mm along each axis, or ``None``.
        ignored: Value of voxels that nobody labelled.
        objects: (*s) their numbers and what is learnt of them, where they are told apart.
        tint: Of a colour picture, to change the amount of its stains.

    Raises:
        MachineError: if the disk is full.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        _save_image(part / "image.npy", image)
        if isinstance(label, np.ndarray):
            np.save(part / "label.npy", label)
        else:
            label = label(part)
        positions = _positions(label, ignored)
        np.save(part / "foreground.npy", positions)
        if weight is not None:
            np.save(part / "weight.npy", weight.astype(np.float32))
        if objects is not None:
            numbers, targets = objects
            np.save(part / "objects.npy", numbers)
            np.save(part / "border.npy", targets.border)
            np.save(part / "distance.npy", targets.distance)
        values = np.unique(positions[:, 0]).tolist()
        meta = {"shape": list(label.shape), "spacing_mm": spacing, "labels": values}
        if tint is not None:
            meta["tint"] = asdict(tint)
        (part / "done.json").write_text(json.dumps(meta), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    except OSError as error:
        raise MachineError(
            f"the cache of prepared cases cannot be written ({error.strerror})",
            remedy="free some disk space, then start the same command with --resume",
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _save_image(path: Path, image: npt.NDArray[np.float32] | Prepared) -> None:
    if isinstance(image, np.ndarray):
        np.save(path, image)
        return
    shape = (len(image.intensities), *image.geometry.shape)  # rows that are read together lie together
    image.copy_to(fresh(path, shape, np.float32, fortran_order=True))


def _positions(label: npt.NDArray[np.integer[Any]], ignored: int | None) -> npt.NDArray[np.int32]:
    """Returns what :meth:`CachedCase.foreground` does: up to 5000 evenly chosen positions of each label."""
    if not label.flags.c_contiguous:  # as one in a file that was written in parts: in the order of its file
        turned = _positions(label.T, ignored)
        return np.hstack([turned[:, :1], turned[:, :0:-1]])
    planes = max(1, _SLAB_VOXELS // max(1, prod(label.shape[1:])))
    slabs = [label[start : start + planes] for start in range(0, len(label), planes)]
    found = sorted({int(value) for slab in slabs for value in np.unique(slab)} - {0, ignored})
    rows = [np.zeros((0, 1 + label.ndim), dtype=np.int32)]
    for value in found if ignored is None else [*found, ANNOTATED]:
        positions = np.stack(np.unravel_index(_chosen(slabs, value, ignored), label.shape), axis=1).astype(np.int32)
        rows.append(np.hstack([np.full((len(positions), 1), value, dtype=np.int32), positions]))
    return np.concatenate(rows)


def _chosen(slabs: Sequence[npt.NDArray[np.integer[Any]]], value: int, ignored: int | None) -> npt.NDArray[np.int64]:
    """Returns the flat indices of some voxels of a value, in order: all of them where there are few."""

    def holds(slab: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
        let_go(slab)  # of what was looked at before nothing stays in memory
        return np.asarray(slab != ignored if value == ANNOTATED else slab == value)

    counts = [int(np.count_nonzero(holds(slab))) for slab in slabs]
    wanted = np.arange(sum(counts))
    if len(wanted) > _FOREGROUND_VOXELS:
        wanted = np.sort(np.random.default_rng(abs(value)).choice(len(wanted), _FOREGROUND_VOXELS, replace=False))
    chosen, seen, first = [np.zeros(0, dtype=np.int64)], 0, 0
    for slab, count in zip(slabs, counts, strict=True):
        own = wanted[(wanted >= seen) & (wanted < seen + count)] - seen
        chosen.append(np.flatnonzero(holds(slab))[own] + first if len(own) else own)
        seen, first = seen + count, first + slab.size
    return np.concatenate(chosen)
