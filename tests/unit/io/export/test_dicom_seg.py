"""DICOM SEG: valid, on the right slices, nothing lost; a file that says something else is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_multiframe_writer import Frame, echo, enhanced
from dicom_writer import Series, write
from mask_exports import blobs, dciodvfy, export_of, label_map, personal
from pydicom import Dataset, dcmread

from unet_med.errors import InputRefusedError
from unet_med.io.export import dicom_seg
from unet_med.io.export.mask import MaskExport
from unet_med.io.source import IntakeOptions

SHAPE = (9, 7, 6)
TYPES = ("binary", "labelmap", "fractional")
YOUNG = ("Information Object Not found", "SegmentNumber not monotonically increasing from one by one")
"""What a validator says of label maps that is older than they are."""


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """An oblique series with a patient; pixels are not square."""
    slices = Series().slices()
    for one in slices:
        personal(one)
    write(tmp_path / "series", slices)
    return tmp_path / "series"


def _probabilities(labels: np.ndarray) -> np.ndarray:
    return np.stack([np.where(labels == value, 0.8, 0.1) for value in (1, 2)]).astype(np.float32)


def _export(folder: Path, seg_type: str, labels: np.ndarray, **more: object) -> MaskExport:
    maps = _probabilities(labels) if seg_type == "fractional" else None
    return export_of(folder, labels, probabilities=maps, seg_type=seg_type, **more)


def _write(export: MaskExport, folder: Path) -> Dataset:
    dicom_seg.write(export, folder / "mask.dcm")
    assert dicom_seg.check(folder / "mask.dcm", export)["passed"]
    return dcmread(folder / "mask.dcm")


def _position(frame: Dataset) -> tuple[float, ...]:
    return tuple(float(value) for value in frame.PlanePositionSequence[0].ImagePositionPatient)


@pytest.mark.parametrize("deidentify", [False, True])
@pytest.mark.parametrize("seg_type", TYPES)
def test_is_valid(series: Path, tmp_path: Path, seg_type: str, deidentify: bool) -> None:
    found = _write(_export(series, seg_type, blobs(SHAPE), deidentify=deidentify), tmp_path)
    assert found.SegmentationType == seg_type.upper()
    errors = dciodvfy(tmp_path / "mask.dcm")
    assert [one for one in errors if seg_type != "labelmap" or not any(known in one for known in YOUNG)] == []


def test_each_frame_names_the_slice_where_it_lies(series: Path, tmp_path: Path) -> None:
    places = {}
    for file in series.iterdir():
        header = dcmread(file)
        places[header.SOPInstanceUID] = tuple(float(value) for value in header.ImagePositionPatient)
    labels = blobs(SHAPE)
    labels[..., 2] = 0
    labels[..., 4] = 1
    found = _write(_export(series, "binary", labels), tmp_path)
    assert found.NumberOfFrames == 2 * 5 - 1, "only frames with content"
    for frame in found.PerFrameFunctionalGroupsSequence:
        named = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert _position(frame) == pytest.approx(places[named.ReferencedSOPInstanceUID], abs=1e-9)
        assert "ReferencedFrameNumber" not in named
    referred = found.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {item.ReferencedSOPInstanceUID for item in referred} == set(places)


def test_frames_of_an_enhanced_image_are_named_by_number(tmp_path: Path) -> None:
    series = Series(modality="MR")
    order = [(k, ms) for k in (3, 0, 5, 1, 4, 2) for ms in (4.0, 9.0)]
    source = enhanced(series, [Frame(k, groups=echo(ms)) for k, ms in order])
    write(tmp_path / "in", [source])
    export = export_of(tmp_path / "in", np.ones(SHAPE, np.uint8), names=label_map(1), series=1)
    found = _write(export, tmp_path)
    for frame in found.PerFrameFunctionalGroupsSequence:
        named = frame.DerivationImageSequence[0].SourceImageSequence[0]
        index, milliseconds = order[int(named.ReferencedFrameNumber) - 1]
        assert milliseconds == 9.0
        assert named.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert _position(frame) == pytest.approx(series.position(index), abs=1e-6)
    assert len(found.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 1
    assert dciodvfy(tmp_path / "mask.dcm") == []


def test_segments_say_what_they_are_and_who_made_them(series: Path, tmp_path: Path) -> None:
    found = _write(_export(series, "binary", blobs(SHAPE)), tmp_path)
    first, second = found.SegmentSequence
    assert (first.SegmentLabel, second.SegmentLabel) == ("liver 1", "kidney 2")
    kind = second.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodingSchemeDesignator, kind.CodeValue) == ("SCT", "64033007")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert "SegmentedPropertyTypeModifierCodeSequence" not in first.SegmentedPropertyTypeCodeSequence[0]
    assert first.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "123037004"
    assert first.SegmentAlgorithmType == "AUTOMATIC"
    assert "0123456789abcdef" * 4 in str(first.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters)
    lightness, a, b = (value / 65535 for value in first.RecommendedDisplayCIELabValue)
    assert 0.6 < lightness < 0.8 and a * 255 > 128 and b * 255 > 160, "orange"


@pytest.mark.parametrize("seg_type", TYPES)
def test_a_label_that_does_not_occur_is_described(series: Path, tmp_path: Path, seg_type: str) -> None:
    found = _write(_export(series, seg_type, (blobs(SHAPE) == 2).astype(np.uint8) * 2), tmp_path)
    assert [item.SegmentLabel for item in found.SegmentSequence][-2:] == ["liver 1", "kidney 2"]


@pytest.mark.parametrize("seg_type", TYPES)
def test_an_empty_mask_and_a_single_slice(tmp_path: Path, seg_type: str) -> None:
    write(tmp_path / "in", Series(count=1).slices())
    _write(_export(tmp_path / "in", seg_type, np.zeros((9, 7, 1), np.uint8)), tmp_path)
    full = np.full((9, 7, 1), 2, np.uint8)
    found = _write(_export(tmp_path / "in", seg_type, full), tmp_path)
    step = float(found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices)
    assert step == pytest.approx(2.5)


@pytest.mark.parametrize("seg_type", TYPES)
def test_a_tilted_stack_gets_frames_on_its_own_slices(tmp_path: Path, seg_type: str) -> None:
    series = Series(columns=20, rows=24, count=8)
    slices = series.slices()
    places = []
    for number, one in enumerate(slices):
        places.append(series.position(number) + 0.6 * number * series.turn[:, 1])
        one.ImagePositionPatient = [f"{value:.8f}" for value in places[-1]]
    write(tmp_path / "in", slices)
    options = IntakeOptions(untilt=True)
    shape = export_of(tmp_path / "in", np.zeros(1), intake=options).geometry.shape
    assert shape[1] > 24
    found = _write(_export(tmp_path / "in", seg_type, np.full(shape, 1, np.uint8), intake=options), tmp_path)
    frames = found.PerFrameFunctionalGroupsSequence
    assert (found.Rows, found.Columns) == (24, 20)
    got = {_position(frame) for frame in frames}
    assert np.array(sorted(got)) == pytest.approx(np.array(sorted(map(tuple, places))), abs=1e-6)


def test_what_cannot_be_written_is_refused(series: Path, tmp_path: Path) -> None:
    labels = blobs(SHAPE)
    with pytest.raises(InputRefusedError, match=r"no code is known for liver 1, kidney 2.*labels block"):
        dicom_seg.write(export_of(series, labels, names=label_map(2, coded=False)), tmp_path / "mask.dcm")
    with pytest.raises(InputRefusedError, match="probabilities"):
        dicom_seg.write(export_of(series, labels, seg_type="fractional"), tmp_path / "mask.dcm")
    with pytest.raises(InputRefusedError, match="the value 2, which is no label"):
        dicom_seg.write(export_of(series, labels, names=label_map(1)), tmp_path / "mask.dcm")
    assert not (tmp_path / "mask.dcm").exists()


def _flip_a_voxel(found: Dataset) -> None:
    found.PixelData = bytes([found.PixelData[0] ^ 1]) + found.PixelData[1:]


def _move_a_frame(found: Dataset) -> None:
    place = found.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    place.ImagePositionPatient = [float(value) + 0.01 for value in place.ImagePositionPatient]


def _swap_spacings(found: Dataset) -> None:
    measures = found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing = list(measures.PixelSpacing)[::-1]


def _rename(found: Dataset) -> None:
    found.SegmentSequence[-1].SegmentLabel = "spleen"


@pytest.mark.parametrize("harm", [_flip_a_voxel, _move_a_frame, _swap_spacings, _rename])
@pytest.mark.parametrize("seg_type", TYPES)
def test_a_file_that_says_something_else_is_refused(series: Path, tmp_path: Path, seg_type: str, harm) -> None:
    export = _export(series, seg_type, blobs(SHAPE))
    found = _write(export, tmp_path)
    harm(found)
    found.save_as(tmp_path / "mask.dcm")
    with pytest.raises(InputRefusedError):
        dicom_seg.check(tmp_path / "mask.dcm", export)
    (tmp_path / "mask.dcm").write_bytes(b"no DICOM")
    with pytest.raises(InputRefusedError, match="cannot be read"):
        dicom_seg.check(tmp_path / "mask.dcm", export)


def test_label_values_need_not_be_consecutive(series: Path, tmp_path: Path) -> None:
    names = label_map(2)
    names = replace(names, labels=(replace(names.labels[0], index=3), replace(names.labels[1], index=300)))
    labels = np.array([0, 3, 300], np.uint16)[blobs(SHAPE)]
    for seg_type in ("binary", "labelmap"):
        _write(export_of(series, labels, names=names, seg_type=seg_type), tmp_path)
