"""Objects of an image: maps are predicted into a store, objects are cut out of it and compared with true ones.

The stores are kept, so that other thresholds can be tried without a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.data import CachedCase, read_target
from unet_med.errors import ModelError
from unet_med.inference.maps_store import MapStore
from unet_med.inference.predictor import Prediction, Predictor
from unet_med.instances.decode import Objects, objects_of
from unet_med.instances.maps import ObjectMaps
from unet_med.io.atomic import whole_file
from unet_med.labels import LabelMap
from unet_med.manifest import ManifestCase
from unet_med.metrics import Overlap, case_metrics, match_classes, match_overlap, overlap_table
from unet_med.volume import Region, Volume

IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]

MAPS = "maps"
"""Folder of a run or an output folder that holds the maps of its cases."""
_STORE = ".zarr"
_TRUTH = ".npz"
_MOST_VOXELS = 2**24
"""Of a larger image the middle is enough to choose thresholds."""


def predict_maps(predictor: Predictor, volume: Volume, path: Path) -> tuple[Prediction, MapStore]:
    """Predicts what objects are cut out of.

    Args:
        predictor: Of a model of objects.
        volume: (C, I, J[, K]).
        path: Where the maps go, a folder; replaced.

    Returns:
        What was predicted, with the class of each voxel in place of labels; the maps.
    """
    store = MapStore.create(path, predictor.labels.outputs, volume.geometry.shape)
    return predictor.predict(volume, maps=store), store


def find_objects(predictor: Predictor, volume: Volume) -> Objects:
    """Finds the objects of an image in memory; nothing is written.

    Args:
        predictor: Of a model of objects.
        volume: (C, I, J[, K]).

    Raises:
        ModelError: when the model tells no objects apart.
    """
    if predictor.objects is None:
        raise ModelError("the model tells no objects apart", "task", "use a model that was trained with task: instance")
    store = MapStore.in_memory(predictor.labels.outputs, volume.geometry.shape)
    predictor.predict(volume, maps=store)
    return objects_of(store, predictor.objects)


def class_map(objects: Objects, labels: LabelMap) -> npt.NDArray[np.uint8 | np.uint16]:
    """Returns the class of the object that each voxel belongs to, (I, J[, K])."""
    table = np.zeros(len(objects) + 1, dtype=labels.dtype)
    table[1:] = objects.classes
    found: npt.NDArray[np.uint8 | np.uint16] = table[objects.labels]
    return found


def compare_objects(found: Objects, truth: Truth, labels: LabelMap) -> dict[str, Any]:
    """Matches objects with true ones.

    Objects that lie mostly where nobody labelled are left out, and what others have of it.

    Args:
        found: What was found.
        truth: What is true.
        labels: The classes of objects.

    Returns:
        What :func:`unet_med.metrics.match_overlap` returns; where there are several classes, ``classes`` besides, the
        same of the objects of each class among themselves.
    """
    table = _overlap(found.labels, truth)
    matched = match_overlap(table)
    if len(labels.labels) == 1:
        return matched
    names = dict(enumerate(labels.names, start=1))
    ours = {number: names[kind] for number, kind in enumerate(found.classes.tolist(), start=1)}
    theirs = {number: names[kind] for number, kind in truth.kinds().items()}
    return matched | {"classes": match_classes(table, ours, theirs)}


def _overlap(found: IntArray, truth: Truth) -> Overlap:
    unknown = truth.unknown
    if unknown is None or not unknown.any():
        return overlap_table(found, truth.objects)
    inside = np.bincount(found[~unknown], minlength=int(found.max(initial=0)) + 1)
    outside = np.bincount(found[unknown], minlength=len(inside))
    kept = inside >= outside
    kept[0] = False
    return overlap_table(np.where(unknown | ~kept[found], 0, found), truth.known)


@dataclass(frozen=True, eq=False)
class Truth:
    """What is true of a case.

    Attributes:
        objects: (I, J[, K]) numbers of objects, 0 for background.
        unknown: Where nobody labelled; ``None``: all was labelled.
        classes: (I, J[, K]) the class of each voxel, with ``LabelMap.ignored`` where nobody labelled.
        spacing_mm: Size of a voxel; ``None``: not known.
    """

    objects: IntArray
    unknown: BoolArray | None
    classes: IntArray
    spacing_mm: tuple[float, ...] | None

    @classmethod
    def of(cls, case: ManifestCase, labels: LabelMap, frame: int | None = None) -> Truth:
        """Reads what is true of a case of a manifest."""
        stored = case.case.read_label(frame)
        unknown = None if labels.ignored is None else stored == labels.ignored
        objects = stored if unknown is None else np.where(unknown, 0, stored)
        return cls(objects, unknown, read_target(case, labels, stored), case.case.geometry.spacing_mm)

    @classmethod
    def prepared(cls, case: CachedCase, labels: LabelMap, part: Region) -> Truth:
        """Returns what is true of a part of a prepared case, on the network's grid.

        Raises:
            ModelError: when it was prepared for a task that tells no objects apart.
        """
        numbers = case.objects()
        if numbers is None:
            raise ModelError("the case was prepared without its objects", case.id, "prepare it for task: instance")
        objects, classes = numbers[part], case.label()[part]
        return cls(objects, None if labels.ignored is None else classes == labels.ignored, classes, case.spacing_mm)

    @property
    def known(self) -> IntArray:
        """(I, J[, K]) the objects, as far as somebody labelled."""
        return self.objects if self.unknown is None else np.where(self.unknown, 0, self.objects)

    def kinds(self) -> dict[int, int]:
        """Returns the class of each object: that of most of its voxels."""
        table = overlap_table(self.known, self.classes)
        order = np.argsort(table.shared, kind="stable")  # of several entries a dictionary keeps the last
        numbers, kinds = table.mask_ids[table.rows[order]], table.label_ids[table.columns[order]]
        return dict(zip(numbers.tolist(), kinds.tolist(), strict=True))


def score_objects(found: Objects, truth: Truth, labels: LabelMap) -> dict[str, Any]:
    """Compares objects with true ones.

    Returns:
        ``labels``, the scores of the classes of voxels (:func:`unet_med.metrics.case_metrics`), and ``instance``, the
        matched objects (:func:`compare_objects`).
    """
    return {
        "labels": dict(case_metrics(class_map(found, labels), truth.classes, truth.spacing_mm, labels)),
        "instance": compare_objects(found, truth, labels),
    }


def middle_of(shape: Sequence[int]) -> Region:
    """Returns the part of an image in which objects are looked at to choose thresholds: of a large one its middle."""
    share = min(1.0, _MOST_VOXELS / max(1, prod(shape))) ** (1 / len(shape))
    sides = [max(1, int(size * share)) for size in shape]
    return tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(shape, sides, strict=True))


@dataclass(frozen=True, eq=False)
class KnownMaps:
    """The maps of a case whose objects are known.

    Attributes:
        name: Of the case.
        maps: What was predicted, by a model that had not seen it.
        truth: What is true.
    """

    name: str
    maps: MapStore
    truth: Truth

    def middle(self) -> tuple[ObjectMaps, IntArray, BoolArray | None, dict[int, int]]:
        """Returns maps, true objects, where nobody labelled, and the objects' classes; of a large image its middle."""
        objects, unknown = self.truth.objects, self.truth.unknown
        part = middle_of(objects.shape)
        return self.maps.read(part), objects[part], None if unknown is None else unknown[part], self.truth.kinds()


