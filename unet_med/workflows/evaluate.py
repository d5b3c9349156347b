"""``unet-med evaluate``: scores a model on cases that it has not seen."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from unet_med.bundle import BundleInfo, load_bundles, read_bundle_info
from unet_med.errors import InputRefusedError, ModelError, NothingUsableError, UsageError
from unet_med.inference.process import Worker
from unet_med.inference.worker import Setup
from unet_med.io.atomic import write_json
from unet_med.manifest import Manifest, ManifestCase, load_manifest, verified
from unet_med.metrics import summarise
from unet_med.training.postprocessing import MaskPairs
from unet_med.workflows.casefolder import CaseFolder, refused_entry, starved, write_table
from unet_med.workflows.journal import open_job
from unet_med.workflows.objects import object_table
from unet_med.workflows.outcome import DONE, MACHINE, SOME_REFUSED, Outcome
from unet_med.workflows.predict import job_of_objects
from unet_med.workflows.progress import track

METRICS = "metrics.json"
TABLE = "cases.csv"
MASKS = "masks"
_COLUMNS = (
    *("id", "label", "dice", "iou", "hd95_mm", "hd95_px", "nsd", "volume_error_ml"),
    *("mask_voxels", "label_voxels", "predicted_dice", "seconds"),
)
_SHOWN = 20

Progress = Callable[[Iterable[Any], str], Iterable[Any]]


def evaluate(
    model: str,
    data: Path,
    fold: int | None = None,
    split: str | None = None,
    out: Path = Path("evaluation"),
    allow_training_cases: bool = False,
    device: str = "auto",
    overwrite: bool = False,
) -> Outcome:
    """Predicts the held-out cases of a manifest and scores them on their own grids.

    Args:
        model: Bundle folder, run folder, or an MLflow address.
        data: Manifest.
        fold: Which fold; left out: the one that the model held out. Of an ensemble, the member that held it out is
            scored alone.
        split: ``test``: the test cases instead of a fold.
        out: Receives ``metrics.json``, ``cases.csv``, ``masks/``, ``previews/`` and ``report.json``.
        allow_training_cases: Score cases that the model was trained on, too; such scores say little.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        overwrite: Replace what an earlier job left in ``out``.

    Raises:
        UsageError: when the model was trained on a case that is to be scored, when there is no such fold, or when
            ``out`` belongs to another job.
        ModelError: when model and manifest have different labels.
        NothingUsableError: when no case can be scored.
    """
    started = time.monotonic()
    info = read_bundle_info(model)
    manifest = load_manifest(data)
    _check_labels(info, manifest)
    chosen, what = _choose(info, manifest, fold, split)
    cases = [case for case in chosen if case.case.label is not None]
    if not cases:
        raise NothingUsableError(f"{what} has no labelled case", "M.json", "choose another --fold, or label some cases")
    seen = _seen(info, cases)
    member = _unseeing(info, cases) if seen and not allow_training_cases else None
    if member is not None:
        info, seen, what = member, [], f"{what} by the member of the ensemble that held it out"
    if seen and not allow_training_cases:
        raise UsageError(
            f"the model was trained on {len(seen)} of the {len(cases)} cases of {what}",
            seen[0].id,
            "choose the fold that it held out, or --allow-training-cases to score them all the same",
        )
    usable, changed = verified(cases)
    refused = [refused_entry(case.id, error.reason) for case, error in changed]
    if not usable:
        first = refused[0]
        raise NothingUsableError(f"none of the {len(cases)} cases can be used: {first['reason']}", str(first["id"]))
    worker = Worker(Setup((info.folder,), device))
    try:
        job = {
            "command": "evaluate",
            "model_sha256": [info.sha256],
            "cases": digest_of(cases),
            "training_cases_allowed": allow_training_cases,
            **job_of_objects(info, "ignore_label"),
        }
        folder = CaseFolder(open_job(out, job, overwrite), [info], {}, masks=MASKS, refused=refused)
        truths = {case.case.id: case for case in usable}
        work = folder.work([case.case for case in usable], worker, truths)
        records = list(track(work, "evaluating", total=len(usable)))
    finally:
        worker.stop()
    folder.write_report()
    facts = {
        "evaluated": what,
        "model_sha256": info.sha256,
        "trained_on": len(seen),
        "wall_seconds": round(time.monotonic() - started, 3),
    }
    return write_scores(out, records, refused, facts)


def score_cases(
    models: Sequence[Path],
    cases: Sequence[ManifestCase],
    device: str = "auto",
    progress: Progress | None = None,
    kept: MaskPairs | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Predicts and scores cases in this process; nothing is written but the masks, where that is asked for.

    Args:
        models: Bundle folders; logits are averaged.
        cases: Labelled cases of a manifest.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        progress: Wraps the cases to show how far it is.
        kept: Receives masks and true labels.

    Returns:
        What :func:`unet_med.metrics.summarise` takes, and the refused cases with their reasons.
    """
    from unet_med.inference.case_scores import score_case
    from unet_med.inference.predictor import Predictor

    predictor = Predictor([bundle for folder in models for bundle in load_bundles(folder)], device)
    scored: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    for case in progress(cases, "scoring") if progress else cases:
        try:
            labels, _ = score_case(predictor, case, None if kept is None else partial(kept.keep, case.id))
        except (InputRefusedError, ModelError) as error:
            refused.append({"id": case.id, "reason": error.what})
            continue
        scored.append({"id": case.id, "labels": labels})
    return scored, refused


