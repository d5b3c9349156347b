"""Where models are unsure of a case: the entropy of what they say together, and how much of it is disagreement.

Samples are the members of an ensemble, mirrored copies of the image (test-time augmentation, Wang et al.,
Neurocomputing 2019), or networks with dropout left on (Gal and Ghahramani, ICML 2016). The entropy of their mean is
what is not known in all; less the mean of their entropies it is what they disagree about (the mutual information,
Houlsby et al. 2011), which more training cases can take away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from unet_med.bundle import Bundle
from unet_med.config import Postprocess
from unet_med.inference.predictor import Predictor
from unet_med.transforms.preprocess import network_axes
from unet_med.volume import Volume

Map = npt.NDArray[np.float32]

_FEWEST = 2


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """How unsure several samples are.

    Attributes:
        samples: How many there are.
        entropy: (I, J[, K]) of their mean, from 0 (sure) to 1 (every label as likely as any other).
        disagreement: The part of it that comes from their contradicting each other, in the same unit.
    """

    samples: int
    entropy: Map
    disagreement: Map


def entropy(chances: Map) -> Map:
    """Returns how unsure (labels, *s) are, from 0 to 1 in units of the most that is possible; (*s).

    What is missing to 1 is background.
    """
    rest = np.clip(1.0 - chances.sum(axis=0), 0.0, 1.0)
    total = -_p_log_p(rest)
    for one in chances:
        total -= _p_log_p(one)
    return np.asarray(np.clip(total / math.log(len(chances) + 1), 0.0, 1.0), dtype=np.float32)


def uncertainty(samples: Iterable[Map]) -> Uncertainty | None:
    """Sums samples up, each (labels, I, J[, K]) from 0 to 1; ``None`` for fewer than two."""
    count = 0
    mean: Map | None = None
    own: Map | None = None
    for chances in samples:
        count += 1
        single = entropy(chances)
        if mean is None or own is None:
            mean, own = chances.copy(), single
        else:
            mean += (chances - mean) / count
            own += (single - own) / count
    if mean is None or own is None or count < _FEWEST:
        return None
    both = entropy(mean)
    return Uncertainty(count, both, np.maximum(both - own, 0.0))


def of_members(bundles: Sequence[Bundle], volume: Volume, device: str) -> Iterator[Map]:
    """Yields what each model says alone: how likely each label is, (labels, I, J[, K]); nothing for one model."""
    for bundle in bundles if len(bundles) >= _FEWEST else ():
        yield _chances(Predictor([unprocessed(bundle)], device, mirror=False), volume)


def of_mirrors(bundles: Sequence[Bundle], volume: Volume, device: str) -> Iterator[Map]:
    """Yields what the models say of each mirrored copy of an image, mirrored back, the image itself first.

    Copies are mirrored along the axes that training mirrored; there is nothing where it mirrored none.
    """
    axes = mirrored_axes(bundles[0], volume)
    if not axes:
        return
    flips = [some for count in range(len(axes) + 1) for some in combinations(axes, count)]
    predictor = Predictor([unprocessed(bundle) for bundle in bundles], device, mirror=False)
    for some in flips:
        spatial = tuple(axis + 1 for axis in some)
        turned = np.ascontiguousarray(np.flip(volume.array, spatial))
        yield np.flip(_chances(predictor, replace(volume, array=turned)), spatial)


def mirrored_axes(bundle: Bundle, volume: Volume) -> tuple[int, ...]:
    """Returns the axes of an image along which training mirrored."""
    wanted = bundle.config.augment.mirror_axes
    order, _ = network_axes(volume.geometry, bundle.config.preprocess)
    return () if wanted == "auto" else tuple(order[axis] for axis in wanted if axis < min(bundle.dims, len(order)))


def of_dropout(bundles: Sequence[Bundle], volume: Volume, device: str, samples: int) -> Iterator[Map]:
    """Yields what networks say with parts of their features dropped at random; nothing for those without dropout."""
    predictor = Predictor([unprocessed(bundle, engine="torch") for bundle in bundles], device, mirror=False)
    dropping = [
        module
        for model in predictor.models
        for module in model.network.modules()
        if isinstance(module, nn.Dropout) and module.p > 0
    ]
    if not dropping:
        return
    for module in dropping:
        module.train()
    cards = [predictor.device] if predictor.device.type == "cuda" else []
    for number in range(samples):
        with torch.random.fork_rng(devices=cards):
            torch.manual_seed(number)
            found = _chances(predictor, volume)
        yield found


def unprocessed(bundle: Bundle, **inference: str) -> Bundle:
    """Returns the same model without post-processing, which would make what it changes certain.

    Args:
        bundle: The model.
        inference: Changes of how it is run.
    """
    settings = bundle.config.inference.model_copy(update=inference)
    changed = bundle.config.model_copy(update={"postprocess": Postprocess(), "inference": settings})
    return replace(bundle, config=changed)


def _chances(predictor: Predictor, volume: Volume) -> Map:
    return cast("Map", predictor.predict(volume, probabilities=True).probabilities)


def _p_log_p(chances: Map) -> Map:
    return np.asarray(chances * np.log(np.maximum(chances, np.finfo(np.float32).tiny)))
