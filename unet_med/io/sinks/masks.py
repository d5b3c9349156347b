"""Masks on their way: collected in memory or in a file of their own, written and checked on close."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.io.atomic import whole_files, write_json
from unet_med.io.export.formats import FORMATS, Format
from unet_med.io.export.mask import ExportOptions, MaskExport
from unet_med.io.export.nifti import NiftiPlace
from unet_med.io.export.sidecars import label_entries, sidecar_content
from unet_med.io.mapped import let_go, mapped
from unet_med.io.objects.drawn import DrawnObject
from unet_med.io.objects.table import ObjectTable
from unet_med.io.reading import whole
from unet_med.labels import LabelMap
from unet_med.volume import ImageSource, Region, slabs


def named(target: Path, ending: str) -> Path:
    """Returns an output beside its target, which is its name without suffix."""
    return target.with_name(target.name + ending)


def sidecar_path(target: Path) -> Path:
    """Returns where the JSON of an output lies."""
    return named(target, ".json")


class _MaskSink:
    """Collects labels, in memory (one byte for each voxel) or in a file of its own; outputs are written on close."""

    def __init__(
        self,
        source: ImageSource,
        target: Path,
        labels: LabelMap,
        provenance: Mapping[str, Any] | None,
        options: ExportOptions,
        work: Path | None = None,
    ) -> None:
        self.source = source
        self.id = source.id
        self.geometry = source.geometry
        self.target = target
        self.label_map = options.labels or labels
        self.provenance = provenance
        self.options = options
        self.checks: dict[str, Any] = {}
        self._objects: ObjectTable | None = None
        self._overlapping: Sequence[DrawnObject] = ()
        self._work = work
        self._labels = self._array(labels.dtype)

    def write(self, region: Region | None, labels: npt.NDArray[np.integer[Any]], frame: int = 0) -> None:
        """Writes integer labels (I, J[, K]) of ``region`` (all for ``None``); more than 255 values widen the type."""
        bounds = whole(region, self.geometry)
        expected = self.geometry.crop(bounds).shape
        if labels.shape != expected or labels.dtype.kind not in "iub":
            raise InputRefusedError(
                f"labels of shape {labels.shape} and type {labels.dtype} do not fit a region of {expected}",
                self.id,
                "give whole numbers on the grid of the source",
            )
        if labels.size and int(labels.min()) < 0:
            raise InputRefusedError("a mask has negative labels", self.id, "give labels from 0 up")
        highest = int(labels.max()) if labels.size else 0
        if highest > np.iinfo(self._labels.dtype).max:
            self._widen(np.uint16 if highest < 2**16 else np.uint32)
        self._labels[frame][bounds] = labels

    def labels_of(self, frame: int = 0) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Lends the sink's own array of one frame, so that a mask is in memory once.

        What is written into it is what :meth:`close` writes. The loan ends when :meth:`write` is given a value that
        the type does not hold: the array is replaced by one of a wider type, so ask again after a ``write``.

        Returns:
            (I, J[, K]) on the source's grid, 0 at first; uint8, or uint16 for more than 255 labels. The first axis
            runs fastest in memory, as it does in the file.
        """
        lent: npt.NDArray[np.unsignedinteger[Any]] = self._labels[frame]
        return lent

    def describe(self, objects: ObjectTable, overlapping: Sequence[DrawnObject] = ()) -> None:
        """Says that the labels are numbers of objects.

        Args:
            objects: A row for each, of all frames; its class and measures go into formats that hold them.
            overlapping: Masks of the objects, where the label image does not show all of each.
        """
        self._objects, self._overlapping = objects, overlapping

    def close(self) -> list[Path]:
        """Writes and checks every format, then gives all files their names; returns them and their sidecar.

        Raises:
            MachineError: The disk is full.
            InputRefusedError: A format cannot hold the mask, or a file does not read back as it was meant; no file
                is left then.
        """
        export, formats = self._export(), self._formats()
        paths = [named(self.target, one.ending) for one in formats]
        with whole_files([*paths, sidecar_path(self.target)], self.id) as parts:
            records = {one.name: _written(one, export, part) for one, part in zip(formats, parts, strict=False)}
            said = records.get("nifti", records.get("label-tiff", {}))
            self.checks |= {**said, "passed": True, "formats": records}
            write_json(parts[-1], self._content(paths), self.id)
        return [*paths, sidecar_path(self.target)]

    def numbers_of(self, frame: int = 0) -> npt.NDArray[np.uint32]:
        """Lends the sink's own array as :meth:`labels_of` does, made wide enough for numbers of objects."""
        if self._labels.dtype != np.uint32:
            self._widen(np.uint32)
        lent: npt.NDArray[np.uint32] = self._labels[frame]
        return lent

    def abort(self) -> None:
        """Forgets what was written; nothing of it was visible."""
        self._labels = np.zeros((0,), dtype=np.uint8)

    def _widen(self, dtype: npt.DTypeLike) -> None:
        narrow, self._labels = self._labels, self._array(dtype, fresh=True)
        for part in slabs(narrow):
            if narrow[part].any():  # else nothing of the file need be written
                self._labels[part] = narrow[part]
            let_go(narrow)

    def _formats(self) -> list[Format]:
        return [FORMATS[name] for name in self.options.formats]

    def _export(self) -> MaskExport:
        return MaskExport(
            self.source,
            self._labels[0],
            self.label_map,
            self.provenance or {},
            self.options,
            objects=self._objects,
            movie=self._labels if self.source.frames > 1 else None,
            overlapping=self._overlapping,
        )

    def _array(self, dtype: npt.DTypeLike, fresh: bool = False) -> npt.NDArray[Any]:
        """Returns labels (frames, I, J[, K]); in memory as in files the first axis runs fastest."""
        shape = self.geometry.shape
        stored = (self.source.frames, *shape[::-1])
        if self._work is None:
            array: npt.NDArray[Any] = np.zeros(stored, dtype=dtype)
        else:
            path = self._work / f"labels-{np.dtype(dtype).name}.npy"
            if fresh:
                path.unlink(missing_ok=True)
            array = mapped(path, stored, dtype)
        return array.transpose(0, *range(len(shape), 0, -1))

    def _content(self, files: list[Path]) -> dict[str, Any]:
        content = sidecar_content(self.target.name, "mask", self.geometry, files, self.provenance, self.checks)
        return content | {"labels": label_entries(self.label_map)}


