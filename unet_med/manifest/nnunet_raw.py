"""A data set as nnU-Net's raw layout: ``imagesTr/NAME_0000``, ``labelsTr/NAME``, ``imagesTs``, ``dataset.json``.

Files that nnU-Net can read as they are become links, or copies where the disk has no links; all others are read and
written anew: DICOM, channels on different grids, labels whose values are mapped. The input is only read.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from unet_med.errors import UsageError
from unet_med.geometry import Geometry
from unet_med.io.atomic import disk_errors
from unet_med.io.cases import Case
from unet_med.io.export.nifti import NiftiPlace, save_nifti
from unet_med.io.source import SourceRef
from unet_med.labels import LabelMap
from unet_med.manifest.model import Manifest, ManifestCase
from unet_med.manifest.nnunet import SPLITS, dataset_json
from unet_med.volume import ArraySource, Volume

_VOLUMES = (".nii.gz", ".nrrd", ".mha")
_PICTURES = (".png", ".tif")
_COLOURS = (3, 4)
_UNKNOWN = 1.0
"""Spacing in mm that is written for volumes that do not know theirs."""

Progress = Callable[[Iterable[Any], str], Iterable[Any]]


def write_raw(manifest: Manifest, folder: Path, progress: Progress) -> dict[str, int]:
    """Writes the layout.

    Args:
        manifest: The data set, without errors.
        folder: ``nnUNet_raw/DatasetXXX_NAME``; must not hold anything.
        progress: Wraps the iteration over cases.

    Returns:
        How many files were ``linked``, ``copied`` and ``written``.

    Raises:
        UsageError: if something is in the folder, or the labels are single objects.
        InputRefusedError: naming the case that cannot be read.
        MachineError: if the disk is full.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("the folder holds something already", "--nnunet", "choose a new one: DatasetXXX_NAME")
    if manifest.task == "instance":
        raise UsageError(
            "nnU-Net's labels are kinds of things, these are single objects", "--nnunet", "make it with --task semantic"
        )
    manifest.require_clean()
    LabelMap.from_names(manifest.labels, manifest.regions)
    layout = _Layout.of(manifest, folder)
    with disk_errors("--nnunet"):
        for case in progress([*manifest.training, *manifest.test], "writing nnU-Net's layout"):
            layout.put(case)
        _write_json(folder / "dataset.json", _description(manifest, layout))
        folds = _splits(manifest)
        if folds:
            _write_json(folder / SPLITS, folds)
    return dict(layout.done)


