"""``unet-med predict``: a model and a folder in, masks out."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unet_med.bundle import BundleInfo, read_bundle_info
from unet_med.errors import NothingUsableError, UsageError
from unet_med.inference.process import Worker
from unet_med.inference.worker import Setup
from unet_med.io.cases import Case
from unet_med.io.discover import discover
from unet_med.io.export.choices import export_options
from unet_med.io.export.formats import FORMATS, parse_formats
from unet_med.io.export.mask import ExportOptions, SegType
from unet_med.io.grouping import group_cases
from unet_med.io.source import IntakeOptions, SourceRef
from unet_med.workflows.attempt import check_places
from unet_med.workflows.casefolder import REPORT, CaseFolder, refused_entry, starved
from unet_med.workflows.journal import JOURNAL, file_key, folder_key, open_job
from unet_med.workflows.outcome import DONE, MACHINE, NOTHING_USABLE, SOME_REFUSED, Outcome
from unet_med.workflows.progress import track

OBJECTS = "objects"
"""Of a job: what has to be known of its model to cut objects out again."""

_SHOWN = 20


def predict(
    model: str,
    input: Path,
    out: Path,
    also: Sequence[str] = (),
    formats: Sequence[str] = (),
    tta: bool = False,
    device: str = "auto",
    memory_gb: float | None = None,
    part: str | None = None,
    intake: IntakeOptions = IntakeOptions(),  # noqa: B008
    overwrite: bool = False,
    seg_type: SegType = "binary",
    labels: Path | None = None,
    deidentify: bool = False,
) -> Outcome:
    """Segments every image of a folder, each on its own grid.

    Args:
        model: Bundle folder, run folder, or an MLflow address.
        input: Folder or file; only read.
        out: Receives ``<id>.nii.gz`` (pictures and uncalibrated images: ``<id>.tif``) and the other formats,
            ``<id>.json``, ``previews/<id>.png``, ``report.json``, ``volumes.csv`` and label tables.
        also: More models; logits are averaged.
        formats: Names of :data:`unet_med.io.export.formats.FORMATS`; nothing for ``nifti``, which is a TIFF where an
            image has no place in space.
        tta: Average over mirrored copies.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        memory_gb: Memory that prediction may use beyond the images, their masks and the loaded models: windows are
            chosen to fit it, and cases are then done one after the other; images that are larger (or larger than a
            quarter of what is free) are read and labelled part by part, where their files allow that. ``None``: what is
            free.
        part: ``I/N``: only the I-th of N shares of the cases.
        intake: How images are read.
        overwrite: Replace what an earlier job left in ``out``.
        seg_type: Kind of DICOM SEG.
        labels: File of colours and codes of the labels.
        deidentify: Leave the patient out of DICOM outputs.

    Raises:
        UsageError: for an ``out`` that is the input or lies in it, or belongs to another job, or an unknown format.
        ConfigError: for a format that needs codes of the labels which nobody gave.
        ModelError: when a model cannot be loaded.
        NothingUsableError: when no image can be used.
        MachineError: when the disk is full.
    """
    parse_formats(formats)
    share = _share(part)
    check_places(input, "INPUT", out)
    models = [read_bundle_info(name) for name in (model, *also)]
    export = export_options(models[0].labels, formats, seg_type, labels, deidentify)
    worker = Worker(_setup(models, tta, device, memory_gb))
    if not (out / JOURNAL).exists():
        worker.start()  # the model is loaded while the folder is searched
    try:
        discovery = discover(input, intake, track)
        cases = group_cases(discovery.usable, models[0].channels)
        refused = [source for source in discovery.sources if not source.usable]
        if not cases:
            raise _nothing_usable(refused, sum(entry.count for entry in discovery.skipped))
        _check_formats(cases, export)
        options = {"tta": tta, **_asked(export, labels), "intake": asdict(intake)}
        job = _job(models, options) | {"input": folder_key(input)}
        folder = CaseFolder(
            open_job(out, job, overwrite),
            models,
            options,
            refused=[refused_entry(source.id, source.reason) for source in refused],
            export=export,
            skipped=[asdict(entry) for entry in discovery.skipped],
            table={source.id: source.files for source in discovery.sources},
        )
        return _run(folder, _mine(cases, share), worker, folder.refused if share[0] == 0 else ())
    finally:
        worker.stop()


def predict_cases(
    models: Sequence[str],
    cases: Sequence[Case],
    out: Path,
    tta: bool = False,
    device: str = "auto",
    memory_gb: float | None = None,
    overwrite: bool = False,
    formats: Sequence[str] = (),
) -> Outcome:
    """Segments cases that are known already, for example the unlabelled ones of a manifest; else as :func:`predict`."""
    if not cases:
        raise NothingUsableError("no case was given", remedy="give at least one image")
    infos = [read_bundle_info(name) for name in models]
    export = export_options(infos[0].labels, formats)
    worker = Worker(_setup(infos, tta, device, memory_gb))
    try:
        names = hashlib.sha256("\n".join(sorted(case.id for case in cases)).encode()).hexdigest()[:16]
        options = {"tta": tta, **_asked(export, None)}
        journal = open_job(out, _job(infos, options) | {"input": names}, overwrite)
        return _run(CaseFolder(journal, infos, options, export=export), cases, worker)
    finally:
        worker.stop()


def _run(
    folder: CaseFolder, cases: Sequence[Case], worker: Worker, refused: Sequence[Mapping[str, Any]] = ()
) -> Outcome:
    """Does the cases; ``refused`` are those that count for the exit code (of several shares, in the first one)."""
    before = {name for name, record in folder.journal.records().items() if record["status"] == "done"}
    records = list(track(folder.work(cases, worker), "predicting", total=len(cases)))
    report = folder.write_report()
    mine = {case.id for case in cases}
    entries = [entry for entry in report["cases"] if entry["id"] in mine] + [dict(entry) for entry in refused]
    states = [entry["status"] for entry in entries]
    error = starved(records)
    if error is not None:
        code = MACHINE
    elif "done" not in states and "failed" not in states:
        code = NOTHING_USABLE
    else:
        code = DONE if all(state == "done" for state in states) else SOME_REFUSED
    lines = _lines(folder, entries, records, sum(1 for record in records if record["id"] in before))
    return Outcome(report, [*lines, *([f"error: {error}"] if error else [])], code)


def _lines(
    folder: CaseFolder, entries: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]], before: int
) -> list[str]:
    states = [entry["status"] for entry in entries]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("done", "refused", "failed"))
    lines = [counts + (f" ({before} finished before)" if before else "")]
    troubled = [entry for entry in entries if entry["status"] != "done"]
    lines += [f"{entry['status']}: {entry['id']}: {entry['reason']}" for entry in troubled[:_SHOWN]]
    if len(troubled) > _SHOWN:
        lines.append(f"... and {len(troubled) - _SHOWN} more in {REPORT}")
    lines += [*_look_lines(entries), *_object_lines(records)]
    notes = dict.fromkeys(f"{entry['id']}: {note}" for entry in entries for note in entry.get("notes") or ())
    lines += [f"note: {note}" for note in list(notes)[:_SHOWN]]
    lines += dict.fromkeys(_computed(record) for record in records if record.get("engine"))
    lines.append(f"masks, previews, {REPORT} and volumes.csv: {folder.journal.out}")
    lines.append("Research use only")
    return lines


def _look_lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each case that somebody should look at."""
    doubtful = [entry for entry in entries if entry.get("look_at")]
    lines = [f"look at: {entry['id']}: {'; '.join(entry['look_at'])}" for entry in doubtful[:_SHOWN]]
    if len(doubtful) > _SHOWN:
        lines.append(f"... and {len(doubtful) - _SHOWN} more to look at in {REPORT}")
    return lines


