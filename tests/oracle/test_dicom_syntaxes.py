"""Every transfer syntax against the uncompressed original: lossless ones exact, lossy ones within a tolerance.

The encoders are others than the decoders wherever there are any: dcmtk, pydicom's plug-ins, imagecodecs.
"""

from __future__ import annotations

import importlib.util
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from unet_med.errors import InputRefusedError
from unet_med.io.dicom import codecs
from unet_med.io.dicom.pixels import missing_decoder, read_slice, read_slices

_SPEC = importlib.util.spec_from_file_location("dicom_writer", Path(__file__).parents[1] / "dicom_writer.py")
w = importlib.util.module_from_spec(_SPEC)
sys.modules["dicom_writer"] = w
_SPEC.loader.exec_module(w)

Encode = Callable[[Path, Path], None]
_OTHER = "1.2.840.10008.1.2.4."


def picture(bits: int, signed: bool, rows: int = 48, columns: int = 56) -> np.ndarray:
    """A smooth picture with noise that uses all its bits."""
    y, x = np.mgrid[:rows, :columns]
    top = (1 << bits) - 1
    values = (np.sin(x / 7) * np.cos(y / 9) * 0.4 + 0.5) * top
    values = values + np.random.default_rng(bits).normal(0, top / 100, x.shape)
    values = np.rint(np.clip(values, 0, top)).astype(np.int64)
    values[0, :2] = 0, top
    kind = f"{'i' if signed else 'u'}{1 if bits <= 8 else 2 if bits <= 16 else 4}"
    return (values - (1 << (bits - 1)) * signed).astype(kind)


def write(path: Path, stored: np.ndarray, bits: int) -> None:
    data = w.Series(count=1).slices()[0]
    w.set_stored(data, stored, bits)
    data.RescaleSlope, data.RescaleIntercept = 1, 0
    data.save_as(path, enforce_file_format=True)


def dcmtk(*command: str) -> Encode:
    def encode(source: Path, target: Path) -> None:
        if shutil.which(command[0]) is None:
            pytest.skip(f"{command[0]} (dcmtk) is not installed")
        done = subprocess.run([*command, str(source), str(target)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{command[0]} does not encode this: {done.stderr.strip()[-60:]}")

    return encode


def by_pydicom(syntax: str, **options: object) -> Encode:
    def encode(source: Path, target: Path) -> None:
        data = dcmread(source)
        try:
            data.compress(syntax, generate_instance_uid=False, **options)
        except RuntimeError as error:
            pytest.skip(f"no encoder: {error}")
        data.save_as(target, enforce_file_format=True)

    return encode


def by_imagecodecs(syntax: str, codec: str, **options: object) -> Encode:
    def encode(source: Path, target: Path) -> None:
        imagecodecs = pytest.importorskip("imagecodecs")
        if not getattr(imagecodecs, codec.upper()).available:
            pytest.skip(f"imagecodecs is built without {codec}")
        data = dcmread(source)
        replace_pixels(data, syntax, getattr(imagecodecs, f"{codec}_encode")(data.pixel_array, **options))
        data.save_as(target, enforce_file_format=True)

    return encode


def replace_pixels(data: FileDataset, syntax: str, *frames: bytes) -> None:
    parts = [b"", *(frame + b"\0" * (len(frame) % 2) for frame in frames)]
    data.PixelData = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(part)) + part for part in parts)
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    data.file_meta.TransferSyntaxUID = syntax


def as_syntax(syntax: str) -> Encode:
    def encode(source: Path, target: Path) -> None:
        data = dcmread(source)
        if syntax == ExplicitVRBigEndian and data.BitsAllocated > 8:
            size = data.BitsAllocated // 8
            data.PixelData = np.frombuffer(data.PixelData, f"<u{size}").byteswap().tobytes()
        data.file_meta.TransferSyntaxUID = syntax
        implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
        dcmwrite(target, data, implicit_vr=implicit, little_endian=little, force_encoding=True)

    return encode


