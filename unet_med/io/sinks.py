"""Masks and images out: NIfTI where there is a place in space, ImageJ-readable TIFF elsewhere; read back before shown.

A volume with a place becomes ``TARGET.nii.gz`` on exactly its source's grid, and whatever other formats were asked for
(:mod:`unet_med.io.export`). Pictures, uncalibrated volumes and multi-frame sources become ``TARGET.tif``. Beside them
lies ``TARGET.json``: labels, provenance and the result of the checks.

Every file is written under a temporary name and opened again by another library; shape, corners (1e-3 mm), every
value and each label's centroid, volume and place beside the others must be what was meant. Then all get their names:
a mask is whole, in all formats, or nothing of it is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from unet_med.errors import InputRefusedError
from unet_med.io.atomic import whole_file, whole_files, write_json
from unet_med.io.export.formats import FORMATS, Format
from unet_med.io.export.mask import ExportOptions, MaskExport
from unet_med.io.export.measure import label_centroids
from unet_med.io.export.nifti import NiftiPlace, check_nifti, same_values, save_nifti, unlike
from unet_med.io.export.sidecars import RESEARCH_ONLY, label_entries, sidecar_content
from unet_med.io.reading import FileSource, native, whole
from unet_med.labels import LabelMap
from unet_med.volume import SLAB_VOXELS, ImageSource, MaskSink, Region

__all__ = ["RESEARCH_ONLY", "check_formats", "label_centroids", "open_mask_sink", "storable", "write_image"]

_IMAGEJ_DTYPES = ("uint8", "uint16", "float32")
_IMAGEJ_BYTES = 3 * 2**30
"""ImageJ's format ends at 4 GiB; beyond this the file is an OME-TIFF."""


def open_mask_sink(
    source: ImageSource,
    target: Path,
    labels: LabelMap,
    provenance: Mapping[str, Any] | None = None,
    options: ExportOptions = ExportOptions(),  # noqa: B008
) -> MaskSink:
    """Returns where the mask of ``source`` is written.

    Args:
        source: Gives the grid, for NIfTI the header's forms, for DICOM the series that exports refer to.
        target: Output without suffix, for example ``OUT/case1``.
        labels: What the values mean; more than 255 labels make uint16.
        provenance: JSON-able; goes into the sidecar as it is.
        options: Formats; a picture or an image without a place in space has only one, TIFF.

    Raises:
        InputRefusedError: A format cannot hold this image; or the grid is sheared and its source is no NIfTI file:
            such a mask would be read rotated.
    """
    check_formats(source, options)
    if _is_volume(source):
        return VolumeMaskSink(source, target, labels, provenance, options)
    return TiffMaskSink(source, target, labels, provenance)


def check_formats(source: ImageSource, options: ExportOptions) -> None:
    """Refuses an image that a format cannot hold, before anything is computed.

    Raises:
        InputRefusedError: naming the format.
    """
    for name in options.formats:
        wanted = FORMATS[name]
        if wanted.needs_volume and not _is_volume(source):
            what = "a picture" if source.geometry.ndim == 2 else "a volume without a pixel size"
            what = f"{what} of {source.frames} frames" if source.frames > 1 else what
            raise InputRefusedError(
                f"{name} cannot hold the mask of {what}", source.id, "leave --format out: such masks become TIFF"
            )
        if wanted.needs_dicom and MaskExport(source, np.zeros((1,), np.uint8), LabelMap(())).dicom is None:
            raise InputRefusedError(
                f"{name} refers to the slices of a DICOM series, and this image is none",
                source.id,
                "predict on the DICOM series itself, or ask for nifti or seg-nrrd",
            )


def write_image(
    source: ImageSource, target: Path, provenance: Mapping[str, Any] | None = None
) -> tuple[list[Path], dict[str, Any]]:
    """Writes the voxels of ``source`` unchanged, as integers where they are stored so, else float32.

    A volume with a place becomes ``TARGET.nii.gz``; several channels ``TARGET_0000.nii.gz``, ``TARGET_0001.nii.gz``;
    several time points ``TARGET_t000.nii.gz``. Anything else becomes one ``TARGET.tif`` with all channels and frames.

    Returns:
        The files, images first, then the sidecar; and the checks by file name.
    """
    writer = _write_volumes if source.geometry.ndim == 3 and source.geometry.is_calibrated else _write_picture
    files, checks = writer(source, target)
    sidecar = _sidecar(target)
    content = sidecar_content(target.name, "image", source.geometry, files, provenance, checks)
    write_json(sidecar, content, source.id)
    return [*files, sidecar], checks


