"""A series arrives, its mask lies in OUT and goes back, whatever happens on the way."""

from __future__ import annotations

import io
import json
import logging
import os
import queue
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dicom_writer as w
import numpy as np
import pydicom
import pytest
import torch
from inline_worker import InlineWorker
from pacs_peers import HOST, PASSWORD, USER, Orthanc, free_port, orthanc, receiver, tidy_servers, wait_until

from unet_med.cli import main
from unet_med.errors import ConfigError, ModelError, Terminated, UsageError
from unet_med.workflows import predict as predict_module
from unet_med.workflows import receive as receive_module
from unet_med.workflows.receive import receive
from unet_med.workflows.send import send

pytest.importorskip("pynetdicom")

__all__ = ["tidy_servers"]

LABELS = """labels:
  background: 0
  bright: {value: 1, category: [SCT, "85756007", Tissue], type: [SCT, "85756007", Tissue]}
  dark: {value: 2, category: [SCT, "85756007", Tissue], type: [SCT, "85756007", Tissue]}
"""


@pytest.fixture
def real_process() -> None:
    """Asked for by tests that need the worker to be a process."""


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    if "real_process" not in request.fixturenames:
        monkeypatch.setattr(predict_module, "Worker", InlineWorker)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.yaml"
    path.write_text(LABELS, encoding="utf-8")
    return path


def _series(seed: int = 0, **options: Any) -> list[Any]:
    """A series of noise, which the tiny model cuts into two labels."""
    random = np.random.default_rng(seed)
    slices = w.Series(**{"columns": 20, "rows": 16, "count": 6} | options).slices()
    for data in slices:
        data.PatientBirthDate, data.PatientSex, data.StudyID, data.AccessionNumber = "19510203", "F", "S42", "SECRET42"
        data.StudyDate, data.StudyTime, data.ReferringPhysicianName = "20200102", "101112", "SECRET^DOC"
        w.set_values(data, random.normal(100, 40, (data.Rows, data.Columns)))
    return slices


