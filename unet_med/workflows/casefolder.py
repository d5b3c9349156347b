"""Cases into an output folder, one after the other: claimed, predicted in a process of their own, recorded.

``predict`` and ``evaluate`` share this. A case that kills its process is tried again; at the third death it is marked
as failed and the others go on. Several commands may work on one folder.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unet_med import __version__
from unet_med.bundle import BundleInfo
from unet_med.errors import MachineError, UnetMedError
from unet_med.identity import case_tag
from unet_med.inference.process import Worker, WorkerDiedError
from unet_med.inference.worker import CaseJob
from unet_med.io.atomic import whole_file, write_json
from unet_med.io.cases import Case
from unet_med.io.export.mask import ExportOptions
from unet_med.io.export.sidecars import RESEARCH_ONLY, write_label_tables
from unet_med.manifest import ManifestCase
from unet_med.workflows.journal import MAX_DEATHS, Claim, Journal, input_state

logger = logging.getLogger(__name__)

REPORT = "report.json"
VOLUMES = "volumes.csv"
_RESERVED = {"report", "journal", "metrics", "volumes", "previews", "masks"}
_PUBLIC = ("id", "status", "reason", "outputs", "seconds", "peak_memory_mb", "checks", "notes", "device", "precision")
_VOLUME_COLUMNS = ("id", "label", "ml", "value", "unit", "voxels", "frame")
_POLL_SECONDS = 0.5
_REPORT_SECONDS = 1.0


@dataclass(frozen=True)
class CaseFolder:
    """An output folder and the models that fill it.

    Attributes:
        journal: Memory of the folder.
        models: The models, the first one first.
        options: What else decides the result; recorded with every mask.
        masks: Folder of the masks below the output folder; empty for itself.
        export: How masks are written.
        refused: Records of what discovery refused already.
        skipped: What discovery left out: ``what``, ``count``, ``reason``.
        table: Files of each id, kept where only this user can read it.
    """

    journal: Journal
    models: Sequence[BundleInfo]
    options: Mapping[str, Any]
    masks: str = ""
    export: ExportOptions = field(default_factory=ExportOptions)
    refused: Sequence[Mapping[str, Any]] = ()
    skipped: Sequence[Mapping[str, Any]] = ()
    table: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    _reported: list[float] = field(default_factory=lambda: [0.0])

    def work(
        self, cases: Sequence[Case], worker: Worker, truths: Mapping[str, ManifestCase] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Does all cases that are not done; yields the record of each case, in the order in which they are finished.

        Raises:
            MachineError: when the disk is full; what is finished is kept.
        """
        waiting = list(cases)
        try:
            if any(not self.journal.is_done(case.id, _files(case)) for case in waiting):
                worker.wait_ready()
        except UnetMedError:
            worker.stop()
            self.journal.discard()
            raise
        self.journal.write_file_table(self.table or {case.id: _files(case) for case in cases})
        try:
            while waiting:
                left: list[Case] = []
                for case in waiting:
                    record = self._attempt(case, worker, (truths or {}).get(case.id))
                    if record is None:
                        left.append(case)
                        continue
                    yield record
                    self._report_now_and_then()
                if len(left) == len(waiting):
                    time.sleep(_POLL_SECONDS)  # other processes work on all of them
                waiting = left
        except BaseException:
            with suppress(UnetMedError, OSError):
                self.write_report()
            raise
        finally:
            worker.stop()
            self.journal.release_all()
        self.write_report()

    def report(self) -> dict[str, Any]:
        """Returns ``report.json``: every case that is recorded, and what was refused before."""
        refused = {entry["id"] for entry in self.refused}
        records = [record for record in self.journal.records().values() if record["id"] not in refused]
        cases = [{key: record.get(key) for key in _PUBLIC} for record in records]
        cases += [dict(entry) for entry in self.refused]
        cases.sort(key=lambda entry: str(entry["id"]))
        states = [entry["status"] for entry in cases]
        return {
            "tool": "unet-med",
            "version": __version__,
            "use": RESEARCH_ONLY,
            "model_sha256": self.models[0].sha256,
            "also_sha256": [info.sha256 for info in self.models[1:]],
            "cases": cases,
            "totals": {
                "cases": len(cases),
                "done": states.count("done"),
                "refused": states.count("refused"),
                "failed": states.count("failed"),
                "skipped": sum(int(entry["count"]) for entry in self.skipped),
                "seconds": round(sum(float(entry["seconds"] or 0.0) for entry in cases), 3),
            },
            "skipped": [dict(entry) for entry in self.skipped],
        }

    def write_report(self) -> dict[str, Any]:
        """Writes ``report.json``, ``volumes.csv`` and, beside NIfTI masks, label tables; returns the report."""
        content = self.report()
        if any(str(name).endswith(".nii.gz") for entry in content["cases"] for name in entry["outputs"]):
            write_label_tables(self.journal.out / self.masks, self.export.labels or self.models[0].labels)
        write_json(self.journal.out / REPORT, content, REPORT)
        rows = [
            {"id": record["id"], "ml": row["value"] if row["unit"] == "ml" else None, **row}
            for record in self.journal.records().values()
            for row in record.get("volumes", [])
        ]
        write_table(self.journal.out / VOLUMES, _VOLUME_COLUMNS, rows)
        self._reported[0] = time.monotonic()
        return content

    # ---- one case -----------------------------------------------------------------------------------------------

    def _attempt(self, case: Case, worker: Worker, truth: ManifestCase | None) -> dict[str, Any] | None:
        """Returns the record of a case, or ``None`` when another process works on it."""
        files = _files(case)
        if self.journal.is_done(case.id, files):
            self.journal.tidy(case.id)
        else:
            claim = self.journal.claim(case.id)
            if claim is None:
                return None
            try:
                if not self.journal.is_done(case.id, files):
                    self._do(claim, case, files, worker, truth)
            finally:
                self.journal.release(claim)
        return self.journal.record(case.id)

    def _do(self, claim: Claim, case: Case, files: Sequence[Path], worker: Worker, truth: ManifestCase | None) -> None:
        try:
            state = input_state(files)
        except OSError:
            reason = "a file of the image cannot be read any more: restore it, then start the same command again"
            self.journal.finish(claim, _unfinished(case.id, "refused", reason))
            return
        job = CaseJob(
            case,
            output_name(case.id),
            claim.staging,
            self._provenance(case, state["sha256"]),
            masks=self.masks,
            truth=truth,
            export=self.export,
        )
        why = "its process"
        while claim.deaths < MAX_DEATHS:
            try:
                record = worker.run(job)
            except WorkerDiedError as error:
                why = error.why
                claim = self.journal.died(claim)
                logger.warning("%s killed its process (%s), death %d", case_tag(case.id), why, claim.deaths)
                continue
            if record["status"] != "done":
                self.journal.finish(claim, {**record, "input": state})
                return
            outputs = [claim.staging / name for name in record["outputs"]]
            self.journal.finish(claim, {**record, "input": state}, outputs)
            return
        reason = (
            f"the process that worked on it died {claim.deaths} times ({why}; out of memory?): free some memory, "
            f"then delete journal/{case.id}.done.json and start the same command again"
        )
        self.journal.finish(claim, {**_unfinished(case.id, "failed", reason), "input": state})

    def _provenance(self, case: Case, sha256: str) -> dict[str, Any]:
        first = self.models[0]
        return {
            "tool": "unet-med",
            "version": __version__,
            "model_sha256": [info.sha256 for info in self.models],
            "config_sha256": [config_sha256(info) for info in self.models],
            "input_sha256": sha256,
            "frame": case.frame,
            "sources": [
                {"id": s.id, "kind": s.kind, "read_as": dict(s.read_as), "notes": list(s.notes)} for s in case.sources
            ],
            "seed": first.config.seed,
            "options": dict(self.options),
        }

    def _report_now_and_then(self) -> None:
        if time.monotonic() - self._reported[0] > _REPORT_SECONDS:
            self.write_report()


