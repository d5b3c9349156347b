"""What becomes of logits: labels, probabilities, maps of objects, and a record of how far it has come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from unet_med.geometry import reorient, undo_reorient
from unet_med.inference.chances import label_chances
from unet_med.inference.maps_store import MapStore
from unet_med.inference.quality.evidence import CaseEvidence
from unet_med.instances.maps import ObjectMaps
from unet_med.labels import LabelMap
from unet_med.transforms.preprocess import Prepared
from unet_med.volume import Region


@dataclass
class RowProgress:
    """How far a prediction has come: rows are final one after the other, along an axis that the image decides.

    Attributes:
        done: Rows whose labels (and maps) are final; a prediction that was interrupted goes on with the next one.
        along: The axis of the turned image along which they are counted; ``None``: none is final yet.
        tell: Is called whenever there are more.
    """

    done: int = 0
    along: int | None = None
    tell: Callable[[int], None] = lambda done: None


@dataclass(frozen=True, eq=False)
class Outputs:
    """What becomes of the logits of rows as they are final; see :meth:`Predictor.predict`."""

    labels: npt.NDArray[Any]
    likely: npt.NDArray[np.float32] | None
    evidence: CaseEvidence | None
    maps: MapStore | None
    progress: RowProgress | None

    def take(self, logits: Tensor, label_map: LabelMap, image: Prepared, along: int, start: int, stop: int) -> None:
        """Takes the logits (outputs, *s) of the rows of the turned image from ``start`` to ``stop``."""
        rows = (slice(None),) * along + (slice(start, stop),)
        labels = reorient(self.labels, image.order, image.flips)[rows]
        label_map.from_outputs(logits, out=labels)
        if self.evidence is not None:
            self.evidence.join(labels)
        if self.likely is not None:
            reorient(self.likely, image.order, image.flips)[(slice(None), *rows)] = label_chances(logits, label_map)
        if self.maps is not None:
            found = ObjectMaps.from_logits(logits)
            turned = (undo_reorient(one, image.order, image.flips) for one in (found.border, found.distance))
            classes = undo_reorient(found.classes, image.order, image.flips)
            self.maps.write(_own_rows(image, along, start, stop), ObjectMaps(classes, *turned))
        if self.progress is not None:
            self.progress.done, self.progress.along = stop, along
            self.progress.tell(stop)


def _own_rows(image: Prepared, along: int, start: int, stop: int) -> Region:
    """Returns the region of the image as it came that rows of the turned one are."""
    region = [slice(0, n) for n in image.reference.shape]
    size = region[image.order[along]].stop
    region[image.order[along]] = slice(size - stop, size - start) if image.flips[along] else slice(start, stop)
    return tuple(region)
