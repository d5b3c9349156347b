"""How long DICOM headers take: one series, a big tree, big multi-frame files; and how much memory.

Run ``python tests/benchmarks/bench_dicom_scan.py`` (about two minutes; 0.5 GB of disk below ``--folder``, removed at
the end). What is wanted: the headers of 200 slices of 512 x 512 in 0.1 s, a tree of 20,000 files in a minute.

- *series*: 200 uncompressed slices of 512 x 512, headers alone, then whole discovery; warm, best of several.
- *tree*: 20,000 files of 16 x 16 in 400 series and folders, each header with 600 private elements; ``scan`` in a
  process of its own; cold (the files' pages dropped from the cache where the system allows it) and warm; peak memory.
- *frames*: files of 2,000 frames with ten echoes: headers, and discovery of the ten volumes.
- *repeats*: one classic series of 20,000 slices at 40 places: splitting must not grow with the square.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from unet_med.io.dicom.headers import Header, read_header
from unet_med.io.dicom.multiframe import frame_headers
from unet_med.io.dicom.series import group_headers
from unet_med.io.discover import discover
from unet_med.io.source import IntakeOptions

_SPEC = importlib.util.spec_from_file_location(
    "dicom_multiframe_writer", Path(__file__).parents[1] / "dicom_multiframe_writer.py"
)
m = importlib.util.module_from_spec(_SPEC)
sys.modules["dicom_multiframe_writer"] = m
_SPEC.loader.exec_module(m)
w = m.w


def best(work: Callable[[], object], times: int = 5) -> float:
    """Returns the seconds of the fastest of several runs."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def write_series(folder: Path, count: int, size: int, number: int) -> None:
    """Writes one series by changing the bytes of its first slice: quicker than building data sets."""
    series = w.Series(rows=size, columns=size, number=number, turn=w.rotation(0.0, 0.0, 0.0))
    data = series.slice(0, 1)
    uid = data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{number + 1}.1000000"
    data.ImagePositionPatient = ["0.0", "0.0", "10000.0000"]
    data.InstanceNumber = "000001"
    for element in range(600):
        data.add_new(0x20051000 + element, "LO", f"value {element}")
    folder.mkdir(parents=True, exist_ok=True)
    first = folder / "000000"
    data.save_as(first, enforce_file_format=True)
    raw = first.read_bytes()
    assert raw.count(uid.encode()) == 2, "the bench replaces what it wrote"
    for index in range(1, count):
        changed = raw.replace(uid.encode(), (uid[:-6] + f"{index:06}").encode())
        changed = changed.replace(b"10000.0000", f"{10000.0 + 2.5 * index:.4f}".encode())
        (folder / f"{index:06}").write_bytes(changed)


def drop_cache(folder: Path) -> None:
    """Asks the system to forget the files' pages."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file() and hasattr(os, "posix_fadvise"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bench_series(folder: Path) -> None:
    write_series(folder, 200, 512, 1)
    files = sorted(folder.iterdir())
    print(f"series  200 x 512 x 512: headers {best(lambda: [read_header(path) for path in files]):.3f} s, ", end="")
    print(f"discovery {best(lambda: discover(folder)):.3f} s")


def bench_tree(folder: Path, files: int) -> None:
    for number in range(files // 100):
        for half in range(2):
            write_series(folder / f"{number % 20}" / f"{number}-{half}", 50, 16, 2 * number + half)
    code = (
        "import resource, sys, time; from pathlib import Path; from unet_med.workflows.scan import scan;"
        "start = time.perf_counter(); found = scan(Path(sys.argv[1]));"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024;"
        "print(f'{time.perf_counter() - start:.1f} s, {peak:.0f} MB, torch ' + str('torch' in sys.modules))"
    )
    for state in ("cold", "warm"):
        if state == "cold":
            drop_cache(folder)
        done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
        print(f"tree    {files} files, {state}: {done.stdout.strip().splitlines()[-1]}")


def bench_frames(folder: Path) -> None:
    for number in range(3):
        series = w.Series(modality="MR", rows=16, columns=16, number=number)
        frames = [m.Frame(k, groups=m.echo(5.0 + e) | m.time_point(1)) for k in range(200) for e in range(10)]
        w.write(folder, [m.enhanced(series, frames)], [f"{number}.dcm"])
    header = read_header(next(folder.iterdir()))
    print(f"frames  2000: headers {best(lambda: frame_headers(header)):.3f} s, ", end="")
    print(f"discovery of 3 files, 30 volumes {best(lambda: discover(folder), 3):.3f} s")


def bench_repeats(folder: Path) -> None:
    write_series(folder, 1, 16, 1)
    header = read_header(next(folder.iterdir()))
    assert isinstance(header, Header), "the bench wrote it"
    for count in (5_000, 20_000):
        series = [
            replace(
                header,
                sop_uid=f"1.2.{n}",
                position=(0.0, 0.0, float(n % 40)),
                instance=n,
                split={0x00200100: float(n // 40), 0x00080032: f"{n}", 0x00189087: (float(n % 7),)},
            )
            for n in range(count)
        ]
        print(f"repeats {count} slices at 40 places: {best(partial(group_headers, series, IntakeOptions()), 2):.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: the temporary folder)")
    parser.add_argument("--files", type=int, default=20_000)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        bench_series(folder / "series")
        bench_frames(folder / "frames")
        bench_repeats(folder / "repeats")
        bench_tree(folder / "tree", options.files)
        print(f"peak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
