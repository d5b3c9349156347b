"""Masks of objects cut out anew: other thresholds on the maps that are kept in an output folder.

That is one of ``unet-med predict``, or one of ``unet-med evaluate``, whose masks are then scored anew, too. Nothing is
chosen there: thresholds chosen on the cases that they are scored on would flatter the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from unet_med.io.export.mask import ExportOptions
from unet_med.io.grouping import group_cases
from unet_med.io.source import IntakeOptions
from unet_med.manifest import ManifestCase, load_manifest, verified
from unet_med.workflows.casefolder import REPORT, CaseFolder
from unet_med.workflows.dispatch import files_of, unfinished
from unet_med.workflows.evaluate import MASKS, METRICS, digest_of, write_scores
from unet_med.workflows.journal import FOLDER, JOURNAL, Journal, same_input
from unet_med.workflows.outcome import DONE, SOME_REFUSED, Outcome
from unet_med.workflows.predict import OBJECTS
from unet_med.workflows.progress import track

_SHOWN = 20


def retune_output(out: Path, given: Mapping[str, Any], data: Path | None = None) -> Outcome:
    """Writes the masks of an output folder anew, and all that depends on them.

    Args:
        out: Output folder of ``unet-med predict`` or ``unet-med evaluate`` with a model of objects. Its images must lie
            where they did.
        given: Keys of the section ``instances`` and their values.
        data: Of an evaluation: its manifest, where the true objects are.

    Raises:
        UsageError: when it is none, nothing is given, or the manifest is missing or another one.
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
    truths = _truths(out, job, data)
    journal = Journal(out, job, fresh=False)
    cases, lost = _cases(journal, config, None if truths is None else [truth.case for truth in truths.values()])
    folder = _folder(journal, config, job, given)
    records = [_do(folder, case, (truths or {}).get(case.id)) for case in track(cases, "cutting out")]
    troubled = [*(one for one in records if one["status"] != "done"), *lost]
    report = folder.write_report()
    done = len(cases) + len(lost) - len(troubled)
    lines = [f"{done} masks cut out anew: {_told(config.instances, given)}"]
    if truths is not None:
        scored = _scored_anew(folder, troubled)
        return replace(scored, lines=[*lines, *scored.lines])
    lines += [f"{one['status']}: {one['id']}: {one['reason']}" for one in troubled[:_SHOWN]]
    lines.append(f"masks, tables, previews and {REPORT}: {out}")
    return Outcome(report, lines, SOME_REFUSED if troubled else DONE)


def _truths(out: Path, job: Mapping[str, Any], data: Path | None) -> dict[str, ManifestCase] | None:
    """Returns the cases of an evaluation by their ids; ``None`` for a prediction."""
    if job["command"] != "evaluate":
        if data is not None:
            raise UsageError("the folder holds no scores of held-out cases", "--data", "leave it out")
        return None
    if data is None:
        raise UsageError("the true objects of these cases are in their manifest", out.name, "give --data M.json")
    manifest = load_manifest(data)
    folds = {case.fold for case in manifest.training}
    parts = [manifest.test, *([case for case in manifest.training if case.fold == fold] for fold in folds)]
    labelled = ([case for case in part if case.case.label is not None] for part in parts)
    scored = next((cases for cases in labelled if digest_of(cases) == job["cases"]), None)
    if scored is None:
        raise UsageError("the manifest holds other cases than those that were scored", "--data", "give the same one")
    usable, _ = verified(scored)
    return {case.case.id: case for case in usable}


