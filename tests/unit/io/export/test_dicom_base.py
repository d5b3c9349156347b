"""What all DICOM exports share: whose they are, what they are called, and what is left of a patient."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_writer import Series, write
from mask_exports import SECRETS, blobs, dciodvfy, export_of, label_map, personal
from pydicom import Dataset, dcmread

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.io.export import dicom_base
from unet_med.io.export.formats import FORMATS
from unet_med.io.export.mask import MaskExport
from unet_med.volume import ArraySource, Volume

DICOM = tuple(name for name, one in FORMATS.items() if one.needs_dicom)
Change = Callable[[Dataset], None]


def _series(folder: Path, change: Change = personal, series: Series | None = None) -> Path:
    slices = (series or Series()).slices()
    for one in slices:
        change(one)
    write(folder, slices)
    return folder


def _written(export: MaskExport, folder: Path) -> dict[str, list[Path]]:
    """Writes and checks a mask in every DICOM format; returns the files."""
    folder.mkdir(exist_ok=True)
    files = {}
    for name in DICOM:
        path = folder / f"mask{FORMATS[name].ending}"
        FORMATS[name].write(export, path)
        assert FORMATS[name].check(path, export)["passed"]
        files[name] = sorted(path.iterdir()) if path.is_dir() else [path]
    return files


def _walk(dataset: Dataset) -> Iterator[Dataset]:
    yield dataset
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _walk(item)


def test_all_formats_carry_the_patient_and_nothing_of_the_series(tmp_path: Path) -> None:
    source = dcmread(next(_series(tmp_path / "in").iterdir()))
    export = export_of(tmp_path / "in", formats=DICOM)
    for name, files in _written(export, tmp_path).items():
        found = dcmread(files[0])
        for keyword in (
            *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientWeight"),
            *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
        ):
            assert found[keyword].value == source[keyword].value, (name, keyword)
        assert found.SeriesInstanceUID != source.SeriesInstanceUID
        assert "(research)" in found.SeriesDescription
        assert "InstitutionName" not in found
        assert not any(element.tag.is_private for item in _walk(found) for element in item)
        assert 1390 < found.SeriesNumber < 1400  # behind series 13
        assert found.get("FrameOfReferenceUID", source.FrameOfReferenceUID) == source.FrameOfReferenceUID
        text = files[0].read_bytes()
        assert b"Research use only" in text and b"0123456789abcdef" * 4 in text


def test_without_patient_nothing_of_him_is_left_and_all_uids_belong_together(tmp_path: Path) -> None:
    headers = [dcmread(file) for file in _series(tmp_path / "in").iterdir()]
    known = {header.StudyInstanceUID for header in headers} | {header.SeriesInstanceUID for header in headers}
    known |= {header.SOPInstanceUID for header in headers} | {header.FrameOfReferenceUID for header in headers}
    export = export_of(tmp_path / "in", formats=DICOM, deidentify=True)
    studies, frames, patients = set(), set(), set()
    for name, files in _written(export, tmp_path).items():
        for file in files:
            text = file.read_bytes()
            for secret in (*SECRETS, *known):
                assert secret.encode() not in text, (name, secret)
            found = dcmread(file)
            assert found.PatientIdentityRemoved == "YES"
            assert found.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
            for item in _walk(found):
                for element in item:
                    if element.VR in ("DA", "DT"):
                        assert str(element.value)[:8] in ("", "20000101"), element.keyword
                    if element.keyword == "ReferencedSOPInstanceUID":
                        assert str(element.value).startswith("2.25.")
            assert not (found.PatientBirthDate or found.PatientSex or found.StudyDate or found.AccessionNumber)
            studies.add(found.StudyInstanceUID)
            frames.add(found.get("FrameOfReferenceUID"))
            patients.add((str(found.PatientName), found.PatientID))
    assert len(studies) == 1 and len(patients) == 1 and len(frames - {None}) == 1
    assert studies == {dicom_base.remapped_uid(headers[0].StudyInstanceUID)}


def test_references_are_remapped_like_the_source(tmp_path: Path) -> None:
    headers = [dcmread(file) for file in _series(tmp_path / "in").iterdir()]
    expected = {dicom_base.remapped_uid(header.SOPInstanceUID) for header in headers}
    export = export_of(tmp_path / "in", formats=DICOM, deidentify=True)
    own = set()
    named: dict[str, set[str]] = {}
    for name, files in _written(export, tmp_path).items():
        named[name] = set()
        for file in files:
            dataset = dcmread(file)
            own |= {dataset.SOPInstanceUID, dataset.StudyInstanceUID}
            named[name] |= {
                str(item.ReferencedSOPInstanceUID) for item in _walk(dataset) if "ReferencedSOPInstanceUID" in item
            }
    for name, found in named.items():
        assert found - own == expected, name


def test_the_same_mask_has_the_same_name_and_another_one_another(tmp_path: Path) -> None:
    folder = _series(tmp_path / "in")
    export = export_of(folder)
    other = export.labels.copy()
    other[0, 0, 0] = 2 - (other[0, 0, 0] == 2)
    exports = {
        "same": export_of(folder),
        "mask": export_of(folder, other),
        "model": replace(export, provenance={"model_sha256": ["f" * 64]}),
        "labels": replace(export, label_map=label_map(3)),
        "type": export_of(folder, seg_type="labelmap"),
        "patient": export_of(folder, deidentify=True),
    }
    first = dicom_base.read_source(export).own_uid("dicom-seg", "instance")
    found = {name: dicom_base.read_source(one).own_uid("dicom-seg", "instance") for name, one in exports.items()}
    assert found.pop("same") == first
    assert len({first, *found.values()}) == 6
    assert first != dicom_base.read_source(export).own_uid("rtstruct", "instance")
    assert all(len(uid) <= 64 and uid.startswith("2.25.") for uid in found.values())


def _poor(header: Dataset) -> None:
    personal(header)
    header.PatientBirthDate, header.StudyDate, header.StudyTime = "19700230", "last May", "25:61"
    header.PatientSex, header.PatientAge, header.PatientWeight = "FEMALE", "49 years", "71.12345"
    header.StudyID = "an identifier longer than sixteen"
    del header.ReferringPhysicianName
    header.PatientName = "no caret in this name"


def test_values_that_dicom_forbids_are_left_out_in_silence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings(action="ignore"):
        _series(tmp_path / "in", _poor)
    for file in (tmp_path / "in").iterdir():
        file.write_bytes(file.read_bytes().replace(b"71.12345", b"71 kilos"))
    export = export_of(tmp_path / "in", formats=DICOM)
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        files = _written(export, tmp_path)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    for found in map(dcmread, (each[0] for each in files.values())):
        for keyword in (
            "PatientBirthDate",
            "StudyDate",
            "StudyTime",
            "PatientSex",
            "StudyID",
            "ReferringPhysicianName",
        ):
            assert not found[keyword].value, keyword
        assert "PatientAge" not in found and "PatientWeight" not in found
        assert found.PatientName == "no caret in this name"
    for each in files.values():
        assert dciodvfy(each[0]) == []


def test_text_is_written_as_utf8(tmp_path: Path) -> None:
    def umlauts(header: Dataset) -> None:
        header.SpecificCharacterSet = "ISO_IR 100"
        header.PatientName, header.StudyDescription = "Müller^Jörg", "Schädel"

    _series(tmp_path / "in", umlauts)
    for files in _written(export_of(tmp_path / "in"), tmp_path).values():
        found = dcmread(files[0])
        assert (str(found.PatientName), found.StudyDescription) == ("Müller^Jörg", "Schädel")
        assert "Müller".encode() in files[0].read_bytes()


def test_what_a_trial_and_an_earlier_removal_say_is_kept(tmp_path: Path) -> None:
    def trial(header: Dataset) -> None:
        header.ClinicalTrialSponsorName, header.ClinicalTrialProtocolID = "TCIA", "7"
        header.ClinicalTrialSubjectID = "SUBJECT-1"
        header.PatientIdentityRemoved, header.DeidentificationMethod = "YES", "by hand"

    _series(tmp_path / "in", trial)
    for files in _written(export_of(tmp_path / "in"), tmp_path).values():
        found = dcmread(files[0])
        assert (found.ClinicalTrialSubjectID, found.ClinicalTrialSiteName) == ("SUBJECT-1", "")
        assert (found.PatientIdentityRemoved, found.DeidentificationMethod) == ("YES", "by hand")
        assert dciodvfy(files[0]) == []
    for files in _written(export_of(tmp_path / "in", deidentify=True), tmp_path / "without").values():
        assert b"SUBJECT-1" not in files[0].read_bytes()


def test_no_frame_of_reference_gets_one_that_all_formats_share(tmp_path: Path) -> None:
    def without(header: Dataset) -> None:
        del header.FrameOfReferenceUID

    _series(tmp_path / "in", without)
    files = _written(export_of(tmp_path / "in"), tmp_path)
    frames = {dcmread(each[0]).get("FrameOfReferenceUID") for name, each in files.items() if name != "dicom-sr"}
    assert len(frames) == 1 and str(frames.pop()).startswith("2.25.")
    assert dciodvfy(files["dicom-seg"][0]) == []


def test_images_without_a_name_are_refused(tmp_path: Path) -> None:
    def without(header: Dataset) -> None:
        del header.StudyInstanceUID

    _series(tmp_path / "in", without)
    export = export_of(tmp_path / "in")
    for name in DICOM:
        with pytest.raises(InputRefusedError, match="lack the UIDs"):
            FORMATS[name].write(export, tmp_path / name)


@pytest.mark.parametrize("name", DICOM)
def test_other_images_are_refused(tmp_path: Path, name: str) -> None:
    grid = Geometry.from_spacing((4, 5, 6), (1.0, 1.0, 1.0))
    source = ArraySource("case", Volume(np.zeros((1, 4, 5, 6), np.float32), grid))
    export = MaskExport(source, np.zeros((4, 5, 6), np.uint8), label_map())
    with pytest.raises(InputRefusedError, match="DICOM volume"):
        FORMATS[name].write(export, tmp_path / "mask")


def test_slices_that_lie_elsewhere_are_refused(tmp_path: Path) -> None:
    _series(tmp_path / "in")
    export = export_of(tmp_path / "in", blobs((9, 7, 6)))
    layout = dicom_base.slice_layout(export)
    slices = [
        dicom_base.FoundSlice(layout.slice_affine(number), export.labels[:, :, number].astype(np.int64))
        for number in range(6)
    ]
    assert dicom_base.stamp_slices(export, "hand", slices, exact=True)["passed"]
    for bad in (
        [replace(slices[0], affine=slices[0].affine + np.eye(4)[:, :1] @ np.eye(4)[3:] * 0.01), *slices[1:]],
        [replace(slices[0], labels=slices[0].labels[::-1]), *slices[1:]],
        [replace(slices[0], labels=slices[0].labels[:-1]), *slices[1:]],
        [replace(one, affine=one.affine @ np.diag([1.01, 1.0, 1.0, 1.0])) for one in slices],
        slices[1:],
    ):
        with pytest.raises(InputRefusedError, match="does not read back"):
            dicom_base.stamp_slices(export, "hand", bad, exact=True)