def _is_volume(source: ImageSource) -> bool:
    return source.geometry.ndim == 3 and source.geometry.is_calibrated and source.frames == 1


def _named(target: Path, ending: str) -> Path:
    return target.with_name(target.name + ending)


def _sidecar(target: Path) -> Path:
    return _named(target, ".json")


# ---- masks --------------------------------------------------------------------------------------------------------


class _MaskSink:
    """Collects labels in memory (one byte for each voxel); files are written on close."""

    def __init__(
        self, source: ImageSource, target: Path, labels: LabelMap, provenance: Mapping[str, Any] | None
    ) -> None:
        self.source = source
        self.id = source.id
        self.geometry = source.geometry
        self.target = target
        self.label_map = labels
        self.provenance = provenance
        self.checks: dict[str, Any] = {}
        shape = source.geometry.shape  # in memory as in the file: the first axis runs fastest
        fastest_last = np.zeros((source.frames, *shape[::-1]), dtype=labels.dtype)
        self._labels: npt.NDArray[Any] = fastest_last.transpose(0, *range(len(shape), 0, -1))

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
            self._labels = self._labels.astype(np.uint16 if highest < 2**16 else np.uint32)
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

    def abort(self) -> None:
        """Forgets what was written; nothing of it was visible."""
        self._labels = np.zeros((0,), dtype=np.uint8)

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
    ) -> None:
        NiftiPlace(source)  # refuses a sheared grid
        super().__init__(source, target, options.labels or labels, provenance)
        self.options = options
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
        paths = [_named(self.target, one.ending) for one in formats]
        with whole_files([*paths, _sidecar(self.target)], self.id) as parts:
            records = {one.name: _written(one, export, part) for one, part in zip(formats, parts, strict=False)}
            self.checks |= {**records.get("nifti", {}), "passed": True, "formats": records}
            write_json(parts[-1], self._content(paths), self.id)
        return [*paths, _sidecar(self.target)]

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
    """The mask of a picture, an uncalibrated volume or several frames as label TIFF (YX, ZYX, TYX or TZYX)."""

    def close(self) -> list[Path]:
        """Writes, reads back, checks and renames; returns the mask and its sidecar.

        Raises:
            MachineError: The disk is full.
            InputRefusedError: The file does not read back as it was meant; it is removed.
        """
        path = _named(self.target, ".tif")
        pages, axes = _pages(self._labels[:, np.newaxis])
        with whole_files([path, _sidecar(self.target)], self.id) as (part, sidecar):
            _save_tiff(part, pages, axes, self.geometry.spacing_mm)
            self.checks |= _check_tiff(part, pages, axes, self.id)
            write_json(sidecar, self._content([path]), self.id)
        return [path, _sidecar(self.target)]


# ---- TIFF ---------------------------------------------------------------------------------------------------------


def _pages(array: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], str]:
    """Turns (frames, C, X, Y[, Z]) into pages in ImageJ's order TZCYX, axes of length 1 left out, and their letters.

    A volume keeps its Z whatever its length.
    """
    volume = array.ndim == 5
    ordered = array.transpose(0, 4, 1, 3, 2) if volume else array.transpose(0, 1, 3, 2)
    letters = "TZCYX" if volume else "TCYX"
    keep = [axis for axis, letter in enumerate(letters) if letter in "YXZ" or ordered.shape[axis] > 1]
    drop = tuple(axis for axis in range(len(letters)) if axis not in keep)
    return np.ascontiguousarray(ordered.squeeze(drop)), "".join(letters[axis] for axis in keep)