def _object_lines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns how many objects of each class there are in all cases."""
    counts: dict[str, int] = {}
    for row in (row for record in records for row in record.get("objects", ())):
        counts[row["class"]] = counts.get(row["class"], 0) + row["objects"]
    return [f"objects: {', '.join(f'{count} {name}' for name, count in counts.items())}"] if counts else []


def _computed(record: Mapping[str, Any]) -> str:
    """Says what computed a case and why, for example ``computed on cpu by openvino in bf16: the fastest of two``."""
    engines = ", ".join(" in ".join(engine.split()) for engine in record["engine"].split(", "))
    return f"computed on {record['device']} by {engines}: {record['engine_why']}"


def _setup(models: Sequence[BundleInfo], tta: bool, device: str, memory_gb: float | None) -> Setup:
    level = logging.getLogger().getEffectiveLevel()
    return Setup(tuple(info.folder for info in models), device, tta or None, memory_gb, level)


def _job(models: Sequence[BundleInfo], options: Mapping[str, Any]) -> dict[str, Any]:
    job = {"command": "predict", "model_sha256": [info.sha256 for info in models], "options": dict(options)}
    return job | job_of_objects(models[0])


def job_of_objects(info: BundleInfo, *also: str) -> dict[str, Any]:
    """Returns what a job keeps of a model of objects under :data:`OBJECTS`; nothing of another model.

    Args:
        info: The model.
        also: Further keys of its pipeline.
    """
    if not info.labels.objects:
        return {}
    config = info.config.model_dump(mode="json")
    return {OBJECTS: {key: config[key] for key in ("task", "labels", "channels", "instances", *also)}}


def _asked(export: ExportOptions, labels: Path | None) -> dict[str, Any]:
    """What decides how masks are written, for the job's identity and the provenance."""
    return {
        "formats": list(export.formats),
        "seg_type": export.seg_type,
        "deidentify": export.deidentify,
        "labels_sha256": None if labels is None else file_key(labels),
    }


def _check_formats(cases: Sequence[Case], export: ExportOptions) -> None:
    """Refuses a format of DICOM before any model is loaded when no image is a DICOM series."""
    for name in export.formats:
        if FORMATS[name].needs_dicom and not any(case.sources[0].kind == "dicom" for case in cases):
            raise NothingUsableError(
                f"{name} refers to the slices of a DICOM series, and no image is one",
                "--format",
                "predict on the DICOM series itself, or ask for nifti or seg-nrrd",
            )


def _share(part: str | None) -> tuple[int, int]:
    """Returns the index from 0 and the number of shares of ``I/N``."""
    if part is None:
        return 0, 1
    found = re.fullmatch(r"(\d+)/(\d+)", part.strip())
    number, shares = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= shares:
        raise UsageError(f"--part {part!r} is no share", "--part", "write I/N with I from 1 to N, for example 2/8")
    return number - 1, shares


def _mine(cases: Sequence[Case], share: tuple[int, int]) -> list[Case]:
    ordered = sorted(cases, key=lambda case: case.id)
    return ordered[share[0] :: share[1]]


def _nothing_usable(refused: Sequence[SourceRef], skipped: int) -> NothingUsableError:
    if refused:
        first = refused[0]
        number = "the image" if len(refused) == 1 else f"none of the {len(refused)} images"
        verb = "cannot be used" if len(refused) == 1 else "can be used, the first"
        return NothingUsableError(f"{number} {verb}: {first.reason}", first.id, "see `unet-med scan INPUT`")
    also = f"; {skipped} other files were skipped" if skipped else ""
    return NothingUsableError(f"no image was found{also}", "INPUT", "give a folder that holds images")
