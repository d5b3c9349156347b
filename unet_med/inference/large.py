"""Images larger than memory: read in the order of their file, labelled in files, gone on with after an interruption.

What is done of a case lies in a folder of its own: labels (and maps of objects) as files that are mapped, and how many
rows of which frame are final. It is of use for the same input alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.config import Instances
from unet_med.errors import InputRefusedError
from unet_med.inference.maps_store import MapStore
from unet_med.inference.outputs import RowProgress
from unet_med.inference.predictor import Prediction, Predictor
from unet_med.instances.decode import Objects, objects_of
from unet_med.instances.maps import ObjectMaps
from unet_med.io.atomic import remove, write_json
from unet_med.io.mapped import let_go, mapped, store
from unet_med.labels import LabelMap
from unet_med.volume import LazyArray, MaskSink, Region, Volume, slabs

_STATE = "progress.json"
_ALL = 2**62
PREVIEW_SIDE = 2048
"""Voxels of an image's longest side that :func:`thinned` keeps at most."""
_ROWS = 512


class KeptWork:
    """What is done of a large case.

    Args:
        folder: Where it lies; made, or emptied where it belongs to another input.
        input_sha256: Of the files of the case.

    Attributes:
        folder: Where it lies.
    """

    def __init__(self, folder: Path, input_sha256: str) -> None:
        self.folder = folder
        self._input = input_sha256
        self._frame, self._rows, self._along = self._read()
        if not self._frame and not self._rows:
            remove(folder)
        folder.mkdir(parents=True, exist_ok=True)

    def progress(self, position: int, labels: npt.NDArray[Any]) -> RowProgress:
        """Returns how far a frame has come; it is recorded when there is more.

        Args:
            position: Of the frame among those of the case.
            labels: Where its labels are written; brought to the disk before a record says that they are there.
        """
        progress = RowProgress(_ALL if position < self._frame else 0)
        if position == self._frame and self._rows:
            progress = RowProgress(self._rows, self._along)

        def tell(rows: int) -> None:
            store(labels)
            let_go(labels)
            content = {"input_sha256": self._input, "frame": position, "along": progress.along, "rows": rows}
            write_json(self.folder / _STATE, content, "the progress of a large image")

        progress.tell = tell
        return progress

    def classes(self, position: int, shape: Sequence[int], labels: LabelMap) -> npt.NDArray[Any]:
        """Returns where the class of each voxel of a frame is written, (I, J[, K])."""
        stored = mapped(self.folder / f"classes-{position}.npy", tuple(shape)[::-1], labels.dtype)
        return stored.transpose()

    def maps(self, position: int, channels: int, shape: Sequence[int], progress: RowProgress) -> MapStore:
        """Returns the maps of a frame; where they are lost its rows are none."""
        path = self.folder / f"maps-{position}.zarr"
        if progress.done:
            try:
                return MapStore.open(path)
            except InputRefusedError:
                progress.done, progress.along = 0, None
        return MapStore.create(path, channels, shape)

    def _read(self) -> tuple[int, int, int]:
        """Returns the frame that was in work, how many of its rows are final, and the axis along which they lie."""
        try:
            state = json.loads((self.folder / _STATE).read_text(encoding="utf-8"))
            if state["input_sha256"] == self._input:
                return int(state["frame"]), int(state["rows"]), int(state["along"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return 0, 0, 0


def predict_objects(
    predictor: Predictor, volume: Volume, kept: KeptWork, position: int, sink: MaskSink, settings: Instances
) -> tuple[Prediction, Objects, MapStore]:
    """Predicts the maps of a frame and cuts objects out of them, all of it in files.

    Args:
        predictor: Of a model of objects.
        volume: The frame, not in memory.
        kept: What is done of its case.
        position: Of the frame among those of the case.
        sink: Receives the numbers of objects.
        settings: How they are cut out.

    Returns:
        What was predicted, with the class of each voxel's object in place of labels; the objects; their maps.
    """
    labels = kept.classes(position, volume.geometry.shape, predictor.labels)
    progress = kept.progress(position, labels)
    maps = kept.maps(position, predictor.labels.outputs, volume.geometry.shape, progress)
    prediction = predictor.predict(volume, out=labels, maps=maps, progress=progress)
    numbers = sink.numbers_of(position)
    objects = objects_of(_Sparing(maps, numbers), settings, out=numbers)
    table = np.zeros(len(objects) + 1, dtype=labels.dtype)
    table[1:] = objects.classes
    for part in slabs(numbers):
        labels[part] = table[numbers[part]]
        let_go(numbers)
        let_go(labels)
    return prediction, objects, maps


class _Sparing:
    """Maps; whenever they are read, the memory of the numbers that were written is given back."""

    def __init__(self, maps: MapStore, numbers: npt.NDArray[np.uint32]) -> None:
        self.shape = maps.shape
        self._maps = maps
        self._numbers = numbers

    def read(self, region: Region) -> ObjectMaps:
        """Returns the maps of a region."""
        let_go(self._numbers)
        return self._maps.read(region)


def thinned(image: npt.NDArray[Any], shape: Sequence[int]) -> npt.NDArray[Any]:
    """Returns every n-th voxel along each of the last axes, as many as a preview shows; a view of an array in memory.

    Args:
        image: (C, *s) or (*s), perhaps not in memory.
        shape: *s.
    """
    step = -(-max(shape) // PREVIEW_SIDE)
    index: tuple[Any, ...] = (..., *(slice(None, None, step) for _ in shape))
    lazy: object = image
    if not isinstance(lazy, LazyArray):
        few = np.array(image[index]) if step > 1 else np.asarray(image)
        let_go(image)
        return few
    axis = 1 + lazy.slowest
    rows = step * max(1, _ROWS // step)
    kept = [
        np.asarray(lazy[(slice(None),) * axis + (slice(start, start + rows),)])[index].copy()  # a view holds its band
        for start in range(0, lazy.shape[axis], rows)
    ]
    return np.concatenate(kept, axis=axis)
