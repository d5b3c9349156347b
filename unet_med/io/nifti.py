"""NIfTI in: ``.nii`` and ``.nii.gz``.

Voxels are read as stored; where the header scales them (``scl_slope``, ``scl_inter``) real values come as float32.
Space follows the header as nibabel reads it: sform, else qform, else the pixel sizes alone, each said in a note when
it is not the ordinary case. Positions come in mm whatever ``xyzt_units`` says.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import Opener
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from unet_med.errors import InputRefusedError
from unet_med.geometry import SHEAR_TOLERANCE, Geometry
from unet_med.io.reading import (
    COPY_FILE_AGAIN,
    FileSource,
    check_frame,
    native,
    native_dtype,
    provisional_id,
    refused_ref,
    refusing,
    whole,
)
from unet_med.io.source import IntakeOptions, SourceRef
from unet_med.volume import Region, Volume

_MM_PER_UNIT = {"unknown": 1.0, "mm": 1.0, "micron": 1e-3, "meter": 1e3}
_LETTERS = "IJKTUVW"
_DAMAGED = "the NIfTI file is damaged or truncated"
_NOTED_DIFFERENCE = 0.01
"""Difference of qform and sform, in voxels, that is worth a note."""

_GZIP_RATIO = 1100
"""Gzip packs at most about 1030 bytes into one."""

_BLOCK_BYTES = 2**20
_CACHE_BYTES = 2 * 2**30
_DECODER_FAULTS = (ImageFileError, HeaderDataError, WrapStructError, zlib.error)


def inspect_nifti(path: Path, options: IntakeOptions = IntakeOptions()) -> list[SourceRef]:  # noqa: B008
    """Returns the one source of a NIfTI file from its header; unusable with a reason where it is refused."""
    axes = ""
    shape: tuple[int, ...] = ()
    try:
        with refusing(_DAMAGED, "", COPY_FILE_AGAIN, *_DECODER_FAULTS):
            image = _open(path)
            shape = tuple(int(n) for n in image.shape)
            axes = _LETTERS[: len(shape)]
            grid = _grid_shape(shape)
            _check_values(image)
            _check_complete(path, image)
            geometry, notes = _place(image, grid)
    except InputRefusedError as error:
        return [refused_ref(path, "nifti", error, axes=axes, shape=shape)]
    return [
        SourceRef(
            id=provisional_id(path),
            kind="nifti",
            files=(path,),
            axes="IJK",
            shape=grid,
            geometry=geometry,
            dtype=_value_dtype(image),
            notes=tuple(notes),
        )
    ]


@dataclass(frozen=True)
class NiftiSource(FileSource):
    """A NIfTI image; one channel, one frame.

    Regions of an uncompressed file are read from disk alone. A compressed one is unpacked on the first region and
    kept (up to 2 GiB).
    """

    _cache: dict[str, npt.NDArray[Any]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def header(self) -> nib.Nifti1Header:
        """The file's own header, for masks that carry its forms and codes."""
        with refusing(_DAMAGED, self.id, COPY_FILE_AGAIN, *_DECODER_FAULTS):
            return _open(self.ref.files[0]).header

    def read(self, region: Region | None = None, frame: int = 0) -> Volume:
        """Returns (1, I, J, K) real values.

        Raises:
            InputRefusedError: The file is truncated or damaged.
        """
        check_frame(frame, 1, self.id)
        bounds = whole(region, self.geometry)
        with refusing(_DAMAGED, self.id, COPY_FILE_AGAIN, *_DECODER_FAULTS):
            image = _open(self.ref.files[0])
            slope, inter = image.dataobj.slope, image.dataobj.inter
            if region is None:
                values = _read_all(self.ref.files[0], image, self.geometry.shape, slope, inter)
            else:
                values = _scaled(self._stored(image, bounds), slope, inter)
        return Volume(values[np.newaxis], self.geometry.crop(bounds))

    def _stored(self, image: nib.Nifti1Image, bounds: Region) -> npt.NDArray[Any]:
        path, shape = self.ref.files[0], self.geometry.shape
        packed = path.name.lower().endswith(".gz")
        if not packed or image.dataobj.dtype.itemsize * int(np.prod(shape)) > _CACHE_BYTES:
            return np.asarray(_unscaled(path, image, shape)[bounds])
        if "stored" not in self._cache:
            self._cache["stored"] = _read_all(path, image, shape)
        return self._cache["stored"][bounds]


