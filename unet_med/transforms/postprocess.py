"""What is done to a finished label image."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from unet_med.config import Postprocess
from unet_med.errors import ConfigError
from unet_med.labels import LabelMap


def postprocess_labels(
    labels: npt.NDArray[np.integer[Any]], settings: Postprocess, label_map: LabelMap
) -> npt.NDArray[np.integer[Any]]:
    """Returns labels (I, J[, K]) with small components removed and, for the labels named, only the largest kept.

    Components are face-connected. The input is not changed.

    Raises:
        ConfigError: if ``keep_largest`` names a label that does not exist.
    """
    index = {label.name: label.index for label in label_map.labels}
    unknown = [name for name in settings.keep_largest if name not in index]
    if unknown:
        raise ConfigError(
            f"no label is called {unknown[0]!r}", "postprocess.keep_largest", f"use one of {sorted(index)}"
        )
    if not settings.keep_largest and settings.minimum_voxels < 2:
        return labels
    cleaned = labels.copy()
    for label in label_map.labels:
        keep_largest = label.name in settings.keep_largest
        if not keep_largest and settings.minimum_voxels < 2:
            continue
        components, count = ndimage.label(cleaned == label.index)
        if count == 0:
            continue
        sizes = np.bincount(components.ravel(), minlength=count + 1)
        sizes[0] = 0
        drop = sizes < settings.minimum_voxels
        if keep_largest:
            drop |= np.arange(count + 1) != int(sizes.argmax())
        drop[0] = False
        cleaned[drop[components]] = 0
    return cleaned