def write_scores(
    out: Path, records: Sequence[Mapping[str, Any]], refused: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> Outcome:
    """Writes ``metrics.json`` and ``cases.csv``.

    Args:
        out: Output folder.
        records: Of the cases that were predicted.
        refused: Entries of those that could not be.
        facts: What else ``metrics.json`` says: ``evaluated``, ``model_sha256``, ``trained_on``, ``wall_seconds``.

    Raises:
        NothingUsableError: when no case could be scored.
    """
    done = [record for record in records if record["status"] == "done"]
    troubled = [*refused, *(record for record in records if record["status"] != "done")]
    kinds = ("id", "labels", "instance", "seconds")
    scored = [{kind: r[kind] for kind in kinds if kind in r} for r in done]
    metrics = summarise(scored) | dict(facts)
    metrics["refused"] = [{"id": r["id"], "status": r["status"], "reason": r["reason"]} for r in troubled]
    write_json(out / METRICS, metrics, METRICS)
    rows = [
        {"id": record["id"], "label": name, "seconds": record["seconds"], **scores}
        for record in done
        for name, scores in record["labels"].items()
    ]
    write_table(out / TABLE, _COLUMNS, rows)
    if not done:
        first = troubled[0]
        raise NothingUsableError(f"no case could be scored: {first['reason']}", str(first["id"]))
    error = starved(records)
    lines = _lines(metrics, troubled, out) + ([f"error: {error}"] if error else [])
    return Outcome(metrics, lines, MACHINE if error else SOME_REFUSED if troubled else DONE)


def _lines(metrics: Mapping[str, Any], troubled: Sequence[Mapping[str, Any]], out: Path) -> list[str]:
    lines = [f"{metrics['evaluated']}: {metrics['n_cases']} cases in {metrics['wall_seconds']:.1f} s"]
    if metrics["trained_on"]:
        lines.append(f"WARNING: the model was trained on {metrics['trained_on']} of these cases")
    lines += [*score_table(metrics), *object_table(metrics)]
    lines += [f"{entry['status']}: {entry['id']}: {entry['reason']}" for entry in troubled[:_SHOWN]]
    lines.append(f"{METRICS}, {TABLE}, {MASKS}/ and previews/: {out}")
    return lines


def score_table(metrics: Mapping[str, Any]) -> list[str]:
    """Returns the means of ``metrics.json`` as lines: a label in each, the mean of the labels last."""
    rows = {**metrics["per_label"], "mean": metrics["mean"]}
    width = max(16, *map(len, rows))
    lines = [f"{'':>{width}} {'Dice':>7} {'IoU':>7} {'HD95 mm':>8} {'NSD':>7} {'empty':>6}"]
    for name, row in rows.items():
        dice, iou, hd95, nsd = (_number(row.get(key)) for key in ("dice", "iou", "hd95_mm", "nsd"))
        lines.append(f"{name:>{width}} {dice:>7} {iou:>7} {hd95:>8} {nsd:>7} {row.get('n_empty', ''):>6}")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _choose(
    info: BundleInfo, manifest: Manifest, fold: int | None, split: str | None
) -> tuple[tuple[ManifestCase, ...], str]:
    if split is not None:
        if split != "test":
            raise UsageError(f"there is no split {split!r}", "--split", "use test, or --fold N")
        return manifest.test, "the test split"
    folds = sorted({case.fold for case in manifest.training if case.fold is not None})
    number = _own_fold(info) if fold is None else fold
    if number is None:
        remedy = (
            "metrics.json of its run has its scores out of fold; give --fold N for one of its members, or --split test"
            if info.members
            else "give --fold N of a manifest it was not trained on, or --split test"
        )
        raise UsageError("the model held out no fold", "--fold", remedy)
    if number not in folds:
        raise UsageError(f"the manifest has no fold {number}", "--fold", f"use one of {folds}, or --split test")
    return tuple(case for case in manifest.training if case.fold == number), f"fold {number}"


def _own_fold(info: BundleInfo) -> int | None:
    """The fold that the model held out, as training noted it (a number, or a name that ends with it)."""
    fold = (info.meta.get("training") or {}).get("fold")
    found = re.search(r"(\d+)$", str(fold))
    return int(found[1]) if found else None


def _unseeing(info: BundleInfo, cases: Sequence[ManifestCase]) -> BundleInfo | None:
    """Returns the member of an ensemble that was trained on none of the cases."""
    return next((member for member in info.members if not _seen(member, cases)), None)


def _seen(info: BundleInfo, cases: Sequence[ManifestCase]) -> list[ManifestCase]:
    trained = set((info.meta.get("training") or {}).get("case_sha256") or ())
    return [case for case in cases if trained and case.sha256["image"] in trained]


def _check_labels(info: BundleInfo, manifest: Manifest) -> None:
    """Same values; and where the names are the same, the same values for them. Other names are only other words."""
    ours = {label.name: label.index for label in info.labels.labels}
    theirs = {name: index for name, index in manifest.labels.items() if index != 0}
    swapped = ours.keys() == theirs.keys() and ours != theirs
    if sorted(ours.values()) != sorted(theirs.values()) or swapped:
        raise ModelError(
            f"the model labels {ours}, the manifest {theirs}", "labels", "evaluate on a manifest with the same labels"
        )


def digest_of(cases: Sequence[ManifestCase]) -> str:
    """Returns what tells a set of cases, with their images and true labels, from others."""
    text = "\n".join(sorted(f"{case.id} {case.sha256['image']} {case.sha256['label']}" for case in cases))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
