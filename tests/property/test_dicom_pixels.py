"""Pixels that are taken straight out of the file are what pydicom makes of it, bit for bit."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.filewriter import dcmwrite
from pydicom.pixels import pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from unet_med.io.dicom.pixels import read_slice

_SPEC = importlib.util.spec_from_file_location("dicom_writer", Path(__file__).parents[1] / "dicom_writer.py")
w = importlib.util.module_from_spec(_SPEC)
sys.modules["dicom_writer"] = w
_SPEC.loader.exec_module(w)

SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)


def by_pydicom(path: Path, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Real values and padding, the slow way: whole data set, float64, every bit looked at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = dcmread(path)
        stored = pixel_array(data, index=frame, raw=True)
        words = pixel_array(data, index=frame, raw=True, correct_unused_bits=False).astype(np.int64)
    values = stored.astype(np.float64)
    if "RescaleSlope" in data:
        values = values * np.float64(data.RescaleSlope) + np.float64(data.RescaleIntercept)
    hole = np.zeros(stored.shape, dtype=bool)
    if "PixelPaddingValue" in data:
        ends = sorted((data.PixelPaddingValue, data.get("PixelPaddingRangeLimit", data.PixelPaddingValue)))
        half = 1 << (data.BitsStored - 1)
        low, high = (-half, half - 1) if data.PixelRepresentation else (0, 2 * half - 1)
        compared = stored.astype(np.int64) if low <= ends[0] and ends[1] <= high else words
        hole = (compared >= ends[0]) & (compared <= ends[1])
    return values.astype(np.float32), hole


def written(path: Path, data: FileDataset, syntax: str) -> None:
    if syntax == ExplicitVRBigEndian:
        size = max(data.BitsAllocated // 8, 2)  # bytes lie in words of two
        data.PixelData = np.frombuffer(data.PixelData, f"<u{size}").byteswap().tobytes()
        data["PixelData"].VR = "OW"
    data.file_meta.TransferSyntaxUID = syntax
    dcmwrite(
        path,
        data,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
        force_encoding=True,
    )


slopes = st.one_of(st.just(1.0), st.just(-1.0), st.floats(1e-6, 1e6), st.integers(1, 9).map(float))
intercepts = st.one_of(st.just(0.0), st.just(-1024.0), st.just(-1024.5), st.floats(-1e7, 1e7), st.just(9e6))


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1, 2, 4]),
    unused=st.integers(0, 7),
    signed=st.booleans(),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 3)),
    rescale=st.none() | st.tuples(slopes, intercepts),
    padding=st.none() | st.tuples(st.integers(0, 30), st.none() | st.integers(0, 30)),
    syntax=st.sampled_from(SYNTAXES),
)
@example(
    seed=0,
    size=1,
    unused=0,
    signed=False,
    shape=(1, 3, 3),
    rescale=None,
    padding=None,
    syntax=ExplicitVRBigEndian,
).via("words of two bytes run on from frame to frame")
def test_values_and_padding_are_those_of_pydicom(
    seed: int,
    size: int,
    unused: int,
    signed: bool,
    shape: tuple[int, int, int],
    rescale: tuple[float, float] | None,
    padding: tuple[int, int | None] | None,
    syntax: str,
) -> None:
    kind = f"{'i' if signed else 'u'}{size}"
    rows, columns, frames = shape
    words = np.random.default_rng(seed).integers(0, 256, (frames * rows, columns * size), np.uint8).view(f"<{kind}")
    data = w.Series(count=1).slices()[0]
    w.set_stored(data, words, 8 * size - unused)
    data.Rows, data.NumberOfFrames = rows, frames
    del data.RescaleSlope, data.RescaleIntercept
    if rescale is not None:
        data.add_new(0x00281053, "DS", f"{rescale[0]:.9g}")
        data.add_new(0x00281052, "DS", f"{rescale[1]:.9g}")
    if padding is not None and size < 4:
        for tag, index in ((0x00280120, padding[0]), (0x00280121, padding[1])):
            if index is not None:
                data.add_new(tag, "SS" if signed else "US", int(words.flat[index % words.size]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        written(path, data, syntax)
        for frame in range(frames):
            expected, hole = by_pydicom(path, frame)
            one = read_slice(path, frame)
            assert one.values.dtype == np.float32
            assert one.values.tobytes() == expected.tobytes()
            assert np.array_equal(hole, np.zeros_like(hole) if one.padding is None else one.padding)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), double=st.booleans(), syntax=st.sampled_from(SYNTAXES[:2]))
def test_floating_point_pixels(seed: int, double: bool, syntax: str) -> None:
    values = np.random.default_rng(seed).normal(0, 1e3, (4, 5)).astype("<f8" if double else "<f4")
    data = w.Series(count=1).slices()[0]
    del (
        data.PixelData,
        data.BitsStored,
        data.HighBit,
        data.PixelRepresentation,
        data.RescaleSlope,
        data.RescaleIntercept,
    )
    data.Rows, data.Columns, data.BitsAllocated = 4, 5, 64 if double else 32
    if double:
        data.DoubleFloatPixelData = values.tobytes()
    else:
        data.FloatPixelData = values.tobytes()
    data.file_meta.TransferSyntaxUID = syntax
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        dcmwrite(path, data, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True, force_encoding=True)
        assert np.array_equal(read_slice(path).values, values.astype(np.float32))
