"""How likely each label is, from the outputs of a network."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unet_med.labels import LabelMap


def label_chances(logits: Tensor, label_map: LabelMap) -> npt.NDArray[np.float32]:
    """Returns for each label how likely it is: (labels, ...) from logits (outputs, ...).

    A region's own label is what is left of the region outside of all regions that are painted over it.
    """
    if not label_map.regions:
        return torch.softmax(logits[: label_map.class_outputs], dim=0)[1:].cpu().numpy()
    found = np.zeros((len(label_map.labels), *logits.shape[1:]), dtype=np.float32)
    places = {label.index: place for place, label in enumerate(label_map.labels)}
    outside = torch.ones(logits.shape[1:], device=logits.device)
    for value, region in reversed(list(zip(label_map.region_values(), logits.sigmoid(), strict=True))):
        found[places[value]] = (region * outside).cpu().numpy()
        outside = outside * (1.0 - region)
    return found
