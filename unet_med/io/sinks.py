"""Masks and images out: NIfTI where there is a place in space, ImageJ-readable TIFF elsewhere; read back before shown.

A volume with a place becomes ``TARGET.nii.gz`` on exactly its source's grid. From a NIfTI source the header's forms,
codes and units are carried unchanged (and no text of it); from everything else qform and sform are the same
orthonormal matrix with code 1, in mm. Pictures, uncalibrated volumes and multi-frame sources become ``TARGET.tif``.
Beside each lies ``TARGET.json``: labels, provenance and the result of the check.

The check: the finished file is opened again, before it gets its name, by SimpleITK and nibabel (TIFF: by tifffile);
shape, corners (1e-3 mm), every value and each label's centroid must be what was meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK
import tifffile

from unet_med.errors import InputRefusedError
from unet_med.geometry import CORNER_TOLERANCE_MM, SHEAR_TOLERANCE, Geometry
from unet_med.io.atomic import whole_file, write_json
from unet_med.io.export.measure import label_centroids
from unet_med.io.nifti import NiftiSource, copy_forms, forms_agree
from unet_med.io.reading import FileSource, native, whole
from unet_med.labels import LabelMap
from unet_med.version import __version__
from unet_med.volume import ImageSource, MaskSink, Region

RESEARCH_ONLY = "Research use only"

_IMAGEJ_DTYPES = ("uint8", "uint16", "float32")
_IMAGEJ_BYTES = 3 * 2**30
"""ImageJ's format ends at 4 GiB; beyond this the file is an OME-TIFF."""

_NIFTI1_LONGEST = 32767
_WORLD = "SimpleITK reads the place of this file by other rules: checked with nibabel alone"


def open_mask_sink(
    source: ImageSource, target: Path, labels: LabelMap, provenance: Mapping[str, Any] | None = None
) -> MaskSink:
    """Returns where the mask of ``source`` is written.

    Args:
        source: Gives the grid, and for NIfTI the header's forms.
        target: Output without suffix, for example ``OUT/case1``.
        labels: What the values mean; more than 255 labels make uint16.
        provenance: JSON-able; goes into the sidecar as it is.

    Raises:
        InputRefusedError: The grid is sheared and its source is no NIfTI file: such a mask would be read rotated.
    """
    if _is_volume(source):
        return NiftiMaskSink(source, target, labels, provenance)
    return TiffMaskSink(source, target, labels, provenance)


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
    content = _about(target.name, "image", source.geometry, files, provenance, checks)
    write_json(sidecar, content, source.id)
    return [*files, sidecar], checks


def _is_volume(source: ImageSource) -> bool:
    return source.geometry.ndim == 3 and source.geometry.is_calibrated and source.frames == 1


def _named(target: Path, ending: str) -> Path:
    return target.with_name(target.name + ending)


def _sidecar(target: Path) -> Path:
    return _named(target, ".json")