LOSSLESS: dict[str, tuple[str, Encode]] = {
    "implicit": (ImplicitVRLittleEndian, as_syntax(ImplicitVRLittleEndian)),
    "explicit": (ExplicitVRLittleEndian, as_syntax(ExplicitVRLittleEndian)),
    "big endian": (ExplicitVRBigEndian, as_syntax(ExplicitVRBigEndian)),
    "deflated": (DeflatedExplicitVRLittleEndian, as_syntax(DeflatedExplicitVRLittleEndian)),
    "RLE": (RLELossless, by_pydicom(RLELossless)),
    "RLE of dcmtk": (RLELossless, dcmtk("dcmcrle")),
    "JPEG lossless SV1": (_OTHER + "70", dcmtk("dcmcjpeg", "+e1")),
    "JPEG lossless": (_OTHER + "57", dcmtk("dcmcjpeg", "+el")),
    "JPEG lossless, predictor 6": (_OTHER + "57", dcmtk("dcmcjpeg", "+el", "+sv", "6")),
    "JPEG-LS": (JPEGLSLossless, by_pydicom(JPEGLSLossless)),
    "JPEG-LS of dcmtk": (JPEGLSLossless, dcmtk("dcmcjpls", "+el")),
    "JPEG 2000": (JPEG2000Lossless, by_pydicom(JPEG2000Lossless)),
    "JPEG 2000, reversible .91": (_OTHER + "91", by_imagecodecs(_OTHER + "91", "jpeg2k", level=0, reversible=True)),
    "HTJ2K": (HTJ2KLossless, by_imagecodecs(HTJ2KLossless, "htj2k", reversible=True)),
    "HTJ2K RPCL": (HTJ2KLosslessRPCL, by_imagecodecs(HTJ2KLosslessRPCL, "htj2k", reversible=True)),
    "HTJ2K .203": (_OTHER + "203", by_imagecodecs(_OTHER + "203", "htj2k", reversible=True)),
}


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize(
    ("bits", "signed"), [(8, False), (8, True), (10, False), (12, False), (12, True), (16, False), (16, True)]
)
def test_lossless_syntaxes_are_exact(tmp_path: Path, name: str, bits: int, signed: bool) -> None:
    stored = picture(bits, signed)
    write(tmp_path / "a", stored, bits)
    syntax, encode = LOSSLESS[name]
    encode(tmp_path / "a", tmp_path / "b")
    assert dcmread(tmp_path / "b", stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax
    assert missing_decoder(syntax, bits) == ""
    assert np.array_equal(read_slice(tmp_path / "b").values, stored.astype(np.float32))


@pytest.mark.parametrize(
    ("name", "bits", "encode", "tolerance"),
    [
        ("50", 8, dcmtk("dcmcjpeg", "+eb"), 0.06),
        ("51", 8, dcmtk("dcmcjpeg", "+ee"), 0.06),
        ("51", 12, dcmtk("dcmcjpeg", "+ee"), 0.01),
        ("81", 8, dcmtk("dcmcjpls", "+en", "+md", "2"), 2 / 255),
        ("81", 12, dcmtk("dcmcjpls", "+en", "+md", "2"), 2 / 4095),
        ("81", 16, dcmtk("dcmcjpls", "+en", "+md", "2"), 2 / 65535),
        ("91", 8, by_pydicom(_OTHER + "91", j2k_cr=[3]), 0.05),
        ("91", 12, by_pydicom(_OTHER + "91", j2k_cr=[3]), 0.02),
        ("91", 16, by_pydicom(_OTHER + "91", j2k_cr=[3]), 0.02),
        ("203", 12, by_imagecodecs(_OTHER + "203", "htj2k", reversible=False, level=0.0005), 0.02),
    ],
)
def test_lossy_syntaxes_are_close(tmp_path: Path, name: str, bits: int, encode: Encode, tolerance: float) -> None:
    stored = picture(bits, signed=False)
    write(tmp_path / "a", stored, bits)
    encode(tmp_path / "a", tmp_path / "b")
    assert dcmread(tmp_path / "b", stop_before_pixels=True).file_meta.TransferSyntaxUID == _OTHER + name
    values = read_slice(tmp_path / "b").values
    assert values.shape == stored.shape
    difference = np.abs(values - stored)
    assert 0 < difference.max() <= tolerance * ((1 << bits) - 1)


@pytest.mark.parametrize("signed", [False, True])
def test_lossy_signed_jpeg_2000(tmp_path: Path, signed: bool) -> None:
    stored = picture(12, signed)
    write(tmp_path / "a", stored, 12)
    by_pydicom(_OTHER + "91", j2k_cr=[3])(tmp_path / "a", tmp_path / "b")
    assert np.abs(read_slice(tmp_path / "b").values - stored).max() <= 82


ALTERNATIVES = [
    ("RLE", "pydicom", 16),
    ("JPEG lossless SV1", "gdcm", 16),
    ("JPEG lossless", "gdcm", 12),
    ("JPEG-LS", "pyjpegls", 16),
    ("JPEG-LS", "gdcm", 12),
    ("JPEG 2000", "pylibjpeg", 16),
    ("JPEG 2000", "gdcm", 16),
    ("JPEG 2000", "pillow", 12),
    ("HTJ2K", "pylibjpeg", 16),
]


@pytest.mark.parametrize(("name", "library", "bits"), ALTERNATIVES)
@pytest.mark.parametrize("signed", [False, True])
def test_each_library_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, library: str, bits: int, signed: bool
) -> None:
    syntax, encode = LOSSLESS[name]
    if library not in codecs.decoders(syntax, bits):
        pytest.skip(f"{library} is not installed")
    monkeypatch.setattr(codecs, "decoders", lambda *_: (library,))
    stored = picture(bits, signed)
    write(tmp_path / "a", stored, bits)
    encode(tmp_path / "a", tmp_path / "b")
    data = dcmread(tmp_path / "b")
    frame = codecs.Frame(syntax, *stored.shape, data.BitsAllocated, bits, signed, fragment(data))
    assert np.array_equal(codecs.decode(frame), stored)


