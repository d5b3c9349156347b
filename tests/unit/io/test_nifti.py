"""NIfTI in: exact voxels, an exact place, and a reason for what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from allocations import peak_bytes

from unet_med.errors import InputRefusedError
from unet_med.io.nifti import NiftiSource, inspect_nifti
from unet_med.io.source import SourceRef

AFFINE = np.array([[-0.5, 0, 0, 10], [0, 0.75, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1.0]])


def _save(path: Path, array: np.ndarray, affine: np.ndarray | None = AFFINE, **header: object) -> Path:
    image = nib.Nifti1Image(array, affine)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def _one(path: Path) -> SourceRef:
    (ref,) = inspect_nifti(path)
    return ref


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_voxels_and_place_are_those_stored(tmp_path: Path, suffix: str, dtype: str) -> None:
    array = (np.arange(4 * 5 * 6).reshape(4, 5, 6) * 2).astype(dtype)
    ref = _one(_save(tmp_path / f"a{suffix}", array))
    assert (ref.id, ref.kind, ref.axes, ref.shape, ref.usable, ref.dtype) == (
        "a",
        "nifti",
        "IJK",
        (4, 5, 6),
        True,
        dtype,
    )
    volume = NiftiSource(ref).read()
    assert volume.array.dtype == dtype
    np.testing.assert_array_equal(volume.array[0], array)
    np.testing.assert_allclose(volume.geometry.affine, AFFINE)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_regions_are_parts_of_the_whole(tmp_path: Path, suffix: str) -> None:
    array = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    source = NiftiSource(_one(_save(tmp_path / f"a{suffix}", array)))
    for region in [(slice(1, 3), slice(None), slice(4, 6)), (slice(0, 1), slice(2, 3), slice(0, 6))]:
        part = source.read(region)
        np.testing.assert_array_equal(part.array[0], array[region])
        starts = [piece.start or 0 for piece in region]
        np.testing.assert_allclose(part.geometry.to_world([0, 0, 0]), source.geometry.to_world(starts))
    with pytest.raises(InputRefusedError):
        source.read(frame=1)


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), AFFINE)
    image.header.set_slope_inter(0.5, -1024)
    nib.save(image, tmp_path / "a.nii.gz")
    expected = nib.load(tmp_path / "a.nii.gz").get_fdata()
    ref = _one(tmp_path / "a.nii.gz")
    volume = NiftiSource(ref).read()
    assert ref.dtype == volume.array.dtype == "float32"
    np.testing.assert_allclose(volume.array[0], expected)
    np.testing.assert_allclose(NiftiSource(ref).read((slice(0, 1),) * 3).array[0], expected[:1, :1, :1])


def test_big_endian_files_are_read(tmp_path: Path) -> None:
    array = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    nib.save(nib.Nifti1Image(array, AFFINE, header), tmp_path / "a.nii")
    volume = NiftiSource(_one(tmp_path / "a.nii")).read()
    assert volume.array.dtype.isnative
    np.testing.assert_array_equal(volume.array[0], array)


def test_trailing_axes_of_length_one_are_dropped_and_a_picture_is_one_slice(tmp_path: Path) -> None:
    ref = _one(_save(tmp_path / "a.nii", np.zeros((4, 5, 6, 1, 1), np.uint8)))
    assert (ref.axes, ref.shape) == ("IJK", (4, 5, 6))
    array = np.arange(20, dtype=np.uint8).reshape(4, 5)
    ref = _one(_save(tmp_path / "b.nii", array))
    assert (ref.axes, ref.shape) == ("IJK", (4, 5, 1))
    np.testing.assert_array_equal(NiftiSource(ref).read().array[0, :, :, 0], array)


@pytest.mark.parametrize("shape", [(4, 5, 6, 2), (4, 5, 1, 7), (4, 5, 6, 1, 3)])
def test_several_volumes_in_one_file_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    ref = _one(_save(tmp_path / "a.nii.gz", np.zeros(shape, np.uint8)))
    assert not ref.usable
    assert "several volumes" in ref.reason
    assert "split" in ref.reason
    assert ref.shape == shape
    with pytest.raises(InputRefusedError):
        NiftiSource(ref)


def test_colours_are_refused(tmp_path: Path) -> None:
    rgb = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "colours" in _one(_save(tmp_path / "a.nii", rgb)).reason
    complex_numbers = np.zeros((4, 5, 6), dtype=np.complex64)
    assert "complex64" in _one(_save(tmp_path / "b.nii", complex_numbers)).reason


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (20, 20, 20)).astype(np.uint8)
    path = _save(tmp_path / f"a{suffix}", noise)
    whole = path.read_bytes()
    for share in (0.9, 0.5, 0.02):
        path.write_bytes(whole[: int(len(whole) * share)])
        ref = _one(path)
        assert not ref.usable
        assert "truncated" in ref.reason
        assert str(tmp_path) not in ref.reason


def test_a_file_cut_after_the_scan_is_refused_when_read(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (20, 20, 20)).astype(np.uint8)
    path = _save(tmp_path / "a.nii.gz", noise)
    source = NiftiSource(_one(path))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputRefusedError, match="truncated"):
        source.read()


def test_a_header_that_claims_too_much_is_refused_without_asking_for_memory(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.nii", np.zeros((4, 5, 6), np.uint8))
    raw = bytearray(path.read_bytes())
    raw[40:56] = np.array([3, 30000, 30000, 30000, 1, 1, 1, 1], dtype="<i2").tobytes()
    path.write_bytes(raw)
    assert "truncated" in _one(path).reason
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(bytes(raw)))
    assert "truncated" in _one(packed).reason


@pytest.mark.parametrize("content", [b"", b"no image at all", gzip.compress(b"nothing", mtime=0)])
def test_what_is_no_nifti_is_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("a.nii", "a.nii.gz"):
        (tmp_path / name).write_bytes(content)
        assert not _one(tmp_path / name).usable


def test_several_gzip_members_are_one_file(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.nii", np.arange(120, dtype=np.uint8).reshape(4, 5, 6))
    raw = path.read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(raw[:400]) + gzip.compress(raw[400:]))
    ref = _one(tmp_path / "b.nii.gz")
    assert ref.usable
    np.testing.assert_array_equal(NiftiSource(ref).read().array[0].ravel(), np.arange(120))


@pytest.mark.parametrize(("unit", "scale"), [("mm", 1.0), ("micron", 1e-3), ("meter", 1e3), ("unknown", 1.0)])
def test_positions_are_in_mm_whatever_the_unit(tmp_path: Path, unit: str, scale: float) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), AFFINE)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    ref = _one(tmp_path / "a.nii")
    np.testing.assert_allclose(ref.geometry.affine[:3], AFFINE[:3] * scale)
    assert bool(ref.notes) == (unit in ("micron", "meter"))


def test_unusual_headers_are_noted(tmp_path: Path) -> None:
    array = np.zeros((4, 5, 6), np.uint8)
    image = nib.Nifti1Image(array, AFFINE)
    moved = AFFINE.copy()
    moved[0, 3] += 2.0
    image.set_qform(moved, code=1)
    image.set_sform(AFFINE, code=2)
    nib.save(image, tmp_path / "differ.nii")
    ref = _one(tmp_path / "differ.nii")
    assert any("qform and sform differ" in note for note in ref.notes)
    np.testing.assert_allclose(ref.geometry.affine, AFFINE)

    image = nib.Nifti1Image(array, None)
    image.header.set_zooms((2.0, 3.0, 4.0))
    nib.save(image, tmp_path / "none.nii")
    ref = _one(tmp_path / "none.nii")
    assert any("no orientation" in note for note in ref.notes)
    assert ref.geometry.spacing_mm == (2.0, 3.0, 4.0)

    sheared = AFFINE.copy()
    sheared[0, 2] = 0.7
    image = nib.Nifti1Image(array, sheared)
    nib.save(image, tmp_path / "sheared.nii")
    ref = _one(tmp_path / "sheared.nii")
    assert ref.usable
    assert any("sheared" in note for note in ref.notes)
    np.testing.assert_allclose(ref.geometry.affine, sheared, rtol=1e-6)


def test_a_zero_spacing_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), AFFINE)
    image.header["srow_x"] = 0
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), None, image.header), tmp_path / "a.nii")
    ref = _one(tmp_path / "a.nii")
    assert not ref.usable
    assert "affine" in ref.reason


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("slope", "kept"), [(1.0, ">i2"), (1.0, "<i2"), (0.5, "<i2")])
def test_reading_holds_an_image_once(tmp_path: Path, suffix: str, slope: float, kept: str) -> None:
    array = np.random.default_rng(4).integers(-900, 900, (60, 70, 200)).astype(kept)
    header = nib.Nifti1Header(endianness=kept[0])
    header.set_data_dtype(array.dtype)
    image = nib.Nifti1Image(array, AFFINE, header)
    image.header.set_slope_inter(slope, 0.0)
    nib.save(image, tmp_path / f"a{suffix}")
    source = NiftiSource(_one(tmp_path / f"a{suffix}"))
    found = []
    peak = peak_bytes(lambda: found.append(source.read().array[0]))
    assert peak < 1.2 * found[0].nbytes + 100_000
    assert found[0].dtype == (np.int16 if slope == 1.0 else np.float32)
    np.testing.assert_array_equal(found[0], np.asarray(nib.load(tmp_path / f"a{suffix}").dataobj))
