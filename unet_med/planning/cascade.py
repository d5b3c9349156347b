"""Whether a first stage at low resolution comes before the network, and on which spacing."""

from __future__ import annotations

import math
from collections.abc import Callable

from unet_med.errors import ConfigError
from unet_med.planning.draft import GIVEN, Draft, times
from unet_med.planning.spacing import SMALL_SHARE

KEY = "cascade.spacing_mm"


def settle_cascade(
    draft: Draft,
    dims: int,
    spacing: tuple[float, ...],
    share: float,
    coarser: Callable[[], tuple[float, ...] | None],
) -> None:
    """Settles ``cascade.spacing_mm`` where the pipeline wants a cascade.

    Args:
        draft: Receives spacing and reason.
        dims: Axes of the network.
        spacing: Of its grid.
        share: Of the median image, what a patch covers.
        coarser: Returns the spacing on which a patch covers a quarter of it; ``None`` when it is hardly coarser.

    Raises:
        ConfigError: when the spacing that is given makes no cascade.
    """
    wanted = draft.config.cascade.spacing_mm
    if wanted is None:
        return
    if wanted == "auto":
        draft.settle(KEY, *_chosen(draft, dims, share, coarser))
        return
    draft.settle(KEY, wanted, GIVEN)
    if dims == 2:
        raise ConfigError("a cascade is for 3-D networks", KEY, "set it to null, or dims to 3")
    if not draft.measured.is_calibrated:
        raise ConfigError(
            "a cascade needs spacings, and the images say nothing about their pixel size",
            KEY,
            "set it to null, or make the manifest with --pixel-size",
        )
    if math.prod(wanted) <= math.prod(spacing):
        raise ConfigError(
            f"a first stage at {times(wanted)} mm is no coarser than the second one at {times(spacing)} mm",
            KEY,
            "give larger numbers, or auto",
        )


def _chosen(
    draft: Draft, dims: int, share: float, coarser: Callable[[], tuple[float, ...] | None]
) -> tuple[tuple[float, ...] | None, str]:
    """The spacing of the first stage, or none, and why."""
    if dims == 2:
        return None, "no cascade: the network is 2-D"
    covers = f"a patch covers {share:.0%} of the median image"
    if share >= SMALL_SHARE:
        return None, f"no cascade: {covers}, {SMALL_SHARE:.0%} are enough"
    if not draft.measured.is_calibrated:
        return None, "no cascade: the images say nothing about their pixel size"
    spacing = coarser()
    if spacing is None:
        return None, f"no cascade: {covers}, and hardly more on a coarser grid"
    return spacing, f"{covers}, on this spacing {SMALL_SHARE:.0%}"
