"""Regions of DICOM sources: what is cut out of the whole is what a region reads, padded, untilted or resampled."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import JPEGLSLossless

from unet_med.errors import InputRefusedError
from unet_med.io.dicom import pixels as dicom_pixels
from unet_med.io.dicom.source import DicomSource, inspect_dicom
from unet_med.io.source import IntakeOptions, SourceRef

_SPEC = importlib.util.spec_from_file_location("dicom_writer", Path(__file__).parents[2] / "dicom_writer.py")
w = importlib.util.module_from_spec(_SPEC)
sys.modules["dicom_writer"] = w
_SPEC.loader.exec_module(w)

ALL = IntakeOptions(untilt=True, resample_slices=True, allow_gaps=True)
REGIONS = [
    (slice(0, 9), slice(0, 7), slice(0, 1)),
    (slice(2, 5), slice(1, 7), slice(3, 5)),
    (slice(8, 9), slice(0, 1), slice(4, 6)),
    (slice(0, 9), slice(0, 7), slice(1, 6)),
]


def stack(folder: Path, kind: str) -> SourceRef:
    """A tilted stack, one of uneven steps, one with gaps, or one as it should be; with a hole of padding or without."""
    series = w.Series(turn=np.eye(3), count=8)
    slices = []
    for number in range(series.count):
        place = number + 0.3 * (number % 2) * (kind == "uneven")
        data = series.slice(place, number + 1)
        if kind == "tilted":
            x, y, z = series.position(number)
            data.ImagePositionPatient = [x, y + 0.4 * number, z]
            w.set_values(data, series.values(np.array([x, y + 0.4 * number, z])))
        slices.append(data)
    if kind == "gaps":
        del slices[3], slices[5]
    slices[-1].PixelPaddingValue = -30000
    slices[-1]["PixelPaddingValue"].VR = "SS"
    w.write(folder, slices)
    refs = inspect_dicom(sorted(folder.iterdir()), ALL).sources
    assert len(refs) == 1
    assert refs[0].usable, refs[0].reason
    return refs[0]


def with_padding(folder: Path) -> None:
    """Lets the last slice hold padding in a corner."""
    from pydicom import dcmread

    last = sorted(folder.iterdir())[-1]
    data = dcmread(last)
    stored = data.pixel_array.copy()
    stored[:2, :3] = -30000
    data.PixelData = stored.tobytes()
    data.save_as(last)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", ["even", "tilted", "uneven", "gaps"])
def test_a_region_is_cut_out_of_the_whole(tmp_path: Path, kind: str, padded: bool) -> None:
    ref = stack(tmp_path, kind)
    if padded:
        with_padding(tmp_path)
    assert (ref.layout.regrid is None) == (kind == "even")
    whole = DicomSource(ref).read()
    assert whole.array.shape == (1, *ref.geometry.shape)
    for region in REGIONS:
        part = DicomSource(ref).read(region)
        assert np.array_equal(part.array, whole.array[(slice(None), *region)]), region
        assert part.geometry.same_grid(whole.geometry.crop(region))
    index = np.stack(np.meshgrid(*map(np.arange, ref.geometry.shape), indexing="ij"), axis=-1)
    expected = w.truth(ref.geometry.to_world(index) * [-1.0, -1.0, 1.0])
    exact = np.abs(whole.array[0] - expected) <= 2 * w.SLOPE
    assert exact.mean() > {"tilted": 0.6}.get(kind, 0.9 if padded else 0.9999)
    assert whole.array.min() >= expected.min() - 1, "padding and corners become the lowest real value"


def test_only_the_slices_beside_a_plane_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = DicomSource(stack(tmp_path, "gaps"))
    read: list[object] = []
    monkeypatch.setattr(
        "unet_med.io.dicom.source.read_slices", lambda places: read.extend(places) or dicom_pixels.read_slices(places)
    )
    source.read((slice(0, 9), slice(0, 7), slice(2, 5)))
    assert len(read) == 2, "planes 2, 3 (missing) and 4 lie on or between two slices"
    assert len(set(read)) == 2


def test_compressed_slices_name_the_damaged_one(tmp_path: Path) -> None:
    slices = w.Series(turn=np.eye(3), count=12).slices()
    for data in slices:
        data.compress(JPEGLSLossless, generate_instance_uid=False)
    paths = w.write(tmp_path, slices)
    ref = inspect_dicom(paths).sources[0]
    whole = DicomSource(ref).read().array
    raw = paths[7].read_bytes()
    start = raw.rindex(b"\xff\xda")
    paths[7].write_bytes(raw[: start + 12] + b"\xff\x7f" * 8 + raw[start + 28 :])
    with pytest.raises(InputRefusedError, match="slice 8 of 12"):
        DicomSource(ref).read()
    part = (slice(0, 9), slice(0, 7), slice(0, 7))
    assert np.array_equal(DicomSource(ref).read(part).array, whole[..., :7])


def test_a_slice_that_changed_is_told(tmp_path: Path) -> None:
    series = w.Series(turn=np.eye(3))
    slices = series.slices()
    paths = w.write(tmp_path, slices)
    ref = inspect_dicom(paths).sources[0]
    w.set_values(slices[2], series.values(series.position(2), rows=5))
    slices[2].save_as(paths[2])
    with pytest.raises(InputRefusedError, match="slice 3 of 6") as caught:
        DicomSource(ref).read()
    assert "changed its size" in str(caught.value)


def test_pixels_in_high_bits_are_refused(tmp_path: Path) -> None:
    data = w.Series(count=1).slices()[0]
    w.set_stored(data, np.zeros((3, 4), dtype=np.uint16), bits_stored=12)
    data.HighBit = 15
    path = w.write(tmp_path, [data])[0]
    with pytest.raises(InputRefusedError, match="low bits"):
        dicom_pixels.read_slice(path)


@pytest.mark.parametrize(("rows", "bits"), [(65535, 65535), (65535, 64), (40000, 16)])
def test_a_header_that_claims_more_than_any_file_holds(tmp_path: Path, rows: int, bits: int) -> None:
    data = w.Series(count=1).slices()[0]
    data.Rows = data.Columns = rows
    data.BitsAllocated = bits
    path = w.write(tmp_path, [data])[0]
    ref = inspect_dicom([path]).sources[0]
    assert "truncated" in ref.reason
    with pytest.raises(InputRefusedError):
        dicom_pixels.read_slice(path)
