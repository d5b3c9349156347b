"""Why a model labels a case as it does: heat maps of each label, each with its evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from unet_med.inference.loaded import LoadedModel
from unet_med.networks import Segmenter
from unet_med.networks.receptive import described_field, effective_field
from unet_med.review.explaining.heat import Blocks, grad_cam, occlusion
from unet_med.review.explaining.sanity import (
    UNTRAINED,
    Deletion,
    Randomised,
    deleted,
    deletion_orders,
    hottest_first,
    nearest_first,
    randomised,
    steps,
    untrained,
)
from unet_med.review.explaining.view import BoolArray, FloatArray, View, on_image
from unet_med.transforms.preprocess import Prepared

Progress = Callable[[Iterable[Any], str], Iterable[Any]]
"""Wraps a loop so that somebody sees how far it is."""

_FIELD_SAMPLES = 4
_HALF = 0.5


@dataclass(frozen=True, eq=False)
class HeatMap:
    """A heat map with the evidence that it depends on the model.

    Attributes:
        values: (I, J[, K]) on the image; 0 outside of what the model looked at.
        deletion: What hiding its hottest blocks does.
        randomised: How alike the maps of untrained networks are.
    """

    values: npt.NDArray[np.float32]
    deletion: Deletion
    randomised: Randomised

    @property
    def is_shown(self) -> bool:
        """Whether both checks say that it depends on the model."""
        return self.deletion.is_shown and self.randomised.is_shown


@dataclass(frozen=True, eq=False)
class LabelExplanation:
    """Where a model takes a label from, in one of its windows.

    Attributes:
        place: Which label of the map it is, from 0.
        mask: (I, J[, K]) where it was found in the window.
        confidence: How likely it is there, on average.
        block: Edges of the blocks that were hidden, along the axes of the network's grid, in mm (or voxels).
        maps: ``gradcam``, 1 at its largest, and ``occlusion``, in probability lost.
    """

    place: int
    mask: BoolArray
    confidence: float
    block: tuple[float, ...]
    maps: dict[str, HeatMap] = field(default_factory=dict)


def explain_labels(
    model: LoadedModel,
    prepared: Prepared,
    labels: npt.NDArray[np.integer[Any]],
    places: Sequence[int],
    edge: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[LabelExplanation]:
    """Explains labels that a model gave to an image; those that it did not give are left out.

    Of a label larger than a window of the model, the window in its middle is explained.

    Args:
        model: The model.
        prepared: The image, with the channels of a first stage where the model is a cascade.
        labels: (I, J[, K]) what it gave.
        places: Which labels of the map to explain, from 0.
        edge: Of the blocks that are hidden, in mm (or voxels where the image is uncalibrated); ``None``: the smallest
            round one that takes no more than :data:`unet_med.review.explaining.heat.MOST_BLOCKS`.
        seed: Of random orders and, from the next number on, of untrained weights: with its own the training began.
        progress: Wraps the loops.
    """
    grid = model.preprocessor.prepare_label(labels, prepared)
    views: dict[Any, tuple[View, list[int]]] = {}
    for place in places:
        mask = grid == model.bundle.labels.labels[place].index
        if mask.any():
            view = View.at(model, prepared, _middle(mask, flat=model.bundle.dims < mask.ndim))
            key = tuple((part.start, part.stop) for part in view.inside)
            views.setdefault(key, (view, []))[1].append(place)
    found = [
        one
        for view, some in views.values()
        for one in _Explainer(model, prepared, view, edge, seed, progress or _silent).explain(some)
    ]
    return sorted(found, key=lambda one: places.index(one.place))


def receptive_field(model: LoadedModel, spacing_mm: Sequence[float] | None, seed: int) -> dict[str, list[float]]:
    """Returns how much of an image a model sees and uses, and an untrained one would use, along each axis.

    ``effective`` holds 95 % of the energy of the gradient of the middle's logits (Luo et al., NeurIPS 2016).

    Args:
        model: The model.
        spacing_mm: Of the network's grid; ``None``: only voxels are told.
        seed: As for :func:`explain_labels`.
    """
    window = model.tiles.window
    fields: dict[str, list[float]] = {
        key: [float(n) for n in extent]
        for key, extent in described_field(
            model.bundle.config.network, cast("Segmenter", model.network), window
        ).items()
    }
    own = effective_field(untrained(model, seed + 1), window, _FIELD_SAMPLES)
    fields["untrained_voxels"] = [float(n) for n in own]
    if spacing_mm is not None:
        for key, extent in list(fields.items()):
            lengths = (n * step for n, step in zip(extent, spacing_mm, strict=False))
            fields[key.replace("voxels", "mm")] = [round(length, 3) for length in lengths]
    return fields


class _Explainer:
    """Explains the labels of one window."""

    def __init__(
        self, model: LoadedModel, prepared: Prepared, view: View, edge: float | None, seed: int, progress: Progress
    ) -> None:
        self._model = model
        self._prepared = prepared
        self._view = view
        self._seed = seed
        self._progress = progress
        shape = view.image.shape[1:]
        spacing = view.spacing_mm or (1.0,) * len(shape)
        self._blocks = Blocks.few(shape, spacing) if edge is None else Blocks.of(shape, spacing, edge)
        sides = zip(shape, spacing, self._blocks.shape, strict=True)
        self._edges = tuple(n * step / count for n, step, count in sides)

    def explain(self, places: Sequence[int]) -> list[LabelExplanation]:
        view, blocks, seed = self._view, self._blocks, self._seed
        found = view.found()
        present = [place for place in places if (found == view.labels.labels[place].index).any()]
        if not present:
            return []
        masks = [found == view.labels.labels[place].index for place in present]
        networks = [untrained(self._model, seed + 1 + number) for number in range(UNTRAINED)]
        lost = occlusion(view, blocks, masks, present, tell=self._progress(list(blocks.regions()), "hiding blocks"))
        others = [
            occlusion(view, blocks, masks, present, network)
            for network in self._progress(networks, "hiding them from untrained networks")
        ]
        orders = [
            deleted(view, blocks, order, masks, present)
            for order in self._progress(deletion_orders(blocks, seed), "hiding them in random orders")
        ]
        explained = []
        for number, (place, mask) in enumerate(zip(present, masks, strict=True)):
            random = [order[:, number] for order in orders]
            cam = grad_cam(view, mask, place)
            cams = [blocks.means(grad_cam(view, mask, place, network)) for network in networks]
            near = self._deleted(nearest_first(view, blocks, mask), mask, place)
            maps = {
                "gradcam": self._map(cam / (cam.max() or 1.0), blocks.means(cam), cams, mask, place, near, random),
                "occlusion": self._map(
                    blocks.painted(lost[number]), lost[number], [o[number] for o in others], mask, place, near, random
                ),
            }
            whole = on_image(self._prepared, view.inside, mask.astype(np.float32)) > _HALF
            explained.append(LabelExplanation(place, whole, float(near[0]), self._edges, maps))
        return explained

    def _map(
        self,
        values: npt.NDArray[np.float32],
        heat: FloatArray,
        others: Sequence[FloatArray],
        mask: BoolArray,
        place: int,
        near: FloatArray,
        random: Sequence[FloatArray],
    ) -> HeatMap:
        """Adds its evidence to a map (*region) whose blocks have this heat."""
        shares = tuple(count / len(self._blocks) for count in steps(self._blocks))
        curves = [tuple(map(float, one)) for one in (self._deleted(heat, mask, place), near, *random)]
        deletion = Deletion(shares, curves[0], curves[1], tuple(curves[2:]))
        return HeatMap(on_image(self._prepared, self._view.region, values), deletion, randomised(heat, others))

    def _deleted(self, heat: FloatArray, mask: BoolArray, place: int) -> FloatArray:
        order = hottest_first(heat, self._seed)
        return np.asarray(deleted(self._view, self._blocks, order, [mask], [place])[:, 0])


def _middle(mask: BoolArray, flat: bool) -> tuple[int, ...]:
    """The voxel in the middle of a mask; for a network that sees slices, in the middle of the one with most of it."""
    if flat:
        slices = mask.sum(axis=tuple(range(mask.ndim - 1)))
        through = int(slices.argmax())
        return (*_middle(mask[..., through], flat=False), through)
    return tuple(round(float(place.mean())) for place in np.nonzero(mask))


def _silent(items: Iterable[Any], _what: str) -> Iterable[Any]:
    return items
