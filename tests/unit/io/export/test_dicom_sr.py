"""Structured reports: volumes in ml, of what, measured where, verified by nobody."""

from __future__ import annotations

from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from dicom_multiframe_writer import Frame, echo, enhanced
from dicom_writer import Series, write
from mask_exports import blobs, dciodvfy, export_of, label_map, personal
from pydicom import Dataset, dcmread

from unet_med.errors import InputRefusedError
from unet_med.io.export import dicom_seg, dicom_sr

SHAPE = (9, 7, 6)
VOXEL_ML = 0.8 * 1.25 * 2.5 / 1000.0


@pytest.fixture
def series(tmp_path: Path) -> Path:
    slices = Series().slices()
    for one in slices:
        personal(one)
    write(tmp_path / "series", slices)
    return tmp_path / "series"


@pytest.mark.parametrize("deidentify", [False, True])
@pytest.mark.parametrize("formats", [("dicom-sr",), ("dicom-seg", "dicom-sr")])
def test_is_valid_and_another_library_reads_the_volumes(
    series: Path, tmp_path: Path, formats: tuple[str, ...], deidentify: bool
) -> None:
    labels = blobs(SHAPE)
    export = export_of(series, labels, names=label_map(3), formats=formats, deidentify=deidentify)
    path = tmp_path / "report.dcm"
    dicom_sr.write(export, path)
    assert dicom_sr.check(path, export)["passed"]
    assert dciodvfy(path) == []
    report = hd.sr.srread(path)
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    with_seg = "dicom-seg" in formats
    content = report.content
    groups = content.get_volumetric_roi_measurement_groups() if with_seg else content.get_image_measurement_groups()
    assert len(groups) == 3
    for number, group in enumerate(groups, start=1):
        (measurement,) = group.get_measurements()
        assert measurement.unit.value == "ml"
        assert measurement.value == pytest.approx(np.count_nonzero(labels == number) * VOXEL_ML, rel=1e-9)
        assert group.finding_type.value == label_map(3).labels[number - 1].code.type.value
        sides = [site.laterality.value if site.laterality else None for site in group.finding_sites]
        assert sides == (["7771000"] if number == 2 else [])
        assert not with_seg or group.referenced_segment is not None


def test_it_names_the_segmentation_that_is_written_along(series: Path, tmp_path: Path) -> None:
    export = export_of(series, formats=("dicom-seg", "dicom-sr"))
    dicom_seg.write(export, tmp_path / "mask.dcm")
    dicom_sr.write(export, tmp_path / "report.dcm")
    mask, report = dcmread(tmp_path / "mask.dcm"), dcmread(tmp_path / "report.dcm")
    named = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    uids = {
        one.SeriesInstanceUID: {item.ReferencedSOPInstanceUID for item in one.ReferencedSOPSequence} for one in named
    }
    assert uids[mask.SeriesInstanceUID] == {mask.SOPInstanceUID}
    source = {header.SOPInstanceUID for header in map(dcmread, series.iterdir())}
    assert source in uids.values()
    tracking = {item.SegmentLabel: item.TrackingUID for item in mask.SegmentSequence}
    assert all(uid.encode() in (tmp_path / "report.dcm").read_bytes() for uid in tracking.values())


def test_frames_of_an_enhanced_image_are_named(tmp_path: Path) -> None:
    frames = [Frame(k, groups=echo(ms)) for k in range(6) for ms in (4.0, 9.0)]
    write(tmp_path / "in", [enhanced(Series(modality="MR"), frames)])
    export = export_of(tmp_path / "in", series=1)
    dicom_sr.write(export, tmp_path / "report.dcm")
    assert dciodvfy(tmp_path / "report.dcm") == []
    named = [item for item in _items(dcmread(tmp_path / "report.dcm")) if "ReferencedFrameNumber" in item]
    assert [list(item.ReferencedFrameNumber) for item in named] == [[2, 4, 6, 8, 10, 12]] * 2


def _items(item: Dataset) -> list[Dataset]:
    nested = [child for element in item if element.VR == "SQ" for child in element.value]
    return nested + [deeper for child in nested for deeper in _items(child)]


def test_labels_without_codes_are_refused(series: Path, tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match=r"no code is known for liver 1, kidney 2.*labels block"):
        dicom_sr.write(export_of(series, names=label_map(2, coded=False)), tmp_path / "report.dcm")


def test_a_report_that_says_something_else_is_refused(series: Path, tmp_path: Path) -> None:
    export = export_of(series)
    path = tmp_path / "report.dcm"

    def harm_value(found: Dataset) -> None:
        next(item for item in _items(found) if "NumericValue" in item).NumericValue = "1.5"

    def harm_unit(found: Dataset) -> None:
        next(item for item in _items(found) if item.get("CodeValue") == "ml").CodeValue = "mm3"

    def harm_name(found: Dataset) -> None:
        next(item for item in _items(found) if item.get("TextValue") == "liver 1").TextValue = "spleen"

    def verify(found: Dataset) -> None:
        found.VerificationFlag = "VERIFIED"

    for harm in (harm_value, harm_unit, harm_name, verify):
        dicom_sr.write(export, path)
        found = dcmread(path)
        harm(found)
        found.save_as(path)
        with pytest.raises(InputRefusedError):
            dicom_sr.check(path, export)
