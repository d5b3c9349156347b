"""NIfTI out: on the header of a NIfTI source, or on one orthonormal matrix; read back by SimpleITK and nibabel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK

from unet_med.errors import InputRefusedError
from unet_med.geometry import CORNER_TOLERANCE_MM, SHEAR_TOLERANCE, Geometry
from unet_med.io.export.mask import MaskExport, ReadBack
from unet_med.io.export.measure import label_centroids
from unet_med.io.export.stamp import stamp
from unet_med.io.nifti import NiftiSource, copy_forms, forms_agree
from unet_med.volume import ImageSource

_NIFTI1_LONGEST = 32767
_WORLD = "SimpleITK reads the place of this file by other rules: checked with nibabel alone"


def write(export: MaskExport, path: Path) -> None:
    """Writes a mask as ``.nii.gz``.

    Raises:
        InputRefusedError: The grid is sheared and its source is no NIfTI file: such a mask would be read rotated.
    """
    save_nifti(path, export.labels, NiftiPlace(export.source))


def check(path: Path, export: MaskExport) -> dict[str, Any]:
    """Opens the file with both readers, compares every voxel, and stamps what the one that did not write it found."""
    place = NiftiPlace(export.source)
    record, found = _compare(path, export.labels, place, export.source.id, centroids=True)
    return record | stamp(export, found)


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


def check_nifti(
    part: Path, array: npt.NDArray[Any], place: NiftiPlace, where: str, *, centroids: bool
) -> dict[str, Any]:
    """Re-opens the file with both readers and compares; returns what was found."""
    return _compare(part, array, place, where, centroids=centroids)[0]


def _compare(
    part: Path, array: npt.NDArray[Any], place: NiftiPlace, where: str, *, centroids: bool
) -> tuple[dict[str, Any], ReadBack]:
    """Returns the record of the comparison, and what SimpleITK read (nibabel, where the two differ about places)."""
    checks: dict[str, Any] = {"readers": [], "corner_mm": 0.0}
    expected = label_centroids(array) if centroids else {}
    if centroids:
        checks["centroid_mm"] = 0.0
    readers = {"nibabel": _by_nibabel}
    if place.itk_agrees:
        readers["SimpleITK"] = read_by_itk
    else:
        checks["note"] = _WORLD
    for name, reader in readers.items():
        values, grid = reader(part)
        same_values(values, array, where)
        _same_place(checks, grid, place.geometry, expected, where)
        checks["readers"].append(name)
    checks["shape"] = checks["values"] = checks["passed"] = True
    return checks, ReadBack(name, values, grid)


def _by_nibabel(path: Path) -> tuple[npt.NDArray[Any], Geometry]:
    image = nib.load(path)
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= {"micron": 1e-3, "meter": 1e3}.get(image.header.get_xyzt_units()[0], 1.0)
    return np.asanyarray(image.dataobj), Geometry(image.shape, affine)


def read_by_itk(path: Path) -> tuple[npt.NDArray[Any], Geometry]:
    """Returns values (I, J, K) and grid of a file as SimpleITK reads them."""
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    image = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    array = np.array(SimpleITK.GetArrayViewFromImage(image)).transpose(2, 1, 0)
    return array, Geometry.from_lps(array.shape, affine)


def same_values(found: npt.NDArray[Any], meant: npt.NDArray[Any], where: str) -> None:
    """Raises InputRefusedError when two arrays are not the same in shape and every value."""
    if found.shape != meant.shape or not np.array_equal(found, meant, equal_nan=meant.dtype.kind == "f"):
        raise unlike("voxels", where)


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
        raise unlike("corners", where)
    checks["corner_mm"] = max(checks["corner_mm"], round(corner, 7))
    for index in centroids.values():
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
