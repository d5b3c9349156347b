"""The header walker agrees with pydicom on every file pydicom tests itself with, and never fails on stumps."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path

import pydicom
import pydicom.data
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from unet_med.io.dicom_headers import SPLIT_TAGS, Damaged, Header, looks_like_dicom, read_header

_SPEC = importlib.util.spec_from_file_location("dicom_writer", Path(__file__).parents[2] / "dicom_writer.py")
w = importlib.util.module_from_spec(_SPEC)
sys.modules["dicom_writer"] = w
_SPEC.loader.exec_module(w)

_FILES = sorted(path for path in (Path(pydicom.data.__file__).parent / "test_files").rglob("*") if path.is_file())


@pytest.mark.parametrize("path", _FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_agrees_with_pydicom(path: Path) -> None:
    header = read_header(path)
    if not isinstance(header, Header):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(path, force=True)
        assert (header.rows, header.columns) == (data.get("Rows") or 0, data.get("Columns") or 0)
        if path.name != "badVR.dcm":  # its number of frames is "1A"
            assert header.frames == int(data.get("NumberOfFrames") or 1)
        assert header.sop_uid == data.get("SOPInstanceUID", "")
        assert header.series_uid == data.get("SeriesInstanceUID", "")
        assert header.photometric == data.get("PhotometricInterpretation", "")
        assert header.bits_stored == data.get("BitsStored", 0)
        for name, value in (
            ("ImagePositionPatient", header.position),
            ("ImageOrientationPatient", header.orientation),
            ("PixelSpacing", header.pixel_spacing),
        ):
            assert value == (tuple(map(float, data[name].value)) if data.get(name) else None)
        for split in SPLIT_TAGS:
            assert (split.tag in header.split) == (
                data.get(split.tag) is not None and bool(data[split.tag].value or data[split.tag].value == 0)
            )
        assert header.has_pixels == ("PixelData" in data or "FloatPixelData" in data or "DoubleFloatPixelData" in data)
    whole = path.name not in ("MR_truncated.dcm", "SC_ybr_full_422_uncompressed.dcm")
    assert (header.fault in ("", "without pixels", "truncated in its header")) == whole


def test_most_files_of_pydicom_are_understood() -> None:
    found = [read_header(path) for path in _FILES]
    assert sum(isinstance(header, Header) for header in found) > 150
    assert sum(isinstance(header, Damaged) for header in found) < 8


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("undefined", [True, False])
def test_sequences_before_the_pixels_are_passed_over(tmp_path: Path, implicit: bool, undefined: bool) -> None:
    data = w.Series().slice(0, 1)
    item, inner = Dataset(), Dataset()
    inner.Rows, inner.SeriesInstanceUID = 99, "1.2.3"
    item.Rows, item.SourceImageSequence = 77, DicomSequence([inner, inner])
    data.ReferencedImageSequence = DicomSequence([item, Dataset(), item])
    data.add_new(0x00091001, "UN", b"private" * 30_001)
    for sequence in (data["ReferencedImageSequence"], item["SourceImageSequence"]):
        sequence.is_undefined_length = undefined
        for one in sequence.value:
            one.is_undefined_length_sequence_item = undefined
    path = tmp_path / "x"
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1"
    data.save_as(path)
    header = read_header(path)
    assert (header.rows, header.columns, header.series_uid, header.fault) == (7, 9, data.SeriesInstanceUID, "")


def test_a_file_cut_anywhere_is_never_taken_for_whole(tmp_path: Path) -> None:
    path = w.write(tmp_path, [w.Series(rows=4, columns=4).slice(0, 1)])[0]
    raw = path.read_bytes()
    for size in range(0, len(raw), 3):
        path.write_bytes(raw[:size])
        header = read_header(path)
        assert header is None or isinstance(header, Damaged) or header.fault, f"{size} of {len(raw)} bytes"


def test_text_and_pictures_are_no_dicom() -> None:
    assert not looks_like_dicom(b"")
    assert not looks_like_dicom(b"\x89PNG\r\n\x1a\n" + b"\0" * 200)
    assert not looks_like_dicom(b"name,age\n" * 40)
    assert looks_like_dicom(b"\0" * 128 + b"DICM")


def test_a_file_that_cannot_be_opened_is_damaged(tmp_path: Path) -> None:
    assert isinstance(read_header(tmp_path / "gone"), Damaged)
