"""Stained tissue in other colours: as if a laboratory had used more or less of each stain.

A stain takes light away in proportion to its amount: optical densities add up (Beer and Lambert). They are parted into
haematoxylin, eosin and the rest (Ruifrok and Johnston 2001), each is scaled and shifted at random, and the colours are
put together again (Tellez et al. 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from unet_med.config import Augment

CHANNELS = 3
"""Only pictures of three channels are coloured."""

_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""How much of red, green and blue haematoxylin, eosin and the rest take away."""
_DARKEST = 1e-3
"""Share of the light below which densities are not told apart."""


@dataclass(frozen=True)
class Tint:
    """How a prepared picture goes back to light: ``value * sd + mean``, and how much light white is.

    Attributes:
        mean, sd: Of each channel's normalisation.
        white: The largest value of the picture.
    """

    mean: tuple[float, ...]
    sd: tuple[float, ...]
    white: float


@dataclass(frozen=True)
class StainChange:
    """What happens to the amount of each stain: times a factor, plus a shift in units of density (base e)."""

    factors: tuple[float, float, float]
    shifts: tuple[float, float, float]


def draw_stains(settings: Augment, rng: np.random.Generator) -> StainChange | None:
    """Draws the change of a patch; ``None`` for none."""
    if rng.random() >= settings.stain_probability:
        return None
    factors, shifts = (
        tuple(float(value) for value in rng.uniform(*bounds, CHANNELS))
        for bounds in (settings.stain_factor, settings.stain_shift)
    )
    return StainChange((factors[0], factors[1], factors[2]), (shifts[0], shifts[1], shifts[2]))


def with_stains(image: Tensor, change: StainChange, tint: Tint) -> Tensor:
    """Returns a patch in other colours.

    Args:
        image: (3, *s) float32, normalised.
        change: What :func:`draw_stains` returned.
        tint: Of the picture that the patch was cut from.

    Returns:
        (3, *s) float32, normalised as before; a grey patch, all channels of which are equal, stays as it is.
    """
    if bool((image[1:] == image[:1]).all()):
        return image
    device = image.device

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device).reshape(CHANNELS, *(1,) * (image.dim() - 1))

    mean, sd, factors, shifts = map(column, (tint.mean, tint.sd, change.factors, change.shifts))
    light = ((image * sd + mean) / max(tint.white, 1e-8)).clamp(_DARKEST, 1.0)
    parting, joining = (torch.from_numpy(matrix).to(device) for matrix in _matrices())
    amounts = torch.tensordot(parting, -light.log(), dims=1)
    densities: Tensor = torch.tensordot(joining, amounts * factors + shifts, dims=1)
    return ((-densities).exp().clamp(max=1.0) * tint.white - mean) / sd


@lru_cache(maxsize=1)
def _matrices() -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float32]], ...]:
    """Returns what parts densities into stains, and what joins these again, (3, 3) each."""
    stains = np.array(_STAINS).T
    joining = stains / np.linalg.norm(stains, axis=0)
    return np.linalg.inv(joining).astype(np.float32), joining.astype(np.float32)
