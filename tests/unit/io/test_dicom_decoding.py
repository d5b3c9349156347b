"""The decoder process: a crash, a hang or too much memory there costs one frame, and never this process."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from pydicom.uid import JPEGLSLossless

from unet_med.errors import InputRefusedError, MachineError
from unet_med.io.dicom import codecs, decoding
from unet_med.io.dicom.pixels import missing_decoder
from unet_med.io.dicom.source import inspect_dicom

_SPEC = importlib.util.spec_from_file_location("dicom_writer", Path(__file__).parents[2] / "dicom_writer.py")
w = importlib.util.module_from_spec(_SPEC)
sys.modules["dicom_writer"] = w
_SPEC.loader.exec_module(w)

imagecodecs = pytest.importorskip("imagecodecs")
ROOT = Path(decoding.__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_spare_decoder() -> Iterator[None]:
    decoding._end()
    yield
    decoding._end()


def frame(number: int = 0, rows: int = 20, columns: int = 30) -> tuple[codecs.Frame, np.ndarray]:
    stored = (np.arange(rows * columns) * 7 + number).reshape(rows, columns).astype(np.uint16) % 4096
    data = bytes(imagecodecs.jpegls_encode(stored))
    return codecs.Frame("1.2.840.10008.1.2.4.80", rows, columns, 16, 12, False, data), stored


def damaged() -> codecs.Frame:
    good, _ = frame()
    return codecs.Frame(good.syntax, good.rows, good.columns, 16, 12, False, good.data[:40] + b"\xff\xd9")


def sabotage(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Lets the decoder process run ``body`` for frames of 13 rows."""
    code = f"""
        import os, signal, time
        import numpy as np
        from unet_med.io.dicom import decoding as d, codecs as c
        whole = c._decode_with
        def broken(library, frame):
            if frame.rows == 13:
                {body}
            return whole(library, frame)
        c._decode_with = broken
        d.main()
    """
    monkeypatch.setattr(decoding, "COMMAND", (sys.executable, "-P", "-c", textwrap.dedent(code)))


def decode_one(number: int = 0, rows: int = 20) -> None:
    one, stored = frame(number, rows)
    with decoding.batch() as batch:
        batch.submit(one)
        assert np.array_equal(batch.result(), stored)


def test_frames_come_back_in_order_and_the_process_is_kept() -> None:
    with decoding.batch() as batch:
        frames = [frame(number) for number in range(20)]
        for one, _ in frames:
            batch.submit(one)
        assert all(np.array_equal(batch.result(), stored) for _, stored in frames)
    kept = decoding._spare[0]
    decode_one()
    assert decoding._spare == [kept]


def test_batches_at_the_same_time_do_not_mix() -> None:
    with decoding.batch() as one, decoding.batch() as other:
        pairs = [(batch, *frame(number)) for number, batch in enumerate((one, other, one, other))]
        for batch, sent, _ in pairs:
            batch.submit(sent)
        assert all(np.array_equal(batch.result(), stored) for batch, _, stored in pairs)


def test_threads_decode_beside_each_other() -> None:
    faults = []

    def work(number: int) -> None:
        try:
            for k in range(5):
                decode_one(number + k)
        except BaseException as error:  # noqa: BLE001
            faults.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_a_damaged_frame_is_refused_and_the_next_one_decoded() -> None:
    with decoding.batch() as batch:
        batch.submit(damaged())
        with pytest.raises(InputRefusedError, match="damaged") as caught:
            batch.result()
        assert caught.value.remedy
        one, stored = frame()
        batch.submit(one)
        assert np.array_equal(batch.result(), stored)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("os.abort()", "the decoder crashed"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the decoder crashed"),
        ("os._exit(0)", "the decoder crashed"),
        ("raise SystemExit", "the decoder crashed"),
        ("np.ones(3 << 30, np.uint8)", "too much memory"),
        ("raise OSError('SECRET')", "damaged"),
        ("return np.zeros((13, 31), np.uint16)", "contradicts"),
        ("return np.zeros((13, 30), np.float32)", "contradicts"),
        ("os.write(1, b'noise that libraries print'); raise ValueError", "damaged"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="signals and memory limits are those of POSIX")
def test_what_happens_in_there_costs_one_frame(monkeypatch: pytest.MonkeyPatch, body: str, word: str) -> None:
    sabotage(monkeypatch, body)
    with decoding.batch() as batch:
        for rows in (20, 13, 20):
            batch.submit(frame(rows=rows)[0])
        assert np.array_equal(batch.result(), frame()[1])
        with pytest.raises(InputRefusedError, match=word) as caught:
            batch.result()
        assert "SECRET" not in str(caught.value)
    decode_one()


def test_a_frame_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch, "time.sleep(60)")
    monkeypatch.setattr(decoding, "_SECONDS", 0.4)
    start = time.monotonic()
    with decoding.batch() as batch:
        batch.submit(frame(rows=13)[0])
        with pytest.raises(InputRefusedError, match="takes more than"):
            batch.result()
    assert time.monotonic() - start < 30
    monkeypatch.setattr(decoding, "_SECONDS", 20.0)
    decode_one()


@pytest.mark.skipif(sys.platform == "win32", reason="processor time is limited on POSIX alone")
def test_the_process_ends_itself_when_nobody_is_there_to_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch, "\n                ".join(("d._SECONDS = 0", "d._Limits().set(frame)", "while True: pass")))
    monkeypatch.setattr(decoding, "_SECONDS", 60.0)
    with decoding.batch() as batch:
        batch.submit(frame(rows=13)[0])
        with pytest.raises(InputRefusedError, match="takes more than"):
            batch.result()


