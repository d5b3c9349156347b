"""A small share of the mutations of ``tests/fuzz_dicom.py``; that script runs as many as one likes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "fuzz_dicom.py"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and measured on Linux")
def test_damaged_files_are_loaded_or_refused_with_a_reason() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--count", "120", "--seed", "7"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "120 mutated files" in done.stdout
    assert " image loaded" in done.stdout
    assert " scan refused" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and measured on Linux")
@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("raise KeyError('x')", "KeyError"),
        ("import os; os.abort()", "the intake died"),
        ("time.sleep(2)", "takes"),
        ("raise InputRefusedError('SECRET', remedy='x')", "patient's name"),
        ("raise InputRefusedError('no way out')", "without a remedy"),
    ],
)
def test_the_fuzzer_finds_what_it_looks_for(tmp_path: Path, body: str, word: str) -> None:
    """A finding is found: the reader of images is replaced by something that misbehaves."""
    code = f"""
import sys, time
sys.path.insert(0, {str(SCRIPT.parent)!r})
import fuzz_dicom as f
from unet_med.io.dicom import source
from unet_med.errors import InputRefusedError
def broken(self, region=None, frame=0):
    {body}
source.DicomSource.read = broken
f.worker()
"""
    driver = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
from pathlib import Path
import dicom_writer as w
import fuzz_dicom as f
folder = Path({str(tmp_path)!r})
w.write(folder, w.Series().slices())
f.SECONDS = 1.0
reader = f.Reader(command=(sys.executable, "-c", {code!r}))
answer = reader.ask(folder)
reader.stop()
print(f.faults(answer))
"""
    done = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True, check=False, timeout=120)
    assert word in done.stdout, done.stdout + done.stderr
