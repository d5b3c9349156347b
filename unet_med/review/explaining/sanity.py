"""The evidence beside a heat map: whether what it marks matters to the model, and whether it depends on the model.

* Deletion (RISE, Petsiuk, Das and Saenko, BMVC 2018): blocks are hidden, the hottest first; the sooner the label is
  lost, the better the map. Beside it the same for blocks in random orders, and for those nearest to the label first:
  a map that does no better than the label's own outline explains nothing that was not seen already.
* Randomised weights (Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018): the map of a network with the same
  shape and weights of chance. If it looks the same, the map shows the image and the shape of the network, not what was
  learnt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import integrate, ndimage, stats

from unet_med.inference.loaded import LoadedModel
from unet_med.networks import Segmenter, build_network, input_channels
from unet_med.review.explaining.heat import Blocks, hidden
from unet_med.review.explaining.view import BoolArray, FloatArray, View

_SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Of the blocks: how many are hidden."""
RANDOM_ORDERS = 8
UNTRAINED = 3
"""Networks with weights of chance that a map is compared with."""
ALIKE = 0.5
"""Two maps of a rank correlation up to this are different maps."""
_FLAT = 1e-12


@dataclass(frozen=True)
class Deletion:
    """How a label is lost while blocks are hidden.

    Attributes:
        shares: Of the blocks, how many are hidden, from 0 to 1.
        map: How likely the label still is when the hottest blocks are hidden first.
        near: The same for the blocks nearest to the label first.
        random: The same for blocks in random orders.
    """

    shares: tuple[float, ...]
    map: tuple[float, ...]
    near: tuple[float, ...]
    random: tuple[tuple[float, ...], ...]

    @property
    def area(self) -> float:
        """Area below the map's curve, 1 where nothing is ever lost, relative to what the label had at first."""
        return _area(self.shares, self.map)

    @property
    def near_area(self) -> float:
        """The same for the blocks nearest to the label."""
        return _area(self.shares, self.near)

    @property
    def random_areas(self) -> tuple[float, ...]:
        """The same for random orders."""
        return tuple(_area(self.shares, one) for one in self.random)

    @property
    def is_shown(self) -> bool:
        """Whether the hottest blocks matter more than any random order of them."""
        return self.area < min(self.random_areas)

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        areas = {"area": self.area, "near_area": self.near_area, "random_areas": list(self.random_areas)}
        return asdict(self) | areas | {"shown": self.is_shown}


@dataclass(frozen=True)
class Randomised:
    """How alike a map and those of untrained networks are.

    Attributes:
        correlations: Spearman's rank correlation over blocks with the map of each; ``None`` where one of both is flat.
    """

    correlations: tuple[float | None, ...]

    @property
    def is_shown(self) -> bool:
        """Whether the map depends on the weights: none of the others is like it, or its mirror image."""
        return all(one is None or abs(one) <= ALIKE for one in self.correlations)

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        return {"correlations": list(self.correlations), "alike_above": ALIKE, "shown": self.is_shown}


def randomised(heat: FloatArray, others: Sequence[FloatArray]) -> Randomised:
    """Compares the heat of blocks, (blocks,), with that of untrained networks."""
    return Randomised(tuple(_correlation(heat, other) for other in others))


def untrained(model: LoadedModel, seed: int) -> Segmenter:
    """Returns a network of the same shape with fresh weights, in eval mode on the same device."""
    bundle = model.bundle
    entering = input_channels(bundle.config.network, bundle.channels, bundle.config.prior_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(bundle.config.network, bundle.dims, entering, bundle.labels.outputs)
    return network.to(model.device).eval()


def steps(blocks: Blocks) -> list[int]:
    """Returns how many blocks are hidden at each step of a deletion, from none to all."""
    return sorted({math.ceil(share * len(blocks)) for share in _SHARES})


def deletion_orders(blocks: Blocks, seed: int) -> list[npt.NDArray[np.int64]]:
    """Returns the random orders of blocks that maps are compared with."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(len(blocks)) for _ in range(RANDOM_ORDERS)]


def hottest_first(heat: FloatArray, seed: int) -> npt.NDArray[np.int64]:
    """Returns the order of blocks by their heat; equal ones are in random order."""
    return np.lexsort((np.random.default_rng(seed).permutation(len(heat)), -heat))


def nearest_first(view: View, blocks: Blocks, mask: BoolArray) -> FloatArray:
    """Returns a heat that is larger the nearer a block is to a mask (*inside), in mm (or voxels)."""
    whole = np.zeros([part.stop - part.start for part in view.region], dtype=np.bool_)
    whole[view.labelled] = mask
    away = ndimage.distance_transform_edt(~whole, sampling=view.spacing_mm)
    return -blocks.means(np.asarray(away))


def deleted(
    view: View,
    blocks: Blocks,
    order: npt.NDArray[np.int64],
    masks: Sequence[BoolArray],
    places: Sequence[int],
) -> FloatArray:
    """Returns how likely labels still are while blocks are hidden in this order, (steps, labels)."""
    regions = list(blocks.regions())
    images = (hidden(view.image, [regions[number] for number in order[:count]]) for count in steps(blocks))
    return view.confidences(images, masks, places)


def _correlation(one: FloatArray, other: FloatArray) -> float | None:
    if np.ptp(one) < _FLAT or np.ptp(other) < _FLAT:
        return None
    return float(stats.spearmanr(one, other).statistic)


def _area(shares: Sequence[float], curve: Sequence[float]) -> float:
    return float(integrate.trapezoid(curve, shares)) / max(curve[0], _FLAT)
