"""A rule by which prediction knows the windows of an image that hold nothing: pure air, or bare background.

The rule is learnt from the training cases (:mod:`unet_med.training.emptiness`) and kept in the bundle. A window is
empty when nothing in it varies more than background does and when it looks like the background that training saw. Both
are bounds on the smallest and the largest value, so they hold for dark air as for the bright field of a microscope.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

SCHEMA = 1
META_KEY = "empty_windows"
"""Where a bundle's ``meta`` keeps the rule: ``{"rule": {...} or null, "reason": str, ...}``."""

_GLANCE = 8
"""Every eighth voxel along each axis is looked at first; that settles nearly every window that holds something."""

_BOUNDS = (torch.amin, torch.amax)


@dataclass(frozen=True)
class EmptinessRule:
    """Bounds within which all values of an empty window lie; one entry for each channel, in normalised intensities.

    Attributes:
        window: Voxels of the windows that it was learnt from, along each axis of the network. It says nothing of
            others.
        low: No value is below.
        high: No value is above.
        spread: The largest value less the smallest is at most this.
    """

    window: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    spread: tuple[float, ...]

    def __call__(self, window: torch.Tensor) -> bool:
        """Whether a window can hold nothing; on a GPU this waits for the answer.

        Args:
            window: (C, *s), normalised: the voxels of the image that the window labels, without padding and without
                the context around it. Any layout; s may be cut by the border of the image and may have one axis more
                than the network, of one slice.
        """
        glance = window[(slice(None), *(slice(None, None, _GLANCE),) * (window.ndim - 1))]
        return bool(self.empty(glance[None])[0]) and bool(self.empty(window[None])[0])

    def which(self, windows: Sequence[torch.Tensor]) -> list[bool]:
        """Returns for each window, as for a call, whether it can hold nothing; a GPU is waited for once."""
        if not windows or windows[0].device.type == "cpu":
            return [self(window) for window in windows]
        smallest, largest = (torch.stack([bound(window.flatten(1), 1) for window in windows]) for bound in _BOUNDS)
        flags: list[bool] = self.within(smallest, largest).tolist()
        return flags

    def empty(self, windows: torch.Tensor) -> torch.Tensor:
        """Returns for each of the windows (N, C, *s) whether it is empty, (N,) bool, on their device."""
        axes = tuple(range(2, windows.ndim))
        return self.within(windows.amin(axes), windows.amax(axes))

    def within(self, smallest: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        """Returns (N,) bool from the smallest and the largest value of windows, (N, C) each; NaN is not empty."""
        low, high, spread = (smallest.new_tensor(bound) for bound in (self.low, self.high, self.spread))
        return ((smallest >= low) & (largest <= high) & (largest - smallest <= spread)).all(dim=1)

    def tightened(self) -> Self:
        """Returns the rule with half the spread."""
        return replace(self, spread=tuple(value / 2 for value in self.spread))

    def to_json(self) -> dict[str, Any]:
        """Returns the rule as JSON values."""
        return {
            "schema": SCHEMA,
            "window": list(self.window),
            "low": list(self.low),
            "high": list(self.high),
            "spread": list(self.spread),
        }

    @classmethod
    def from_json(cls, data: object) -> Self | None:
        """Returns the rule that :meth:`to_json` wrote; ``None`` for anything else, so that nothing is skipped."""
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            return None
        window, bounds = data.get("window"), [data.get(name) for name in ("low", "high", "spread")]
        if not _is_row(window, int) or not all(_is_row(bound, int | float) for bound in bounds):
            return None
        low, high, spread = (tuple(float(value) for value in bound or ()) for bound in bounds)
        if len({len(low), len(high), len(spread)}) > 1 or min(window or (0,)) < 1:
            return None
        return cls(tuple(window or ()), low, high, spread)


def stored_rule(meta: Mapping[str, Any], window: Sequence[int], channels: int) -> EmptinessRule | None:
    """Returns the rule of a bundle for such windows, if it has one.

    Args:
        meta: Of the bundle.
        window: Voxels along each axis of the network; smaller windows than the rule's need a rule of their own.
        channels: Of the image.
    """
    entry = meta.get(META_KEY)
    rule = EmptinessRule.from_json(entry.get("rule")) if isinstance(entry, Mapping) else None
    if rule is None or rule.window != tuple(window) or len(rule.low) != channels:
        return None
    return rule


def _is_row(value: object, kind: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(entry, kind) and not isinstance(entry, bool) and math.isfinite(entry) for entry in value)
    )