class _Running:
    """A receiver in a thread; it ends by the exception that a signal would raise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.listening = threading.Event()
        self.stopped = threading.Event()
        self.results: queue.Queue[Any] = queue.Queue()

    @property
    def here(self) -> tuple[str, str]:
        return "dicom", f"{HOST}:{self.port}/UNETMED"

    def report(self) -> list[dict[str, Any]]:
        try:
            return list(json.loads((self.folder / "report.json").read_text(encoding="utf-8"))["series"])
        except FileNotFoundError:
            return []

    def wait(self, true: Callable[[list[dict[str, Any]]], bool], what: str) -> list[dict[str, Any]]:
        wait_until(lambda: not self.results.empty() or true(self.report()), what, 60)
        if not self.results.empty():
            raise AssertionError(f"the receiver ended: {self.results.queue[0]!r}")
        return self.report()


@contextmanager
def _receiving(model: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[_Running]:
    running = _Running(out)

    def sleep(seconds: float) -> None:
        if running.stopped.wait(min(seconds, 0.02)):
            raise Terminated

    monkeypatch.setattr(receive_module, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    announce = receive_module._announce

    def announced(*arguments: Any) -> None:
        announce(*arguments)
        running.listening.set()

    monkeypatch.setattr(receive_module, "_announce", announced)

    def run() -> None:
        try:
            running.results.put(receive(str(model), out, **{"port": running.port, "idle_seconds": 0.3} | options))
        except BaseException as error:  # noqa: BLE001 - handed to the test
            running.results.put(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: not running.results.empty() or running.listening.is_set(), "it listens")
        yield running
    finally:
        running.stopped.set()
        thread.join(60)
        assert not thread.is_alive()


def _ended(running: _Running) -> Any:
    return running.results.get(timeout=60)


def test_a_series_in_a_mask_out(
    tiny_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: Path
) -> None:
    files = w.write(tmp_path / "sent", _series())
    with _receiving(
        tiny_bundle(), tmp_path / "out", monkeypatch, once=True, labels=labels, formats=["nifti,dicom-seg"]
    ) as running:
        assert send(files, running.here).exit_code == 0
        outcome = _ended(running)
    assert outcome.exit_code == 0, outcome
    (entry,) = outcome.result["series"]
    assert (entry["status"], entry["files"], entry["reason"]) == ("done", 6, None)
    assert {Path(name).suffix for name in entry["outputs"]} >= {".gz", ".dcm", ".json"}
    assert all((tmp_path / "out" / name).is_file() for name in entry["outputs"])
    assert outcome.result["totals"] == {"series": 1, "done": 1, "refused": 0, "failed": 0, "skipped": 0}


def _counts(entries: list[dict[str, Any]]) -> dict[str, int]:
    states = [entry["status"] for entry in entries]
    return {state: states.count(state) for state in sorted(set(states))}


def test_mixed_series_each_once(
    tiny_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = _series(1), _series(2, count=5)
    mixed = w.write(tmp_path / "sent", [data for pair in zip(one, two, strict=False) for data in pair])
    last = w.write(tmp_path / "last", one[5:])
    with _receiving(tiny_bundle(), tmp_path / "out", monkeypatch, formats=["nifti"]) as running:
        assert send([*mixed, *last], running.here).exit_code == 0
        entries = running.wait(lambda found: len(found) == 2, "both series are done")
        assert _counts(entries) == {"done": 2}
        assert sorted(entry["files"] for entry in entries) == [5, 6]
        masks = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "masks").rglob("*.nii.gz")}
        assert len(masks) == 2
        assert send(mixed, running.here).exit_code == 0  # again: nothing new, nothing done
        more = _series(3, count=3)
        assert send(w.write(tmp_path / "more", more), running.here).exit_code == 0
        entries = running.wait(lambda found: len(found) == 3, "the third series is done")
    assert masks.items() <= {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.nii.gz")}.items()
    assert isinstance(_ended(running), Terminated)
    assert capsys.readouterr().out.count(": done") == 3


def test_a_series_that_grows_is_done_again(tiny_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = w.write(tmp_path / "sent", _series(count=7))
    with _receiving(tiny_bundle(), tmp_path / "out", monkeypatch, formats=["nifti"]) as running:
        assert send(files[:4], running.here).exit_code == 0
        running.wait(lambda found: bool(found) and found[0]["files"] == 4, "the first part is done")
        assert send(files[4:], running.here).exit_code == 0
        (entry,) = running.wait(lambda found: found[0]["files"] == 7, "all of it is done")
    import nibabel as nib

    (mask,) = (name for name in entry["outputs"] if name.endswith(".nii.gz"))
    assert nib.load(tmp_path / "out" / mask).shape == (20, 16, 7)
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 1


def test_what_cannot_be_used_is_told_and_the_next_is_done(
    tiny_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gap = _series(1)
    del gap[3]
    report = w.new_dataset("1.2.840.10008.5.1.4.1.1.88.33")
    report.Modality = "SR"
    with _receiving(tiny_bundle(), tmp_path / "out", monkeypatch, formats=["nifti"]) as running:
        assert send(w.write(tmp_path / "report", [report]), running.here).exit_code == 0
        assert send(w.write(tmp_path / "gap", gap), running.here).exit_code == 0
        running.wait(lambda found: len(found) == 2, "both are told")
        assert send(w.write(tmp_path / "good", _series(2)), running.here).exit_code == 0
        entries = running.wait(lambda found: len(found) == 3, "the good one is done")
    assert _counts(entries) == {"done": 1, "refused": 1, "skipped": 1}
    (refused,) = (entry for entry in entries if entry["status"] == "refused")
    assert "missing" in refused["reason"] or "gap" in refused["reason"]
    assert refused["reason"] in caplog.text
    assert "SECRET" not in caplog.text


def test_a_broken_transfer_is_not_predicted_until_it_is_sent_again(
    tiny_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pynetdicom import AE

    slices = _series()
    files = w.write(tmp_path / "sent", slices)
    entity = AE(ae_title="PACS")
    entity.add_requested_context(slices[0].SOPClassUID)
    with _receiving(tiny_bundle(), tmp_path / "out", monkeypatch, formats=["nifti"]) as running:
        association = entity.associate(HOST, running.port, ae_title="UNETMED")
        for data in slices[:4]:
            assert association.send_c_store(data).Status == 0
        association.abort()
        (entry,) = running.wait(lambda found: len(found) == 1, "the break is told")
        assert entry["status"] == "refused"
        assert "send it again" in entry["reason"]
        assert not list((tmp_path / "out").rglob("*.nii.gz"))
        assert send(files, running.here).exit_code == 0
        (entry,) = running.wait(lambda found: found[0]["status"] == "done", "the whole series is done")
        assert entry["files"] == 6
        association = entity.associate(HOST, running.port, ae_title="UNETMED")
        assert association.send_c_store(slices[0]).Status == 0
        association.abort()
        other = w.write(tmp_path / "other", _series(2, count=3))
        assert send(other, running.here).exit_code == 0
        entries = running.wait(lambda found: len(found) == 2, "another series is done")
    assert _counts(entries) == {"done": 2}  # a break while it was sent once more has not undone it


def test_a_second_start_goes_on(tiny_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = tiny_bundle(), tmp_path / "out"
    first = w.write(tmp_path / "first", _series(1))
    second = w.write(tmp_path / "second", _series(2))
    with _receiving(model, out, monkeypatch, formats=["nifti"]) as running:
        assert send(first, running.here).exit_code == 0
        running.wait(lambda found: len(found) == 1, "the first is done")
    (mask,) = out.rglob("*.nii.gz")
    made = mask.stat().st_mtime_ns
    with _receiving(model, out, monkeypatch, formats=["nifti"], idle_seconds=300.0) as running:
        assert send(second, running.here).exit_code == 0  # and it ends before the idle time is over
    assert len(list(out.rglob("*.nii.gz"))) == 1
    with _receiving(model, out, monkeypatch, formats=["nifti"], once=True) as running:
        outcome = _ended(running)
    assert outcome.exit_code == 0
    assert _counts(outcome.result["series"]) == {"done": 2}
    assert mask.stat().st_mtime_ns == made
    assert not list((out / "journal").glob("*.claim.json"))
    with pytest.raises(UsageError, match="another job"):
        receive(str(model), out, free_port(), formats=["seg-nrrd"])
    with _receiving(model, out, monkeypatch, formats=["seg-nrrd"], overwrite=True) as running:
        running.wait(lambda found: len(found) == 2, "both are done again in the other format")
    assert len(list(out.rglob("*.seg.nrrd"))) == 2


def test_options_are_checked_before_anything_is_made(tiny_bundle: Any, tmp_path: Path, labels: Path) -> None:
    model, out = str(tiny_bundle()), tmp_path / "out"
    with pytest.raises(UsageError, match="nobody is named"):
        receive(model, out, host="0.0.0.0", formats=["nifti"])
    with pytest.raises(ConfigError, match="code for each label"):
        receive(model, out)
    with pytest.raises(UsageError, match="sent back"):
        receive(model, out, formats=["nifti"], send_back=("dicom", "127.0.0.1:104/PACS"))
    with pytest.raises(UsageError, match="HOST:PORT/AET") as caught:
        receive(model, out, labels=labels, send_back=("dicom", "127.0.0.1"))
    assert caught.value.where == "--send-back"
    with pytest.raises(UsageError, match="AE title"):
        receive(model, out, formats=["nifti"], aet="SEVENTEENLETTERSX")
    with pytest.raises(ModelError):
        receive(str(tmp_path / "nothing"), out)
    assert not out.exists()


def test_one_receiver_for_each_port_and_folder(
    tiny_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_bundle()
    with _receiving(model, tmp_path / "out", monkeypatch, formats=["nifti"]) as running:
        with pytest.raises(UsageError, match="another receiver"):
            receive(str(model), tmp_path / "out", free_port(), formats=["nifti"])
        with pytest.raises(UsageError, match="port is in use"):
            receive(str(model), tmp_path / "other", running.port, formats=["nifti"])


# ---- sending back ----------------------------------------------------------------------------------------------------


def test_results_go_back_when_the_pacs_is_there_again(
    tiny_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: Path
) -> None:
    monkeypatch.setattr(receive_module, "_RETRY_SECONDS", 0.2)
    port = free_port()
    options = {"labels": labels, "formats": ["dicom-seg", "rtstruct"], "send_back": ("dicom", f"{HOST}:{port}/PEER")}
    with _receiving(tiny_bundle(), tmp_path / "out", monkeypatch, **options) as running:
        assert send(w.write(tmp_path / "sent", _series()), running.here).exit_code == 0
        (entry,) = running.wait(lambda found: bool(found), "the series is done")
        assert entry["status"] == "done"
        assert entry["sent_back"]["status"] == "failed"
        assert "no connection" in entry["sent_back"]["reason"]
        with receiver(port=port) as peer:
            (entry,) = running.wait(lambda found: found[0]["sent_back"]["status"] == "sent", "it is sent back")
    assert entry["sent_back"]["files"] == {"sent": 2, "refused": 0, "failed": 0}
    assert sorted(data.Modality for data in peer.got) == ["RTSTRUCT", "SEG"]


def test_a_result_that_the_pacs_refuses_is_told(
    tiny_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: Path
) -> None:
    with receiver(answer=lambda _number: 0xA700) as peer:
        options = {"labels": labels, "once": True, "send_back": ("dicom", peer.place)}
        with _receiving(tiny_bundle(), tmp_path / "out", monkeypatch, **options) as running:
            assert send(w.write(tmp_path / "sent", _series()), running.here).exit_code == 0
            outcome = _ended(running)
    assert outcome.exit_code == 3
    (entry,) = outcome.result["series"]
    assert entry["sent_back"]["status"] == "refused"
    assert "no room" in entry["sent_back"]["reason"]
    assert "not sent back" in outcome.lines[0]


# ---- as processes ----------------------------------------------------------------------------------------------------


def _command(model: Path, out: Path, port: int, *more: str) -> subprocess.Popen[str]:
    words = ["receive", "--model", str(model), "--out", str(out), "--port", str(port), "--idle-seconds", "0.5"]
    return subprocess.Popen(
        [sys.executable, "-m", "unet_med", *words, "--format", "nifti", "--device", "cpu", "-v", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _listens(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().startswith("listening: 127.0.0.1:"), process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_signals_end_it_and_the_next_start_goes_on(
    tiny_bundle: Any, tmp_path: Path, real_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out, port = tiny_bundle(), tmp_path / "out", free_port()
    w.write(tmp_path / "SECRET^JANE", _series())
    with _command(model, out, port) as process:
        _listens(process)
        assert main(["send", str(tmp_path / "SECRET^JANE"), "--to", "dicom", f"{HOST}:{port}/UNETMED"]) == 0
        wait_until(lambda: (out / "masks").exists() or process.poll() is not None, "a prediction has begun", 60)
        assert main(["send", str(tmp_path / "SECRET^JANE"), "--to", "dicom", f"{HOST}:{port}/UNETMED"]) == 0
        process.send_signal(signal.SIGTERM)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "terminated" in errors
    assert not list(out.rglob("*.nii.gz"))
    with _command(model, out, port, "--once", "--json", str(tmp_path / "result.json")) as process:
        more_said, more_errors = process.communicate(timeout=120)
    assert process.returncode == 0, more_errors
    assert len(list(out.rglob("*.nii.gz"))) == 1
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["totals"]["done"] == 1
    with _command(model, out, port) as process:
        _listens(process)
        process.send_signal(signal.SIGINT)
        last_said, last_errors = process.communicate(timeout=60)
    assert process.returncode == 130, last_errors
    told = "".join((said, errors, more_said, more_errors, last_said, last_errors, json.dumps(result)))
    told += "".join(capsys.readouterr())
    assert "SECRET" not in told
    assert "JANE" not in told


# ---- nothing of the patient ------------------------------------------------------------------------------------------


def test_the_patient_stays_in_what_was_received(
    tiny_bundle: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    labels: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG, logger="unet_med")
    slices = _series()
    files = w.write(tmp_path / "SECRET^JANE", slices, [f"SECRET^JANE-{n}.dcm" for n in range(len(slices))])
    every = "nifti,seg-nrrd,dicom-seg,rtstruct,dicom-sr,dicom-sc"
    with receiver() as peer:
        options = {"labels": labels, "once": True, "send_back": ("dicom", peer.place), "deidentify": True}
        with _receiving(tiny_bundle(), tmp_path / "out", monkeypatch, formats=[every], **options) as running:
            sent = send([tmp_path / "SECRET^JANE"], running.here)
            outcome = _ended(running)
    assert (sent.exit_code, outcome.exit_code, len(files)) == (0, 0, 6), outcome
    out = tmp_path / "out"
    incoming = [path for path in (out / "incoming").rglob("*") if path.is_file()]
    assert len(incoming) == 6
    secrets = [b"SECRET", b"JANE", b"19510203", b"S42", slices[0].StudyInstanceUID.encode()]
    secrets += [data.SOPInstanceUID.encode() for data in slices]
    for path in out.rglob("*"):
        assert not any(secret in str(path.relative_to(out)).encode() for secret in secrets)
        if path.is_file() and path not in incoming:
            content = path.read_bytes()
            private = path.name == "files.json"
            assert not any(secret in content for secret in secrets), path.relative_to(out)
            if private and os.name != "nt":
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
    told = [caplog.text, *capfd.readouterr(), *outcome.lines, *sent.lines]
    told += [json.dumps(outcome.result), json.dumps(sent.result)]
    assert not any(secret.decode() in text for secret in secrets for text in told)
    assert peer.got
    assert not any(secret.decode() in str(data) for secret in secrets for data in peer.got)


# ---- a real PACS -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture
def pacs(_orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch) -> Orthanc:
    monkeypatch.setenv("PACS_PASSWORD", PASSWORD)
    _orthanc.clear()
    return _orthanc


def _web(pacs: Orthanc) -> Any:
    from dicomweb_client.api import DICOMwebClient
    from dicomweb_client.session_utils import create_session_from_user_pass

    return DICOMwebClient(pacs.web[1], session=create_session_from_user_pass(USER, PASSWORD))


def _assert_same_mask(seg: pydicom.Dataset, nifti: Path) -> None:
    """Compares each voxel of a SEG, as highdicom reads it, with the NIfTI mask at the same place in mm."""
    import highdicom as hd
    import nibabel as nib

    volume = hd.seg.Segmentation.from_dataset(seg).get_volume(combine_segments=True)
    image = nib.load(nifti)
    mask = np.asarray(image.dataobj)
    index = np.indices(volume.array.shape).reshape(3, -1)
    place = volume.affine @ np.vstack([index, np.ones(index.shape[1])])
    place[:2] *= -1  # LPS to RAS
    voxel = np.linalg.inv(image.affine) @ place
    nearest = np.rint(voxel[:3])
    assert np.abs(voxel[:3] - nearest).max() < 1e-3
    assert len(set(mask.ravel())) == 3
    found = mask[tuple(nearest.astype(int))]
    np.testing.assert_array_equal(volume.array.ravel(), found)
    assert np.count_nonzero(found) == np.count_nonzero(mask)


@pytest.mark.parametrize("way", ["dicom", "dicomweb"])
def test_a_study_goes_through_a_real_pacs(
    pacs: Orthanc, way: str, tiny_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: Path
) -> None:
    slices = _series()
    study = slices[0].StudyInstanceUID
    access = {"user": USER, "password_env": "PACS_PASSWORD"} if way == "dicomweb" else {}
    place = pacs.dicom if way == "dicom" else pacs.web
    outcome = send(w.write(tmp_path / "sent", slices), place, **access)
    assert outcome.exit_code == 0, outcome.lines
    (series,) = pacs.series()
    assert len(pacs.rest("GET", f"/series/{series}")["Instances"]) == 6

    options = {"port": pacs.receiver_port, "allow": ["ORTHANC"], "send_back": place, **access}
    formats = ["nifti,dicom-seg,rtstruct"]
    with _receiving(
        tiny_bundle(), tmp_path / "out", monkeypatch, once=True, labels=labels, formats=formats, **options
    ) as running:
        pacs.rest("POST", "/modalities/receiver/store", series)
        outcome = _ended(running)
    assert outcome.exit_code == 0, outcome
    (entry,) = outcome.result["series"]
    assert entry["sent_back"]["files"] == {"sent": 2, "refused": 0, "failed": 0}

    web = _web(pacs)
    found = web.search_for_series(study_instance_uid=study, search_filters={"Modality": "SEG"})
    (uid,) = (one["0020000E"]["Value"][0] for one in found)
    (seg,) = web.retrieve_series(study, uid)
    assert (seg.PatientName, seg.PatientID, seg.StudyInstanceUID) == ("SECRET^JANE", "SECRET-42", study)
    assert seg.FrameOfReferenceUID == slices[0].FrameOfReferenceUID
    (nifti,) = (name for name in entry["outputs"] if name.endswith(".nii.gz"))
    _assert_same_mask(seg, tmp_path / "out" / nifti)
    assert len(pacs.series("RTSTRUCT")) == 1


def test_a_real_pacs_tells_what_is_wrong(pacs: Orthanc, tmp_path: Path) -> None:
    (file,) = w.write(tmp_path / "sent", _series(count=1))
    with pytest.raises(UsageError, match="does not answer to this AE title"):
        send([file], ("dicom", pacs.dicom[1].replace("ORTHANC", "NOBODY")))
    with pytest.raises(UsageError, match="HTTP 401") as caught:
        send([file], pacs.web)
    assert "--user" in caught.value.remedy
    with pytest.raises(UsageError, match="no STOW-RS"):
        send([file], ("dicomweb", pacs.web[1] + "/nowhere"), user=USER, password_env="PACS_PASSWORD")
    with pytest.raises(UsageError, match="no STOW-RS"):
        send([file], ("dicomweb", f"http://{HOST}:{pacs.http_port}"), user=USER, password_env="PACS_PASSWORD")
    assert pacs.series() == []


def test_the_command_tells_people_and_machines(
    pacs: Orthanc, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    w.write(tmp_path / "SECRET^JANE", _series(count=3))
    (tmp_path / "SECRET^JANE" / "notes.txt").write_text("none", encoding="utf-8")
    lonely = tmp_path / "SECRET^JANE.txt"
    lonely.write_text("none", encoding="utf-8")
    result = tmp_path / "result.json"
    words = ["send", str(tmp_path / "SECRET^JANE"), str(lonely), "--json", str(result), "--to"]
    monkeypatch.setattr("sys.stdin", io.StringIO(PASSWORD + "\n"))
    for place in ([*pacs.dicom], [*pacs.web, "--user", USER]):
        assert main([*words, *place]) == 3
        told = json.loads(result.read_text(encoding="utf-8"))
        assert told["totals"] == {"files": 4, "sent": 3, "refused": 1, "failed": 0, "skipped": 1}
        assert told["to"] == " ".join(place[:2])
    assert main(["send", str(lonely), "--to", *pacs.dicom]) == 4
    assert main(["send", str(lonely), "--to", "dicom"]) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main([*words, *pacs.web, "--user", USER]) == 2
    assert main([*words, "dicom", f"{HOST}:{free_port()}/ORTHANC"]) == 5
    said = "".join(capsys.readouterr()) + result.read_text(encoding="utf-8")
    assert "3 sent, 1 refused" in said
    for secret in ("SECRET", "JANE", PASSWORD):
        assert secret not in said