def _scored_anew(folder: CaseFolder, troubled: Sequence[Mapping[str, Any]]) -> Outcome:
    """Writes the scores of all masks; what else ``metrics.json`` says stays, and the refused cases are still told."""
    out = folder.journal.out
    try:
        before = json.loads((out / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    failed = {str(one["id"]) for one in troubled}
    done = [one for one in folder.journal.records().values() if one["status"] == "done" and one["id"] not in failed]
    facts = {key: before.get(key, 0) for key in ("trained_on", "wall_seconds")}
    facts |= {"evaluated": before.get("evaluated", "held-out cases"), "model_sha256": folder.models[0].sha256}
    refused = [one for one in before.get("refused", ()) if one["id"] not in failed]
    return write_scores(out, [*done, *troubled], refused, facts | {"retuned": dict(folder.options["retuned"])})


def _told(settings: Instances, given: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {getattr(settings, key):g}" for key in given)


def _job(out: Path) -> dict[str, Any]:
    try:
        job = json.loads((out / JOURNAL).read_text(encoding="utf-8"))["job"]
    except (OSError, ValueError, KeyError):
        job = {}
    if job.get("command") not in ("predict", "evaluate") or OBJECTS not in job:
        raise UsageError(
            "the folder holds no predictions of objects",
            out.name,
            "give the output folder of `unet-med predict` or `evaluate` with a model of objects, or a run folder",
        )
    return dict(job)


def _folder(journal: Journal, config: PipelineConfig, job: Mapping[str, Any], given: Mapping[str, Any]) -> CaseFolder:
    """Returns the output folder as it was predicted; what was refused and skipped then is still told."""
    channels = config.channels if config.channels != "auto" else ()
    models = [
        BundleInfo(journal.out, config, labels_of(config), tuple(channels), {}, sha) for sha in job["model_sha256"]
    ]
    options = dict(job.get("options", {}))
    export = ExportOptions()
    if options:
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
        masks=MASKS if job["command"] == "evaluate" else "",
        export=export,
        refused=[entry for entry in report.get("cases", ()) if entry["id"] not in recorded],
        skipped=report.get("skipped", ()),
    )


def _cases(
    journal: Journal, config: PipelineConfig, known: Sequence[Case] | None
) -> tuple[list[Case], list[dict[str, Any]]]:
    """Finds the images of the cases that are done and whose maps are kept; those that are ``known`` are not sought.

    Returns:
        The cases, and records of those whose images are missing or changed.
    """
    records = {
        name: record
        for name, record in journal.records().items()
        if record["status"] == "done" and any(map(_is_store, record["outputs"]))
    }
    found = _found(journal, config) if known is None and records else known or ()
    cases = [case for case in found if case.id in records and same_input(records[case.id]["input"], files_of(case))]
    if not cases:
        raise NothingUsableError(
            "no case has maps, or the images are there no more", journal.out.name, "predict again with --overwrite"
        )
    reason = "its image is there no more, or is another one: its outputs stay as they were"
    lost = sorted(records.keys() - {case.id for case in cases})
    return cases, [unfinished(case_id, "refused", reason) for case_id in lost]


def _found(journal: Journal, config: PipelineConfig) -> Sequence[Case]:
    """Looks for the images where they lay when they were predicted."""
    files = [Path(path) for paths in _table(journal).values() for path in paths]
    root = Path(os.path.commonpath(files)) if files else journal.out
    if not root.exists():
        return ()
    intake = {key: _hashable(value) for key, value in (journal.job["options"].get("intake") or {}).items()}
    channels = config.channels if config.channels != "auto" else ()
    return group_cases(discover(root, IntakeOptions(**intake), track).usable, channels)


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


def _do(folder: CaseFolder, case: Case, truth: ManifestCase | None) -> dict[str, Any]:
    """Writes one case anew; its old outputs stay where that fails."""
    journal = folder.journal
    old, model = journal.record(case.id) or {}, folder.models[0]
    stores = [journal.out / name for name in old["outputs"] if _is_store(name)]
    claim = journal.claim(case.id)
    if claim is None:
        raise UsageError("another process is working on this output folder", case.id, "wait until it is done")
    try:
        job = folder.job(case, claim.staging, str(old["input"]["sha256"]), truth)
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
