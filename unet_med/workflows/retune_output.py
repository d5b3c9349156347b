"""Masks of objects cut out anew: other thresholds on the maps that ``unet-med predict`` kept in its output folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unet_med.bundle import BundleInfo, labels_of
from unet_med.config import Instances, PipelineConfig, parse_config
from unet_med.errors import NothingUsableError, UsageError
from unet_med.inference.casework import CaseWork
from unet_med.inference.estimate import CaseSize, available_bytes
from unet_med.inference.kept_maps import KeptMaps
from unet_med.inference.objects import MAPS
from unet_med.inference.peak import PeakMeter
from unet_med.io.cases import Case
from unet_med.io.discover import discover
from unet_med.io.export.choices import export_options
from unet_med.io.grouping import group_cases
from unet_med.io.source import IntakeOptions
from unet_med.workflows.casefolder import REPORT, CaseFolder
from unet_med.workflows.dispatch import files_of
from unet_med.workflows.journal import FOLDER, JOURNAL, Journal, same_input
from unet_med.workflows.outcome import DONE, SOME_REFUSED, Outcome
from unet_med.workflows.predict import OBJECTS
from unet_med.workflows.progress import track

_SHOWN = 20


def retune_output(out: Path, given: Mapping[str, Any]) -> Outcome:
    """Writes the masks of an output folder anew, and all that depends on them.

    Args:
        out: Output folder of ``unet-med predict`` with a model of objects. Its images must lie where they did.
        given: Keys of the section ``instances`` and their values.

    Raises:
        UsageError: when it is none, or nothing is given.
        ConfigError: for a value that a key cannot have.
        NothingUsableError: when no case has maps, or its image is there no more.
    """
    job = _job(out)
    config = parse_config({"name": "model", **job[OBJECTS]}, JOURNAL).replacing(
        {f"instances.{key}": value for key, value in given.items()}
    )
    if not given:
        raise UsageError(
            "no true objects are known here to choose by", out.name, "give --set instances.KEY=VALUE, or retune the run"
        )
    journal = Journal(out, job, fresh=False)
    cases = _cases(journal, config)
    folder = _folder(journal, config, job, given)
    troubled = []
    for case in track(cases, "cutting out"):
        record = _do(folder, case)
        if record["status"] != "done":
            troubled.append(f"{record['status']}: {case.id}: {record['reason']}")
    report = folder.write_report()
    lines = [f"{len(cases) - len(troubled)} masks cut out anew: {_told(config.instances, given)}", *troubled[:_SHOWN]]
    lines.append(f"masks, tables, previews and {REPORT}: {out}")
    return Outcome(report, lines, SOME_REFUSED if troubled else DONE)


def _told(settings: Instances, given: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {getattr(settings, key):g}" for key in given)


def _job(out: Path) -> dict[str, Any]:
    try:
        job = json.loads((out / JOURNAL).read_text(encoding="utf-8"))["job"]
    except (OSError, ValueError, KeyError):
        job = {}
    if job.get("command") != "predict" or OBJECTS not in job:
        raise UsageError(
            "the folder holds no predictions of objects",
            out.name,
            "give the output folder of `unet-med predict` with a model of objects, or a run folder",
        )
    return dict(job)


def _folder(journal: Journal, config: PipelineConfig, job: Mapping[str, Any], given: Mapping[str, Any]) -> CaseFolder:
    """Returns the output folder as it was predicted; what was refused and skipped then is still told."""
    channels = config.channels if config.channels != "auto" else ()
    models = [
        BundleInfo(journal.out, config, labels_of(config), tuple(channels), {}, sha) for sha in job["model_sha256"]
    ]
    options = dict(job["options"])
    export = export_options(models[0].labels, options["formats"], options["seg_type"], None, options["deidentify"])
    try:
        report = json.loads((journal.out / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        report = {}
    recorded = journal.records().keys()
    return CaseFolder(
        journal,
        models,
        {**options, "retuned": dict(given)},
        export=export,
        refused=[entry for entry in report.get("cases", ()) if entry["id"] not in recorded],
        skipped=report.get("skipped", ()),
    )


def _cases(journal: Journal, config: PipelineConfig) -> list[Case]:
    """Finds the images of the cases that are done and whose maps are kept."""
    records = {
        name: record
        for name, record in journal.records().items()
        if record["status"] == "done" and any(map(_is_store, record["outputs"]))
    }
    files = [Path(path) for paths in _table(journal).values() for path in paths]
    root = Path(os.path.commonpath(files)) if files else journal.out
    found: Sequence[Case] = ()
    if records and root.exists():
        intake = {key: _hashable(value) for key, value in (journal.job["options"].get("intake") or {}).items()}
        channels = config.channels if config.channels != "auto" else ()
        found = group_cases(discover(root, IntakeOptions(**intake), track).usable, channels)
    cases = [case for case in found if case.id in records and same_input(records[case.id]["input"], files_of(case))]
    if not cases:
        raise NothingUsableError(
            "no case has maps, or the images are there no more", journal.out.name, "predict again with --overwrite"
        )
    return cases


def _is_store(name: str) -> bool:
    return name.startswith(f"{MAPS}/")


def _table(journal: Journal) -> Mapping[str, Sequence[str]]:
    try:
        table = json.loads((journal.out / FOLDER / "files.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(table)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _do(folder: CaseFolder, case: Case) -> dict[str, Any]:
    """Writes one case anew; its old outputs stay where that fails."""
    journal = folder.journal
    old, model = journal.record(case.id) or {}, folder.models[0]
    stores = [journal.out / name for name in old["outputs"] if _is_store(name)]
    claim = journal.claim(case.id)
    if claim is None:
        raise UsageError("another process is working on this output folder", case.id, "wait until it is done")
    try:
        job = folder.job(case, claim.staging, str(old["input"]["sha256"]))
        kept = KeptMaps(stores, model.labels, model.config.instances, model.channels)
        work = CaseWork(job, kept, PeakMeter(), None, _is_large)
        for stage in (work.read, work.compute, work.write):
            stage()
        record = work.result()
        if record["status"] == "done":
            outputs = [claim.staging / name for name in record["outputs"]]
            journal.finish(claim, {**record, "input": old["input"]}, outputs)
        return record
    finally:
        journal.release(claim)


def _is_large(size: CaseSize) -> bool:
    return size.is_large(None, available_bytes())