def _about(
    name: str,
    kind: str,
    geometry: Geometry,
    files: list[Path],
    provenance: Mapping[str, Any] | None,
    checks: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the content of a sidecar."""
    spacing = geometry.spacing_mm
    return {
        "id": name,
        "kind": kind,
        "use": RESEARCH_ONLY,
        "tool": "unet-med",
        "version": __version__,
        "files": [file.name for file in files],
        "shape": list(geometry.shape),
        "spacing_mm": None if spacing is None else list(spacing),
        "affine": None if geometry.affine_4x4 is None else geometry.affine_4x4.tolist(),
        "provenance": dict(provenance or {}),
        "checks": dict(checks),
    }


# ---- masks --------------------------------------------------------------------------------------------------------


class _FileMaskSink:
    """Collects labels in memory (one byte for each voxel) and writes them on close."""

    ending = ""

    def __init__(
        self, source: ImageSource, target: Path, labels: LabelMap, provenance: Mapping[str, Any] | None
    ) -> None:
        self.id = source.id
        self.geometry = source.geometry
        self.target = target
        self.label_map = labels
        self.provenance = provenance
        self.checks: dict[str, Any] = {}
        dtype = np.uint8 if len(labels.labels) < 256 else np.uint16
        shape = source.geometry.shape  # in memory as in the file: the first axis runs fastest
        fastest_last = np.zeros((source.frames, *shape[::-1]), dtype=dtype)
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

    def close(self) -> list[Path]:
        """Writes, reads back, checks and renames; returns the mask and its sidecar.

        Raises:
            MachineError: The disk is full.
            InputRefusedError: The file does not read back as it was meant; it is removed.
        """
        path = _named(self.target, self.ending)
        with whole_file(path, self.id) as part:
            self._save(part)
            self.checks.update(self._check(part))
        sidecar = _sidecar(self.target)
        content = _about(self.target.name, "mask", self.geometry, [path], self.provenance, self.checks)
        content["labels"] = [
            {"value": label.index, "name": label.name, "colour": list(label.colour)} for label in self.label_map.labels
        ]
        write_json(sidecar, content, self.id)
        return [path, sidecar]

    def abort(self) -> None:
        """Forgets what was written; nothing of it was visible."""
        self._labels = np.zeros((0,), dtype=np.uint8)

    def _save(self, part: Path) -> None:
        raise NotImplementedError

    def _check(self, part: Path) -> dict[str, Any]:
        raise NotImplementedError


class NiftiMaskSink(_FileMaskSink):
    """The mask of one volume as ``.nii.gz``."""

    ending = ".nii.gz"

    def __init__(
        self, source: ImageSource, target: Path, labels: LabelMap, provenance: Mapping[str, Any] | None
    ) -> None:
        super().__init__(source, target, labels, provenance)
        self._place = _Place(source)

    def _save(self, part: Path) -> None:
        _save_nifti(part, self._labels[0], self._place)

    def _check(self, part: Path) -> dict[str, Any]:
        return _check_nifti(part, self._labels[0], self._place, self.id, centroids=True)


class TiffMaskSink(_FileMaskSink):
    """The mask of a picture, an uncalibrated volume or several frames as label TIFF (YX, ZYX, TYX or TZYX)."""

    ending = ".tif"

    def _save(self, part: Path) -> None:
        _save_tiff(part, *_pages(self._labels[:, np.newaxis]), self.geometry.spacing_mm)

    def _check(self, part: Path) -> dict[str, Any]:
        return _check_tiff(part, *_pages(self._labels[:, np.newaxis]), self.id)


# ---- NIfTI --------------------------------------------------------------------------------------------------------


class _Place:
    """Where a NIfTI file lies: the header of its NIfTI source, or one orthonormal matrix."""

    def __init__(self, source: ImageSource) -> None:
        self.header = source.header if isinstance(source, NiftiSource) else None
        self.geometry = source.geometry if self.header is not None else _straightened(source.geometry, source.id)

    @property
    def itk_agrees(self) -> bool:
        """Whether SimpleITK places such a file as nibabel does."""
        if self.header is None:
            return True
        return (
            self.geometry.shear <= SHEAR_TOLERANCE
            and max(int(self.header["sform_code"]), int(self.header["qform_code"])) > 0
            and self.header.get_xyzt_units()[0] in ("unknown", "mm")
            and forms_agree(self.header, self.geometry.shape, 0.5 * CORNER_TOLERANCE_MM)
        )

    def put_into(self, header: nib.Nifti1Header) -> None:
        """Writes the place into the header of a new file."""
        if self.header is not None:
            copy_forms(self.header, header)
            return
        header.set_qform(self.geometry.affine, code=1)
        header.set_sform(self.geometry.affine, code=1)
        header.set_xyzt_units(xyz="mm")


def _straightened(geometry: Geometry, where: str) -> Geometry:
    """Returns the rectangular grid nearest to ``geometry``, the same centre; refuses real shear."""
    if geometry.affine is None:
        return geometry
    if geometry.shear > SHEAR_TOLERANCE:
        raise InputRefusedError(
            f"the grid is sheared (largest cosine between axes {geometry.shear:.4f})",
            where,
            "regrid the image first (for a tilted CT: --untilt)",
        )
    spacing = np.linalg.norm(geometry.affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(geometry.affine[:3, :3] / spacing)
    affine = geometry.affine.copy()
    affine[:3, :3] = (left @ right) * spacing
    centre = (np.array(geometry.shape) - 1) / 2.0
    affine[:3, 3] = geometry.to_world(centre) - affine[:3, :3] @ centre
    return Geometry(geometry.shape, affine)


def _save_nifti(part: Path, array: npt.NDArray[Any], place: _Place) -> None:
    kind = nib.Nifti1Image if max(array.shape) <= _NIFTI1_LONGEST else nib.Nifti2Image
    header = kind.header_class()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    place.put_into(header)
    nib.save(kind(array, None, header), part)


def _check_nifti(part: Path, array: npt.NDArray[Any], place: _Place, where: str, *, centroids: bool) -> dict[str, Any]:
    """Re-opens the file with both readers and compares; returns what was found."""
    checks: dict[str, Any] = {"readers": [], "corner_mm": 0.0}
    expected = label_centroids(array) if centroids else {}
    if centroids:
        checks["centroid_mm"] = 0.0
    readers = {"nibabel": _by_nibabel}
    if place.itk_agrees:
        readers["SimpleITK"] = _by_itk
    else:
        checks["note"] = _WORLD
    for name, reader in readers.items():
        values, grid = reader(part)
        _same_values(values, array, where)
        _same_place(checks, grid, place.geometry, expected, where)
        checks["readers"].append(name)
    checks["shape"] = checks["values"] = checks["passed"] = True
    return checks


def _by_nibabel(path: Path) -> tuple[npt.NDArray[Any], Geometry]:
    image = nib.load(path)
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= {"micron": 1e-3, "meter": 1e3}.get(image.header.get_xyzt_units()[0], 1.0)
    return np.asanyarray(image.dataobj), Geometry(image.shape, affine)


def _by_itk(path: Path) -> tuple[npt.NDArray[Any], Geometry]:
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    image = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    array = np.array(SimpleITK.GetArrayViewFromImage(image)).transpose(2, 1, 0)
    return array, Geometry.from_lps(array.shape, affine)


def _same_values(found: npt.NDArray[Any], meant: npt.NDArray[Any], where: str) -> None:
    if found.shape != meant.shape or not np.array_equal(found, meant, equal_nan=meant.dtype.kind == "f"):
        raise _wrong("voxels", where)


def _same_place(
    checks: dict[str, Any],
    grid: Geometry,
    meant: Geometry,
    centroids: Mapping[int, npt.NDArray[np.float64]],
    where: str,
) -> None:
    """Compares corners and the labels' centroids in mm; the voxels are known to be the same by then."""
    tolerance = _tolerance(meant)
    corner = float(np.abs(grid.corners() - meant.corners()).max())
    if corner > tolerance:
        raise _wrong("corners", where)
    checks["corner_mm"] = max(checks["corner_mm"], round(corner, 7))
    for index in centroids.values():
        apart = float(np.abs(grid.to_world(index) - meant.to_world(index)).max())
        if apart > tolerance:
            raise _wrong("label centroids", where)
        checks["centroid_mm"] = max(checks["centroid_mm"], round(apart, 7))


def _tolerance(geometry: Geometry) -> float:
    """1e-3 mm; less for voxels of micrometres, and never below what a float32 header can hold."""
    finest = min(geometry.spacing_mm or (1.0,))
    return max(min(CORNER_TOLERANCE_MM, 0.05 * finest), 1e-6 * float(np.abs(geometry.corners()).max()))


def _wrong(what: str, where: str) -> InputRefusedError:
    return InputRefusedError(
        f"the written file does not read back as it was meant ({what} differ)",
        where,
        "the file was removed; report this together with `unet-med scan --json`",
    )


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
    return ordered.squeeze(drop), "".join(letters[axis] for axis in keep)


def _save_tiff(part: Path, pages: npt.NDArray[Any], axes: str, spacing_mm: tuple[float, ...] | None) -> None:
    """Writes an ImageJ hyperstack, or an OME-TIFF where ImageJ's own format has no such type or size."""
    pages = np.ascontiguousarray(pages)
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
        series = file.series[0]
        found = series.asarray()
        letters = series.axes
    if letters != axes.replace("Z", "") and letters != axes:
        raise _wrong("axes", where)
    _same_values(found.reshape(pages.shape), pages, where)
    return {"readers": ["tifffile"], "axes": axes, "shape": True, "values": True, "passed": True}


# ---- images -------------------------------------------------------------------------------------------------------


def _write_volumes(source: ImageSource, target: Path) -> tuple[list[Path], dict[str, Any]]:
    place = _Place(source)
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
                _save_nifti(part, array, place)
                checks[path.name] = _check_nifti(part, array, place, source.id, centroids=False)
            files.append(path)
    return files, checks


def _write_picture(source: ImageSource, target: Path) -> tuple[list[Path], dict[str, Any]]:
    frames = np.stack([storable(source.read(frame=frame).array) for frame in range(source.frames)])
    pages, axes = _pages(frames)
    colours = isinstance(source, FileSource) and "S" in source.ref.axes and source.channels == 3
    if colours and axes == "CYX" and pages.dtype == np.uint8:
        pages, axes = pages.transpose(1, 2, 0), "YXS"
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
