"""Masks on their way: collected in memory or in a file of their own, written and checked on close."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
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
from unet_med.io.reading import whole
from unet_med.io.sinks.pyramid import levels_of
from unet_med.io.sinks.tiff import check_tiff, pages_of, save_tiff
from unet_med.io.sinks.tiled_tiff import TILED_PIXELS, check_tiled_tiff, save_tiled_tiff
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
        self.label_map = labels
        self.provenance = provenance
        self.options = options
        self.checks: dict[str, Any] = {}
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
        super().__init__(source, target, options.labels or labels, provenance, options, work)
        self.probabilities: npt.NDArray[np.float32] | None = None

    def write_probabilities(self, probabilities: npt.NDArray[np.float32]) -> None:
        """Takes the probability of each label, (labels, I, J, K) from 0 to 1, for formats that store it."""
        self.probabilities = probabilities

    def close(self) -> list[Path]:
        """Writes and checks every format, then gives all files their names; returns them and their sidecar.

        Raises:
            MachineError: The disk is full.
            InputRefusedError: A format cannot hold the mask, or a file does not read back as it was meant; no file
                is left then.
        """
        export = MaskExport(
            self.source, self._labels[0], self.label_map, self.provenance or {}, self.options, self.probabilities
        )
        formats = [FORMATS[name] for name in self.options.formats]
        paths = [named(self.target, one.ending) for one in formats]
        with whole_files([*paths, sidecar_path(self.target)], self.id) as parts:
            records = {one.name: _written(one, export, part) for one, part in zip(formats, parts, strict=False)}
            self.checks |= {**records.get("nifti", {}), "passed": True, "formats": records}
            write_json(parts[-1], self._content(paths), self.id)
        return [*paths, sidecar_path(self.target)]

    def abort(self) -> None:
        """Forgets what was written; nothing of it was visible."""
        super().abort()
        self.probabilities = None


def _written(wanted: Format, export: MaskExport, part: Path) -> dict[str, Any]:
    """Writes one format under a temporary name and checks it; an error names the format."""
    try:
        wanted.write(export, part)
        return wanted.check(part, export)
    except InputRefusedError as error:
        raise InputRefusedError(f"{wanted.name}: {error.what}", error.where, error.remedy) from error


class TiffMaskSink(_MaskSink):
    """The mask of a picture, an uncalibrated volume or several frames as label TIFF (YX, ZYX, TYX or TZYX).

    Where pictures are large it has tiles and a pyramid.
    """

    def close(self) -> list[Path]:
        """Writes, reads back, checks and renames; returns the mask and its sidecar.

        Raises:
            MachineError: The disk is full.
            InputRefusedError: The file does not read back as it was meant; it is removed.
        """
        path = named(self.target, ".tif")
        pages, axes = pages_of(self._labels[:, np.newaxis])
        with whole_files([path, sidecar_path(self.target)], self.id) as (part, sidecar):
            if prod(pages.shape[-2:]) > TILED_PIXELS:
                self.checks |= self._write_tiled(part, pages, axes)
            else:
                save_tiff(part, pages, axes, self.geometry.spacing_mm)
                self.checks |= check_tiff(part, pages, axes, self.id)
            write_json(sidecar, self._content([path]), self.id)
        return [path, sidecar_path(self.target)]

    def _write_tiled(self, part: Path, pages: npt.NDArray[Any], axes: str) -> dict[str, Any]:
        with levels_of(pages, part) as levels:
            save_tiled_tiff(part, levels, axes, self.geometry.spacing_mm)
            return check_tiled_tiff(part, levels, axes, self.id)
