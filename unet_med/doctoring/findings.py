"""Findings that say more than what and where."""

from __future__ import annotations

from dataclasses import dataclass

from unet_med.manifest import Finding

_FIXABLE = frozenset({"values_0_255", "gaps", "label_floats"})


@dataclass(frozen=True)
class PairFinding(Finding):
    """Something wrong with two cases.

    Attributes:
        other: Id of the second case.
    """

    other: str = ""


@dataclass(frozen=True)
class Interpolated(Finding):
    """A label that was interpolated.

    Attributes:
        values: Whole numbers in it that interpolation made; those that are not whole are not listed.
    """

    values: tuple[int, ...] = ()


def is_fixable(finding: Finding) -> bool:
    """Whether a corrected copy may put a fault right."""
    return finding.kind in _FIXABLE or isinstance(finding, Interpolated)
