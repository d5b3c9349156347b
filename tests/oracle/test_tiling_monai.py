"""Our windows against MONAI's."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import sliding_window_inference
from window_blend import blended

from unet_med.inference.tiling import gaussian_weight


@pytest.mark.parametrize(
    ("shape", "window"),
    [((40, 32, 24), (16, 16, 16)), ((24, 24, 24), (8, 12, 24)), ((64, 48), (16, 16)), ((10, 11), (16, 16))],
)
def test_logits_equal_those_of_monai(shape: tuple[int, ...], window: tuple[int, ...]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kind = torch.nn.Conv3d if len(shape) == 3 else torch.nn.Conv2d
    network = torch.nn.Sequential(kind(1, 4, 5, padding=2), torch.nn.ReLU(), kind(4, 3, 3, padding=1))
    image = torch.randn(1, *shape)
    ours = blended(image, network, window, 3, along=len(shape) - 1)
    # MONAI's own Gaussian is cut off at 1e-3, which in 3-D is most of a window; so it is given ours.
    weight = gaussian_weight(window, 0.125)
    with torch.no_grad():
        theirs = sliding_window_inference(image[None], window, 2, network, overlap=0.5, roi_weight_map=weight)[0]
        plain = sliding_window_inference(image[None], window, 2, network, 0.5, mode="gaussian", sigma_scale=0.125)[0]
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert float((ours - plain).abs().mean()) < 0.03