def fragment(data: FileDataset) -> bytes:
    from pydicom.encaps import get_frame

    return get_frame(data.PixelData, 0, number_of_frames=1)


# ---- frames in items -------------------------------------------------------------------------------------------------


def several_frames(path: Path, layout: str, count: int = 4) -> list[np.ndarray]:
    """A multi-frame JPEG-LS file whose frames are cut into items in different ways."""
    imagecodecs = pytest.importorskip("imagecodecs")
    pictures = [np.roll(picture(12, signed=False), number, axis=1) for number in range(count)]
    codes = [bytes(imagecodecs.jpegls_encode(one)) for one in pictures]
    codes = [code + b"\0" * (len(code) % 2) for code in codes]
    pieces = [[code] if layout == "one item each" else [code[:100], code[100:]] for code in codes]
    data = w.Series(count=1).slices()[0]
    w.set_stored(data, pictures[0], 12)
    data.RescaleSlope, data.RescaleIntercept = 1, 0
    data.NumberOfFrames = count
    starts = np.cumsum([0, *(sum(len(piece) + 8 for piece in one) for one in pieces)])[:-1]
    table = starts.astype("<u4").tobytes() if layout == "table" else b""
    if layout == "extended table":
        data.ExtendedOffsetTable = starts.astype("<u8").tobytes()
        data.ExtendedOffsetTableLengths = np.array([len(code) for code in codes], "<u8").tobytes()
    items = [table, *(piece for one in pieces for piece in one)]
    data.PixelData = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(item)) + item for item in items)
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    data.file_meta.TransferSyntaxUID = JPEGLSLossless
    data.save_as(path, enforce_file_format=True)
    return pictures


@pytest.mark.parametrize("layout", ["one item each", "table", "extended table"])
def test_frames_are_found_in_their_items(tmp_path: Path, layout: str) -> None:
    pictures = several_frames(tmp_path / "a", layout)
    for number in (2, 0, 3, 1):
        assert np.array_equal(read_slice(tmp_path / "a", number).values, pictures[number])
    found = read_slices([(tmp_path / "a", number) for number in (3, 1, 1, 0)])
    assert [np.array_equal(one.values, pictures[n]) for one, n in zip(found, (3, 1, 1, 0), strict=True)] == [True] * 4


def test_frames_without_a_table_are_refused(tmp_path: Path) -> None:
    several_frames(tmp_path / "a", "two items each")
    with pytest.raises(InputRefusedError, match="where its frames begin"):
        read_slice(tmp_path / "a", 1)


def test_a_single_frame_in_several_items(tmp_path: Path) -> None:
    pictures = several_frames(tmp_path / "a", "two items each", count=1)
    assert np.array_equal(read_slice(tmp_path / "a").values, pictures[0])


# ---- streams that lie ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in LOSSLESS if "endian" not in name and "plicit" not in name])
@pytest.mark.parametrize("left", [0.5, 0.98])
def test_a_stream_that_ends_early_is_refused(tmp_path: Path, name: str, left: float) -> None:
    write(tmp_path / "a", picture(12, signed=False), 12)
    syntax, encode = LOSSLESS[name]
    encode(tmp_path / "a", tmp_path / "b")
    if syntax == DeflatedExplicitVRLittleEndian:
        whole = (tmp_path / "b").read_bytes()
        (tmp_path / "c").write_bytes(whole[: int(len(whole) * left)])
    else:
        data = dcmread(tmp_path / "b")
        code = fragment(data)
        replace_pixels(data, syntax, code[: int(len(code) * left)])
        data.save_as(tmp_path / "c", enforce_file_format=True)
    with pytest.raises(InputRefusedError) as caught:
        read_slice(tmp_path / "c")
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["JPEG lossless SV1", "JPEG-LS", "JPEG 2000", "HTJ2K", "RLE"])
@pytest.mark.parametrize("change", [("Rows", 47), ("Rows", 49), ("Columns", 55), ("Columns", 57), ("Rows", 60000)])
def test_a_stream_of_another_size_is_refused(tmp_path: Path, name: str, change: tuple[str, int]) -> None:
    write(tmp_path / "a", picture(12, signed=False), 12)
    LOSSLESS[name][1](tmp_path / "a", tmp_path / "b")
    data = dcmread(tmp_path / "b")
    setattr(data, *change)
    data.save_as(tmp_path / "b", enforce_file_format=True)
    if name == "RLE" and change == ("Columns", 55):
        pytest.skip("run lengths do not tell a size: what is less than a row too much may be padding")
    with pytest.raises(InputRefusedError, match="cannot be decoded"):
        read_slice(tmp_path / "b")


def test_a_sign_that_readers_disagree_on_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", picture(12, signed=False), 12)
    by_pydicom(JPEGLSLossless)(tmp_path / "a", tmp_path / "b")
    data = dcmread(tmp_path / "b")
    data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 15, 1
    data.save_as(tmp_path / "b", enforce_file_format=True)
    with pytest.raises(InputRefusedError, match="sign"):
        read_slice(tmp_path / "b")
