"""What the scores of single cases say beside their mean: how sure it is, and where a model failed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unet_med.review.paired import mean_interval

POOR_DICE = 0.7
"""Below this a mask is said to agree poorly (Zijdenbos et al. 1994)."""
POOR_AP = 0.5

Cases = Sequence[Mapping[str, Any]]
"""``cases`` of ``metrics.json``."""


def intervals(cases: Cases) -> dict[str, list[float]]:
    """Returns the 95 % interval of the mean Dice of each label, of ``objects`` that of AP; over cases, by bootstrap.

    What fewer than three cases have is left out.
    """
    found: dict[str, list[float]] = {}
    for name, values in [*_dice(cases).items(), ("objects", _ap(cases))]:
        low, high = mean_interval(values)
        if low is not None and high is not None:
            found[name] = [low, high]
    return found


def failures(cases: Cases) -> list[str]:
    """Returns in sentences where a model failed; nothing where it did not."""
    return [*_missed(cases), *_invented(cases), *_poor(cases)]


def _missed(cases: Cases) -> Iterator[str]:
    for name in _dice(cases):
        there = [case for case in cases if _voxels(case, "label", name)]
        missed = sum(not _voxels(case, "mask", name) for case in there)
        if missed:
            yield f"{name} was not found at all in {missed} of {len(there)} cases that have it"


def _invented(cases: Cases) -> Iterator[str]:
    for name in _dice(cases):
        without = [case for case in cases if _voxels(case, "label", name) == 0]
        invented = sum(bool(_voxels(case, "mask", name)) for case in without)
        if invented:
            yield f"{name} was found in {invented} of {len(without)} cases that have none"


def _poor(cases: Cases) -> Iterator[str]:
    for name, values in _dice(cases).items():
        poor = sum(value < POOR_DICE for value in values)
        if poor:
            yield f"Dice of {name} is below {POOR_DICE} in {poor} of {len(values)} cases, the lowest {min(values):.2f}"
    found = _ap(cases)
    poor = sum(value < POOR_AP for value in found)
    if poor:
        yield f"AP of objects is below {POOR_AP} in {poor} of {len(found)} images, the lowest {min(found):.2f}"


def _voxels(case: Mapping[str, Any], kind: str, name: str) -> int | None:
    value = (case.get(f"{kind}_voxels") or {}).get(name)
    return None if value is None else int(value)


def _dice(cases: Cases) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for case in cases:
        for name, value in (case.get("dice") or {}).items():
            found.setdefault(name, []).extend([] if value is None else [float(value)])
    return found


def _ap(cases: Cases) -> list[float]:
    found = [(case.get("instance") or {}).get("ap_mean") for case in cases]
    return [float(value) for value in found if value is not None]
