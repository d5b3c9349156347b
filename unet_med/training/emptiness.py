"""Learns from the training cases which windows hold nothing, and proves on whole cases that leaving them out is free.

What is learnt is a box: the levels that bare background has in the training images, and how much it varies within a
window. A window that holds a labelled voxel, in any training case, must vary at least twice as much, or lie clearly
beside these levels; where such a box does not exist, or where little would be gained by it, there is no rule.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.bundle import Bundle
from unet_med.config import PipelineConfig
from unet_med.data import CachedCase
from unet_med.errors import UnetMedError
from unet_med.inference.emptiness import META_KEY, EmptinessRule
from unet_med.inference.predictor import Predictor
from unet_med.inference.tiling import WindowAxis, window_axes
from unet_med.networks import admissible_patch
from unet_med.volume import Volume

FloatArray = npt.NDArray[np.float64]

MINIMUM_SHARE = 0.02
"""Of the training windows; a rule that skips fewer is not worth having."""

MINIMUM_CASES = 5
"""Training cases that hold a window to skip; background that fewer of them show says little about the next one."""

MARGIN = 0.1
"""How far labelled windows stay away, as a share of the range of values that they have themselves (their median)."""

CALM = 0.25
"""Background varies at most this much, as a share of the same range: a rule is about flat background, nothing else."""

_RADII = 24
"""How many neighbourhoods of the background's level are tried, each wider than the one before."""


@dataclass(frozen=True)
class LearntRule:
    """What training cases say about empty windows.

    Attributes:
        rule: ``None`` where nothing can be skipped, or too little.
        reason: Why so, one sentence.
        share: Of the training windows, how many it skips.
        cases: How many training cases have such windows.
    """

    rule: EmptinessRule | None
    reason: str
    share: float = 0.0
    cases: int = 0


@dataclass(frozen=True, eq=False)
class WindowExtremes:
    """The extremes of the windows of some cases.

    Attributes:
        low, high: (n, C) smallest and largest value.
        labelled: (n,) whether a voxel has a label.
        case: (n,) number of the case.
    """

    low: FloatArray
    high: FloatArray
    labelled: npt.NDArray[np.bool_]
    case: npt.NDArray[np.int64]

    @classmethod
    def of(cls, cases: Sequence[CachedCase], window: Sequence[int], overlap: float) -> WindowExtremes:
        """Lays windows over cases as prediction does."""
        parts = [
            _case_extremes(case, window_axes(case.shape, window, overlap, 1.0, (0,) * len(window))) for case in cases
        ]
        low, high, labelled = (np.concatenate(column) for column in zip(*parts, strict=True))
        return cls(low, high, labelled, np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts]))

    def skipped_by(self, rule: EmptinessRule) -> npt.NDArray[np.bool_]:
        """Returns (n,): which windows a rule skips."""
        inside = (self.low >= rule.low) & (self.high <= rule.high) & (self.high - self.low <= rule.spread)
        return np.asarray(inside.all(axis=1))


