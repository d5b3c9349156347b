"""Cases to the process that predicts and back: claimed, handed over, recorded.

The process has up to three cases at a time. When it dies, that counts as a death of each of them, for nobody knows
whose fault it was; a case with a death is done alone from then on, so that it answers for at most one death that was
another one's. At the third death it is marked as failed and the others go on.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unet_med.errors import MachineError
from unet_med.identity import case_tag
from unet_med.inference.process import Worker, WorkerDiedError
from unet_med.inference.worker import CaseJob
from unet_med.io.cases import Case
from unet_med.workflows.journal import MAX_DEATHS, Claim, Journal, input_state

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5

MakeJob = Callable[[Case, Path, str], CaseJob]
"""Given a case, the folder of its outputs and the checksum of its files: what the process is asked."""


@dataclass
class _Flight:
    """A case that this command has claimed.

    Attributes:
        state: Of its files.
        had_company: Whether other cases were in the process with it.
        keep_alone: Whether no other may be.
    """

    case: Case
    claim: Claim
    state: Mapping[str, Any]
    had_company: bool = False
    keep_alone: bool = False


class Dispatch:
    """Has the cases of a folder done.

    Args:
        journal: Memory of the folder.
        worker: The process.
        make_job: Makes the message for a case.
    """

    def __init__(self, journal: Journal, worker: Worker, make_job: MakeJob) -> None:
        self._journal = journal
        self._worker = worker
        self._make_job = make_job
        self._waiting: deque[Case] = deque()
        self._elsewhere: deque[Case] = deque()
        self._flying: dict[str, _Flight] = {}
        self._alone: deque[_Flight] = deque()
        self._has_room = False
        self._idle_deaths = 0

    def run(self, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
        """Yields the record of each case, in the order in which they are finished.

        Raises:
            MachineError: when the disk is full, or the process cannot stay alive; what is finished is kept.
        """
        self._waiting.extend(cases)
        advanced = True
        try:
            while self._waiting or self._elsewhere or self._flying or self._alone:
                if not (self._waiting or self._flying or self._alone):
                    if not advanced:
                        time.sleep(_POLL_SECONDS)  # other processes work on all of them
                    self._waiting, self._elsewhere, advanced = self._elsewhere, self._waiting, False
                for record in self._step():
                    advanced = True
                    yield record
        finally:
            self._worker.stop()
            for flight in (*self._flying.values(), *self._alone):
                self._journal.release(flight.claim)

    def _step(self) -> Iterator[dict[str, Any]]:
        if self._alone and self._has_room and not self._flying:
            yield from self._submit(self._alone.popleft())
        elif self._alone or (self._flying and not (self._may_join and self._waiting)):
            yield from self._collect()
        else:
            yield from self._begin(self._waiting.popleft())

    @property
    def _may_join(self) -> bool:
        return self._has_room and not any(flight.keep_alone for flight in self._flying.values())

    def _begin(self, case: Case) -> Iterator[dict[str, Any]]:
        """Claims a case and hands it over, unless it is done, refused at once, or another process has it."""
        files = files_of(case)
        record = self._journal.record(case.id)
        if record is not None and self._journal.is_done(case.id, files):
            self._journal.tidy(case.id)
            yield record
            return
        if not self._has_room:
            self._waiting.appendleft(case)
            yield from self._collect()
            return
        claim = self._journal.claim(case.id)
        if claim is None:
            self._elsewhere.append(case)
            return
        if self._journal.is_done(case.id, files):  # finished by another process just before the claim
            self._journal.release(claim)
            self._waiting.appendleft(case)
            return
        try:
            flight = _Flight(case, claim, input_state(files))
        except OSError:
            reason = "a file of the image cannot be read any more: restore it, then start the same command again"
            yield self._recorded(claim, unfinished(case.id, "refused", reason))
            return
        if claim.deaths:
            yield from self._again(flight, "its process")
        else:
            yield from self._submit(flight)

    def _submit(self, flight: _Flight) -> Iterator[dict[str, Any]]:
        job = self._make_job(flight.case, flight.claim.staging, flight.state["sha256"])
        self._flying[flight.case.id] = flight
        for one in self._flying.values():
            one.had_company = len(self._flying) > 1 or one.had_company
        self._has_room = False
        try:
            self._worker.submit(job)
        except WorkerDiedError as error:
            yield from self._bury(error.why)

    def _collect(self) -> Iterator[dict[str, Any]]:
        try:
            record = self._worker.collect()
        except WorkerDiedError as error:
            yield from self._bury(error.why)
            return
        if record is None:
            self._has_room = True
            return
        flight = self._flying.pop(record["id"])
        if record.get("out_of_memory") and flight.had_company:
            self._repeat_alone(flight)
            return
        yield self._recorded(flight.claim, {**record, "input": flight.state})

    def _bury(self, why: str) -> Iterator[dict[str, Any]]:
        """Counts a death of the process for each case that it had."""
        flights, self._flying, self._has_room = list(self._flying.values()), {}, False
        if not flights:
            self._idle_deaths += 1
            if self._idle_deaths >= MAX_DEATHS:
                raise MachineError(
                    f"the process that predicts does not stay alive ({why})",
                    remedy="free some memory, then start the same command again; --debug shows more",
                )
        for flight in flights:
            flight.claim = self._journal.died(flight.claim)
            tag = case_tag(flight.case.id)
            logger.warning("the process that worked on %s died (%s), death %d", tag, why, flight.claim.deaths)
            yield from self._again(flight, why)

    def _again(self, flight: _Flight, why: str) -> Iterator[dict[str, Any]]:
        """Puts a case that has died to those that are done alone, unless it has died too often."""
        if flight.claim.deaths < MAX_DEATHS:
            self._repeat_alone(flight)
            return
        case_id = flight.case.id
        reason = (
            f"the process that worked on it died {flight.claim.deaths} times ({why}; out of memory?): free some "
            f"memory, then delete journal/{case_id}.done.json and start the same command again"
        )
        yield self._recorded(flight.claim, {**unfinished(case_id, "failed", reason), "input": flight.state})

    def _repeat_alone(self, flight: _Flight) -> None:
        flight.had_company, flight.keep_alone = False, True
        self._alone.append(flight)

    def _recorded(self, claim: Claim, record: Mapping[str, Any]) -> dict[str, Any]:
        """Finishes a case: its outputs get their names, then its record is written."""
        outputs = [claim.staging / name for name in record["outputs"]]
        self._journal.finish(claim, record, outputs)
        return self._journal.record(claim.case_id) or dict(record)


def files_of(case: Case) -> list[Path]:
    """Returns all image files of a case."""
    return [path for source in case.sources for path in source.files]


def unfinished(case_id: str, status: str, reason: str) -> dict[str, Any]:
    """Returns the record of a case that was not computed."""
    return {
        "id": case_id,
        "status": status,
        "reason": reason,
        "outputs": [],
        "seconds": 0.0,
        "peak_memory_mb": None,
        "checks": {},
        "volumes": [],
        "notes": [],
    }
