"""``unet-med learning-curve``: how good a model becomes with more training images, and whether more would help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from unet_med.config import load_config
from unet_med.errors import UsageError
from unet_med.io.atomic import whole_file, write_json
from unet_med.manifest import Manifest, ManifestCase, load_manifest, save_manifest
from unet_med.review.comparison import MEAN, Scores, compared
from unet_med.review.paired import PairedDifference, mean_interval
from unet_med.workflows.compare import read_scores
from unet_med.workflows.learning_curve_page import PAGE, page
from unet_med.workflows.outcome import Outcome
from unet_med.workflows.session import JOURNAL
from unet_med.workflows.train import train

CURVE = "learning_curve.json"
_SHARES = (0.125, 0.25, 0.5, 1.0)
_FEWEST = 2


def learning_curve(
    pipeline: Path,
    data: Path,
    out: Path,
    sizes: Sequence[int] = (),
    fold: int = 0,
    max_minutes: float | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
) -> Outcome:
    """Trains on nested subsets of the same training images and scores all models on the same held-out ones.

    Args:
        pipeline: Pipeline YAML.
        data: Manifest.
        out: Receives a manifest and a run for each size, ``learning_curve.json`` and ``learning_curve.html``. What was
            interrupted goes on.
        sizes: Numbers of training images; the smaller sets are part of the larger ones. Groups stay whole: a set may
            be a little larger. Empty: an eighth, a quarter, half and all of them.
        fold: Is held out.
        max_minutes: Budget of each training; replaces the number of epochs.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        overrides: ``a.b=c`` changes of the pipeline, for all of them; ``seed`` decides the subsets, too.

    Returns:
        ``{"points": [{"images", "score", "low", "high"}], "last_step": {...}}``: the mean Dice over the held-out cases
        with its 95 % interval (bootstrap over cases), and the paired difference between the two largest sets.

    Raises:
        UsageError: for sizes that the fold does not have; else as :func:`unet_med.workflows.train.train`.
    """
    manifest = load_manifest(data)
    training = [case for case in manifest.training if case.fold != fold]
    held_out = [case for case in manifest.training if case.fold == fold]
    wanted = list(sizes) or [max(_FEWEST, round(share * len(training))) for share in _SHARES]
    points: list[dict[str, Any]] = []
    scores: list[Scores] = []
    lines: list[str] = []
    seed = load_config(pipeline, overrides).seed
    for subset in nested_subsets(training, sorted(set(wanted)), seed):
        run = out / f"images_{len(subset):04d}"
        part = _part(manifest, [*subset, *held_out], out / f"images_{len(subset):04d}.json")
        resume = (run / JOURNAL).exists()
        trained = train(pipeline, part, run, str(fold), max_minutes, resume, device, overrides)
        scores.append(read_scores(run))
        points.append({"images": len(subset)} | _point(scores[-1]))
        lines += [f"{len(subset)} images:", *(f"  {line}" for line in trained.lines)]
    last = _last_step(scores)
    result = {
        "held_out": len(held_out),
        "points": points,
        "last_step": None if last is None else asdict(last) | {"shown": last.is_shown},
    }
    write_json(out / CURVE, result, CURVE)
    with whole_file(out / PAGE, PAGE) as page_part:
        page_part.write_text(page(result, _verdict(last)), encoding="utf-8")
    return Outcome(result, [*lines, "", *_table(points, last), f"{CURVE} and {PAGE}: {out}"])


def nested_subsets(cases: Sequence[ManifestCase], sizes: Sequence[int], seed: int) -> list[list[ManifestCase]]:
    """Returns a subset of each size, in rising order; each holds the ones before it, and every group is whole.

    Args:
        cases: What subsets are made of.
        sizes: Rising numbers of cases; a subset may be larger by less than its last group.
        seed: Decides the order in which groups are taken.

    Raises:
        UsageError: if a size is below 1, or larger than the number of cases.
    """
    if not sizes or sizes[0] < 1 or sizes[-1] > len(cases):
        raise UsageError(f"{list(sizes)} of {len(cases)} training images", "--sizes", f"give 1 to {len(cases)}")
    groups: dict[str, list[ManifestCase]] = {}
    for case in sorted(cases, key=lambda case: case.id):
        groups.setdefault(case.group, []).append(case)
    order = np.random.default_rng(seed).permutation(sorted(groups))
    subsets: list[list[ManifestCase]] = []
    taken: list[ManifestCase] = []
    left = [groups[str(name)] for name in order]
    for size in sizes:
        while len(taken) < size:
            taken += left.pop(0)
        subsets.append(list(taken))
    return [subset for place, subset in enumerate(subsets) if not place or len(subset) > len(subsets[place - 1])]


def _part(manifest: Manifest, cases: Sequence[ManifestCase], path: Path) -> Path:
    """The manifest of some of its cases; made once, so that an interrupted run finds it as it was."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_manifest(replace(manifest, training=tuple(cases)), path)
    return path


def _point(scores: Scores) -> dict[str, float | None]:
    known = [[value for value in case["dice"].values() if value is not None] for case in scores.values()]
    means = [fmean(values) for values in known if values]
    low, high = mean_interval(means)
    return {"score": fmean(means) if means else None, "low": low, "high": high}


def _last_step(scores: Sequence[Scores]) -> PairedDifference | None:
    """What the largest set gains over the one before it."""
    if len(scores) < _FEWEST:
        return None
    before, after = scores[-2:]
    rows = compared(before, after, [case for case in before if case in after], seed=0).get("dice", {})
    return rows.get(MEAN) or next(iter(rows.values()), None)


def _table(points: Sequence[dict[str, Any]], last: PairedDifference | None) -> list[str]:
    lines = [f"{'images':>8} {'Dice':>8}   95 % interval over the held-out cases"]
    for point in points:
        score = "-" if point["score"] is None else f"{point['score']:.4f}"
        interval = "too few cases" if point["low"] is None else f"{point['low']:.4f} to {point['high']:.4f}"
        lines.append(f"{point['images']:>8} {score:>8}   {interval}")
    return [*lines, verdict] if (verdict := _verdict(last)) else lines


def _verdict(last: PairedDifference | None) -> str:
    """Says what the last step gained; nothing where that is not known."""
    if last is None or last.low is None:
        return ""
    told = "more images still help" if last.is_shown and last.mean > 0 else "no gain shown"
    return f"last step: {last.mean:+.4f} ({last.low:+.4f} to {last.high:+.4f}, same cases): {told}"
