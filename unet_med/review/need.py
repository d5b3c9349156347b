"""Which cases need somebody's eyes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GROUPS = ("Look at these first", "Without a mask", "The rest, least certain first")
FIRST, WITHOUT, OTHERS = range(3)

_CERTAIN = 2.0
"""Comes after every Dice and every confidence: nothing is known."""


@dataclass(frozen=True, order=True)
class Need:
    """How much a case needs to be looked at; the smaller, the more.

    Attributes:
        group: Which of :data:`GROUPS`.
        certainty: From 0 to 1, or 2 where nothing is known of it.
        id: Of the case.
        reasons: Why somebody should look at it.
        told: What ``certainty`` is, in words; empty where nothing is known.
    """

    group: int
    certainty: float
    id: str
    reasons: tuple[str, ...] = ()
    told: str = ""


def need_of(record: Mapping[str, Any], confidence: Sequence[float] = ()) -> Need:
    """Says how much a case needs to be looked at.

    Of what is known of its mask the worst label counts: its measured Dice, else its predicted one, else how far several
    models agree on it; of objects their mean confidence.

    Args:
        record: Of the case, as the journal or ``report.json`` keeps it.
        confidence: Of its objects, from 0 to 1.
    """
    name = str(record["id"])
    if record["status"] != "done":
        return Need(WITHOUT, 0.0, name, (f"{record['status']}: {record.get('reason') or 'no reason is known'}",))
    reasons = tuple(str(reason) for reason in record.get("look_at") or ())
    certainty, told = _certainty(record, confidence)
    return Need(FIRST if reasons else OTHERS, certainty, name, reasons, told)


def _certainty(record: Mapping[str, Any], confidence: Sequence[float]) -> tuple[float, str]:
    measured = {name: (own or {}).get("dice") for name, own in (record.get("labels") or {}).items()}
    predicted = {name: own["value"] for name, own in (record.get("predicted_dice") or {}).items()}
    known = (("Dice", measured), ("predicted Dice", predicted), ("agreement", record.get("agreement") or {}))
    for what, values in known:
        there = {name: float(value) for name, value in values.items() if value is not None}
        if there:
            worst = min(there, key=lambda name: there[name])
            return there[worst], f"{what} {there[worst]:.2f}" + (f" ({worst})" if len(there) > 1 else "")
    if len(confidence):
        mean = float(sum(confidence) / len(confidence))
        return mean, f"mean confidence {mean:.2f}"
    return _CERTAIN, ""
