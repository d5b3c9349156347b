"""Time and memory of reading a DICOM series, beside SimpleITK (GDCM) on the same files.

``python tests/benchmarks/bench_dicom_read.py [--slices 200] [--size 512] [--repeats 5] [--syntax explicit]`` writes a
series of int16 slices with a rescale intercept, then reads it by turns with both in one process. It prints the time of
the headers, the times of the volume, their ratio, and how far memory rose above what the volume itself takes. The
shortest of several is the one to compare on a machine that is not quiet. ``--syntax`` is ``explicit``, ``rle``,
``jpegls`` or ``jpeg2000``: the last three show what the decoder process costs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import SimpleITK as sitk  # noqa: N813
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from unet_med.io.discover import discover, open_source

sys.path.insert(0, str(Path(__file__).parents[1]))
import dicom_writer as w

SYNTAXES = {
    "explicit": ExplicitVRLittleEndian,
    "rle": RLELossless,
    "jpegls": JPEGLSLossless,
    "jpeg2000": JPEG2000Lossless,
}


def write_series(folder: Path, slices: int, size: int, syntax: str) -> None:
    series = w.Series(
        columns=size, rows=size, count=1, between_rows=0.7, between_columns=0.7, step=1.0, turn=np.eye(3), number=1
    )
    noise = np.random.default_rng(0)
    row, column = np.mgrid[:size, :size]
    body = (np.hypot(row - size / 2, column - size / 2) < size / 3) * 1000
    folder.mkdir()
    for number in range(slices):
        data = series.slice(number, number + 1)
        stored = body + noise.normal(0, 20, (size, size)) + 24
        w.set_stored(data, stored.astype(np.int16))
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        if syntax != ExplicitVRLittleEndian:
            data.compress(syntax, generate_instance_uid=False)
        data.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and the most memory in MB that was taken meanwhile, decoder process included."""
    process = psutil.Process()

    def taken() -> int:
        return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)) if one.is_running())

    done = threading.Event()
    before = taken()
    peaks = [before]

    def watch() -> None:
        while not done.wait(0.005):
            try:
                peaks.append(taken())
            except psutil.NoSuchProcess:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start, (max(peaks) - before) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--syntax", choices=SYNTAXES, default="explicit")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "series"
        write_series(folder, options.slices, options.size, SYNTAXES[options.syntax])
        ref = discover(folder).sources[0]
        names = [str(path) for path in ref.files]

        def plain() -> sitk.Image:
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames(names)
            return reader.Execute()

        expected = sitk.GetArrayFromImage(plain())
        assert np.array_equal(open_source(ref).read().array[0].T, expected), "both read the same"
        del expected
        times: dict[str, list[float]] = {"headers": [], "volume": [], "SimpleITK": []}
        memory = []
        for _ in range(options.repeats):
            times["headers"].append(measured(lambda: discover(folder))[0])
            seconds, peak = measured(lambda: open_source(ref).read())
            times["volume"].append(seconds)
            memory.append(peak)
            times["SimpleITK"].append(measured(plain)[0])
    volume = options.slices * options.size**2 * 4 / 1e6
    print(f"{options.slices} slices of {options.size} x {options.size}, {options.syntax}")
    for name, seconds in times.items():
        print(f"{name:>10}: shortest {min(seconds):.3f} s, median {sorted(seconds)[len(seconds) // 2]:.3f} s")
    print(f"     ratio: {min(times['volume']) / min(times['SimpleITK']):.2f} of SimpleITK's shortest")
    print(f"    memory: {max(memory):.0f} MB more at the most; the volume itself takes {volume:.0f} MB")


if __name__ == "__main__":
    main()
