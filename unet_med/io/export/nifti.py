"""NIfTI out: on the header of a NIfTI source, or on one orthonormal matrix; read back by SimpleITK and nibabel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK

from unet_med.errors import InputRefusedError
from unet_med.geometry import CORNER_TOLERANCE_MM, SHEAR_TOLERANCE, Geometry
from unet_med.io.export.mask import FileVoxels, MaskExport, ReadBack, parts_of
from unet_med.io.export.stamp import stamp
from unet_med.io.itk import array_of
from unet_med.io.nifti import NiftiSource, copy_forms, forms_agree
from unet_med.volume import SLAB_VOXELS, ImageSource, Region, slabs

_NIFTI1_LONGEST = 32767
_ITK_VOXELS = 2**25
_ITK_PARTS = 8
"""SimpleITK reads at least so many voxels at once, and a file in at most so many parts."""

_WORLD = "SimpleITK reads the place of this file by other rules: checked with nibabel alone"


def write(export: MaskExport, path: Path) -> None:
    """Writes a mask as ``.nii.gz``.

    Raises:
        InputRefusedError: The grid is sheared and its source is no NIfTI file: such a mask would be read rotated.
    """
    save_nifti(path, export.labels, NiftiPlace(export.source))


def check(path: Path, export: MaskExport) -> dict[str, Any]:
    """Opens the file with both readers, compares every voxel, and stamps what the one that did not write it finds.

    Both read the file part by part: beside the mask in memory there is never a second one.
    """
    place = NiftiPlace(export.source)
    where = export.source.id
    readers = _readers(path, place)
    record = _compared(readers, export.labels, place, where, [one.index for one in export.measures.values()])
    same_values(readers[0].labels, export.labels, where)
    return record | stamp(export, readers[-1])


class NiftiPlace:
    """Where a NIfTI file lies: the header of its NIfTI source, or one orthonormal matrix."""

    def __init__(self, source: ImageSource) -> None:
        self.header = source.header if isinstance(source, NiftiSource) else None
        self.geometry = source.geometry if self.header is not None else straightened(source.geometry, source.id)

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


def straightened(geometry: Geometry, where: str) -> Geometry:
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


def save_nifti(part: Path, array: npt.NDArray[Any], place: NiftiPlace) -> None:
    """Writes an array (I, J, K) as it is, NIfTI-1 or, for a very long axis, NIfTI-2."""
    kind = nib.Nifti1Image if max(array.shape) <= _NIFTI1_LONGEST else nib.Nifti2Image
    header = kind.header_class()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    place.put_into(header)
    nib.save(kind(array, None, header), part)


def check_nifti(part: Path, array: npt.NDArray[Any], place: NiftiPlace, where: str) -> dict[str, Any]:
    """Re-opens the file of an image with both readers and compares every voxel; returns what was found."""
    readers = _readers(part, place)
    record = _compared(readers, array, place, where, None)
    for one in readers:
        same_values(one.labels, array, where)
    return record


def _readers(path: Path, place: NiftiPlace) -> list[ReadBack]:
    """Returns the file as nibabel finds it, and as SimpleITK does where the two agree about places."""
    files: dict[str, _NibabelFile | ItkFile] = {"nibabel": _NibabelFile(path)}
    if place.itk_agrees:
        files["SimpleITK"] = ItkFile(path)
    return [ReadBack(name, file, file.geometry) for name, file in files.items()]


def _compared(
    readers: Sequence[ReadBack],
    array: npt.NDArray[Any],
    place: NiftiPlace,
    where: str,
    centroids: Sequence[npt.NDArray[np.float64]] | None,
) -> dict[str, Any]:
    """Compares shape, corners and labels' centroids; returns the record of a file whose voxels are the same, too."""
    checks: dict[str, Any] = {"readers": [one.reader for one in readers], "corner_mm": 0.0}
    if centroids is not None:
        checks["centroid_mm"] = 0.0
    if len(readers) == 1:
        checks["note"] = _WORLD
    for one in readers:
        if one.labels.shape != array.shape:
            raise unlike("shape", where)
        _same_place(checks, one.geometry, place.geometry, centroids or (), where)
    return checks | {"shape": True, "values": True, "passed": True}