def _save_tiff(part: Path, pages: npt.NDArray[Any], axes: str, spacing_mm: tuple[float, ...] | None) -> None:
    """Writes contiguous pages as an ImageJ hyperstack, or as OME-TIFF where ImageJ has no such type or size."""
    imagej = str(pages.dtype) in _IMAGEJ_DTYPES and pages.nbytes < _IMAGEJ_BYTES and not ("S" in axes and axes != "YXS")
    metadata: dict[str, Any] = {"axes": axes}
    options: dict[str, Any] = {"photometric": "rgb" if "S" in axes else "minisblack"}
    if spacing_mm is not None:
        um = [1e3 * value for value in spacing_mm]
        options["resolution"] = (1.0 / um[0], 1.0 / um[1])
        if imagej:
            metadata |= {"unit": "um"} | ({"spacing": um[2]} if len(um) == 3 else {})
        else:
            for letter, value in zip("XYZ", um, strict=False):
                metadata |= {f"PhysicalSize{letter}": value, f"PhysicalSize{letter}Unit": "\u00b5m"}
    tifffile.imwrite(part, pages, imagej=imagej, ome=not imagej, metadata=metadata, **options)


def _check_tiff(part: Path, pages: npt.NDArray[Any], axes: str, where: str) -> dict[str, Any]:
    with tifffile.TiffFile(part) as file:
        if file.series[0].axes not in (axes, axes.replace("Z", "")):
            raise unlike("axes", where)
        same_values(_TiffVoxels(file), pages.reshape(-1), where)
    return {"readers": ["tifffile"], "axes": axes, "shape": True, "values": True, "passed": True}


class _TiffVoxels:
    """The first series of a TIFF file that is not compressed, as tifffile finds it: voxels in a row, part by part."""

    def __init__(self, file: tifffile.TiffFile) -> None:
        self._file = file
        self._series = file.series[0]
        self.shape = (int(self._series.size),)

    def parts(self) -> Iterator[tuple[Region, npt.NDArray[Any]]]:
        """Yields regions and their voxels."""
        dtype = self._series.dtype.newbyteorder(self._file.byteorder)
        for start in range(0, self.shape[0], SLAB_VOXELS):
            stop = min(start + SLAB_VOXELS, self.shape[0])
            place = self._series.dataoffset + start * dtype.itemsize
            yield (slice(start, stop),), self._file.filehandle.read_array(dtype, stop - start, place)


# ---- images -------------------------------------------------------------------------------------------------------


def _write_volumes(source: ImageSource, target: Path) -> tuple[list[Path], dict[str, Any]]:
    place = NiftiPlace(source)
    files: list[Path] = []
    checks: dict[str, Any] = {}
    for frame in range(source.frames):
        volume = source.read(frame=frame)
        for channel in range(source.channels):
            ending = (f"_t{frame:03d}" if source.frames > 1 else "") + (
                f"_{channel:04d}" if source.channels > 1 else ""
            )
            path = _named(target, f"{ending}.nii.gz")
            array = storable(volume.array[channel])
            with whole_file(path, source.id) as part:
                save_nifti(part, array, place)
                checks[path.name] = check_nifti(part, array, place, source.id)
            files.append(path)
    return files, checks


def _write_picture(source: ImageSource, target: Path) -> tuple[list[Path], dict[str, Any]]:
    frames = np.stack([storable(source.read(frame=frame).array) for frame in range(source.frames)])
    pages, axes = _pages(frames)
    colours = isinstance(source, FileSource) and "S" in source.ref.axes and source.channels == 3
    if colours and axes == "CYX" and pages.dtype == np.uint8:
        pages, axes = np.ascontiguousarray(pages.transpose(1, 2, 0)), "YXS"
    path = _named(target, ".tif")
    with whole_file(path, source.id) as part:
        _save_tiff(part, pages, axes, source.geometry.spacing_mm)
        checks = _check_tiff(part, pages, axes, source.id)
    return [path], {path.name: checks}


def storable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns the values in a type that every reader knows: float64 as float32, 64-bit integers as 32-bit if they fit.

    64-bit integers beyond that become float64, which holds them up to 2**53.
    """
    array = native(array)
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        lowest, highest = int(array.min()), int(array.max())
        if lowest >= -(2**31) and highest < 2**31:
            return array.astype(np.int32)
        return array.astype(np.float64)
    return array