class MapArchive:
    """Maps and true objects of cases in a folder.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def store(self, name: str) -> Path:
        """Returns where the maps of a case lie."""
        return self.folder / f"{name}{_STORE}"

    def keep_truth(self, name: str, truth: Truth) -> None:
        """Keeps what is true of a case.

        Raises:
            MachineError: The disk is full.
        """
        content = {"objects": truth.objects, "classes": truth.classes, "spacing_mm": np.array(truth.spacing_mm or ())}
        if truth.unknown is not None:
            content["unknown"] = truth.unknown
        with whole_file(self.folder / f"{name}{_TRUTH}", "the true objects of held-out cases") as part:
            np.savez_compressed(part, **content)  # type: ignore[arg-type]

    def names(self) -> list[str]:
        """Returns the names of the cases whose maps and objects are there, in order."""
        names = {path.name.removesuffix(_TRUTH) for path in self.folder.glob(f"[!.]*{_TRUTH}")}
        return sorted(name for name in names if self.store(name).is_dir())

    def read(self, name: str) -> KnownMaps:
        """Returns one of them.

        Raises:
            InputRefusedError: when its maps are damaged.
        """
        with np.load(self.folder / f"{name}{_TRUTH}", allow_pickle=False) as kept:
            unknown = kept["unknown"] if "unknown" in kept.files else None
            spacing = tuple(kept["spacing_mm"].tolist()) or None
            truth = Truth(kept["objects"], unknown, kept["classes"], spacing)
        return KnownMaps(name, MapStore.open(self.store(name)), truth)

    def __iter__(self) -> Iterator[KnownMaps]:
        return (self.read(name) for name in self.names())