def test_a_picture_that_is_too_large_is_refused_before() -> None:
    with decoding.batch() as batch, pytest.raises(InputRefusedError, match="60000 x 60000"):
        batch.submit(codecs.Frame(codecs.RLE, 60000, 60000, 16, 16, False, b""))


def test_a_process_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "COMMAND", (sys.executable, "-c", "raise SystemExit(1)"))
    with decoding.batch() as batch, pytest.raises(MachineError, match="does not start"):
        batch.submit(frame()[0])


def test_a_spare_process_that_was_killed_is_replaced() -> None:
    decode_one()
    killed = decoding._spare[0]._process
    killed.kill()
    killed.wait()
    decode_one()


# ---- wherever it is started from -------------------------------------------------------------------------------------

SCRIPT = """
import os, sys
import numpy as np, imagecodecs
from unet_med.io.dicom import decoding as d, codecs as c
stored = np.arange(600, dtype=np.uint16).reshape(20, 30)
def check():
    with d.batch() as batch:
        batch.submit(d.Frame("1.2.840.10008.1.2.4.80", 20, 30, 16, 12, False, bytes(imagecodecs.jpegls_encode(stored))))
        assert np.array_equal(batch.result(), stored)
    return d._spare[0]._process.pid
"""


def in_a_process(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", SCRIPT + textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


def test_it_ends_with_its_parent() -> None:
    for end in ("sys.exit(0)", "os._exit(0)", "os.kill(os.getpid(), 9)"):
        done = in_a_process(f"print(check(), flush=True)\n{end}")
        pid = int(done.stdout)
        deadline = time.monotonic() + 10
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, end
            time.sleep(0.02)
        assert done.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors 0 to 2 are those of POSIX")
def test_it_starts_where_standard_input_and_output_are_closed() -> None:
    done = in_a_process("""
        result = os.dup(1)
        for number in (0, 1, 2):
            os.close(number)
        try:
            check()
            os.write(result, b"fine")
        except BaseException as error:
            os.write(result, repr(error).encode())
    """)
    assert done.stdout == "fine"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_gets_a_process_of_its_own() -> None:
    done = in_a_process("""
        first = check()
        child = os.fork()
        if child == 0:
            second = check()
            os._exit(0 if second != first else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert check() == first
        print("fine")
    """)
    assert (done.stdout, done.stderr) == ("fine\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_it_starts_in_a_daemonic_worker() -> None:
    done = in_a_process("""
        import multiprocessing
        first = check()
        with multiprocessing.get_context("fork").Pool(1) as pool:
            print(pool.apply(check) not in (first, None))
    """)
    assert (done.stdout, done.stderr) == ("True\n", "")


# ---- which library ---------------------------------------------------------------------------------------------------


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    monkeypatch.setattr(codecs, "is_installed", lambda name: not name.startswith(modules))
    missing_decoder.cache_clear()


@pytest.mark.parametrize(
    ("missing", "syntax", "bits", "name"),
    [
        (("imagecodecs", "gdcm"), "1.2.840.10008.1.2.4.70", 16, "JPEG Lossless, Non-Hierarchical, First-Order"),
        (("imagecodecs", "gdcm"), "1.2.840.10008.1.2.4.57", 16, "JPEG Lossless, Non-Hierarchical"),
        (("imagecodecs",), "1.2.840.10008.1.2.4.51", 12, "JPEG Extended"),
        (("imagecodecs", "openjpeg"), "1.2.840.10008.1.2.4.201", 16, "High-Throughput JPEG 2000"),
        (("imagecodecs", "openjpeg", "gdcm", "PIL"), "1.2.840.10008.1.2.4.90", 16, "JPEG 2000"),
        (("imagecodecs", "jpeg_ls", "gdcm"), "1.2.840.10008.1.2.4.81", 16, "JPEG-LS"),
    ],
)
def test_a_missing_decoder_is_named(
    monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], syntax: str, bits: int, name: str
) -> None:
    without(monkeypatch, *missing)
    assert name in missing_decoder(syntax, bits)
    monkeypatch.undo()
    missing_decoder.cache_clear()
    assert missing_decoder(syntax, bits) == ""


def test_a_series_is_refused_before_its_pixels_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slices = w.Series().slices()
    for data in slices:
        data.compress(JPEGLSLossless, generate_instance_uid=False)
    paths = w.write(tmp_path, slices)
    assert inspect_dicom(paths).sources[0].usable
    without(monkeypatch, "imagecodecs", "jpeg_ls", "gdcm")
    ref = inspect_dicom(paths).sources[0]
    assert not ref.usable
    assert "no decoder is installed for JPEG-LS Lossless" in ref.reason
    assert 'pip install "unet-med[dicom]"' in ref.reason
    missing_decoder.cache_clear()


def test_a_library_that_is_left_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "imagecodecs")
    assert codecs.decoders("1.2.840.10008.1.2.4.51", 8) == ("gdcm", "pillow")
    assert codecs.decoders("1.2.840.10008.1.2.4.51", 12) == ()
    assert codecs.decoders("1.2.840.10008.1.2.4.50", 8) == ("gdcm", "pillow")
    assert codecs.decoders("1.2.840.10008.1.2.5", 16) == ("pydicom",)
    missing_decoder.cache_clear()


def test_video_and_private_syntaxes_are_unknown() -> None:
    for syntax in ("1.2.840.10008.1.2.4.100", "1.2.3.4", "1.2.840.10008.1.2.4.110"):
        assert missing_decoder(syntax) == "an unknown transfer syntax"


@pytest.mark.skipif(sys.platform == "win32", reason="an interrupt reaches a group of processes on POSIX alone")
def test_an_interrupt_is_left_to_the_parent() -> None:
    decode_one()
    process = decoding._spare[0]
    os.kill(process._process.pid, signal.SIGINT)
    decode_one()
    assert decoding._spare == [process]
