"""Which of many images to label next: those that a model is unsure of and that are unlike each other.

Images are taken one after the other. Each time it is the one of the largest product of uncertainty and of the distance
to the nearest image that was taken before (or is labelled already): uncertainty alone picks the same difficulty again
and again, distance alone picks outliers that the model does well (Yang et al., Suggestive Annotation, MICCAI 2017;
the greedy cover is that of Sener and Savarese, ICLR 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from unet_med.inference.loaded import LoadedModel
from unet_med.inference.quality.assessment import Assessment
from unet_med.inference.quality.evidence import Features
from unet_med.networks import Segmenter
from unet_med.review.explaining.view import View
from unet_med.transforms.preprocess import Prepared

FloatArray = npt.NDArray[np.float64]

NOT_KNOWN = 0.5
"""Uncertainty of an image in which nothing was found, where the model cannot tell whether that is right."""
_WINDOWS = 8
"""Windows of an image that are looked at, spread over it."""
_CONSTANT = 1e-9


@dataclass(frozen=True)
class Ranked:
    """An image and its place in the order of labelling.

    Attributes:
        place: Which one it is.
        uncertainty: From 0 to 1.
        diversity: How far it is from the nearest one before it, from 0 (the same) to 1 (as far as any).
    """

    place: int
    uncertainty: float
    diversity: float

    @property
    def score(self) -> float:
        """The product, by which it was taken."""
        return self.uncertainty * self.diversity


def ranked(uncertainty: Sequence[float], features: FloatArray, labelled: FloatArray | None = None) -> list[Ranked]:
    """Orders images for labelling.

    Args:
        uncertainty: Of each image, from 0 to 1.
        features: (images, features) what they are like; a feature counts by its deviation over all images.
        labelled: (others, features) of images that are labelled already.

    Returns:
        All images, the one to label first at the beginning; equal ones in the order they were given.
    """
    count = len(uncertainty)
    known = np.zeros((0, features.shape[1])) if labelled is None else labelled
    values = _standardised(np.concatenate([features, known]))
    own, others = values[:count], values[count:]
    distance = np.full(count, np.inf)
    for other in others:
        distance = np.minimum(distance, np.linalg.norm(own - other, axis=1))
    scale = float(distance.max()) if len(others) else 0.0
    left, order = list(range(count)), list[Ranked]()
    while left:
        diversity = _share(distance[left], scale)
        chosen = max(range(len(left)), key=lambda n: (uncertainty[left[n]] * diversity[n], uncertainty[left[n]], -n))
        order.append(Ranked(left.pop(chosen), 0.0, float(diversity[chosen])))
        distance = np.minimum(distance, np.linalg.norm(own - own[order[-1].place], axis=1))
        scale = scale or float(distance.max())
    return [Ranked(one.place, float(uncertainty[one.place]), one.diversity) for one in order]


def case_uncertainty(assessment: Assessment, features: Sequence[dict[str, Features]]) -> tuple[float, str]:
    """Returns how unsure models are of a case, from 0 to 1, and in words why.

    It is 1 less the Dice that is expected of the structures that were found, or 1 less the agreement of several models
    where that is more. Of each structure that is the mean of what its probabilities say and, of bundles that know their
    failures, of what is predicted: a prediction without skill is the same for all cases, and orders none.

    Args:
        assessment: What the models' knowledge of themselves says of it.
        features: What was measured of each model's structures while the case was predicted.
    """
    dice: dict[str, float] = {}
    for name in features[0] if features else ():
        seen = [value for one in features if (value := one[name]["expected_dice"]) is not None]
        estimate = assessment.predicted_dice.get(name)
        said = [float(np.mean(seen))] if seen else []
        said += [] if estimate is None else [estimate.value]
        if said:
            dice[name] = float(np.mean(said))
    agreement = float(np.mean(list(assessment.agreement.values()))) if assessment.agreement else 1.0
    if not dice:
        return max(NOT_KNOWN, 1.0 - agreement), "nothing was found; whether that is right is not known"
    unsure = 1.0 - float(np.mean(list(dice.values())))
    if 1.0 - agreement > unsure:
        return 1.0 - agreement, f"the models agree by a Dice of {agreement:.2f}"
    worst = min(dice, key=lambda name: dice[name])
    return min(max(unsure, 0.0), 1.0), f"Dice of {worst} is expected to be {dice[worst]:.2f}"


def image_features(model: LoadedModel, prepared: Prepared) -> FloatArray:
    """Returns what an image is like to a model: mean and deviation of each feature of its deepest level, (features,).

    They are those of up to eight windows, spread evenly over the image.
    """
    network = cast("Segmenter", model.network)
    axes = model.axes(prepared.geometry.shape, model.tiles)
    starts = list(product(*(range(len(axis.starts)) for axis in axes)))
    chosen = np.unique(np.linspace(0, len(starts) - 1, min(_WINDOWS, len(starts))).round().astype(int))
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        kept.append(output.float().flatten(2)[0])

    handle = network.deepest.register_forward_hook(keep)
    try:
        for number in chosen:
            ends = [axis.inside(place) for axis, place in zip(axes, starts[number], strict=True)]
            view = View.at(model, prepared, [(first + last) // 2 for first, last in ends])
            view.logits([view.image])
    finally:
        handle.remove()
    together = torch.cat(kept, dim=1)
    found = torch.cat([together.mean(dim=1), together.std(dim=1, correction=0)])
    return np.asarray(found.cpu().numpy(), dtype=np.float64)


def _standardised(values: FloatArray) -> FloatArray:
    """Returns columns of mean 0 and deviation 1; those that do not vary are left out."""
    if not len(values):
        return values
    deviation = values.std(axis=0)
    varying = deviation > _CONSTANT * (1.0 + np.abs(values).max(axis=0))
    return np.asarray((values[:, varying] - values[:, varying].mean(axis=0)) / deviation[varying])


def _share(distance: FloatArray, scale: float) -> FloatArray:
    """Returns distances from 0 to 1; all are 1 before there is anything to be far from."""
    if not scale:
        return np.where(np.isinf(distance), 1.0, 0.0)
    return np.minimum(distance / scale, 1.0)
