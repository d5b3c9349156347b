"""The blending weight of nnU-Net, as it makes it: a single voxel, blurred."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from unet_med.inference.tiling import WindowAxis


@pytest.mark.parametrize(("size", "window"), [(40, 16), (41, 17), (24, 24), (70, 20)])
def test_shares_are_those_of_nnunets_weight(size: int, window: int) -> None:
    single = np.zeros(window)
    single[window // 2] = 1
    weight = ndimage.gaussian_filter(single, window / 8, mode="constant")
    axis = WindowAxis.of(size, window, 0.5, 0.125, centre="voxel")
    total = np.zeros(size)
    for start in axis.starts:
        total[start : start + window] += weight
    for start, share in zip(axis.starts, axis.shares, strict=True):
        np.testing.assert_allclose(share.numpy(), weight / total[start : start + window], rtol=2e-4)
