"""``unet-med convert``: every image of a folder as NIfTI, pictures and uncalibrated images as TIFF; annotations too.

Names: ``OUT/<id>.nii.gz`` for a volume with a place in space; several channels become ``<id>_0000.nii.gz``,
``<id>_0001.nii.gz``, ..., several time points ``<id>_t000.nii.gz``, ... (both: ``<id>_t000_0000.nii.gz``). Anything
else is one ``OUT/<id>.tif`` with all its channels and frames. Beside each lies ``OUT/<id>.json``.

A SEG or RTSTRUCT becomes the label image ``OUT/<id>.nii.gz`` on the grid of the series that it refers to, a SEG without
its series on the grid of its own frames; the names of its labels are in the sidecar.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unet_med import __version__
from unet_med.errors import InputRefusedError, NothingUsableError
from unet_med.inference.peak import peak_mb, reset_peak
from unet_med.io.atomic import write_json
from unet_med.io.dicom.annotations import AnnotationSource, image_of, open_label, values_of
from unet_med.io.discover import discover, open_source
from unet_med.io.sinks import RESEARCH_ONLY, open_mask_sink, write_image
from unet_med.io.source import Discovery, IntakeOptions, SourceRef
from unet_med.labels import Label, LabelMap, label_colour
from unet_med.volume import ImageSource
from unet_med.workflows.attempt import attempted, check_places, exit_code
from unet_med.workflows.journal import Claim, Journal, folder_key, input_state, open_job
from unet_med.workflows.outcome import Outcome
from unet_med.workflows.progress import track

REPORT = "report.json"
_RESERVED = ("report", "journal")
_PUBLIC = ("id", "status", "reason", "outputs", "seconds", "peak_memory_mb", "checks", "notes")
_POLL_SECONDS = 0.5
_SHOWN = 20


def convert(
    folder: Path,
    out: Path,
    intake: IntakeOptions = IntakeOptions(),  # noqa: B008
    overwrite: bool = False,
) -> Outcome:
    """Writes each usable source of ``folder`` to ``out``, reads it back, and says how each went.

    Args:
        folder: Folder or file; only read.
        out: Receives the images, their sidecars and ``report.json``. The same command again goes on where it stopped.
        intake: How images are read.
        overwrite: Replace what an earlier job left in ``out``.

    Returns:
        ``report.json``; exit code 0, 3 when sources were refused or failed, 4 when all were.

    Raises:
        UsageError: ``out`` is the input or lies in it, or belongs to another job.
        NothingUsableError: No image can be used.
        MachineError: The disk is full or memory ran out; what was finished is kept.
    """
    check_places(folder, "FOLDER", out)
    discovery = discover(folder, intake, track)
    work = _jobs(discovery)
    if not work:
        raise _nothing_usable(discovery)
    journal = open_job(out, {"command": "convert", "input": folder_key(folder), "intake": asdict(intake)}, overwrite)
    journal.write_file_table({source.id: source.files for source in (*discovery.sources, *discovery.annotations)})
    before = {name for name, record in journal.records().items() if record["status"] == "done"}
    try:
        _work(journal, work)
    finally:
        journal.release_all()
        report = _write_report(journal, discovery)
    states = [entry["status"] for entry in report["cases"]]
    return Outcome(report, _lines(report, out, before), exit_code(states))


@dataclass(frozen=True)
class _Job:
    """A source to be converted; for an annotation also its image, or why there is none."""

    source: SourceRef
    image: SourceRef | None = None
    why: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """What the result depends on."""
        return self.source.files if self.image is None else (*self.source.files, *self.image.files)

    def open(self) -> ImageSource:
        """Returns the voxels.

        Raises:
            InputRefusedError: They cannot be read exactly.
        """
        if self.image is not None:
            return open_label(self.source, self.image)
        if self.source.kind == "rtstruct":
            raise InputRefusedError(
                f"the structure set {self.why}", self.source.id, "give the folder of the series that it was drawn on"
            )
        return open_source(self.source)


def _jobs(discovery: Discovery) -> list[_Job]:
    """Returns what can be converted: the usable images, and the annotations with their images."""
    jobs = [_Job(source) for source in discovery.usable]
    for one in discovery.annotations:
        if one.usable:
            jobs.append(_Job(one, *image_of(one, discovery.usable, discovery.sources)))
    return jobs


def _work(journal: Journal, jobs: Sequence[_Job]) -> None:
    """Converts all sources; those that another process works on are waited for."""
    waiting = list(jobs)
    while waiting:
        left = [job for job in track(waiting, "converting") if not _attempt(journal, job)]
        if len(left) == len(waiting):
            time.sleep(_POLL_SECONDS)
        waiting = left


def _attempt(journal: Journal, job: _Job) -> bool:
    """Converts one source unless it is done; returns whether it now is."""
    if journal.is_done(job.source.id, job.files):
        return True
    claim = journal.claim(job.source.id)
    if claim is None:
        return False
    try:
        if not journal.is_done(job.source.id, job.files):
            record = _convert_one(job, claim)
            journal.finish(claim, record, [claim.staging / name for name in record["outputs"]])
    finally:
        journal.release(claim)
    return True


def _convert_one(job: _Job, claim: Claim) -> dict[str, Any]:
    """Returns the record of one source; what is wrong with it alone is in the record."""
    source = job.source
    reset_peak()
    notes = list(source.notes)
    with attempted(source.id, "converted") as record:
        record["input"] = input_state(job.files)
        opened = job.open()
        provenance = _provenance(source, record["input"]["sha256"], notes)
        if job.image is not None:
            provenance["image"] = job.image.id
        target = claim.staging / _output_name(source.id)
        if isinstance(opened, AnnotationSource):
            files, record["checks"] = _write_labels(opened, target, provenance)
        else:
            files, record["checks"] = write_image(opened, target, provenance)
        record["outputs"] = [path.name for path in files]
        notes = list(getattr(opened, "notes", notes))  # a DICOM series knows its share of padding only now
    return record | {"peak_memory_mb": peak_mb(), "notes": notes}


def _write_labels(source: AnnotationSource, target: Path, provenance: dict[str, Any]) -> tuple[list[Path], Any]:
    """Writes an annotation as a label image with the names of its segments; returns the files and the checks."""
    values = values_of(source.ref)
    labels = [
        Label(values[segment.number], segment.name, label_colour(values[segment.number])) for segment in source.segments
    ]
    array = source.read().array[0]
    provenance["notes"] = list(source.notes)  # about its voxels, too, now that they are read
    sink = open_mask_sink(source, target, LabelMap(tuple(labels)), provenance)
    try:
        sink.write(None, array)
        files = sink.close()
    except BaseException:
        sink.abort()
        raise
    return files, dict(getattr(sink, "checks", {}))


def _provenance(source: SourceRef, sha256: str, notes: list[str]) -> dict[str, Any]:
    return {
        "tool": "unet-med",
        "version": __version__,
        "command": "convert",
        "input_sha256": sha256,
        "source": {
            "id": source.id,
            "kind": source.kind,
            "modality": source.modality,
            "axes": source.axes,
            "shape": list(source.shape),
            "channel_names": list(source.channel_names),
            "seconds_per_frame": source.seconds_per_frame,
            "read_as": dict(source.read_as),
        },
        "notes": notes,
    }


def _output_name(source_id: str) -> str:
    return f"{source_id}-image" if source_id.lower() in _RESERVED else source_id


def _write_report(journal: Journal, discovery: Discovery) -> dict[str, Any]:
    """Writes and returns ``report.json``: every source that is recorded or that discovery refused."""
    records = journal.records()
    cases = [{key: record.get(key) for key in _PUBLIC} for record in records.values()]
    cases += [
        dict.fromkeys(_PUBLIC)
        | {"id": source.id, "status": "refused", "reason": source.reason, "outputs": [], "seconds": 0.0, "checks": {}}
        | {"notes": list(source.notes)}
        for source in (*discovery.sources, *discovery.annotations)
        if not source.usable and source.id not in records
    ]
    cases.sort(key=lambda entry: str(entry["id"]))
    states = [entry["status"] for entry in cases]
    report = {
        "tool": "unet-med",
        "version": __version__,
        "use": RESEARCH_ONLY,
        "model_sha256": None,
        "cases": cases,
        "totals": {
            "cases": len(cases),
            "done": states.count("done"),
            "refused": states.count("refused"),
            "failed": states.count("failed"),
            "skipped": sum(entry.count for entry in discovery.skipped),
            "seconds": round(sum(float(entry["seconds"] or 0.0) for entry in cases), 3),
        },
        "skipped": [asdict(entry) for entry in discovery.skipped],
    }
    write_json(journal.out / REPORT, report, REPORT)
    return report


def _lines(report: Mapping[str, Any], out: Path, before: set[str]) -> list[str]:
    totals = report["totals"]
    lines = [
        ", ".join(f"{totals[state]} {state}" for state in ("done", "refused", "failed"))
        + (f" ({len(before)} finished before)" if before else "")
    ]
    troubled = [entry for entry in report["cases"] if entry["status"] != "done"]
    lines += [f"{entry['status']}: {entry['id']}: {entry['reason']}" for entry in troubled[:_SHOWN]]
    if len(troubled) > _SHOWN:
        lines.append(f"... and {len(troubled) - _SHOWN} more in {REPORT}")
    return [*lines, f"images and {REPORT}: {out}"]


def _nothing_usable(discovery: Discovery) -> NothingUsableError:
    if found := (*discovery.sources, *discovery.annotations):
        first = found[0]
        number = len(found)
        what = "the image cannot be used" if number == 1 else f"none of the {number} images can be used, the first"
        return NothingUsableError(f"{what}: {first.reason}", first.id, "see `unet-med scan FOLDER`")
    skipped = sum(entry.count for entry in discovery.skipped)
    also = f"; {skipped} other files were skipped" if skipped else ""
    return NothingUsableError(f"no image was found{also}", "FOLDER", "give a folder that holds images")
