"""Any region of any TIFF, however it is stored, is what tifffile reads of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_med.io.discover import open_source
from unet_med.io.source import IntakeOptions
from unet_med.io.tiff import inspect_tiff

ROWS, COLUMNS, PAGES = 50, 70, 3

WAYS: dict[str, dict[str, Any]] = {
    "one strip": {},
    "strips": {"rowsperstrip": 7, "compression": "zlib"},
    "strips, LZW, predictor": {"rowsperstrip": 8, "compression": "lzw", "predictor": True},
    "strips, uncompressed": {"rowsperstrip": 7, "metadata": None},
    "packed bits": {"rowsperstrip": 5, "compression": "packbits"},
    "tiles": {"tile": (16, 32), "compression": "zlib"},
    "tiles, zstd, predictor": {"tile": (32, 16), "compression": "zstd", "predictor": True},
    "tiles, uncompressed": {"tile": (16, 16)},
    "tiles, big endian": {"tile": (16, 16), "compression": "lzw", "byteorder": ">"},
    "tiles, BigTIFF": {"tile": (16, 16), "compression": "zlib", "bigtiff": True},
}
COLOURS: dict[str, dict[str, Any]] = {
    "samples together": {"planarconfig": "contig", "rowsperstrip": 9, "compression": "zlib"},
    "samples together, tiles": {"planarconfig": "contig", "tile": (16, 16), "compression": "lzw"},
    "samples apart": {"planarconfig": "separate", "rowsperstrip": 9, "compression": "zlib"},
    "samples apart, tiles": {"planarconfig": "separate", "tile": (32, 32), "compression": "zlib"},
    "JPEG tiles": {"planarconfig": "contig", "tile": (16, 16), "compression": "jpeg"},
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, np.ndarray]]:
    """Each way of storing: a file, and its values as (frames, channels, columns, rows)."""
    folder = tmp_path_factory.mktemp("stored")
    random = np.random.default_rng(0)
    grey = random.integers(0, 2**16, (PAGES, ROWS, COLUMNS)).astype(np.uint16)
    files = {}
    for number, (name, options) in enumerate(WAYS.items()):
        path = folder / f"grey{number}.tif"
        tifffile.imwrite(path, grey, photometric="minisblack", **({"metadata": {"axes": "TYX"}} | options))
        files[name] = path, tifffile.imread(path).transpose(0, 2, 1)[:, np.newaxis]
    for number, (name, options) in enumerate(COLOURS.items()):
        path = folder / f"colour{number}.tif"
        apart = options["planarconfig"] == "separate"
        colour = random.integers(0, 256, (3, ROWS, COLUMNS)).astype(np.uint8)
        tifffile.imwrite(path, colour if apart else colour.transpose(1, 2, 0), photometric="rgb", **options)
        whole = tifffile.imread(path)
        files[name] = path, (whole if apart else whole.transpose(2, 0, 1)).transpose(0, 2, 1)[np.newaxis]
    return files


def _part(length: int) -> st.SearchStrategy[slice]:
    bounds = st.tuples(st.integers(0, length - 1), st.integers(0, length - 1))
    return bounds.map(lambda pair: slice(min(pair), max(pair) + 1))


@pytest.mark.parametrize("name", [*WAYS, *COLOURS])
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_region_is_that_of_the_whole(
    stored: dict[str, tuple[Path, np.ndarray]], name: str, data: st.DataObject
) -> None:
    path, values = stored[name]
    (ref,) = inspect_tiff(path, IntakeOptions(axes="TYX"))
    source = open_source(ref)
    frame = data.draw(st.integers(0, len(values) - 1))
    region = (data.draw(_part(COLUMNS)), data.draw(_part(ROWS)))
    volume = source.read(region, frame)
    np.testing.assert_array_equal(volume.array, values[(frame, slice(None), *region)])
    assert volume.geometry.shape == volume.array.shape[1:]


@pytest.mark.parametrize("bits", [1, 2, 4, 7, 10, 12, 14, 20, 24, 31])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_packed_integers_of_any_width(tmp_path: Path, bits: int, byteorder: str) -> None:
    dtype = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    values = np.random.default_rng(bits).integers(0, 2**bits, (9, 21)).astype(dtype)
    options = {"bitspersample": bits} if bits > 1 else {}
    kept = values.astype(bool) if bits == 1 else values
    tifffile.imwrite(tmp_path / "a.tif", kept, byteorder=byteorder, rowsperstrip=4, photometric="minisblack", **options)
    (ref,) = inspect_tiff(tmp_path / "a.tif")
    part = open_source(ref).read((slice(3, 17), slice(2, 8))).array[0]
    np.testing.assert_array_equal(part, tifffile.imread(tmp_path / "a.tif")[2:8, 3:17].T)
    if byteorder == "<":  # tifffile packs wrongly for the other order
        np.testing.assert_array_equal(part, values[2:8, 3:17].T)