def output_name(case_id: str) -> str:
    """Returns the stem of a case's outputs: its id, unless that is a name which the folder needs itself."""
    return f"{case_id}-case" if case_id.lower() in _RESERVED else case_id


def config_sha256(info: BundleInfo) -> str:
    """Returns the sha256 of a model's pipeline file."""
    return hashlib.sha256(info.config.to_yaml().encode()).hexdigest()


def refused_entry(case_id: str, reason: str) -> dict[str, Any]:
    """Returns the entry of ``report.json`` for something that discovery refused."""
    return {key: _unfinished(case_id, "refused", reason).get(key) for key in _PUBLIC}


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a CSV file with a header, whole or not at all; ``None`` is an empty field."""
    with whole_file(path, path.name) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def starved(records: Sequence[Mapping[str, Any]]) -> MachineError | None:
    """Returns the error to end with when cases failed because memory ran out."""
    names = [record["id"] for record in records if record.get("out_of_memory")]
    if not names:
        return None
    return MachineError(
        f"out of memory in {len(names)} {'case' if len(names) == 1 else 'cases'}; the others are kept",
        names[0],
        "close other programs or use a machine with more memory, then start the same command again",
    )


def _files(case: Case) -> list[Path]:
    return [path for source in case.sources for path in source.files]


def _unfinished(case_id: str, status: str, reason: str) -> dict[str, Any]:
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
