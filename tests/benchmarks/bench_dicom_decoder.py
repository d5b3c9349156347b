"""What the decoder process costs beside decoding in this process.

``python tests/benchmarks/bench_dicom_decoder.py [--frames 200] [--size 512] [--repeats 5]`` decodes the same JPEG-LS
and RLE frames here and through the process, by turns, and prints the shortest time of each and the difference for one
frame; also how long the first frame waits for the process to start.
"""

from __future__ import annotations

import argparse
import struct
import time

import imagecodecs
import numpy as np

from unet_med.io.dicom import codecs, decoding

JPEG_LS = "1.2.840.10008.1.2.4.80"


def run_lengths(stored: np.ndarray) -> bytes:
    planes = [bytes(imagecodecs.packbits_encode(np.ascontiguousarray(stored.view(np.uint8)[:, k::2]))) for k in (1, 0)]
    return struct.pack("<16L", 2, 64, 64 + len(planes[0]), *[0] * 13) + b"".join(planes)


def through_process(frames: list[codecs.Frame]) -> None:
    with decoding.batch() as batch:
        for number, frame in enumerate(frames):
            batch.submit(frame)
            if number >= 6:
                batch.result()
        for _ in range(min(6, len(frames))):
            batch.result()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    row, column = np.mgrid[: options.size, : options.size]
    body = np.where(np.hypot(row, column) < options.size, 1000, 0)
    stored = (body + np.random.default_rng(0).normal(40, 20, body.shape)).clip(0, 4095).astype(np.uint16)
    start = time.perf_counter()
    through_process([codecs.Frame(JPEG_LS, 8, 8, 16, 12, False, bytes(imagecodecs.jpegls_encode(stored[:8, :8])))])
    print(f"start of the process: {time.perf_counter() - start:.2f} s")
    for name, syntax, data in (
        ("JPEG-LS", JPEG_LS, bytes(imagecodecs.jpegls_encode(stored))),
        ("RLE", codecs.RLE, run_lengths(stored)),
    ):
        frames = [codecs.Frame(syntax, *stored.shape, 16, 12, False, data)] * options.frames
        assert np.array_equal(codecs.decode(frames[0]), stored)
        here, there = [], []
        for _ in range(options.repeats):
            start = time.perf_counter()
            for frame in frames:
                codecs.decode(frame)
            middle = time.perf_counter()
            through_process(frames)
            here.append(middle - start)
            there.append(time.perf_counter() - middle)
        more = (min(there) - min(here)) / options.frames * 1e3
        print(f"{name:>8}: here {min(here):.3f} s, through the process {min(there):.3f} s, {more:+.2f} ms for a frame")


if __name__ == "__main__":
    main()