class _NibabelFile:
    """A file as nibabel reads it: its grid, and its voxels from the first to the last."""

    def __init__(self, path: Path) -> None:
        self._image = nib.load(path, keep_file_open=True)
        self.shape: tuple[int, ...] = self._image.shape
        affine = np.array(self._image.affine, dtype=np.float64)
        affine[:3] *= {"micron": 1e-3, "meter": 1e3}.get(self._image.header.get_xyzt_units()[0], 1.0)
        self.geometry = Geometry(self.shape, affine)

    def parts(self) -> Iterator[tuple[Region, npt.NDArray[Any]]]:
        """Yields regions and their voxels; a compressed file is unpacked once."""
        for region in _planes(self.shape, max(1, SLAB_VOXELS // (self.shape[0] * self.shape[1]))):
            yield region, np.asanyarray(self._image.dataobj[region])


class ItkFile:
    """A file as SimpleITK reads it: its grid, and its voxels part by part.

    SimpleITK unpacks a compressed file again from its beginning for every part: so parts are large, and few.

    Args:
        path: The file.
        whole: Read it at once: SimpleITK does so with NRRD whatever part is asked for.
    """

    def __init__(self, path: Path, *, whole: bool = False) -> None:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
        self._whole = whole
        self._reader = SimpleITK.ImageFileReader()
        self._reader.SetFileName(str(path))
        self._reader.ReadImageInformation()
        self.shape: tuple[int, ...] = tuple(int(n) for n in self._reader.GetSize())
        affine = np.eye(4)
        affine[:3, :3] = np.array(self._reader.GetDirection()).reshape(3, 3) * np.array(self._reader.GetSpacing())
        affine[:3, 3] = self._reader.GetOrigin()
        self.geometry = Geometry.from_lps(self.shape, affine)

    def parts(self) -> Iterator[tuple[Region, npt.NDArray[Any]]]:
        """Yields regions and their voxels."""
        planes = self.shape[2]
        if not self._whole:
            planes = max(_ITK_VOXELS // (self.shape[0] * self.shape[1]), -(-planes // _ITK_PARTS), 1)
        for part in _planes(self.shape, planes):
            self._reader.SetExtractIndex([along.start for along in part])
            self._reader.SetExtractSize([along.stop - along.start for along in part])
            values = array_of(self._reader.Execute()).transpose(2, 1, 0)
            for region in slabs(values):
                first, last = region[2].start + part[2].start, region[2].stop + part[2].start
                yield (*region[:2], slice(first, last)), values[region].copy()
            del values  # before the next part is read: whoever takes the parts holds copies


def _planes(shape: tuple[int, ...], planes: int) -> Iterator[Region]:
    """Yields regions of so many whole planes, from the first to the last."""
    for start in range(0, shape[2], planes):
        yield slice(0, shape[0]), slice(0, shape[1]), slice(start, min(start + planes, shape[2]))


def same_values(found: npt.NDArray[Any] | FileVoxels, meant: npt.NDArray[Any], where: str) -> None:
    """Raises InputRefusedError when two arrays are not the same in shape and every value."""
    nan = meant.dtype.kind == "f"
    if found.shape != meant.shape or not all(
        np.array_equal(values, meant[region], equal_nan=nan) for region, values in parts_of(found)
    ):
        raise unlike("voxels", where)


def _same_place(
    checks: dict[str, Any],
    grid: Geometry,
    meant: Geometry,
    centroids: Sequence[npt.NDArray[np.float64]],
    where: str,
) -> None:
    """Compares corners and the labels' centroids in mm, as if the voxels were the same."""
    tolerance = _tolerance(meant)
    corner = float(np.abs(grid.corners() - meant.corners()).max())
    if corner > tolerance:
        raise unlike("corners", where)
    checks["corner_mm"] = max(checks["corner_mm"], round(corner, 7))
    for index in centroids:
        apart = float(np.abs(grid.to_world(index) - meant.to_world(index)).max())
        if apart > tolerance:
            raise unlike("label centroids", where)
        checks["centroid_mm"] = max(checks["centroid_mm"], round(apart, 7))


def _tolerance(geometry: Geometry) -> float:
    """1e-3 mm; less for voxels of micrometres, and never below what a float32 header can hold."""
    finest = min(geometry.spacing_mm or (1.0,))
    return max(min(CORNER_TOLERANCE_MM, 0.05 * finest), 1e-6 * float(np.abs(geometry.corners()).max()))


def unlike(what: str, where: str) -> InputRefusedError:
    """Returns the error for a file that does not say what was written."""
    return InputRefusedError(
        f"the written file does not read back as it was meant ({what} differ)",
        where,
        "the file was removed; report this together with `unet-med scan --json`",
    )
