"""Several cases are in the process at a time; deaths, a full disk and interruptions hit the right ones."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unet_med.errors import MachineError
from unet_med.inference.process import WorkerDiedError
from unet_med.workflows.dispatch import Dispatch
from unet_med.workflows.journal import Journal, open_job

JOB = {"command": "test"}


def _cases(folder: Path, names: str) -> list[Any]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(name, encoding="utf-8")
    return [SimpleNamespace(id=name, sources=[SimpleNamespace(files=(folder / name,))]) for name in names]


class _Worker:
    """Behaves like the process: it asks for more until it has three cases, then finishes the first one.

    Args:
        fate: Told the names of all cases in the process when one is finished; returns what to add to its record, or
            raises what happens instead.
    """

    def __init__(self, fate: Callable[[list[str]], dict[str, Any]]) -> None:
        self._fate = fate
        self._jobs: deque[Any] = deque()
        self._asked = False
        self.crowds: list[str] = []
        self.is_stopped = False

    def submit(self, job: Any) -> None:
        self._jobs.append(job)
        self._asked = False
        (job.staging / f"{job.name}.txt").write_text("mask", encoding="utf-8")

    def collect(self) -> dict[str, Any] | None:
        if not self._asked and len(self._jobs) < 3:
            self._asked = True
            return None
        names = [job.name for job in self._jobs]
        assert names, "waits for ever: the process has nothing to do"
        self.crowds.append("".join(names))
        try:
            extra = self._fate(names)
        except WorkerDiedError:
            self._jobs.clear()
            self._asked = False
            raise
        self._jobs.popleft()
        return {"id": names[0], "status": "done", "outputs": [f"{names[0]}.txt"], **extra}

    def stop(self) -> None:
        self.is_stopped = True


def _dispatch(journal: Journal, fate: Callable[[list[str]], dict[str, Any]]) -> tuple[Dispatch, _Worker]:
    worker = _Worker(fate)
    make: Any = lambda case, staging, sha256: SimpleNamespace(name=case.id, staging=staging, sha256=sha256)  # noqa: E731
    return Dispatch(journal, worker, make), worker  # type: ignore[arg-type]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return open_job(tmp_path / "out", JOB, overwrite=False)


def _left_over(journal: Journal) -> list[str]:
    return [path.name for pattern in ("*.claim.json", "*.work") for path in (journal.out / "journal").glob(pattern)]


def test_cases_are_together_in_the_process(journal: Journal, tmp_path: Path) -> None:
    dispatch, worker = _dispatch(journal, lambda _: {})
    records = list(dispatch.run(_cases(tmp_path / "in", "abcde")))
    assert [record["id"] for record in records] == list("abcde")
    assert worker.crowds == ["abc", "bcd", "cde", "de", "e"]
    assert all((journal.out / f"{name}.txt").exists() for name in "abcde")
    assert worker.is_stopped
    assert not _left_over(journal)
    again, unused = _dispatch(journal, lambda _: {})
    assert len(list(again.run(_cases(tmp_path / "in", "abcde")))) == 5
    assert unused.crowds == [], "what is done is not done again"


@pytest.mark.parametrize("killer", list("abcde"))
def test_a_death_is_charged_once_to_those_beside_it(journal: Journal, tmp_path: Path, killer: str) -> None:
    def fate(names: list[str]) -> dict[str, Any]:
        if killer in names[:2]:  # it is computed when it is the second, while the first is written
            raise WorkerDiedError("signal 9")
        return {}

    dispatch, worker = _dispatch(journal, fate)
    records = {record["id"]: record for record in dispatch.run(_cases(tmp_path / "in", "abcde"))}
    assert {name: record["status"] for name, record in records.items()} == {
        name: "failed" if name == killer else "done" for name in "abcde"
    }
    assert records[killer]["deaths"] == 3
    assert "signal 9" in records[killer]["reason"]
    assert all(records[name]["deaths"] <= 1 for name in "abcde" if name != killer)
    assert worker.crowds.count(killer) >= 2, "it was tried alone"
    assert not (journal.out / f"{killer}.txt").exists()
    assert not _left_over(journal)


def test_several_killers_in_a_row_cost_no_innocent_case(journal: Journal, tmp_path: Path) -> None:
    def fate(names: list[str]) -> dict[str, Any]:
        if set("abd") & set(names):
            raise WorkerDiedError("signal 9")
        return {}

    dispatch, _ = _dispatch(journal, fate)
    records = {record["id"]: record["status"] for record in dispatch.run(_cases(tmp_path / "in", "abcdef"))}
    assert records == dict.fromkeys("abd", "failed") | dict.fromkeys("cef", "done")


def test_a_case_that_died_before_is_done_alone(journal: Journal, tmp_path: Path) -> None:
    claim = journal.claim("c")
    assert claim is not None
    journal.died(claim)
    content = (journal.out / "journal" / "c.claim.json").read_text(encoding="utf-8")
    dead = content.replace(f'"pid": {_pid(content)}', '"pid": 999999999')
    (journal.out / "journal" / "c.claim.json").write_text(dead, encoding="utf-8")
    dispatch, worker = _dispatch(journal, lambda _: {})
    assert len(list(dispatch.run(_cases(tmp_path / "in", "abcde")))) == 5
    assert all(crowd == "c" or "c" not in crowd for crowd in worker.crowds)


def _pid(content: str) -> str:
    return content.split('"pid": ')[1].split(",")[0]


@pytest.mark.parametrize("helps", [True, False])
def test_memory_that_ran_out_beside_others_is_tried_again_alone(journal: Journal, tmp_path: Path, helps: bool) -> None:
    def fate(names: list[str]) -> dict[str, Any]:
        starved = names[0] == "b" and not (helps and names == ["b"])
        return {"status": "failed", "out_of_memory": True, "outputs": []} if starved else {}

    dispatch, worker = _dispatch(journal, fate)
    records = {record["id"]: record["status"] for record in dispatch.run(_cases(tmp_path / "in", "abcd"))}
    assert records == dict.fromkeys("acd", "done") | {"b": "done" if helps else "failed"}
    assert worker.crowds.count("b") == 1


def test_a_full_disk_while_another_is_computed_keeps_what_is_finished(journal: Journal, tmp_path: Path) -> None:
    def fate(names: list[str]) -> dict[str, Any]:
        if names[0] == "b":
            raise MachineError("disk full", "b", "free some space")
        return {}

    dispatch, worker = _dispatch(journal, fate)
    done = []
    with pytest.raises(MachineError, match="disk full"):
        for record in dispatch.run(_cases(tmp_path / "in", "abcd")):
            done.append(record["id"])
    assert done == ["a"]
    assert worker.crowds[-1] == "bcd", "another was in work"
    assert worker.is_stopped
    assert set(journal.records()) == {"a"}
    assert not _left_over(journal)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_gives_up_all_claims(
    journal: Journal, tmp_path: Path, interruption: type[BaseException]
) -> None:
    def fate(names: list[str]) -> dict[str, Any]:
        if names[0] == "b":
            raise interruption
        return {}

    dispatch, worker = _dispatch(journal, fate)
    with pytest.raises(interruption):
        list(dispatch.run(_cases(tmp_path / "in", "abcd")))
    assert worker.is_stopped
    assert not _left_over(journal)


def test_a_process_that_dies_without_a_case_is_not_started_for_ever(journal: Journal, tmp_path: Path) -> None:
    class Mortal(_Worker):
        def collect(self) -> dict[str, Any] | None:
            raise WorkerDiedError("exit code 1")

    dispatch, _ = _dispatch(journal, lambda _: {})
    dispatch._worker = Mortal(lambda _: {})  # type: ignore[assignment]
    with pytest.raises(MachineError, match="does not stay alive"):
        list(dispatch.run(_cases(tmp_path / "in", "a")))


def test_a_file_that_is_gone_is_refused(journal: Journal, tmp_path: Path) -> None:
    cases = _cases(tmp_path / "in", "abc")
    (tmp_path / "in" / "b").unlink()
    dispatch, _ = _dispatch(journal, lambda _: {})
    records = {record["id"]: record["status"] for record in dispatch.run(cases)}
    assert records == {"a": "done", "b": "refused", "c": "done"}


SHARING = """
import sys, time
from pathlib import Path
from test_dispatch import JOB, _cases, _dispatch
from unet_med.workflows.journal import open_job
folder = Path(sys.argv[1])
first, step = int(sys.argv[3]), int(sys.argv[4])
mine = _cases(folder / "in", "abcdefghijklmnop")[first::step]
def fate(names):
    (folder / f"{sys.argv[2]}.{names[0]}.{time.monotonic_ns()}").touch()
    time.sleep(0.01)
    return {}
journal = open_job(folder / "out", JOB, overwrite=False)
(folder / f"ready{sys.argv[2]}").touch()
while len(list(folder.glob("ready?"))) < 2:
    time.sleep(0.001)
dispatch, _ = _dispatch(journal, fate)
for record in dispatch.run(mine):
    pass
"""


@pytest.mark.parametrize("shares", [[(0, 1), (0, 1)], [(0, 2), (1, 2)], [(0, 2), (0, 1)]])
def test_two_jobs_on_one_folder_never_take_the_same_case(tmp_path: Path, shares: list[tuple[int, int]]) -> None:
    """Whole folder twice, two parts, and one part beside the whole folder."""
    (tmp_path / "in").mkdir()
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", SHARING, str(tmp_path), str(number), *map(str, share)], cwd=Path(__file__).parent
        )
        for number, share in enumerate(shares)
    ]
    assert [job.wait(timeout=60) for job in jobs] == [0, 0]
    taken = [path.name.split(".") for path in tmp_path.glob("?.*.*")]
    assert Counter(name for _, name, _ in taken) == Counter("abcdefghijklmnop")
    assert {job for job, _, _ in taken} == {"0", "1"}, "both had something to do"
    assert len(list((tmp_path / "out").glob("*.txt"))) == 16