def _open(path: Path) -> nib.Nifti1Image:
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):
        raise InputRefusedError(
            f"the file is of a kind that is no volume ({type(image).__name__})", remedy="give a plain NIfTI volume"
        )
    return image


def _unscaled(path: Path, image: nib.Nifti1Image, shape: tuple[int, ...]) -> ArrayProxy:
    """Returns the stored values as an array that is read when it is sliced."""
    spec = (shape, image.dataobj.dtype, image.dataobj.offset, 1.0, 0.0)
    return ArrayProxy(path, spec, mmap=False)


def _read_all(
    path: Path, image: nib.Nifti1Image, shape: tuple[int, ...], slope: float = 1.0, inter: float = 0.0
) -> npt.NDArray[Any]:
    """Returns all values in this machine's byte order, read slice by slice into the one array that holds them.

    nibabel unpacks the whole of a compressed file into bytes first: twice the memory and more of the time.
    """
    stored = image.dataobj.dtype
    values = np.empty(shape, dtype=stored.newbyteorder("=") if _is_identity(slope, inter) else np.float32, order="F")
    as_stored = values.dtype == stored
    part = np.empty(shape[:-1], dtype=stored, order="F")
    with Opener(path) as file:
        file.seek(image.dataobj.offset)
        for k in range(shape[-1]):
            plane = values[..., k] if as_stored else part
            _fill(file, plane)
            if not as_stored:
                values[..., k] = _scaled(part, slope, inter)
    return values


def _fill(file: Opener, plane: npt.NDArray[Any]) -> None:
    """Reads as many bytes as a plane holds, in the order of its memory.

    Raises:
        EOFError: The file ends early.
    """
    left = plane.T.reshape(-1).view(np.uint8).data
    while len(left):
        count = file.readinto(left)
        if not count:
            raise EOFError
        left = left[count:]


def _scaled(stored: npt.NDArray[Any], slope: float, inter: float) -> npt.NDArray[Any]:
    """Applies slope and intercept, computed in float64 one slice at a time, returned as float32."""
    if _is_identity(slope, inter):
        return native(stored)
    real = np.empty(stored.shape, dtype=np.float32, order="F")
    for k in range(stored.shape[-1]):
        real[..., k] = stored[..., k].astype(np.float64) * slope + inter
    return real


def _is_identity(slope: float, inter: float) -> bool:
    return slope == 1.0 and inter == 0.0


def _value_dtype(image: nib.Nifti1Image) -> str:
    return native_dtype(image.dataobj.dtype) if _is_identity(image.dataobj.slope, image.dataobj.inter) else "float32"


