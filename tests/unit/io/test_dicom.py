"""Every trap of classic DICOM: loaded exactly, or refused with what, where and a remedy."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from unet_med.errors import InputRefusedError
from unet_med.io.dicom import pixels as dicom_pixels
from unet_med.io.dicom.source import DicomSource, inspect_dicom
from unet_med.io.source import Discovery, IntakeOptions, SourceRef

_SPEC = importlib.util.spec_from_file_location("dicom_writer", Path(__file__).parents[2] / "dicom_writer.py")
w = importlib.util.module_from_spec(_SPEC)
sys.modules["dicom_writer"] = w
_SPEC.loader.exec_module(w)

Change = Callable[[list[FileDataset]], object]


def found_in(folder: Path) -> Discovery:
    return inspect_dicom(sorted(path for path in folder.rglob("*") if path.is_file()))


def only(folder: Path) -> SourceRef:
    found = found_in(folder)
    assert len(found.sources) == 1, found.sources
    return found.sources[0]


def assert_exact(ref: SourceRef, tolerance: float = w.SLOPE * 0.51) -> np.ndarray:
    """Every voxel says where it is: one number shows that order, geometry and rescale are right."""
    assert ref.usable, ref.reason
    volume = DicomSource(ref).read()
    assert volume.array.dtype == np.float32
    assert volume.array.shape == (1, *ref.geometry.shape) == (1, *ref.shape)
    index = np.stack(np.meshgrid(*map(np.arange, ref.shape), indexing="ij"), axis=-1)
    lps = volume.geometry.to_world(index) * [-1.0, -1.0, 1.0]
    assert np.abs(volume.array[0] - w.truth(lps)).max() <= tolerance
    return volume.array


def refused(folder: Path, *words: str) -> SourceRef:
    ref = only(folder)
    assert not ref.usable
    assert ref.geometry is None
    for word in words:
        assert word in ref.reason
    assert ": " in ref.reason, "a remedy"
    with pytest.raises(InputRefusedError):
        DicomSource(ref)
    return ref


# ---- loaded exactly -------------------------------------------------------------------------------------------------


def test_oblique_series_with_unequal_pixels(tmp_path: Path) -> None:
    series = w.Series()
    w.write(tmp_path, series.slices())
    ref = only(tmp_path)
    assert_exact(ref)
    assert (ref.kind, ref.axes, ref.shape, ref.modality, ref.channels, ref.frames) == (
        "dicom",
        "IJK",
        (9, 7, 6),
        "CT",
        1,
        1,
    )
    assert ref.geometry.spacing_mm == pytest.approx((0.8, 1.25, 2.5), rel=1e-8)
    assert np.allclose(ref.geometry.to_lps()[:3, 3], series.origin)
    assert ref.geometry.shear < 1e-12
    assert ref.notes == ()


def test_a_region_reads_only_its_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w.write(tmp_path, w.Series().slices())
    source = DicomSource(only(tmp_path))
    full = source.read()
    read = []
    monkeypatch.setattr(
        "unet_med.io.dicom.source.read_slices", lambda places: read.extend(places) or dicom_pixels.read_slices(places)
    )
    region = (slice(2, 5), slice(1, 7), slice(3, 5))
    part = source.read(region)
    assert np.array_equal(part.array, full.array[(slice(None), *region)])
    assert part.geometry.same_grid(full.geometry.crop(region))
    assert len(read) == 2
    with pytest.raises(InputRefusedError):
        source.read(frame=1)


def test_order_comes_from_positions_alone(tmp_path: Path) -> None:
    slices = w.Series().slices()
    for number, data in zip((3, 1, 6, 2, 5, 4), slices, strict=True):
        data.InstanceNumber = number
    w.write(tmp_path, slices, ["f", "b", "z", "a", "m", "c"])
    ref = only(tmp_path)
    assert_exact(ref)
    assert any("instance numbers are not in spatial order" in note for note in ref.notes)


def test_a_series_in_several_folders_beside_another(tmp_path: Path) -> None:
    first, second = w.Series(number=1), w.Series(number=2, step=1.5, count=5)
    slices = first.slices()
    w.write(tmp_path / "a", slices[:3])
    w.write(tmp_path / "b" / "c", [*slices[3:], *second.slices()])
    (tmp_path / "b" / "notes.txt").write_text("no image")
    found = found_in(tmp_path)
    assert [ref.id[:4] for ref in found.sources] == ["s001", "s002"]
    for ref in found.sources:
        assert_exact(ref)
    assert [(one.what, one.count) for one in found.skipped] == [("other files", 1)]


def test_no_suffix_no_preamble_no_meta(tmp_path: Path) -> None:
    for number, implicit in enumerate((False, True)):
        for k, data in enumerate(w.Series(number=number).slices()):
            path = tmp_path / f"{number}{k}"
            del data.file_meta.TransferSyntaxUID
            data.save_as(path, implicit_vr=implicit, little_endian=True)
            raw = path.read_bytes()
            start = raw.index(b"\x08\x00\x08\x00")
            path.write_bytes(raw[start:])
    found = found_in(tmp_path)
    assert len(found.sources) == 2
    for ref in found.sources:
        assert_exact(ref)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEGLSLossless]
)
def test_encodings_are_exact(tmp_path: Path, syntax: str) -> None:
    slices = w.Series().slices()
    for data in slices:
        if syntax == ExplicitVRBigEndian:
            data.PixelData = np.frombuffer(data.PixelData, "<i2").astype(">i2").tobytes()
        if syntax in (RLELossless, JPEGLSLossless):
            if syntax == JPEGLSLossless:
                pytest.importorskip("jpeg_ls")
            data.compress(syntax, generate_instance_uid=False)
        data.file_meta.TransferSyntaxUID = syntax
    tmp_path.joinpath("s").mkdir()
    for k, data in enumerate(slices):
        dcmwrite(
            tmp_path / "s" / f"{k}",
            data,
            implicit_vr=syntax == ImplicitVRLittleEndian,
            little_endian=syntax != ExplicitVRBigEndian,
            force_encoding=True,
        )
    assert_exact(only(tmp_path))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32"])
def test_stored_types(tmp_path: Path, dtype: str) -> None:
    slices = w.Series(count=2).slices()
    info = np.iinfo(dtype)
    stored = np.array([[info.min, info.max], [info.max // 2, 3]], dtype=dtype)
    for data in slices:
        w.set_stored(data, stored)
        data.RescaleSlope, data.RescaleIntercept = 1, 0
    w.write(tmp_path, slices)
    array = DicomSource(only(tmp_path)).read().array
    assert np.array_equal(array[0, :, :, 0].T, stored.astype(np.float32))


def test_twelve_bits_ignore_what_lies_above(tmp_path: Path) -> None:
    slices = w.Series(count=2).slices()
    for data, dtype in zip(slices, ("uint16", "int16"), strict=True):
        w.set_stored(data, np.array([[0xF801, 0x0801], [0x0007, 0x07FF]], dtype="uint16").view(dtype), bits_stored=12)
        del data.RescaleSlope, data.RescaleIntercept
    w.write(tmp_path, slices)
    array = DicomSource(only(tmp_path)).read().array[0]
    assert array[:, :, 0].T.tolist() == [[0x801, 0x801], [7, 0x7FF]]
    assert array[:, :, 1].T.tolist() == [[-2047, -2047], [7, 0x7FF]]


def test_every_slice_has_its_own_rescale(tmp_path: Path) -> None:
    series = w.Series(modality="PT")
    slices = series.slices()
    for k, data in enumerate(slices):
        w.set_values(data, series.values(series.position(k)), slope=0.004 * (k + 2), intercept=-7.0 * k)
    w.write(tmp_path, slices)
    assert_exact(only(tmp_path), tolerance=0.004 * 8 * 0.51)


@pytest.mark.parametrize(("told", "known"), [("ABDOMEN", "ABDOMEN"), ("SECRET JANE", None), ("", None)])
def test_the_part_of_the_body_is_one_of_the_standard_or_unknown(tmp_path: Path, told: str, known: str | None) -> None:
    slices = w.Series().slices()
    for data in slices:
        data.BodyPartExamined = told
    w.write(tmp_path, slices)
    assert only(tmp_path).body_part == known


def test_modality_lookup_table(tmp_path: Path) -> None:
    slices = w.Series(count=2).slices()
    for data in slices:
        w.set_stored(data, np.array([[0, 1], [2, 9]], dtype=np.uint8))
        del data.RescaleSlope, data.RescaleIntercept
        table = Dataset()
        table.LUTDescriptor, table.ModalityLUTType = [3, 0, 16], "HU"
        table.LUTData = np.array([100, 250, 700], dtype=np.uint16).tobytes()
        table["LUTData"].VR = "OW"
        data.ModalityLUTSequence = DicomSequence([table])
    w.write(tmp_path, slices)
    assert DicomSource(only(tmp_path)).read().array[0, :, :, 0].T.tolist() == [[100, 250], [700, 700]]


@pytest.mark.parametrize(("vr", "value"), [("SS", -2000), ("US", 63536)])
@pytest.mark.parametrize("syntax", ["explicit", ImplicitVRLittleEndian])
def test_padding_becomes_the_lowest_real_value(tmp_path: Path, vr: str, value: int, syntax: str) -> None:
    slices = w.Series(count=3).slices()
    for k, data in enumerate(slices):
        stored = np.full((7, 9), 100 * (k + 1), dtype=np.int16)
        if k:
            stored[:, :2] = -2000
        w.set_stored(data, stored)
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.add_new(0x00280120, vr, value)
        if syntax != "explicit":
            data.file_meta.TransferSyntaxUID = syntax
    w.write(tmp_path, slices)
    ref = only(tmp_path)
    assert any("padding is declared" in note for note in ref.notes)
    source = DicomSource(ref)
    part = source.read((slice(0, 3), slice(0, 7), slice(2, 3)))
    assert part.array[0, :, 0, 0].tolist() == [-924, -924, -724]  # lowest of the series, not of the slice
    full = source.read().array[0]
    assert np.array_equal(full[:3, :, 2:], part.array[0])
    assert full.min() == -924
    assert any("14.8 % of the voxels are padding" in note for note in source.notes)


def test_padding_above_the_stored_bits_is_no_value(tmp_path: Path) -> None:
    slices = w.Series(count=2).slices()
    for data in slices:
        w.set_stored(data, np.array([[0x8FFF, 0x0FFF], [5, 9]], dtype=np.uint16), bits_stored=12)
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.add_new(0x00280120, "US", 0x8FFF)
    w.write(tmp_path, slices)
    assert DicomSource(only(tmp_path)).read().array[0, :, :, 0].T.tolist() == [[5, 0xFFF], [5, 9]]


def test_nothing_but_padding_is_refused_on_reading(tmp_path: Path) -> None:
    slices = w.Series(count=2).slices()
    for data in slices:
        w.set_stored(data, np.full((4, 4), -2000, dtype=np.int16))
        data.add_new(0x00280120, "SS", -2000)
    w.write(tmp_path, slices)
    with pytest.raises(InputRefusedError, match="nothing but padding"):
        DicomSource(only(tmp_path)).read()


def test_monochrome1_is_kept_for_ct_and_turned_for_projections(tmp_path: Path) -> None:
    slices = w.Series().slices()
    for data in slices:
        data.PhotometricInterpretation = "MONOCHROME1"
    w.write(tmp_path / "ct", slices)
    ref = only(tmp_path / "ct")
    assert_exact(ref)
    assert any("MONOCHROME1" in note for note in ref.notes)

    picture = radiograph(np.array([[0, 10], [4095, 4000]], dtype=np.uint16), bits=12)
    picture.PhotometricInterpretation = "MONOCHROME1"
    w.write(tmp_path / "dx", [picture])
    ref = only(tmp_path / "dx")
    assert DicomSource(ref).read().array[0].T.tolist() == [[4095, 4085], [0, 95]]
    assert any("turned" in note for note in ref.notes)


def radiograph(stored: np.ndarray, bits: int | None = None, modality: str = "CR") -> FileDataset:
    data = w.new_dataset(ComputedRadiographyImageStorage)
    data.Modality, data.SeriesNumber, data.InstanceNumber = modality, 4, 1
    w.set_stored(data, stored, bits)
    return data


def test_radiographs_are_pictures(tmp_path: Path) -> None:
    stored = np.arange(6, dtype=np.uint16).reshape(2, 3)
    plain, detector, calibrated = (radiograph(stored, modality=name) for name in ("CR", "DX", "MG"))
    detector.ImagerPixelSpacing = [0.2, 0.1]
    calibrated.ImagerPixelSpacing, calibrated.PixelSpacing = [0.2, 0.1], [0.4, 0.3]
    for name, data, spacing in (("p", plain, None), ("d", detector, (0.1, 0.2)), ("c", calibrated, (0.3, 0.4))):
        w.write(tmp_path / name, [data])
        ref = only(tmp_path / name)
        assert (ref.axes, ref.shape, ref.geometry.spacing_mm) == ("IJ", (3, 2), spacing)
        assert np.array_equal(DicomSource(ref).read().array, stored.T[np.newaxis].astype(np.float32))
    given = inspect_dicom([tmp_path / "p" / "IM0000.dcm"], IntakeOptions(pixel_size_mm=(0.5, 0.6))).sources[0]
    assert given.geometry.spacing_mm == (0.5, 0.6)
    assert given.read_as == {"pixel_size_mm": [0.5, 0.6]}


def test_several_radiographs_of_one_series_are_several_pictures(tmp_path: Path) -> None:
    uid = generate_uid()
    pictures = [radiograph(np.full((2, 3), value, dtype=np.uint8)) for value in (1, 2)]
    for number, data in enumerate(pictures):
        data.StudyInstanceUID = data.SeriesInstanceUID = uid
        data.InstanceNumber = 2 - number
    w.write(tmp_path, pictures)
    refs = found_in(tmp_path).sources
    assert [ref.id.split("-", 2)[2] for ref in refs] == ["image1", "image2"]
    assert [DicomSource(ref).read().array.max() for ref in refs] == [2, 1]


def test_a_single_slice_takes_its_thickness_from_the_header(tmp_path: Path) -> None:
    series = w.Series(count=1)
    w.write(tmp_path, series.slices())
    ref = only(tmp_path)
    assert_exact(ref)
    assert ref.geometry.spacing_mm[2] == 2.5
    data = series.slices()[0]
    del data.SliceThickness
    w.write(tmp_path, [data])
    refused(tmp_path, "thickness")


def test_no_series_uid_no_frame_of_reference_no_instance_number(tmp_path: Path) -> None:
    slices = w.Series().slices()
    for data in slices:
        del data.SeriesInstanceUID, data.FrameOfReferenceUID, data.InstanceNumber
    w.write(tmp_path, slices)
    ref = only(tmp_path)
    assert_exact(ref)
    text = " ".join(ref.notes)
    assert all(word in text for word in ("no series UID", "no frame of reference", "instance numbers are missing"))


# ---- what is left out -----------------------------------------------------------------------------------------------


def test_localizers_are_left_out(tmp_path: Path) -> None:
    series = w.Series()
    scout = w.Series(
        uid=series.uid, study=series.study, frame=series.frame, turn=w.rotation(90, 0, 0), count=2, rows=20
    )
    scouts = scout.slices()
    for data in scouts:
        data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    w.write(tmp_path, [*series.slices(), *scouts])
    found = found_in(tmp_path)
    assert_exact(found.sources[0])
    assert found.sources[0].notes == ("2 localizer images left out",)
    assert [(one.what, one.count) for one in found.skipped] == [("localizer images", 2)]
    w.write(tmp_path / "alone", scouts)
    found = found_in(tmp_path / "alone")
    assert not found.sources
    assert found.skipped[0].count == 2


def test_a_few_slices_across_a_bigger_stack_are_a_scout(tmp_path: Path) -> None:
    series = w.Series()
    scout = w.Series(uid=series.uid, study=series.study, frame=series.frame, turn=w.rotation(90, 0, 0), count=3)
    w.write(tmp_path, [*series.slices(), *scout.slices()])
    ref = only(tmp_path)
    assert_exact(ref)
    assert "3 slices of another orientation or size left out" in ref.notes


def test_objects_without_images_are_skipped_by_kind(tmp_path: Path) -> None:
    classes = {
        "1.2.840.10008.5.1.4.1.1.88.11": "DICOM structured report",
        "1.2.840.10008.5.1.4.1.1.88.59": "DICOM key object selection",
        "1.2.840.10008.5.1.4.1.1.11.1": "DICOM presentation state",
        "1.2.840.10008.5.1.4.1.1.104.1": "DICOM encapsulated document",
        "1.2.840.10008.1.3.10": "DICOM directory (DICOMDIR)",
        "1.2.840.10008.5.1.4.1.1.481.2": "DICOM dose (RTDOSE)",
    }
    w.write(tmp_path, [w.new_dataset(uid) for uid in classes])
    w.write(tmp_path / "series", w.Series().slices())
    found = found_in(tmp_path)
    assert len(found.usable) == len(found.sources) == 1
    assert sorted(one.what for one in found.skipped) == sorted(classes.values())


def test_duplicates_are_dropped_and_contradictions_refused(tmp_path: Path) -> None:
    slices = w.Series().slices()
    paths = w.write(tmp_path, slices)
    shutil.copy(paths[2], tmp_path / "copy of it.dcm")
    ref = only(tmp_path)
    assert_exact(ref)
    assert ref.notes == ("1 duplicate file dropped",)
    w.set_values(slices[2], np.zeros((7, 9)))
    slices[2].save_as(tmp_path / "copy of it.dcm")
    refused(tmp_path, "claim to be the same image", "mm along the slice normal")


# ---- refused --------------------------------------------------------------------------------------------------------


def test_missing_slices_are_named(tmp_path: Path) -> None:
    series = w.Series(count=9, turn=np.eye(3))
    slices = series.slices()
    w.write(tmp_path, [data for k, data in enumerate(slices) if k not in (3, 4, 7)])
    ref = refused(tmp_path, "3 slices are missing", "2 between 7.00 and 14.50 mm", "1 between 17.00 and 22.00 mm")
    assert ref.shape == (9, 7, 6)


def test_uneven_steps(tmp_path: Path) -> None:
    series = w.Series(turn=np.eye(3))
    places = (0, 1, 2, 3.02, 4.02, 5.02)
    w.write(tmp_path, [series.slice(place, k) for k, place in enumerate(places)])
    refused(tmp_path, "not evenly spaced", "2.500 to 2.550 mm")
    within = (0, 1, 2.003, 3, 3.997, 5)
    w.write(tmp_path, [series.slice(place, k) for k, place in enumerate(within)])
    assert only(tmp_path).usable


def test_slow_drift_of_the_step_is_uneven_too(tmp_path: Path) -> None:
    series = w.Series(turn=np.eye(3), count=80, rows=2, columns=2)
    places = np.concatenate([[0.0], np.cumsum(np.linspace(0.992, 1.008, 79))])
    w.write(tmp_path, [series.slice(place, k) for k, place in enumerate(places)])
    refused(tmp_path, "not evenly spaced")


@pytest.mark.parametrize(("degrees", "refuse"), [(2.5, True), (20.0, True), (-15.0, True), (0.1, False)])
def test_gantry_tilt_is_measured(tmp_path: Path, degrees: float, refuse: bool) -> None:
    series = w.Series(turn=np.eye(3))
    slices = series.slices()
    for k, data in enumerate(slices):
        x, y, z = series.position(k)
        data.ImagePositionPatient = [x, round(y + np.tan(np.radians(degrees)) * series.step * k, 6), z]
        data.GantryDetectorTilt = 0
    w.write(tmp_path, slices)
    if refuse:
        refused(tmp_path, f"tilted by {abs(degrees):.2f} degrees", "sideways")
    else:
        ref = only(tmp_path)
        assert ref.usable
        assert ref.geometry.shear < 1e-6


def test_slices_that_are_not_above_each_other(tmp_path: Path) -> None:
    series = w.Series(turn=np.eye(3))
    slices = series.slices()
    slices[3].ImagePositionPatient = list(series.position(3) + np.array([0.5, 0.0, 0.0]))
    w.write(tmp_path, slices)
    refused(tmp_path, "not above each other")


@pytest.mark.parametrize("which", [0, 3, 5])
def test_a_truncated_file_refuses_its_series(tmp_path: Path, which: int) -> None:
    series = w.Series(turn=np.eye(3))
    paths = w.write(tmp_path, series.slices())
    whole = paths[which].read_bytes()
    paths[which].write_bytes(whole[:-20])
    refused(tmp_path, "truncated", f"slice at {series.position(which)[2]:.2f} mm")
    for size in (0, 60, 131, 140, 300, 420, 600, len(whole) - 200):
        paths[which].write_bytes(whole[:size])
        ref = only(tmp_path)
        assert not ref.usable, f"{size} of {len(whole)} bytes"


def test_a_truncated_compressed_file_refuses_its_series(tmp_path: Path) -> None:
    slices = w.Series().slices()
    for data in slices:
        data.compress(RLELossless, generate_instance_uid=False)
    paths = w.write(tmp_path, slices)
    assert_exact(only(tmp_path))
    paths[1].write_bytes(paths[1].read_bytes()[:-30])
    refused(tmp_path, "truncated")


def test_a_damaged_file_among_several_series_is_only_counted(tmp_path: Path) -> None:
    w.write(tmp_path, [*w.Series(number=1).slices(), *w.Series(number=2).slices()])
    (tmp_path / "stump").write_bytes(b"\0" * 128 + b"DICM\x02\x00")
    found = found_in(tmp_path)
    assert [ref.usable for ref in found.sources] == [True, True]
    assert found.skipped[0].what == "damaged DICOM files"


@pytest.mark.parametrize("which", [0, 2, 5])
def test_one_slice_of_another_size_refuses_the_series(tmp_path: Path, which: int) -> None:
    series = w.Series(turn=np.eye(3))
    slices = series.slices()
    w.set_values(slices[which], series.values(series.position(which), rows=5))
    w.write(tmp_path, slices)
    refused(tmp_path, "differs in size", f"at {series.position(which)[2]:.2f} mm")


@pytest.mark.parametrize(("count", "which"), [(3, 0), (3, 1), (3, 2), (4, 1)])
def test_short_series_with_one_slice_of_another_size(tmp_path: Path, count: int, which: int) -> None:
    series = w.Series(count=count)
    slices = series.slices()
    w.set_values(slices[which], series.values(series.position(which), columns=5))
    w.write(tmp_path, slices)
    refused(tmp_path, "differs in size")


def test_parallel_scouts_off_the_grid_are_left_out(tmp_path: Path) -> None:
    series = w.Series(count=8)
    scout = w.Series(uid=series.uid, study=series.study, frame=series.frame, rows=4)
    w.write(tmp_path, [*series.slices(), *(scout.slice(place, 99) for place in (0.3, 2.3, 5.3))])
    ref = only(tmp_path)
    assert_exact(ref)
    assert "3 slices of another orientation or size left out" in ref.notes


def test_one_slice_of_another_pixel_size_or_kind_refuses_the_series(tmp_path: Path) -> None:
    for name, tag, value in (
        ("a", "PixelSpacing", [1.3, 0.8]),
        ("b", "PhotometricInterpretation", "MONOCHROME1"),
        ("c", "FrameOfReferenceUID", generate_uid()),
    ):
        slices = w.Series().slices()
        setattr(slices[3], tag, value)
        w.write(tmp_path / name, slices)
        refused(tmp_path / name, "one slice differs")


def test_stacks_of_different_orientation_are_sources_of_their_own(tmp_path: Path) -> None:
    series = w.Series()
    other = w.Series(uid=series.uid, study=series.study, frame=series.frame, turn=w.rotation(90, 10, 0), count=5)
    small = w.Series(uid=series.uid, study=series.study, frame=series.frame, rows=4, count=4, origin=(10, 8, 9))
    w.write(tmp_path, [*other.slices(), *series.slices(), *small.slices()])
    refs = found_in(tmp_path).sources
    assert [(ref.id.split("-")[-1], ref.shape) for ref in refs] == [
        ("stack1", (9, 7, 6)),
        ("stack2", (9, 7, 5)),
        ("stack3", (9, 4, 4)),
    ]
    for ref in refs:
        assert_exact(ref)


def test_slices_in_many_planes_make_no_volume(tmp_path: Path) -> None:
    first = w.Series(count=1)
    fan = [w.Series(uid=first.uid, study=first.study, turn=w.rotation(15 * k, 0, 0), count=1) for k in range(6)]
    w.write(tmp_path, [series.slices()[0] for series in fan])
    refused(tmp_path, "6 different planes")


@pytest.mark.parametrize("missing", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_no_place_no_volume(tmp_path: Path, missing: str, modality: str) -> None:
    slices = w.Series(modality=modality).slices()
    for data in slices:
        delattr(data, missing)
    w.write(tmp_path, slices)
    refused(tmp_path, "a slice has no", "instance 1" if missing != "PixelSpacing" else "mm along")


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    paths = w.write(tmp_path, w.Series().slices())
    raw = paths[0].read_bytes()
    at = raw.index(b"DS", raw.index(b"\x20\x00\x32\x00")) + 4
    paths[0].write_bytes(raw[:at] + b"?" + raw[at + 1 :])
    refused(tmp_path, "no position")


def test_skewed_cosines_and_zero_slope(tmp_path: Path) -> None:
    slices = w.Series().slices()
    for data in slices:
        data.ImageOrientationPatient = [1, 0, 0, 0.1, 1, 0]
    w.write(tmp_path / "a", slices)
    refused(tmp_path / "a", "perpendicular")
    slices = w.Series().slices()
    slices[2].RescaleSlope = 0
    w.write(tmp_path / "b", slices)
    refused(tmp_path / "b", "rescale slope", "mm along")


def test_colour_secondary_capture_and_burnt_in_text(tmp_path: Path) -> None:
    colour = w.new_dataset(SecondaryCaptureImageStorage)
    colour.Modality = "OT"
    w.set_stored(colour, np.zeros((4, 12), dtype=np.uint8))
    colour.Columns, colour.SamplesPerPixel, colour.PhotometricInterpretation, colour.PlanarConfiguration = (
        4,
        3,
        "RGB",
        0,
    )
    w.write(tmp_path / "sc", [colour])
    refused(tmp_path / "sc", "secondary capture")
    colour.SOPClassUID = colour.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
    w.write(tmp_path / "us", [colour])
    refused(tmp_path / "us", "colour")
    slices = w.Series().slices()
    slices[1].BurnedInAnnotation = "YES"
    w.write(tmp_path / "text", slices)
    refused(tmp_path / "text", "burnt into")


def test_multi_frame_is_refused(tmp_path: Path) -> None:
    slices = w.Series().slices()
    slices[0].NumberOfFrames = 2
    slices[0].PixelData = slices[0].PixelData * 2
    w.write(tmp_path, slices[:1])
    assert refused(tmp_path, "multi-frame", "2 frames").shape == (9, 7, 2)
    enhanced = w.new_dataset("1.2.840.10008.5.1.4.1.1.4.1")
    enhanced.Modality = "MR"
    w.set_stored(enhanced, np.zeros((4, 4), dtype=np.int16))
    w.write(tmp_path / "mr", [enhanced])
    refused(tmp_path / "mr", "multi-frame")


def test_a_missing_decoder_is_named_before_pixels_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slices = w.Series().slices()
    for data in slices:
        data.compress(RLELossless, generate_instance_uid=False)
        data.file_meta.TransferSyntaxUID = HTJ2KLossless
    w.write(tmp_path, slices)
    monkeypatch.setattr(
        "unet_med.io.dicom.series.missing_decoder", lambda syntax, bits: {HTJ2KLossless: "HTJ2K"}[syntax]
    )
    refused(tmp_path, "no decoder is installed for HTJ2K", 'pip install "unet-med[dicom]"')


def test_decoders_are_looked_up() -> None:
    assert dicom_pixels.missing_decoder(RLELossless) == ""
    assert dicom_pixels.missing_decoder("1.2.3.4") == "an unknown transfer syntax"
    assert dicom_pixels.missing_decoder("1.2.840.10008.1.2.4.50", 8) == ""


def test_pixels_that_cannot_be_decoded_are_refused_on_reading(tmp_path: Path) -> None:
    slices = w.Series().slices()
    for data in slices:
        data.compress(RLELossless, generate_instance_uid=False)
    paths = w.write(tmp_path, slices)
    raw = paths[1].read_bytes()
    at = raw.rindex(b"\xfe\xff\x00\xe0") + 8
    paths[1].write_bytes(raw[:at] + b"\xff" * 64 + raw[at + 64 :])
    ref = only(tmp_path)
    with pytest.raises(InputRefusedError, match="slice 2 of 6") as caught:
        DicomSource(ref).read()
    assert str(tmp_path) not in str(caught.value)
    paths[0].unlink()
    with pytest.raises(InputRefusedError, match="slice 1 of 6"):
        DicomSource(ref).read()


# ---- repeats --------------------------------------------------------------------------------------------------------


def repeated(times: int, change: Callable[[Dataset, int], None]) -> list[FileDataset]:
    """The same stack several times over, each shifted in value by 100."""
    series = w.Series(modality="MR", sop_class=MRImageStorage)
    slices = []
    for number in range(times):
        for k, data in enumerate(series.slices()):
            w.renew(data)
            data.InstanceNumber = len(slices) + 1
            w.set_values(data, series.values(series.position(k)), intercept=100.0 * number)
            data.RescaleIntercept = 0
            change(data, number)
            slices.append(data)
    return slices


def gradient(data: Dataset, number: int) -> None:
    data.add_new(0x00189087, "FD", 0.0 if number == 0 else 1000.0)
    if number:
        data.add_new(0x00189089, "FD", [float(axis == number) for axis in (1, 2, 3)])


@pytest.mark.parametrize(
    ("change", "suffixes"),
    [
        (lambda data, n: setattr(data, "EchoTime", [4.6, 9.2, 13.8, 20.0][n]), ["echo1", "echo2", "echo3", "echo4"]),
        (lambda data, n: setattr(data, "TemporalPositionIdentifier", n + 1), ["time1", "time2", "time3", "time4"]),
        (lambda data, n: setattr(data, "TriggerTime", 25.5 * n), ["phase1", "phase2", "phase3", "phase4"]),
        (gradient, ["b0-direction1", "b1000-direction2", "b1000-direction3", "b1000-direction4"]),
        (
            lambda data, n: setattr(data, "ImageType", ["ORIGINAL", "PRIMARY", "MPRI"[n : n + 1]]),
            ["type1", "type2", "type3", "type4"],
        ),
        (
            lambda data, n: (setattr(data, "EchoTime", 1.5 + n % 2), setattr(data, "FlipAngle", 5 + n // 2)),
            ["echo1-flip1", "echo1-flip2", "echo2-flip1", "echo2-flip2"],
        ),
        (lambda data, n: None, ["time1", "time2", "time3", "time4"]),
    ],
)
def test_repeats_are_split(tmp_path: Path, change: Callable[[Dataset, int], None], suffixes: list[str]) -> None:
    w.write(tmp_path, repeated(4, change))
    refs = found_in(tmp_path).sources
    assert [ref.id.split("-", 2)[2] for ref in refs] == suffixes
    offsets = set()
    for ref in refs:
        assert ref.usable, ref.reason
        assert any("into 4 stacks of 6 slices" in note for note in ref.notes)
        array = DicomSource(ref).read().array
        index = np.stack(np.meshgrid(*map(np.arange, ref.shape), indexing="ij"), axis=-1)
        difference = array[0] - w.truth(ref.geometry.to_world(index) * [-1.0, -1.0, 1.0])
        assert np.ptp(difference) < 0.03, "no two stacks are mixed"
        offsets.add(round(float(difference.mean()) / 100))
    assert offsets == {0, -1, -2, -3}


def test_repeats_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    slices = repeated(2, lambda data, n: None)
    for number, data in enumerate(slices):
        data.InstanceNumber = (number * 5 + number // 3) % 12 + 20 * (number % 2)
    w.write(tmp_path, slices)
    refused(tmp_path, "12 slices at 6 positions")


def test_an_incomplete_repeat_is_refused(tmp_path: Path) -> None:
    slices = repeated(2, lambda data, n: setattr(data, "EchoTime", 4.0 + n))
    w.write(tmp_path, slices[:-1])
    refused(tmp_path, "11 slices at 6 positions")


def test_a_tag_that_differs_in_every_slice_splits_nothing(tmp_path: Path) -> None:
    slices = w.Series().slices()
    for k, data in enumerate(slices):
        data.AcquisitionNumber, data.ContentTime, data.EchoTime = k, f"10110{k}.5", 4 + k % 2
    w.write(tmp_path, slices)
    assert_exact(only(tmp_path))


# ---- privacy --------------------------------------------------------------------------------------------------------


def test_messages_hold_no_private_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "SECRET^JANE"
    uids = []
    for number, change in enumerate(
        (
            lambda s: None,
            lambda s: s.pop(2),
            lambda s: setattr(s[1], "Rows", 3),
            lambda s: setattr(s[2], "RescaleSlope", 0),
        )
    ):
        series = w.Series(number=number)
        slices = series.slices()
        for data in slices:
            data.ImageType = ["ORIGINAL", "PRIMARY", "SECRET_JANE"]
            data.SeriesDescription = data.ProtocolName = data.AccessionNumber = "SECRET^JANE"
        change(slices)
        uids.append(series.uid)
        w.write(folder / f"SECRET^JANE {number}", slices)
    found = found_in(folder)
    assert len(found.sources) == 4
    assert len(found.usable) == 1
    text = " ".join([*(f"{ref.id} {ref.reason} {ref.notes} {ref.modality} {ref.read_as}" for ref in found.sources)])
    text += repr(found.skipped) + caplog.text
    assert "SECRET" not in text
    assert not any(uid in text for uid in uids)
