"""The header walker agrees with pydicom on every file pydicom tests itself with, and never fails on stumps."""

from __future__ import annotations

import importlib.util
import struct
import sys
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import DeflatedExplicitVRLittleEndian

from unet_med.io.dicom.headers import SPLIT_TAGS, Damaged, Header, looks_like_dicom, read_header

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


# ---- damaged on purpose: an answer in little time and memory ---------------------------------------------------------


def _explicit(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    size = len(value) if length is None else length
    long = vr in (b"SQ", b"UN", b"OB", b"OW")
    return head + (struct.pack("<HL", 0, size) if long else struct.pack("<H", size)) + value


def _file(body: bytes, syntax: bytes = b"1.2.840.10008.1.2.1") -> bytes:
    syntax += b"\0" * (len(syntax) % 2)
    return b"\0" * 128 + b"DICM" + _explicit(0x00020010, b"UI", syntax) + body


_SMALL = _explicit(0x00080016, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0") + _explicit(0x0020000E, b"UI", b"1.2.3\0")
_ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)

_CLOSED = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)


def _nested(depth: int) -> bytes:
    return (_explicit(0x00081115, b"SQ", b"", 0xFFFFFFFF) + _ITEM) * depth


def _deflated(body: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(_file(_SMALL + _nested(20_000)), id="nested without end"),
        pytest.param(
            _file(_SMALL + _nested(5_000) + (struct.pack("<HHL", 0xFFFE, 0xE00D, 0) * 2) * 5_000),
            id="nested and closed",
        ),
        pytest.param(_file(_SMALL + _explicit(0x00081140, b"OB", b"", 0xFFFFFFF0)), id="giant length"),
        pytest.param(_file(_SMALL + _explicit(0x00200032, b"UN", b"1", 0x7FFFFFF0)), id="giant wanted value"),
        pytest.param(_file(_SMALL + _explicit(0x00081140, b"SQ", b"", 0xFFFFFFFF) + b"\xff" * 64), id="no items"),
        pytest.param(_file(_SMALL + b"\x28\x00\x10\x00??\x02\x00\x07\x00"), id="unknown VR"),
        pytest.param(_file(_SMALL, b"1.2.840.10008.1.2.1.99"), id="not deflated"),
        pytest.param(
            _file(_deflated(_SMALL + _explicit(0x00091010, b"OB", bytes(1 << 27)))[:-9], b"1.2.840.10008.1.2.1.99"),
            id="deflated zeros",
        ),
    ],
)
def test_hostile_headers_are_answered(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        header = read_header(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(header, Damaged) or header.fault
    assert peak < 64 * 2**20


def test_long_headers_are_walked_in_windows(tmp_path: Path) -> None:
    """A private element of 30 MB before the image description is passed over, not read."""
    data = w.Series().slice(0, 1)
    data.add_new(0x00091010, "OB", bytes(30 * 2**20))
    path = w.write(tmp_path, [data])[0]
    tracemalloc.start()
    try:
        header = read_header(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (header.rows, header.columns, header.fault) == (7, 9, "")
    assert peak < 2**20


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
@pytest.mark.parametrize("change", ["whole", "cut", "padded", "longer"])
def test_pixels_behind_long_private_groups(tmp_path: Path, syntax: str, change: str) -> None:
    data = w.Series(rows=5, columns=5).slice(0, 1)
    for number in range(1000):
        data.add_new(0x20051000 + number, "LO", f"{number}")
    if change == "padded":
        data.add_new(0xFFFCFFFC, "OB", bytes(20))
    elif change == "longer":
        data.PixelData += bytes(6)
    data.file_meta.TransferSyntaxUID = syntax
    path = tmp_path / "x"
    data.save_as(path)
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-2])
    header = read_header(path)
    assert (header.rows, header.columns, header.has_pixels) == (5, 5, True)
    assert header.fault == ("truncated" if change == "cut" else "")


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("long", [100, 70_000, 200_000])
def test_every_place_of_the_window_boundary(tmp_path: Path, long: int, deflated: bool) -> None:
    """Elements that lie across the end of what has been read come out whole."""
    for extra in range(0, 64, 2):
        data = w.Series().slice(0, 1)
        data.add_new(0x00091010, "OB", bytes(long + extra))
        data.ReferencedImageSequence = DicomSequence([Dataset(), Dataset()])
        data["ReferencedImageSequence"].is_undefined_length = True
        if deflated:
            data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        path = w.write(tmp_path, [data])[0]
        header = read_header(path)
        assert (header.rows, header.columns, header.fault) == (7, 9, "")
        assert header.position == tuple(map(float, data.ImagePositionPatient))


def test_bytes_changed_at_random_never_crash_nor_tell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(5)
    data = w.Series(rows=4, columns=4).slice(0, 1)
    item = Dataset()
    item.ReferencedSOPInstanceUID = "1.2.3"
    data.ReferencedImageSequence = DicomSequence([item])
    whole = w.write(tmp_path, [data])[0].read_bytes()
    path = tmp_path / "changed"
    for _ in range(600):
        raw = bytearray(whole)
        for _ in range(rng.integers(1, 6)):
            raw[rng.integers(132, len(raw))] = rng.integers(0, 256)
        path.write_bytes(raw)
        assert read_header(path) is None or isinstance(read_header(path), Header | Damaged)
    assert caplog.text == "", "pydicom's words quote the header"
