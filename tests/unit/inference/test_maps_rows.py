"""Maps of objects become final rows by rows, whatever way the network sees the image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from large_images import picture

from unet_med.bundle import load_bundle
from unet_med.geometry import Geometry
from unet_med.inference.maps_store import MapStore
from unet_med.inference.outputs import Outputs
from unet_med.instances.maps import ObjectMaps
from unet_med.labels import LabelMap
from unet_med.transforms.preprocess import Preprocessor
from unet_med.volume import Volume


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "stored"])
def test_maps_lie_on_the_grid_of_the_image(tiny_bundle, tmp_path, orientation) -> None:
    preprocessor = Preprocessor(load_bundle(tiny_bundle(preprocess__orientation=orientation)).config)
    shape = (6, 9, 4)
    affine = np.array([[0, -1.0, 0, 3], [1.0, 0, 0, 5], [0, 0, -2.0, 7], [0, 0, 0, 1]])
    image = preprocessor.prepare(Volume(picture(shape), Geometry(shape, affine)))
    logits = torch.randn(4, *(shape[axis] for axis in image.order), generator=torch.Generator().manual_seed(0))
    store = MapStore.create(tmp_path / "maps", 4, shape)
    labels = replace(LabelMap.from_names({"background": 0, "cell": 1}), objects=True)
    found = np.zeros(shape, dtype=np.uint8)
    outputs = Outputs(found, None, None, store, None)
    for along in range(3):
        for start in range(0, logits.shape[along + 1], 2):
            stop = min(start + 2, logits.shape[along + 1])
            outputs.take(logits.narrow(along + 1, start, stop - start), labels, image, along, start, stop)
        maps = store.read()
        whole = ObjectMaps.from_logits(logits)
        turned = maps.classes.transpose(0, *(axis + 1 for axis in image.order))
        turned = turned[(slice(None), *(slice(None, None, -1 if flip else 1) for flip in image.flips))]
        assert np.abs(turned - whole.classes).max() < 1 / 255
        assert (found == (maps.classes[1] > maps.classes[0])).mean() > 0.95