class VolumeMaskSink(_MaskSink):
    """The mask of one volume in every format that was asked for, and its sidecar."""

    def __init__(
        self,
        source: ImageSource,
        target: Path,
        labels: LabelMap,
        provenance: Mapping[str, Any] | None,
        options: ExportOptions = ExportOptions(),  # noqa: B008
        work: Path | None = None,
    ) -> None:
        NiftiPlace(source)  # refuses a sheared grid
        super().__init__(source, target, labels, provenance, options, work)
        self.probabilities: npt.NDArray[np.float32] | None = None

    def write_probabilities(self, probabilities: npt.NDArray[np.float32]) -> None:
        """Takes the probability of each label, (labels, I, J, K) from 0 to 1, for formats that store it."""
        self.probabilities = probabilities

    def _export(self) -> MaskExport:
        return replace(super()._export(), probabilities=self.probabilities)

    def abort(self) -> None:
        """Forgets what was written; nothing of it was visible."""
        super().abort()
        self.probabilities = None


class TiffMaskSink(_MaskSink):
    """The mask of a picture, an uncalibrated volume or several frames; where NIfTI is asked for it is a label TIFF."""

    def _formats(self) -> list[Format]:
        names = ("label-tiff" if name == "nifti" else name for name in self.options.formats)
        return [FORMATS[name] for name in dict.fromkeys(names)]


def _written(wanted: Format, export: MaskExport, part: Path) -> dict[str, Any]:
    """Writes one format under a temporary name and checks it; an error names the format."""
    try:
        wanted.write(export, part)
        return wanted.check(part, export)
    except InputRefusedError as error:
        raise InputRefusedError(f"{wanted.name}: {error.what}", error.where, error.remedy) from error
