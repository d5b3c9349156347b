"""Windows cover an image evenly: what a network leaves alone comes back unchanged."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from window_blend import blended

from unet_med.inference.tiling import gaussian_weight, window_starts

pytestmark = pytest.mark.usefixtures("one_thread")


@given(size=st.integers(1, 200), window=st.integers(1, 64), overlap=st.floats(0, 0.95))
def test_starts_cover_every_voxel_and_overlap_enough(size: int, window: int, overlap: float) -> None:
    starts = window_starts(size, window, overlap)
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    if size <= window:
        assert starts == [0]
        return
    assert starts[-1] == size - window
    steps = [b - a for a, b in pairwise(starts)]
    assert max(steps) <= max(1, window * (1 - overlap)) + 1  # places are whole numbers
    assert max(steps) <= window


@given(window=st.lists(st.integers(1, 20), min_size=2, max_size=3), sigma=st.floats(0.05, 1))
def test_the_weight_is_a_symmetric_bump(window: list[int], sigma: float) -> None:
    weight = gaussian_weight(window, sigma)
    assert weight.shape == tuple(window)
    assert 0 < float(weight.min()) <= float(weight.max()) <= 1
    assert torch.allclose(weight, weight.flip(list(range(len(window)))))


@st.composite
def _tilings(draw: st.DrawFn) -> dict:
    dims = draw(st.sampled_from([2, 3]))
    planar = dims == 2 and draw(st.booleans())
    sizes = st.integers(1, 21)
    return {
        "shape": tuple(draw(sizes) for _ in range(dims + planar)),
        "window": tuple(draw(st.integers(1, 12)) for _ in range(dims)),
        "context": tuple(draw(st.integers(0, 4)) for _ in range(dims)) if draw(st.booleans()) else (0,) * dims,
        "mirror": tuple(axis for axis in range(dims) if draw(st.booleans())),
        "overlap": draw(st.floats(0, 0.8)),
        "sigma": draw(st.floats(0.05, 1.0)),
        "batch": draw(st.integers(1, 5)),
        "channels": draw(st.integers(1, 3)),
        "along": draw(st.integers(0, dims + planar - 1)),
    }


@settings(max_examples=60, deadline=None)
@given(tiling=_tilings())
def test_an_identity_network_reproduces_its_input(tiling: dict) -> None:
    context = tiling["context"]
    image = torch.randn((tiling["channels"], *tiling["shape"]), generator=torch.Generator().manual_seed(0))

    def crop(batch: torch.Tensor) -> torch.Tensor:
        assert tuple(batch.shape[2:]) == tuple(w + 2 * c for w, c in zip(tiling["window"], context, strict=True))
        inner = tuple(slice(c, n - c) for c, n in zip(context, batch.shape[2:], strict=True))
        return batch[(slice(None), slice(None), *inner)]

    before = image.clone()
    logits = blended(
        image,
        crop,
        tiling["window"],
        tiling["channels"],
        overlap=tiling["overlap"],
        sigma=tiling["sigma"],
        context=context,
        mirror_axes=tiling["mirror"],
        batch=tiling["batch"],
        along=tiling["along"],
    )
    assert logits.shape == image.shape
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, image, atol=1e-5)
    assert torch.equal(image, before)