def _grid_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns (I, J, K); trailing axes of length 1 are dropped, a picture gets one slice."""
    if not 2 <= len(shape) <= len(_LETTERS) or min(shape) < 1:
        raise InputRefusedError(f"the NIfTI file has the shape {shape}, no volume", remedy="give a volume of 3 axes")
    if any(n > 1 for n in shape[3:]):
        raise InputRefusedError(
            f"the NIfTI file has {sum(n > 1 for n in shape)} axes ({' x '.join(map(str, shape))}): it holds several "
            "volumes (time points, directions or channels)",
            remedy="split it into one file for each volume first, for example with nibabel's `nib-split` or fslsplit; "
            "channels of one case are named CASE_0000.nii.gz, CASE_0001.nii.gz",
        )
    full = (*shape, 1)[:3]
    return full[0], full[1], full[2]


def _check_values(image: nib.Nifti1Image) -> None:
    dtype = image.dataobj.dtype
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        kind = "colours (RGB)" if dtype.names else f"values of type {dtype.name}"
        raise InputRefusedError(f"the NIfTI file holds {kind}", remedy="save it with one real number for each voxel")


def _check_complete(path: Path, image: nib.Nifti1Image) -> None:
    """Compares what the header promises with what is there, without reading voxels."""
    expected = int(image.dataobj.offset) + int(np.prod(image.shape, dtype=object)) * image.dataobj.dtype.itemsize
    packed = path.name.lower().endswith(".gz")
    present = _unpacked_size(path, expected) if packed else path.stat().st_size
    if present < expected:
        raise InputRefusedError(
            f"the NIfTI file is truncated: {present} of {expected} bytes are there", remedy=COPY_FILE_AGAIN
        )


def _unpacked_size(path: Path, expected: int) -> int:
    """Returns the number of bytes in a gzip file: from its trailer when that agrees, else by unpacking.

    Raises:
        InputRefusedError: The compressed data end early or are damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(-4, 2)
        trailer = int.from_bytes(file.read(4), "little")
    if trailer == expected % 2**32 and size * _GZIP_RATIO > expected:
        return expected
    present = 0
    try:
        with gzip.open(path, "rb") as packed:
            while block := packed.read(_BLOCK_BYTES):
                present += len(block)
    except (EOFError, OSError, zlib.error) as error:
        raise InputRefusedError(
            f"the NIfTI file is truncated or damaged: its compressed data break off ({size} bytes are there)",
            remedy=COPY_FILE_AGAIN,
        ) from error
    return present


def _place(image: nib.Nifti1Image, grid: tuple[int, int, int]) -> tuple[Geometry, list[str]]:
    """Returns the grid in mm and what is unusual about it."""
    header = image.header
    unit = header.get_xyzt_units()[0]
    affine = np.array(header.get_best_affine(), dtype=np.float64)
    affine[:3] *= _MM_PER_UNIT.get(unit, 1.0)
    geometry = Geometry(grid, affine)
    notes = []
    if unit in ("micron", "meter"):
        notes.append(f"positions stored in {unit}, read in mm")
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        notes.append("no orientation in the header (sform and qform codes are 0): placed by its voxel sizes alone")
    if geometry.shear > SHEAR_TOLERANCE:
        notes.append(f"the grid is sheared (largest cosine between axes {geometry.shear:.4f}): read by its sform")
    elif not forms_agree(header, grid, _NOTED_DIFFERENCE * min(geometry.spacing_mm or (1.0,))):
        notes.append("qform and sform differ: read by its sform")
    return geometry, notes


def forms_agree(header: nib.Nifti1Header, grid: tuple[int, ...], tolerance_mm: float) -> bool:
    """Whether sform and qform, where both are set, place every corner within ``tolerance_mm`` of each other."""
    if int(header["sform_code"]) == 0 or int(header["qform_code"]) == 0:
        return True
    try:
        first, second = Geometry(grid, header.get_qform()), Geometry(grid, header.get_sform())
    except (HeaderDataError, InputRefusedError, ValueError, np.linalg.LinAlgError):
        return False
    scale = _MM_PER_UNIT.get(header.get_xyzt_units()[0], 1.0)
    return bool(np.abs(first.corners() - second.corners()).max() * scale <= tolerance_mm)


_FORM_FIELDS = (
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
)


def copy_forms(source: nib.Nifti1Header, target: nib.Nifti1Header) -> None:
    """Copies the place of a NIfTI file unchanged: forms, codes, voxel sizes and units; no text of the header."""
    for name in _FORM_FIELDS:
        target[name] = source[name]
    pixdim = np.ones(8, dtype=np.float64)
    pixdim[:4] = source["pixdim"][:4]
    target["pixdim"] = pixdim
    target.set_xyzt_units(xyz=source.get_xyzt_units()[0])
