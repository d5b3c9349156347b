"""Stands in for the network of a model of objects: gives back the maps that were predicted before."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unet_med.config import Instances
from unet_med.errors import InputRefusedError
from unet_med.inference.maps_store import CHUNK, MapStore
from unet_med.inference.outputs import RowProgress
from unet_med.inference.predictor import Prediction, Predictor
from unet_med.inference.quality.assessment import Assessor
from unet_med.inference.quality.evidence import CaseEvidence
from unet_med.labels import LabelMap
from unet_med.volume import Volume


class KeptMaps(Predictor):
    """A predictor without a network, for one case.

    Args:
        stores: The maps of its frames, in their order.
        labels: The classes of objects.
        settings: How objects are cut out.
        channels: Names of the channels of an image.
    """

    def __init__(
        self, stores: Sequence[Path], labels: LabelMap, settings: Instances, channels: tuple[str, ...]
    ) -> None:
        self.labels = labels
        self.device = torch.device("cpu")
        self.notes: list[str] = []
        self.precisions: tuple[str, ...] = ()
        self.assessor = Assessor([])
        self._stores = iter(stores)
        self._settings = settings
        self._channels = channels

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels that an image has."""
        return self._channels

    @property
    def objects(self) -> Instances:
        """How objects are cut out of its maps."""
        return self._settings

    def predict(
        self,
        volume: Volume,
        probabilities: bool = False,
        out: npt.NDArray[np.uint8 | np.uint16] | None = None,
        evidence: CaseEvidence | None = None,
        maps: MapStore | None = None,
        progress: RowProgress | None = None,
    ) -> Prediction:
        """Copies the maps of the next frame; nothing else is known of it.

        Raises:
            InputRefusedError: when there are none, or they are those of another image.
        """
        shape = volume.geometry.shape
        if maps is not None:
            path = next(self._stores, maps.path)
            kept = MapStore.open(path)
            if path == maps.path or kept.shape != shape or kept.channels != maps.channels:
                raise InputRefusedError("the maps are those of another image", path.name, "predict again")
            side = CHUNK[len(shape)]
            for corner in product(*(range(0, size, side) for size in shape)):
                region = tuple(slice(at, min(at + side, size)) for at, size in zip(corner, shape, strict=True))
                maps.write(region, kept.read(region))
        labels: npt.NDArray[Any] = np.zeros(shape, dtype=self.labels.dtype) if out is None else out
        return Prediction(labels, [], engine="maps", engine_why="they were kept")
