"""Cases into an output folder: claimed, predicted in a process of their own, recorded and reported.

``predict`` and ``evaluate`` share this. Several commands may work on one folder.
"""

from __future__ import annotations

import csv
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unet_med import __version__
from unet_med.bundle import BundleInfo
from unet_med.errors import MachineError, UnetMedError
from unet_med.inference.process import Worker
from unet_med.inference.quality.assessment import quality_lines
from unet_med.inference.worker import CaseJob
from unet_med.io.atomic import whole_file, write_json
from unet_med.io.cases import Case
from unet_med.io.export.mask import ExportOptions
from unet_med.io.export.sidecars import RESEARCH_ONLY, write_label_tables
from unet_med.manifest import ManifestCase
from unet_med.model_card import model_card
from unet_med.workflows.dispatch import Dispatch, files_of, unfinished
from unet_med.workflows.journal import FOLDER, Journal

REPORT = "report.json"
VOLUMES = "volumes.csv"
MODELS = "models.json"
"""In the folder of the journal: what each model says of itself."""
_RESERVED = {"report", "journal", "metrics", "volumes", "previews", "masks"}
_PUBLIC = (
    *("id", "status", "reason", "outputs", "seconds", "peak_memory_mb", "checks", "notes", "device", "precision"),
    *("engine", "engine_why", "windows", "windows_skipped"),
    *("predicted_dice", "agreement", "unusual", "look_at"),
)
COUNTS = "counts.csv"
_COUNT_COLUMNS = ("id", "class", "objects", "density", "unit", "covered", "mean_size", "frame")
_VOLUME_COLUMNS = ("id", "label", "ml", "value", "unit", "voxels", "frame")
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
        try:
            if any(not self.journal.is_done(case.id, files_of(case)) for case in cases):
                worker.wait_ready()
        except UnetMedError:
            worker.stop()
            self.journal.discard()
            raise
        table = self.table or {case.id: files_of(case) for case in cases}
        self.journal.write_file_table({name: [path.absolute() for path in files] for name, files in table.items()})
        models = {"models": [about_model(info) for info in self.models]}
        write_json(self.journal.out / FOLDER / MODELS, models, MODELS)

        def make_job(case: Case, staging: Path, sha256: str) -> CaseJob:
            return self.job(case, staging, sha256, (truths or {}).get(case.id))

        dispatch = Dispatch(self.journal, worker, make_job)
        try:
            for record in dispatch.run(cases):
                yield record
                self._report_now_and_then()
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
        """Writes ``report.json``, ``volumes.csv``, ``counts.csv`` of objects, label tables beside NIfTI masks.

        Returns:
            The report.
        """
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
        if self.models[0].labels.objects:
            records = self.journal.records().values()
            counts = [{"id": record["id"], **row} for record in records for row in record.get("objects", [])]
            write_table(self.journal.out / COUNTS, _COUNT_COLUMNS, counts)
        self._reported[0] = time.monotonic()
        return content

    def job(self, case: Case, staging: Path, sha256: str, truth: ManifestCase | None = None) -> CaseJob:
        """Returns what is asked of a case: its outputs go to ``staging``, ``sha256`` is that of its files."""
        return CaseJob(
            case,
            output_name(case.id),
            staging,
            self._provenance(case, sha256),
            masks=self.masks,
            truth=truth,
            export=self.export,
            kept=self.journal.kept(case.id),
        )

    # ---- inside -------------------------------------------------------------------------------------------------

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


def about_model(info: BundleInfo) -> dict[str, Any]:
    """Returns what a model says of itself, for the pages of its masks: ``name``, ``sha256``, ``card``, ``knows``."""
    card = model_card(info.config, info.meta)
    return {"name": info.config.name, "sha256": info.sha256, "card": card, "knows": quality_lines(info.meta)}


def output_name(case_id: str) -> str:
    """Returns the stem of a case's outputs: its id, unless that is a name which the folder needs itself."""
    return f"{case_id}-case" if case_id.lower() in _RESERVED else case_id


def config_sha256(info: BundleInfo) -> str:
    """Returns the sha256 of a model's pipeline file."""
    return hashlib.sha256(info.config.to_yaml().encode()).hexdigest()


def refused_entry(case_id: str, reason: str) -> dict[str, Any]:
    """Returns the entry of ``report.json`` for something that discovery refused."""
    return {key: unfinished(case_id, "refused", reason).get(key) for key in _PUBLIC}


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