def learn_emptiness(cases: Sequence[CachedCase], config: PipelineConfig) -> LearntRule:
    """Learns the rule from prepared training cases; no window of theirs that holds a labelled voxel is skipped.

    Args:
        cases: Training cases.
        config: The resolved pipeline.
    """
    if not cases:
        return LearntRule(None, "no rule: there are no training cases")
    window, overlap = _window(config), config.inference.overlap
    windows = WindowExtremes.of(cases, window, overlap)
    if not windows.labelled.any():
        return LearntRule(None, "no rule: no training case has a labelled voxel")
    halves = WindowExtremes.of(cases, [-(-size // 2) for size in window], overlap)
    rule = _widest_box(windows, halves, window)
    if rule is None:
        return LearntRule(None, "no rule: windows without a label look like those with one")
    skipped = windows.skipped_by(rule)
    share, number = float(skipped.mean()), len(np.unique(windows.case[skipped]))
    found = f"{share:.1%} of the training windows hold nothing, in {number} of {len(cases)} cases"
    if share < MINIMUM_SHARE or number < MINIMUM_CASES:
        needed = f"at least {MINIMUM_SHARE:.0%} in {MINIMUM_CASES} cases are needed"
        return LearntRule(None, f"no rule: too little would be gained ({found}; {needed})", share, number)
    return LearntRule(rule, found, share, number)


@dataclass(frozen=True)
class Confirmation:
    """Whether masks are the same with and without a rule.

    Attributes:
        cases: Cases that were predicted both ways.
        changed: Voxels of the last one that changed; 0 where the rule is right.
    """

    cases: int
    changed: int


def proven_emptiness(
    learnt: LearntRule,
    bundle: Bundle,
    cases: Sequence[CachedCase],
    readers: Mapping[str, Callable[[], Volume]],
    device: str = "auto",
    max_seconds: float = math.inf,
) -> dict[str, Any]:
    """Proves a rule on whole cases and returns what the bundle's ``meta`` keeps under ``empty_windows``.

    Args:
        learnt: The rule; one that changes a single voxel is tried once more with half the spread, then given up.
        bundle: The trained model.
        cases: Prepared cases to prove it on, held-out ones first; those where it skips nothing need no proof.
        readers: Read the image of a case by its id.
        device: Where to predict.
        max_seconds: No further case is begun after this time.

    Returns:
        ``rule`` (or ``None``), ``reason``, ``share_of_training_windows`` and ``confirmed_on`` (number of cases).
    """
    entry = {
        "rule": None,
        "reason": learnt.reason,
        "share_of_training_windows": round(learnt.share, 4),
        "confirmed_on": 0,
    }
    if learnt.rule is None:
        return entry
    confirmation = Confirmation(0, 0)
    for rule in (learnt.rule, learnt.rule.tightened()):
        volumes = (readers[case.id]() for case in _skips_something(rule, cases, bundle.config))
        confirmation = confirm_emptiness(rule, bundle, volumes, device, max_seconds)
        if confirmation.cases and not confirmation.changed:
            proof = f"the masks of {_cases(confirmation.cases)} are the same with and without it"
            reason = f"{learnt.reason}; {proof}"
            return entry | {"rule": rule.to_json(), "reason": reason, "confirmed_on": confirmation.cases}
    if not confirmation.cases:
        return entry | {"reason": f"no rule: no case is left to prove it on ({learnt.reason})"}
    return entry | {"reason": f"no rule: it would change {confirmation.changed} voxels of a case ({learnt.reason})"}


def confirm_emptiness(
    rule: EmptinessRule,
    bundle: Bundle,
    volumes: Iterable[Volume],
    device: str = "auto",
    max_seconds: float = math.inf,
) -> Confirmation:
    """Predicts images with and without a rule, up to the first that differs; those where it skips nothing count not.

    Args:
        rule: To prove.
        bundle: The trained model.
        volumes: Read one by one.
        device: Where to predict.
        max_seconds: No further image is predicted after this time.
    """
    started = time.monotonic()
    skipping = Predictor([replace(bundle, meta={**bundle.meta, META_KEY: {"rule": rule.to_json()}})], device)
    plain: Predictor | None = None
    cases = 0
    for volume in volumes:
        found = skipping.predict(volume)
        if not found.windows_skipped:
            continue
        plain = plain or _plain(bundle, found.engine.split()[0], device)
        cases += 1
        changed = int(np.count_nonzero(plain.predict(volume).labels != found.labels))
        if changed:
            return Confirmation(cases, changed)
        if time.monotonic() - started > max_seconds:
            break
    return Confirmation(cases, 0)


def _skips_something(rule: EmptinessRule, cases: Sequence[CachedCase], config: PipelineConfig) -> Iterator[CachedCase]:
    for case in cases:
        if WindowExtremes.of([case], rule.window, config.inference.overlap).skipped_by(rule).any():
            yield case


def _plain(bundle: Bundle, engine: str, device: str) -> Predictor:
    """Skips nothing and computes with the same engine: two engines may round a voxel differently."""
    config = bundle.config.replacing({"inference.skip_empty": False, "inference.engine": engine})
    return Predictor([replace(bundle, config=config, meta={})], device)


def _widest_box(windows: WindowExtremes, halves: WindowExtremes, size: tuple[int, ...]) -> EmptinessRule | None:
    """The box that skips most windows and keeps clear of all labelled ones; ``None`` where there is none.

    Windows of half the size that hold a label count as labelled ones too: another image may show less of a structure,
    at the very border of a window.
    """
    unit = np.median((windows.high - windows.low)[windows.labelled], axis=0)
    unit = np.where(unit > 0, unit, 1.0)
    free = ~windows.labelled
    if not free.any():
        return None
    low, high = windows.low / unit, windows.high / unit
    varies, level = (high - low).max(axis=1), (low + high) / 2
    calm = free & (varies <= np.quantile(varies[free], 0.05))
    distance = np.abs(level - np.median(level[calm], axis=0)).max(axis=1)
    rival = tuple(
        np.concatenate([bound[windows.labelled], other[halves.labelled] / unit])
        for bound, other in ((low, halves.low), (high, halves.high))
    )
    best: tuple[int, EmptinessRule] | None = None
    for radius in np.unique(np.quantile(distance[free], np.linspace(0, 1, _RADII), method="higher")):
        near = np.flatnonzero(free & (distance <= radius) & (varies <= CALM))
        near = near[np.argsort(varies[near], kind="stable")]
        rule = _box(low[near], high[near], varies[near], rival, unit, size)
        if rule is None:
            continue
        count = int(windows.skipped_by(rule).sum())
        if best is None or count > best[0]:
            best = count, rule
    return None if best is None else best[1]


def _box(
    low: FloatArray,
    high: FloatArray,
    varies: FloatArray,
    rival: tuple[FloatArray, ...],
    unit: FloatArray,
    size: tuple[int, ...],
) -> EmptinessRule | None:
    """The box around as many of the calmest windows (sorted by ``varies``) as labelled ones (``rival``) allow."""
    low, high = np.minimum.accumulate(low), np.maximum.accumulate(high)
    rival_varies = (rival[1] - rival[0]).max(axis=1)
    first, last = 0, len(varies)  # the first ones are clear of labelled windows, all of them from last on are not
    while first < last:
        middle = (first + last) // 2
        alike = ((rival[0] > low[middle] - MARGIN) & (rival[1] < high[middle] + MARGIN)).all(axis=1)
        if (rival_varies[alike] >= 2 * varies[middle] + MARGIN).all():
            first = middle + 1
        else:
            last = middle
    if not first:
        return None
    chosen = first - 1
    spread = 1.5 * varies[chosen] + MARGIN / 2  # midway to the labelled windows, as are the levels
    return EmptinessRule(
        size,
        _floats((low[chosen] - MARGIN / 2) * unit),
        _floats((high[chosen] + MARGIN / 2) * unit),
        _floats(spread * unit),
    )


def _window(config: PipelineConfig) -> tuple[int, ...]:
    if config.dims == "auto" or config.sampling.patch_voxels == "auto":
        raise UnetMedError("the pipeline is not resolved", "sampling", "resolve it with `unet-med plan`")
    return admissible_patch(config.network, config.dims, config.sampling.patch_voxels)


def _case_extremes(
    case: CachedCase, axes: Sequence[WindowAxis]
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.bool_]]:
    image, labelled = case.image(), case.label()[None] != 0
    low, high = (_over_windows(image, axes, reduce).astype(np.float64) for reduce in (np.min, np.max))
    return low, high, _over_windows(labelled, axes, np.max)[:, 0]


def _over_windows(array: npt.NDArray[Any], axes: Sequence[WindowAxis], reduce: Any) -> npt.NDArray[Any]:
    """Reduces (C, *s) over each window, one axis after the other: (windows, C)."""
    for axis, windows in enumerate(axes, start=1):
        if windows.window == 1:
            continue
        parts = [slice(*windows.inside(number)) for number in range(len(windows.starts))]
        before = (slice(None),) * axis
        array = np.stack([reduce(array[(*before, part)], axis=axis) for part in parts], axis=axis)
    return array.reshape(len(array), -1).T


def _cases(number: int) -> str:
    return "1 case" if number == 1 else f"{number} cases"


def _floats(values: FloatArray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
