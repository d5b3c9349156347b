"""RT structure sets: contours that hold exactly the pixels of the mask, and references that are complete."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_multiframe_writer import Frame, enhanced
from dicom_writer import Series, write
from mask_exports import blobs, dciodvfy, export_of, label_map, personal
from pydicom import Dataset, dcmread

from unet_med.errors import InputRefusedError
from unet_med.io.export import rtstruct
from unet_med.io.export.mask import MaskExport

SHAPE = (9, 7, 6)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    slices = Series().slices()
    for one in slices:
        personal(one)
    write(tmp_path / "series", slices)
    return tmp_path / "series"


def _write(export: MaskExport, folder: Path) -> Dataset:
    rtstruct.write(export, folder / "mask.dcm")
    record = rtstruct.check(folder / "mask.dcm", export)
    assert record["passed"] and record["dice"] == 1.0
    return dcmread(folder / "mask.dcm")


@pytest.mark.parametrize("deidentify", [False, True])
def test_is_valid(series: Path, tmp_path: Path, deidentify: bool) -> None:
    found = _write(export_of(series, deidentify=deidentify), tmp_path)
    assert dciodvfy(tmp_path / "mask.dcm") == []
    assert found.ApprovalStatus == "UNAPPROVED"
    assert [item.ROIName for item in found.StructureSetROISequence] == ["liver 1", "kidney 2"]
    assert [list(item.ROIDisplayColor) for item in found.ROIContourSequence] == [[230, 159, 0], [86, 180, 233]]
    assert {item.RTROIInterpretedType for item in found.RTROIObservationsSequence} == {"ORGAN"}


def test_labels_without_codes_will_do(series: Path, tmp_path: Path) -> None:
    found = _write(export_of(series, names=label_map(2, coded=False)), tmp_path)
    assert dciodvfy(tmp_path / "mask.dcm") == []
    assert not any("RTROIIdentificationCodeSequence" in item for item in found.RTROIObservationsSequence)


def test_references_are_complete_and_points_lie_on_their_slice(series: Path, tmp_path: Path) -> None:
    headers = {header.SOPInstanceUID: header for header in map(dcmread, series.iterdir())}
    found = _write(export_of(series), tmp_path)
    frame = found.ReferencedFrameOfReferenceSequence[0]
    source = next(iter(headers.values()))
    assert frame.FrameOfReferenceUID == found.FrameOfReferenceUID == source.FrameOfReferenceUID
    study = frame.RTReferencedStudySequence[0]
    assert study.ReferencedSOPInstanceUID == source.StudyInstanceUID
    referred = study.RTReferencedSeriesSequence[0]
    assert referred.SeriesInstanceUID == source.SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in referred.ContourImageSequence} == set(headers)
    for region in found.ROIContourSequence:
        for contour in region.ContourSequence:
            header = headers[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            row, column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
            points = np.array(contour.ContourData, float).reshape(-1, 3) - np.array(header.ImagePositionPatient, float)
            assert len(points) == contour.NumberOfContourPoints
            assert np.abs(points @ np.cross(row, column)).max() < 1e-4
            steps = np.stack([points @ row / 0.8, points @ column / 1.25], axis=1)
            assert np.abs(steps - np.rint(steps)).min() == pytest.approx(0.5, abs=1e-3), "corners of pixels"
            assert contour.ContourGeometricType == "CLOSED_PLANAR"


def test_frames_are_named_by_number(tmp_path: Path) -> None:
    source = enhanced(Series(modality="MR"), [Frame(k) for k in (3, 0, 5, 1, 4, 2)])
    write(tmp_path / "in", [source])
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:5, 2:5, 1] = 1
    found = _write(export_of(tmp_path / "in", labels, names=label_map(1)), tmp_path)
    (contour,) = found.ROIContourSequence[0].ContourSequence
    assert contour.ContourImageSequence[0].ReferencedFrameNumber == 4  # the fourth frame is slice 1
    assert dciodvfy(tmp_path / "mask.dcm") == []


def test_numbers_are_short_far_from_the_origin_and_for_tiny_pixels(tmp_path: Path) -> None:
    for number, (spacing, origin) in enumerate([(0.8, (-12345.678901, 3.0, 99999.5)), (0.00025, (-1.0, 2.0, 3.0))]):
        series = Series(between_rows=spacing, between_columns=spacing * 1.5, step=spacing, origin=origin)
        write(tmp_path / f"in{number}", series.slices())
        _write(export_of(tmp_path / f"in{number}"), tmp_path)
        assert dciodvfy(tmp_path / "mask.dcm") == []


def test_an_empty_label_and_an_empty_mask(series: Path, tmp_path: Path) -> None:
    for labels in (np.zeros(SHAPE, np.uint8), (blobs(SHAPE) == 2).astype(np.uint8) * 2):
        found = _write(export_of(series, labels), tmp_path)
        assert "ContourSequence" not in found.ROIContourSequence[0]
        assert len(found.StructureSetROISequence) == 2
        assert dciodvfy(tmp_path / "mask.dcm") == []


def test_a_contour_longer_than_64_kib(tmp_path: Path) -> None:
    write(tmp_path / "in", Series(columns=100, rows=120, count=2).slices())
    labels = np.zeros((100, 120, 2), np.uint8)
    labels[:, :, 0] = 1
    labels[1::2, 1:, 0] = 0  # a comb
    labels[1::2, ::4, 1] = 1
    labels[::2, :, 1] = 1  # a lattice of many holes
    found = _write(export_of(tmp_path / "in", labels, names=label_map(1)), tmp_path)
    assert max(len(item.get_item("ContourData").value) for item in found.ROIContourSequence[0].ContourSequence) > 2**16
    assert dciodvfy(tmp_path / "mask.dcm") == []


# ---- outlines -------------------------------------------------------------------------------------------------------


def _picture(*rows: str) -> np.ndarray:
    """Returns (columns, rows) from rows of text."""
    return np.array([[sign == "#" for sign in row] for row in rows]).T


def test_a_single_pixel_is_a_square() -> None:
    assert rtstruct.outlines_of(_picture("...", ".#.", "...")) == [[(1, 1), (2, 1), (2, 2), (1, 2)]]


def test_a_hole_is_joined_by_a_channel() -> None:
    (ring,) = rtstruct.outlines_of(_picture("####", "#.##", "####"))
    assert sorted(set(ring)) == [(0, 0), (0, 1), (0, 3), (1, 1), (1, 2), (2, 1), (2, 2), (4, 0), (4, 3)]
    assert ring.count((0, 1)) == 2, "there and back"


def test_pixels_that_touch_by_a_corner_are_two_regions() -> None:
    assert len(rtstruct.outlines_of(_picture("#.", ".#"))) == 2


def test_an_island_in_a_hole_is_a_region_of_its_own() -> None:
    outlines = rtstruct.outlines_of(_picture("#####", "#...#", "#.#.#", "#...#", "#####"))
    assert sorted(map(len, outlines)) == [4, 10]


def test_nothing_has_no_outline() -> None:
    assert rtstruct.outlines_of(np.zeros((3, 4), bool)) == []


# ---- refusals -------------------------------------------------------------------------------------------------------


def _first_points(found: Dataset) -> tuple[Dataset, np.ndarray]:
    contour = found.ROIContourSequence[0].ContourSequence[0]
    return contour, np.array(contour.ContourData, float).reshape(-1, 3)


def _move_everything(found: Dataset) -> None:
    for region in found.ROIContourSequence:
        for contour in region.ContourSequence:
            contour.ContourData = [round(float(value) + 0.6, 4) for value in contour.ContourData]


def _tilt_a_contour(found: Dataset) -> None:
    contour, points = _first_points(found)
    points[0] += 0.05
    contour.ContourData = [round(float(value), 4) for value in points.ravel()]


def _repeat_a_contour(found: Dataset) -> None:
    found.ROIContourSequence[0].ContourSequence.append(found.ROIContourSequence[0].ContourSequence[0])


def _rename(found: Dataset) -> None:
    found.StructureSetROISequence[0].ROIName = "spleen"


def _forget(found: Dataset) -> None:
    del found.ROIContourSequence[1].ContourSequence


@pytest.mark.parametrize("harm", [_move_everything, _tilt_a_contour, _repeat_a_contour, _rename, _forget])
def test_a_file_that_says_something_else_is_refused(series: Path, tmp_path: Path, harm) -> None:
    export = export_of(series)
    found = _write(export, tmp_path)
    harm(found)
    found.save_as(tmp_path / "mask.dcm")
    with pytest.raises(InputRefusedError):
        rtstruct.check(tmp_path / "mask.dcm", export)
