"""An output folder remembers its job, its finished cases, and who works on what."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from unet_med.errors import UsageError
from unet_med.workflows import journal as journal_module
from unet_med.workflows.journal import Journal, input_state, open_job, same_input

JOB = {"command": "predict", "model_sha256": ["abc"], "options": {"tta": False}}


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"voxels")
    return path


def _finish(
    journal: Journal, case_id: str, scan: Path, status: str = "done", names: tuple[str, ...] = ("mask",)
) -> None:
    claim = journal.claim(case_id)
    assert claim is not None
    staged = []
    for name in names:
        path = claim.staging / f"{case_id}.{name}"
        path.write_text(name, encoding="utf-8")
        staged.append(path)
    record = {"id": case_id, "status": status, "outputs": [path.name for path in staged], "input": input_state([scan])}
    journal.finish(claim, record, staged)


def test_a_finished_case_is_finished_for_the_next_start(tmp_path: Path, scan: Path) -> None:
    out = tmp_path / "out"
    journal = open_job(out, JOB, overwrite=False)
    assert journal.fresh
    assert not journal.is_done("a", [scan])
    _finish(journal, "a", scan)
    assert (out / "a.mask").read_text(encoding="utf-8") == "mask"
    again = open_job(out, JOB, overwrite=False)
    assert not again.fresh
    assert again.is_done("a", [scan])
    assert sorted(path.name for path in (out / "journal").iterdir()) == ["a.done.json"]


def test_a_case_is_done_again_when_its_input_or_its_mask_changed(tmp_path: Path, scan: Path) -> None:
    journal = open_job(tmp_path / "out", JOB, overwrite=False)
    _finish(journal, "a", scan)
    os.utime(scan, (1, 1))
    assert journal.is_done("a", [scan])  # touched, but the same bytes
    scan.write_bytes(b"voxelz")
    assert not journal.is_done("a", [scan])
    _finish(journal, "a", scan)
    (tmp_path / "out" / "a.mask").unlink()
    assert not journal.is_done("a", [scan])


def test_what_a_case_no_longer_makes_is_removed(tmp_path: Path, scan: Path) -> None:
    out = tmp_path / "out"
    journal = open_job(out, JOB, overwrite=False)
    _finish(journal, "a", scan, names=("mask", "extra"))
    _finish(journal, "a", scan, status="refused", names=())
    assert not list(out.glob("a.*"))


def _finish_folder(journal: Journal, scan: Path, pictures: int) -> None:
    claim = journal.claim("a")
    assert claim is not None
    folder = claim.staging / "a.sc"
    folder.mkdir()
    for number in range(pictures):
        (folder / f"{number:04d}.dcm").touch()
    journal.finish(claim, {"id": "a", "status": "done", "outputs": ["a.sc"], "input": input_state([scan])}, [folder])


def test_an_input_may_be_a_folder_whose_files_change(tmp_path: Path) -> None:
    """A chunk of a Zarr image that is written anew changes nothing of the folder but the chunk."""
    chunk = tmp_path / "image.zarr" / "0" / "c" / "0"
    chunk.parent.mkdir(parents=True)
    chunk.write_bytes(b"old")
    state, folder = input_state([tmp_path / "image.zarr"]), [tmp_path / "image.zarr"]
    assert same_input(state, folder)
    chunk.write_bytes(b"new")
    os.utime(chunk, ns=(0, sum(state["mtime_ns"]) + 1))
    assert not same_input(state, folder)
    chunk.write_bytes(b"old")
    assert same_input(state, folder)


def test_an_output_may_be_a_folder(tmp_path: Path, scan: Path) -> None:
    out = tmp_path / "out"
    journal = open_job(out, JOB, overwrite=False)
    _finish_folder(journal, scan, 3)
    assert journal.is_done("a", [scan])
    _finish_folder(journal, scan, 2)
    assert sorted(path.name for path in (out / "a.sc").iterdir()) == ["0000.dcm", "0001.dcm"]
    _finish(journal, "a", scan, status="refused", names=())
    assert not (out / "a.sc").exists()
    _finish_folder(journal, scan, 1)
    (out / "mine").mkdir()
    open_job(out, JOB | {"command": "other"}, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["journal", "journal.json", "mine"]


def test_refused_cases_are_tried_again_by_the_next_start_only(tmp_path: Path, scan: Path) -> None:
    journal = open_job(tmp_path / "out", JOB, overwrite=False)
    _finish(journal, "a", scan, status="refused", names=())
    assert journal.is_done("a", [scan])
    time.sleep(0.01)
    assert not open_job(tmp_path / "out", JOB, overwrite=False).is_done("a", [scan])


@pytest.mark.parametrize("deaths", [0, 3])
def test_a_refused_case_is_tried_again_when_its_files_have_changed(tmp_path: Path, scan: Path, deaths: int) -> None:
    journal = open_job(tmp_path / "out", JOB, overwrite=False)
    claim = journal.claim("a")
    assert claim is not None
    for _ in range(deaths):
        claim = journal.died(claim)
    journal.finish(claim, {"id": "a", "status": "refused", "outputs": [], "input": input_state([scan])})
    assert journal.is_done("a", [scan])
    scan.write_bytes(b"mended voxels")
    assert not journal.is_done("a", [scan])


def test_another_job_is_refused_and_named(tmp_path: Path) -> None:
    open_job(tmp_path / "out", JOB, overwrite=False)
    with pytest.raises(UsageError, match=r"another job \(another model sha256\).*--overwrite"):
        open_job(tmp_path / "out", {**JOB, "model_sha256": ["def"]}, overwrite=False)


def test_foreign_files_are_refused_and_never_deleted(tmp_path: Path, scan: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.docx").write_text("years of work", encoding="utf-8")
    with pytest.raises(UsageError, match="1 other file already"):
        open_job(out, JOB, overwrite=False)
    journal = open_job(out, JOB, overwrite=True)
    _finish(journal, "a", scan)
    open_job(out, {**JOB, "model_sha256": ["def"]}, overwrite=True)
    assert (out / "thesis.docx").exists()
    assert not (out / "a.mask").exists()
    assert sorted(path.name for path in out.iterdir()) == ["journal", "journal.json", "thesis.docx"]


def test_a_file_is_no_output_folder(tmp_path: Path, scan: Path) -> None:
    with pytest.raises(UsageError, match="is a file"):
        open_job(scan, JOB, overwrite=False)


def test_overwriting_reaches_nothing_outside_the_folder(tmp_path: Path, scan: Path) -> None:
    out = tmp_path / "out"
    journal = open_job(out, JOB, overwrite=False)
    _finish(journal, "a", scan)
    record = out / "journal" / "a.done.json"
    content = json.loads(record.read_text(encoding="utf-8"))
    (out / "mine").touch()
    outputs = ["../scan.nii.gz", "", ".", "..", "journal/..", "../out", str(scan)]
    record.write_text(json.dumps({**content, "outputs": outputs}), encoding="utf-8")
    open_job(out, JOB, overwrite=True)
    assert scan.exists()
    assert (out / "mine").exists()


def test_a_case_is_claimed_once(tmp_path: Path) -> None:
    one = open_job(tmp_path / "out", JOB, overwrite=False)
    two = open_job(tmp_path / "out", JOB, overwrite=False)
    claim = one.claim("a")
    assert claim is not None
    assert two.claim("a") is None
    assert two.is_claimed("a")
    with pytest.raises(UsageError, match="another process is working"):
        open_job(tmp_path / "out", JOB, overwrite=True)
    one.release(claim)
    one.release(claim)
    assert two.claim("a") is not None


def _claim_and_die(out: Path) -> None:
    script = (
        "import sys, os, json; from pathlib import Path; from unet_med.workflows.journal import open_job;"
        "journal = open_job(Path(sys.argv[1]), json.loads(sys.argv[2]), False);"
        "claim = journal.claim('a'); (claim.staging / 'half.nii.gz').write_text('x'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(out), json.dumps(JOB)], check=False).returncode == 9


def test_a_dead_claim_is_taken_over_and_deaths_are_counted(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _claim_and_die(out)
    _claim_and_die(out)
    journal = open_job(out, JOB, overwrite=False)
    assert not journal.is_claimed("a")
    claim = journal.claim("a")
    assert claim is not None
    assert claim.deaths == 2
    assert journal.died(claim).deaths == 3
    assert not list(out.rglob("half*"))
    journal.release(claim)
    assert not list((out / "journal").iterdir())


def test_the_claim_of_a_finished_case_is_tidied_when_its_process_is_dead(tmp_path: Path, scan: Path) -> None:
    out = tmp_path / "out"
    _claim_and_die(out)
    journal = open_job(out, JOB, overwrite=False)
    living = journal.claim("b")
    journal.tidy("a")
    journal.tidy("b")
    journal.tidy("c")
    assert living is not None
    assert sorted(path.name for path in (out / "journal").iterdir()) == sorted(["b.claim.json", living.staging.name])
    journal.release(living)


def test_an_interruption_in_the_middle_of_a_claim_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_job(tmp_path / "out", JOB, overwrite=False)
    other = open_job(tmp_path / "out", JOB, overwrite=False).claim("b")
    assert journal.claim("b") is None

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(journal_module, "Claim", interrupted)
    with pytest.raises(KeyboardInterrupt):
        journal.claim("a")
    assert (tmp_path / "out" / "journal" / "a.claim.json").exists()
    journal.release_all()
    assert other is not None
    left = {path.name for path in (tmp_path / "out" / "journal").iterdir()}
    assert left == {"b.claim.json", other.staging.name}


def test_a_claim_of_another_machine_dies_with_its_heartbeat(tmp_path: Path) -> None:
    journal = open_job(tmp_path / "out", JOB, overwrite=False)
    path = tmp_path / "out" / "journal" / "a.claim.json"
    path.write_text(json.dumps({"machine": "elsewhere", "pid": 1, "started": 0.0, "token": "t", "deaths": 0}))
    assert journal.claim("a") is None
    old = time.time() - journal_module.DEAD_SECONDS - 5
    os.utime(path, (old, old))
    claim = journal.claim("a")
    assert claim is not None
    assert claim.deaths == 1


def test_a_claim_of_a_number_that_was_given_again_is_dead(tmp_path: Path) -> None:
    journal = open_job(tmp_path / "out", JOB, overwrite=False)
    path = tmp_path / "out" / "journal" / "a.claim.json"
    content = {**journal._us, "started": psutil.Process().create_time() - 500, "token": "t", "deaths": 0}
    path.write_text(json.dumps(content), encoding="utf-8")
    assert journal.claim("a") is not None


def test_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "BEAT_SECONDS", 0.02)
    journal = open_job(tmp_path / "out", JOB, overwrite=False)
    claim = journal.claim("a")
    path = tmp_path / "out" / "journal" / "a.claim.json"
    os.utime(path, (1, 1))
    deadline = time.monotonic() + 5
    while path.stat().st_mtime < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.stat().st_mtime > 2
    assert claim is not None
    journal.release(claim)


def test_an_unfinished_begin_leaves_nothing(tmp_path: Path) -> None:
    open_job(tmp_path / "out", JOB, overwrite=False).discard()
    assert not (tmp_path / "out").exists()


def test_the_table_of_files_is_private(tmp_path: Path, scan: Path) -> None:
    journal = open_job(tmp_path / "out", JOB, overwrite=False)
    journal.write_file_table({"a": (scan,)})
    path = tmp_path / "out" / "journal" / "files.json"
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [str(scan)]}
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_system_without_links_still_claims_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(journal_module.os, "link", no_links)
    journal = open_job(tmp_path / "out", JOB, overwrite=False)
    assert journal.claim("a") is not None
    assert journal.claim("a") is None


def test_a_missing_file_is_not_the_same_input(scan: Path) -> None:
    state = input_state([scan])
    assert same_input(state, [scan])
    assert not same_input(None, [scan])
    scan.unlink()
    assert not same_input(state, [scan])
