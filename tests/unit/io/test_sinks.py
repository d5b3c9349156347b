"""Masks out: exactly on the grid of their source, checked, whole or not at all."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import tifffile
from allocations import peak_bytes

from unet_med.errors import InputRefusedError, MachineError
from unet_med.geometry import Geometry
from unet_med.io.export import nifti as nifti_export
from unet_med.io.export.mask import ExportOptions
from unet_med.io.nifti import NiftiSource, inspect_nifti
from unet_med.io.sinks import label_centroids, open_mask_sink, tiff, write_image
from unet_med.labels import LabelMap
from unet_med.volume import ArraySource, Volume

LABELS = LabelMap.from_names({"background": 0, "a": 1, "b": 2})
AFFINE = np.array([[-0.5, 0, 0, 10], [0, 0.75, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1.0]])


def _source(geometry: Geometry, dtype: str = "float32", channels: int = 1) -> ArraySource:
    rng = np.random.default_rng(0)
    return ArraySource("case", Volume((rng.random((channels, *geometry.shape)) * 200).astype(dtype), geometry))


def _mask(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 3, shape)


def _nifti(
    path: Path, affine: np.ndarray, *, qform: np.ndarray | None, codes: tuple[int, int], unit: str = "mm"
) -> NiftiSource:
    image = nib.Nifti1Image(np.zeros((6, 7, 8), np.int16), affine)
    image.set_sform(affine, code=codes[1])
    if qform is not None:
        image.header.set_qform(qform, code=codes[0])
    image.header["qform_code"] = codes[0]
    image.header.set_xyzt_units(unit)
    image.header["descrip"] = b"SECRET^JANE"
    image.header["aux_file"] = b"secret.txt"
    nib.save(image, path)
    return NiftiSource(inspect_nifti(path)[0])


def test_a_volume_becomes_a_nifti_on_its_own_grid(tmp_path: Path) -> None:
    geometry = Geometry((6, 7, 8), AFFINE)
    mask = _mask(geometry.shape)
    sink = open_mask_sink(_source(geometry), tmp_path / "out" / "case", LABELS, {"seed": 7})
    sink.write(None, mask)
    assert not list(tmp_path.rglob("*.nii.gz"))
    files = sink.close()
    assert [file.name for file in files] == ["case.nii.gz", "case.json"]
    image = nib.load(files[0])
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), mask)
    assert image.get_data_dtype() == np.uint8
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (1, 1)
    np.testing.assert_allclose(image.get_qform(), AFFINE, atol=1e-5)
    np.testing.assert_allclose(image.get_sform(), AFFINE, atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"
    itk = SimpleITK.ReadImage(str(files[0]))
    np.testing.assert_allclose(itk.GetOrigin(), [-10, 20, 30], atol=1e-5)
    sidecar = json.loads(files[1].read_text(encoding="utf-8"))
    assert sidecar["use"] == "Research use only"
    assert sidecar["provenance"] == {"seed": 7}
    assert [(label["value"], label["name"]) for label in sidecar["labels"]] == [(1, "a"), (2, "b")]
    assert sidecar["checks"]["passed"]
    assert sidecar["checks"]["readers"] == ["nibabel", "SimpleITK"]
    assert sidecar["checks"] == sink.checks
    assert not list(tmp_path.rglob("*.part*"))


def test_regions_are_written_where_they_belong(tmp_path: Path) -> None:
    geometry = Geometry((6, 7, 8), AFFINE)
    mask = _mask(geometry.shape)
    sink = open_mask_sink(_source(geometry), tmp_path / "case", LABELS)
    for k in range(8):
        region = (slice(None), slice(None), slice(k, k + 1))
        sink.write(region, mask[region])
    np.testing.assert_array_equal(np.asanyarray(nib.load(sink.close()[0]).dataobj), mask)
    with pytest.raises(InputRefusedError):
        sink.write((slice(0, 2),) * 3, np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(InputRefusedError):
        sink.write(None, np.zeros(geometry.shape, np.float32))
    with pytest.raises(InputRefusedError):
        sink.write(None, np.full(geometry.shape, -1))


def test_more_than_255_labels_or_objects_need_two_bytes(tmp_path: Path) -> None:
    geometry = Geometry((6, 7, 8), AFFINE)
    many = LabelMap.from_names({"background": 0} | {f"n{index}": index for index in range(1, 301)})
    sink = open_mask_sink(_source(geometry), tmp_path / "many", many)
    sink.write(None, np.full(geometry.shape, 300))
    assert nib.load(sink.close()[0]).get_data_dtype() == np.uint16
    sink = open_mask_sink(_source(geometry), tmp_path / "objects", LABELS)
    sink.write(None, np.full(geometry.shape, 700))
    assert nib.load(sink.close()[0]).get_data_dtype() == np.uint16


@pytest.mark.parametrize("codes", [(1, 1), (0, 2), (1, 0), (3, 4), (0, 0)])
def test_a_nifti_source_keeps_its_forms_codes_and_no_text(tmp_path: Path, codes: tuple[int, int]) -> None:
    source = _nifti(tmp_path / "in.nii", AFFINE, qform=AFFINE, codes=codes)
    sink = open_mask_sink(source, tmp_path / "mask", LABELS)
    sink.write(None, _mask((6, 7, 8)))
    files = sink.close()
    found, meant = nib.load(files[0]).header, nib.load(tmp_path / "in.nii").header
    for name in ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "srow_x", "srow_y", "srow_z"):
        np.testing.assert_array_equal(found[name], meant[name], err_msg=name)
    np.testing.assert_array_equal(found["pixdim"][:4], meant["pixdim"][:4])
    np.testing.assert_array_equal(found.get_best_affine(), meant.get_best_affine())
    for file in (*files, *write_image(source, tmp_path / "image")[0]):
        raw = file.read_bytes() if file.suffix == ".json" else nib.load(file).header.binaryblock
        assert b"SECRET" not in raw
        assert b"secret" not in raw


def test_a_sheared_nifti_keeps_its_shear_and_is_checked_by_nibabel_alone(tmp_path: Path) -> None:
    sheared = AFFINE.copy()
    sheared[0, 2] = 0.7
    source = _nifti(tmp_path / "in.nii", sheared, qform=AFFINE, codes=(1, 2))
    sink = open_mask_sink(source, tmp_path / "mask", LABELS)
    sink.write(None, _mask((6, 7, 8)))
    image = nib.load(sink.close()[0])
    np.testing.assert_allclose(image.affine, sheared, rtol=1e-6)
    np.testing.assert_allclose(image.get_qform(), AFFINE, atol=1e-5)
    assert sink.checks["readers"] == ["nibabel"]
    assert "nibabel alone" in sink.checks["note"]


def test_micrometres_stay_micrometres(tmp_path: Path) -> None:
    source = _nifti(tmp_path / "in.nii", AFFINE, qform=AFFINE, codes=(1, 1), unit="micron")
    sink = open_mask_sink(source, tmp_path / "mask", LABELS)
    sink.write(None, _mask((6, 7, 8)))
    (ref,) = inspect_nifti(sink.close()[0])
    assert ref.geometry.same_grid(source.geometry)


def test_a_shear_is_never_written_for_other_sources(tmp_path: Path) -> None:
    sheared = AFFINE.copy()
    sheared[0, 2] = 0.01
    with pytest.raises(InputRefusedError, match="sheared"):
        open_mask_sink(_source(Geometry((6, 7, 8), sheared)), tmp_path / "mask", LABELS)


def test_rounded_direction_cosines_are_made_orthonormal(tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[0, 1] = 2e-5
    geometry = Geometry((6, 7, 8), affine)
    sink = open_mask_sink(_source(geometry), tmp_path / "mask", LABELS)
    sink.write(None, _mask((6, 7, 8)))
    image = nib.load(sink.close()[0])
    written = Geometry((6, 7, 8), image.get_sform())
    assert written.shear < 1e-6
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-5)
    np.testing.assert_allclose(written.corners(), geometry.corners(), atol=1e-3)


@pytest.mark.parametrize(
    ("geometry", "axes"),
    [
        (Geometry((9, 5)), "YX"),
        (Geometry.from_spacing((9, 5), (0.0005, 0.0007)), "YX"),
        (Geometry((9, 5, 4)), "ZYX"),
    ],
)
def test_what_has_no_place_becomes_a_label_tiff(tmp_path: Path, geometry: Geometry, axes: str) -> None:
    mask = _mask(geometry.shape)
    sink = open_mask_sink(_source(geometry), tmp_path / "case", LABELS)
    sink.write(None, mask)
    files = sink.close()
    assert [file.name for file in files] == ["case.tif", "case.json"]
    with tifffile.TiffFile(files[0]) as file:
        assert file.is_imagej
        assert file.series[0].axes == axes
        np.testing.assert_array_equal(file.asarray(), mask.transpose())
        assert file.asarray().dtype == np.uint8
        if geometry.is_calibrated:
            assert file.imagej_metadata["unit"] == "um"
            numerator, denominator = file.pages[0].tags["XResolution"].value
            assert denominator / numerator == pytest.approx(0.5)
            numerator, denominator = file.pages[0].tags["YResolution"].value
            assert denominator / numerator == pytest.approx(0.7)


class _Film(ArraySource):
    @property
    def frames(self) -> int:
        return 3

    def read(self, region: object = None, frame: int = 0) -> Volume:
        return Volume(self.volume.array + frame, self.volume.geometry)


@pytest.mark.parametrize(
    ("geometry", "axes"), [(Geometry((9, 5)), "TYX"), (Geometry.from_spacing((9, 5, 4), (1.0, 1.0, 2.0)), "TZYX")]
)
def test_masks_of_several_frames_are_stacks(tmp_path: Path, geometry: Geometry, axes: str) -> None:
    film = _Film("film", _source(geometry).volume)
    sink = open_mask_sink(film, tmp_path / "film", LABELS)
    for frame in range(3):
        sink.write(None, np.full(geometry.shape, frame), frame)
    with tifffile.TiffFile(sink.close()[0]) as file:
        assert file.series[0].axes == axes
        found = file.asarray()
    assert [int(part.min()) for part in found] == [int(part.max()) for part in found] == [0, 1, 2]


def test_time_points_of_a_volume_are_files_of_their_own(tmp_path: Path) -> None:
    film = _Film("film", _source(Geometry.from_spacing((9, 5, 4), (1.0, 1.0, 2.0)), channels=2).volume)
    files, checks = write_image(film, tmp_path / "film")
    names = [f"film_t{frame:03d}_{channel:04d}.nii.gz" for frame in range(3) for channel in range(2)]
    assert [file.name for file in files] == [*names, "film.json"]
    assert set(checks) == set(names)
    np.testing.assert_allclose(nib.load(files[3]).get_fdata(), film.volume.array[1] + 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [("uint8", "uint8"), ("int16", "int16"), ("float64", "float32"), ("int64", "int32"), ("bool", "uint8")],
)
@pytest.mark.parametrize("shape", [(6, 7, 8), (6, 7)])
def test_images_keep_their_values(tmp_path: Path, dtype: str, kept: str, shape: tuple[int, ...]) -> None:
    geometry = Geometry(shape, AFFINE) if len(shape) == 3 else Geometry(shape)
    source = _source(geometry, dtype)
    files, _ = write_image(source, tmp_path / "case")
    if len(shape) == 3:
        image = nib.load(files[0])
        assert image.get_data_dtype() == kept
        found = np.asanyarray(image.dataobj)
    else:
        found = tifffile.imread(files[0]).T
        assert found.dtype == kept
    np.testing.assert_array_equal(found, source.volume.array[0].astype(kept))


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(image: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(nifti_export.nib, "save", full)
    sink = open_mask_sink(_source(Geometry((6, 7, 8), AFFINE)), tmp_path / "case", LABELS)
    sink.write(None, _mask((6, 7, 8)))
    with pytest.raises(MachineError, match="disk full") as caught:
        sink.close()
    assert str(tmp_path) not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_abort_leaves_nothing(tmp_path: Path) -> None:
    sink = open_mask_sink(_source(Geometry((6, 7))), tmp_path / "case", LABELS)
    sink.write(None, _mask((6, 7)))
    sink.abort()
    sink.abort()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["values", "place"])
def test_a_file_that_does_not_read_back_is_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    true_save = nib.save

    def wrong(image: nib.Nifti1Image, path: Path) -> None:
        array = np.asanyarray(image.dataobj).copy()
        header = image.header.copy()
        if damage == "values":
            array[0, 0, 0] ^= 1
        else:
            header["srow_x"][3] += 0.01
        true_save(nib.Nifti1Image(array, None, header), path)

    monkeypatch.setattr(nifti_export.nib, "save", wrong)
    sink = open_mask_sink(_source(Geometry((6, 7, 8), AFFINE)), tmp_path / "case", LABELS)
    sink.write(None, _mask((6, 7, 8)))
    with pytest.raises(InputRefusedError, match="read back"):
        sink.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(6, 7, 8), (6, 7)])
def test_labels_may_be_written_into_the_array_of_the_sink(tmp_path: Path, shape: tuple[int, ...]) -> None:
    geometry = Geometry(shape, AFFINE if len(shape) == 3 else np.diag([0.5, 0.75, 1.0]))
    mask = _mask(shape)
    files = []
    for name, lends in (("lent", True), ("given", False)):
        sink = open_mask_sink(_source(geometry), tmp_path / name, LABELS)
        if lends:
            lent = sink.labels_of()
            assert (lent.shape, lent.dtype, lent.any()) == (shape, np.uint8, False)
            lent[...] = mask
        else:
            sink.write(None, mask)
        files.append(sink.close()[0])
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_wider_value_widens_what_was_lent(tmp_path: Path) -> None:
    sink = open_mask_sink(_source(Geometry((6, 7, 8), AFFINE)), tmp_path / "case", LABELS)
    sink.labels_of()[1, 2, 3] = 2
    sink.write((slice(0, 1),) * 3, np.array([[[700]]]))
    assert sink.labels_of().dtype == np.uint16
    sink.labels_of()[0, 0, 1] = 500
    found = np.asanyarray(nib.load(sink.close()[0]).dataobj)
    assert (found[1, 2, 3], found[0, 0, 0], found[0, 0, 1], np.count_nonzero(found)) == (2, 700, 500, 3)


@pytest.mark.parametrize("parts", [1, 3, 100])
def test_both_readers_see_every_voxel_of_a_file_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    monkeypatch.setattr(nifti_export, "_ITK_VOXELS", 1)
    monkeypatch.setattr(nifti_export, "_ITK_PARTS", parts)
    monkeypatch.setattr(nifti_export, "SLAB_VOXELS", 6 * 7 * 3)
    source = _source(Geometry((6, 7, 8), AFFINE), "int16")
    array = source.volume.array[0]
    place = nifti_export.NiftiPlace(source)
    path = tmp_path / "a.nii.gz"
    nifti_export.save_nifti(path, array, place)
    assert nifti_export.check_nifti(path, array, place, "a")["readers"] == ["nibabel", "SimpleITK"]
    for wrong in ((0, 0, 0), (5, 6, 7), (2, 3, 4)):
        other = array.copy()
        other[wrong] += 1
        with pytest.raises(InputRefusedError, match="voxels differ"):
            nifti_export.check_nifti(path, other, place, "a")
        with pytest.raises(InputRefusedError, match="voxels differ"):
            nifti_export.same_values(nifti_export.ItkFile(path), other, "a")


@pytest.mark.parametrize("formats", [("nifti",), ("seg-nrrd",)])
def test_writing_a_longer_mask_takes_no_more_memory(tmp_path: Path, formats: tuple[str, ...]) -> None:
    peaks = []
    for length in (30, 150):
        source = _source(Geometry((160, 160, length), AFFINE), "uint8")
        sink = open_mask_sink(source, tmp_path / str(length), LABELS, options=ExportOptions(formats))
        sink.labels_of()[20:140, 20:140, 2:] = 1
        peaks.append(peak_bytes(sink.close))
    assert peaks[1] < peaks[0] + 0.05 * 160 * 160 * 120


@pytest.mark.parametrize(("shape", "wrong"), [((60, 70), 0), ((60, 70), -1), ((30, 40, 50), 17)])
def test_a_tiff_is_compared_to_its_last_voxel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: Any, wrong: int
) -> None:
    monkeypatch.setattr(tiff, "SLAB_VOXELS", 1000)
    true_write = tifffile.imwrite

    def erring(path: Path, pages: np.ndarray, **options: Any) -> None:
        pages = pages.copy()
        pages.reshape(-1)[wrong] += 1
        true_write(path, pages, **options)

    sink = open_mask_sink(_source(Geometry(shape)), tmp_path / "good", LABELS)
    sink.labels_of()[...] = _mask(shape)
    np.testing.assert_array_equal(tifffile.imread(sink.close()[0]).T, _mask(shape))
    monkeypatch.setattr(tiff.tifffile, "imwrite", erring)
    with pytest.raises(InputRefusedError, match="voxels differ"):
        open_mask_sink(_source(Geometry(shape)), tmp_path / "bad", LABELS).close()


def test_writing_a_longer_tiff_takes_no_more_memory(tmp_path: Path) -> None:
    peaks = []
    for length in (30, 150):
        sink = open_mask_sink(_source(Geometry((160, 160, length)), "uint8"), tmp_path / str(length), LABELS)
        sink.labels_of()[20:140, 20:140, 2:] = 1
        peaks.append(peak_bytes(sink.close))
    assert peaks[1] < peaks[0] + 0.2 * 160 * 160 * 120


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6)])
def test_centroids_are_means_of_indices(shape: tuple[int, ...]) -> None:
    labels = np.random.default_rng(2).integers(0, 5, shape) * 40
    found = label_centroids(labels)
    assert sorted(found) == [40, 80, 120, 160]
    for value, centre in found.items():
        np.testing.assert_allclose(centre, np.argwhere(labels == value).mean(axis=0))
    assert label_centroids(np.zeros(shape, int)) == {}