@dataclass(frozen=True)
class _Layout:
    """Where files go, and how.

    Attributes:
        folder: The data set.
        ending: Of all images and labels.
        values: Value in our labels -> value in nnU-Net's, where they differ.
        done: Counts what was done.
    """

    folder: Path
    ending: str
    values: Mapping[int, int]
    done: Counter[str]

    @classmethod
    def of(cls, manifest: Manifest, folder: Path) -> _Layout:
        """Takes the ending of the files where all have the same, else one that can be written."""
        cases = [case.case for case in (*manifest.training, *manifest.test)]
        flat = all(case.geometry.ndim == 2 for case in cases)
        files = [ref for case in cases for ref in (*case.sources, *([case.label] if case.label else []))]
        endings = {_ending(ref) for ref in files}
        known = _PICTURES if flat else _VOLUMES
        ending = endings.pop() if len(endings) == 1 else ""
        values = {} if manifest.ignore_label is None else {manifest.ignore_label: len(manifest.labels)}
        values = {own: new for own, new in values.items() if own != new}
        fallback = ".tif" if flat else ".nii.gz"
        layout = cls(folder, ending if ending in known else fallback, values, Counter())
        if layout.ending != fallback and not all(layout._is_as_wanted(case) for case in cases):
            return cls(folder, fallback, values, Counter())
        return layout

    def put(self, one: ManifestCase) -> None:
        """Writes or links the images and the label of a case."""
        case, part = one.case, "Tr" if one.split == "training" else "Ts"
        images = self.folder / f"images{part}"
        images.mkdir(parents=True, exist_ok=True)
        if self._images_fit(case):
            for number, source in enumerate(case.sources):
                self._link(source.files[0], images / f"{one.id}_{number:04d}{self.ending}")
        else:
            self._write_images(case, images / one.id)
        if case.label is None:
            return
        target = self.folder / f"labels{part}" / f"{one.id}{self.ending}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._label_fits(case):
            self._link(case.label.files[0], target)
            return
        label = case.read_label()
        for own, new in self.values.items():
            label = np.where(label == own, label.dtype.type(new), label)
        self._save(target, label, case.geometry, one.id)

    def _is_as_wanted(self, case: Case) -> bool:
        return self._images_fit(case) and (case.label is None or self._label_fits(case))

    def _images_fit(self, case: Case) -> bool:
        first = case.sources[0]
        colour = self.ending == ".png" and len(case.sources) == 1 and first.channels in _COLOURS
        return case.frame is None and all(
            self._is_readable(source, colour) and _same_grid(source, first) for source in case.sources
        )

    def _label_fits(self, case: Case) -> bool:
        label = case.label
        plain = not self.values and not any(own != new for own, new in (case.label_values or {}).items())
        return (
            label is not None
            and plain
            and case.frame is None
            and self._is_readable(label)
            and _same_grid(label, case.sources[0])
        )

    def _is_readable(self, source: SourceRef, colour: bool = False) -> bool:
        """Whether nnU-Net reads the file as we do."""
        one = len(source.files) == 1 and source.frames == 1 and not source.read_as
        return one and _ending(source) == self.ending and (colour or source.channels == 1)

    def _write_images(self, case: Case, stem: Path) -> None:
        volume = case.read()
        if self.ending == ".tif" and volume.channels in _COLOURS and len(case.sources) == 1:
            path = stem.with_name(f"{stem.name}_0000.tif")
            tifffile.imwrite(path, np.ascontiguousarray(volume.array.T), photometric="rgb")
            self.done["written"] += 1
            return
        for number, channel in enumerate(volume.array):
            self._save(stem.with_name(f"{stem.name}_{number:04d}{self.ending}"), channel, volume.geometry, case.id)

    def _save(self, path: Path, array: npt.NDArray[Any], geometry: Geometry, where: str) -> None:
        if self.ending == ".tif":
            tifffile.imwrite(path, np.ascontiguousarray(array.T), photometric="minisblack")  # (columns, rows) here
        else:
            placed = geometry if geometry.is_calibrated else Geometry.from_spacing(geometry.shape, (_UNKNOWN,) * 3)
            place = NiftiPlace(ArraySource(where, Volume(array[np.newaxis], placed)))
            save_nifti(path, array, place)
        self.done["written"] += 1

    def _link(self, source: Path, target: Path) -> None:
        try:
            target.symlink_to(source.resolve())
        except OSError:
            shutil.copyfile(source, target)
            self.done["copied"] += 1
        else:
            self.done["linked"] += 1


def _ending(source: SourceRef) -> str:
    """The file's ending as nnU-Net knows it; empty for DICOM and others."""
    name = source.files[0].name
    return next((ending for ending in (*_VOLUMES, *_PICTURES) if name.endswith(ending)), "")


def _same_grid(source: SourceRef, reference: SourceRef) -> bool:
    own, other = source.geometry, reference.geometry
    return own is not None and other is not None and own.same_grid(other)


def _description(manifest: Manifest, layout: _Layout) -> dict[str, Any]:
    ignore = None if manifest.ignore_label is None else len(manifest.labels)
    return {
        "name": manifest.name,
        "description": manifest.description,
        "licence": manifest.licence,
        "channel_names": {str(number): name for number, name in enumerate(manifest.channels)},
        **dataset_json(manifest.labels, manifest.regions, ignore),
        "numTraining": len(manifest.training),
        "file_ending": layout.ending,
    }


def _splits(manifest: Manifest) -> list[dict[str, list[str]]]:
    """Our folds as nnU-Net's ``splits_final.json``, which belongs into its folder of preprocessed data."""
    cases = [case for case in manifest.training if case.fold is not None]
    return [
        {
            "train": [case.id for case in cases if case.fold != fold],
            "val": [case.id for case in cases if case.fold == fold],
        }
        for fold in sorted({case.fold for case in cases if case.fold is not None})
    ]


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
