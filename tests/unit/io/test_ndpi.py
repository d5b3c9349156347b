"""Slides of Hamamatsu's scanners: one JPEG for all of a slide, read by the stretches between its restart marks."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unet_med.io.discover import discover, open_source
from unet_med.io.source import SourceRef
from unet_med.io.tiff import pixels

_STRETCH = 4
"""Blocks of 8 x 8 pixels between two restart marks."""


def _picture(shape: tuple[int, int]) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.stack([2 * rows, 2 * columns, rows + columns], axis=-1).astype(np.uint8)


def _jpeg(picture: np.ndarray) -> tuple[bytes, list[int]]:
    """A JPEG, and where the stretches between its restart marks begin."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95, subsampling=0, restart_marker_blocks=_STRETCH)
    data = file.getvalue()
    place = 2
    while data[place + 1] != 0xDA:
        place += 2 + struct.unpack(">H", data[place + 2 : place + 4])[0]
    first = place + 2 + struct.unpack(">H", data[place + 2 : place + 4])[0]
    marks = [at + 2 for at in range(first, len(data) - 1) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
    return data, [first, *marks]


def _write(path: Path, pictures: list[np.ndarray], loop: bool = False) -> None:
    """Writes pictures as a slide; ``loop``: the last one is followed by the first."""
    content = bytearray(12)
    link = 4
    for number, picture in enumerate(pictures):
        data, starts = _jpeg(picture)
        places = {}
        for name, values in (
            ("bits", struct.pack("<3H", 8, 8, 8)),
            ("make", b"Hamamatsu\0"),
            ("jpeg", data),
            ("starts", struct.pack(f"<{len(starts)}I", *starts)),
            ("dots", struct.pack("<II", 40_000, 1)),
        ):
            places[name] = len(content)
            content += values
        rows, columns = picture.shape[:2]
        magnification = struct.unpack("<I", struct.pack("<f", 20.0 / 2**number))[0]
        tags = [
            *[(256, 4, 1, columns), (257, 4, 1, rows), (258, 3, 3, places["bits"]), (259, 3, 1, 7), (262, 3, 1, 6)],
            *[(271, 2, 10, places["make"]), (273, 4, 1, places["jpeg"]), (277, 3, 1, 3), (278, 4, 1, rows)],
            *[(279, 4, 1, len(data)), (282, 5, 1, places["dots"]), (283, 5, 1, places["dots"]), (296, 3, 1, 3)],
            *[(65420, 4, 1, 1), (65421, 11, 1, magnification), (65426, 4, len(starts), places["starts"])],
        ]
        struct.pack_into("<Q", content, link, len(content))
        content += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        link = len(content)
        content += bytes(8 + 4 * len(tags))  # the next link, and what of the values is beyond 32 bits
    if loop:
        struct.pack_into("<Q", content, link, struct.unpack_from("<Q", content, 4)[0])
    content[:4] = b"II*\0"
    path.write_bytes(content)


def _only(folder: Path) -> SourceRef:
    (ref,) = discover(folder).sources
    return ref


@pytest.mark.parametrize("shape", [(48, 96), (50, 90)])
def test_only_the_stretches_of_a_region_are_decoded(tmp_path: Path, monkeypatch, shape: tuple[int, int]) -> None:
    picture = _picture(shape)
    _write(tmp_path / "slide.ndpi", [picture])
    ref = _only(tmp_path)
    assert ref.usable, ref.reason
    assert (ref.axes, ref.channels, ref.geometry.spacing_mm) == ("YXS", 3, (2.5e-4, 2.5e-4))
    expected = np.asarray(Image.open(io.BytesIO(_jpeg(picture)[0]))).transpose(2, 1, 0)
    read: list[int] = []
    true_bytes = pixels._bytes

    def counted(*arguments: Any) -> bytes | None:
        found = true_bytes(*arguments)
        read.append(len(found or b""))
        return found

    monkeypatch.setattr(pixels, "_bytes", counted)
    source = open_source(ref)
    assert np.array_equal(source.read().array, expected)
    whole = len(read)
    read.clear()
    region = (slice(10, 31), slice(9, 15))
    assert np.array_equal(source.read(region).array, expected[:, 10:31, 9:15])
    assert len(read) == 1 < whole


def test_a_slide_whose_pages_run_in_a_circle_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "slide.ndpi", [_picture((48, 96)), _picture((24, 48))], loop=True)
    ref = _only(tmp_path)
    assert not ref.usable and "never end" in ref.reason
