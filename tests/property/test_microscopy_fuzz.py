"""A small share of the mutations of ``tests/fuzz_microscopy.py``; that script runs as many as one likes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "fuzz_microscopy.py"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and measured on Linux")
def test_damaged_images_are_loaded_or_refused_with_a_reason() -> None:
    command = [sys.executable, str(SCRIPT), "--count", "100", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 mutated files" in done.stdout
    for outcome in ("image loaded", "image refused", "scan refused", "copy loaded"):
        assert f" {outcome}" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and measured on Linux")
@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("raise KeyError('x')", "KeyError"),
        ("bytearray(3 << 30)", "MemoryError"),
        ("import os; os.abort()", "the intake died"),
        ("raise InputRefusedError('no way out')", "no way out"),
        (
            "volume = read(self, region, frame); volume.array[:] += region is None; return volume",
            "not that of the whole",
        ),
    ],
)
def test_the_fuzzer_finds_what_it_looks_for(tmp_path: Path, body: str, word: str) -> None:
    """A finding is found: the reader of images is replaced by something that misbehaves."""
    code = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import fuzz_microscopy as f
from unet_med.io.tiff import source
from unet_med.errors import InputRefusedError
read = source.TiffSource.read
def broken(self, region=None, frame=0):
    {body}
source.TiffSource.read = broken
f.worker()
"""
    driver = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
from pathlib import Path
import numpy as np, tifffile
import fuzz_microscopy as f
folder = Path({str(tmp_path)!r})
tifffile.imwrite(folder / "a.tif", np.zeros((20, 30), np.uint8), compression="zlib")
reader = f.base.Reader(command=(sys.executable, "-c", {code!r}))
answer = reader.ask(folder)
reader.stop()
print(f.base.faults(answer))
"""
    done = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True, check=False, timeout=120)
    assert word in done.stdout, done.stdout + done.stderr
