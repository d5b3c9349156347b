"""Prediction slab by slab says what a plain path says: all windows, all logits, one interpolation, one arg max."""

from __future__ import annotations

from itertools import combinations, product
from math import ceil, prod
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from unet_med.bundle import Bundle, labels_of
from unet_med.config import PipelineConfig, parse_config
from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry, reorient
from unet_med.inference.predictor import Predictor
from unet_med.inference.rows import OUTSIDE_LOGIT
from unet_med.networks import admissible_patch, build_network, context_voxels, input_channels
from unet_med.transforms.preprocess import Preprocessor
from unet_med.volume import Volume

pytestmark = pytest.mark.usefixtures("one_thread")

NEAR = 1e-3
"""Two outputs that differ by less, or a region's that is nearer to 0, may be decided either way by rounding."""

NESTED = {"whole": [1, 2, 3], "core": [2, 3], "inner": [3]}


# ---- the plain path -------------------------------------------------------------------------------------------------


def _starts(size: int, window: int, overlap: float) -> list[int]:
    """nnU-Net's places on an axis that is at least as long as the window."""
    if size == window:
        return [0]
    steps = ceil(round((size - window) / max(1.0, window * (1 - overlap)), 9))
    return [int(np.rint(index * (size - window) / steps)) for index in range(steps + 1)]


def _bell(window: tuple[int, ...], sigma: float) -> torch.Tensor:
    weight = torch.ones((), dtype=torch.float64)
    for size in window:
        at = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
        weight = weight[..., None] * torch.exp(-0.5 * (at / (size * sigma)) ** 2)
    return weight


def _mirrored(network: nn.Module, batch: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    flips = [flip for number in range(len(axes) + 1) for flip in combinations([axis + 2 for axis in axes], number)]
    return torch.stack([network(batch.flip(flip)).flip(flip) for flip in flips]).mean(dim=0)


def _plain_logits(image: torch.Tensor, network: nn.Module, config: PipelineConfig) -> torch.Tensor:
    """(C, *s) to (outputs, *s): every window of the whole image, blended in float64."""
    dims = 2 if config.dims == 2 else 3
    if image.ndim - 1 > dims:
        reach = config.network.slices // 2
        mode = "reflect" if image.shape[-1] > 1 else "edge"
        wide = torch.from_numpy(np.pad(image.numpy(), [*[(0, 0)] * (image.ndim - 1), (reach, reach)], mode=mode))
        shown = [wide[..., k : k + 2 * reach + 1].movedim(-1, 1).flatten(0, 1) for k in range(image.shape[-1])]
        return torch.stack([_plain_logits(planes, network, config) for planes in shown], dim=-1)
    window = admissible_patch(config.network, dims, config.sampling.patch_voxels)
    border = context_voxels(config.network, dims)
    size = image.shape[1:]
    before = [max(0, w - n) // 2 for w, n in zip(window, size, strict=True)]
    after = [max(0, w - n) - b for w, n, b in zip(window, size, before, strict=True)]
    pads = [(b + c, a + c) for b, a, c in zip(before, after, border, strict=True)]
    kind = {"mode": "reflect"} if any(border) else {"mode": "constant"}
    padded = torch.from_numpy(np.pad(image.numpy(), [(0, 0), *pads], **kind))
    whole = [n + b + a for n, b, a in zip(size, before, after, strict=True)]
    axes = config.augment.mirror_axes if config.inference.mirror else ()
    weight, total, norm = _bell(window, config.inference.gaussian_sigma), None, torch.zeros(whole, dtype=torch.float64)
    for place in product(*(_starts(n, w, config.inference.overlap) for n, w in zip(whole, window, strict=True))):
        read = tuple(slice(p, p + w + 2 * c) for p, w, c in zip(place, window, border, strict=True))
        output = _mirrored(network, padded[(slice(None), *read)][None], axes)[0].double()
        part = tuple(slice(p, p + w) for p, w in zip(place, window, strict=True))
        total = torch.zeros(len(output), *whole, dtype=torch.float64) if total is None else total
        total[(slice(None), *part)] += weight * output
        norm[part] += weight
    inside = tuple(slice(b, b + n) for b, n in zip(before, size, strict=True))
    return (total / norm)[(slice(None), *inside)].float()


def _plain_reference(volume: Volume, bundle: Bundle) -> torch.Tensor:
    """Logits (outputs, *s) on the volume's own grid."""
    prepared = Preprocessor(bundle.config).prepare(volume)
    with torch.inference_mode():
        logits = _plain_logits(torch.from_numpy(np.array(prepared.array)), bundle.network(), bundle.config)
    box = [part.stop - part.start for part in prepared.box]
    mode = "trilinear" if len(box) == 3 else "bilinear"
    logits = F.interpolate(logits[None], size=box, mode=mode, align_corners=False)[0]
    turned = [volume.geometry.shape[axis] for axis in prepared.order]
    full = torch.full((len(logits), *turned), -OUTSIDE_LOGIT)
    if not bundle.labels.regions:
        full[0] = OUTSIDE_LOGIT
    full[(slice(None), *prepared.box)] = logits
    own = np.empty((len(logits), *volume.geometry.shape), dtype=np.float32)
    reorient(own, prepared.order, prepared.flips)[...] = full.numpy()
    return torch.from_numpy(own)


def _plain_labels(logits: torch.Tensor, regions: bool) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and where rounding may decide otherwise."""
    if regions:
        labels = np.zeros(logits.shape[1:], dtype=int)
        for value, region in enumerate(logits.numpy(), start=1):
            labels[region > 0] = value
        return labels, (logits.abs().amin(dim=0) < NEAR).numpy()
    largest = logits.topk(2, dim=0).values
    return logits.argmax(dim=0).numpy(), ((largest[0] - largest[1]) < NEAR).numpy()


# ---- random models and volumes --------------------------------------------------------------------------------------


def _bundle(seed: int, dims: int, **changes: Any) -> Bundle:
    labels, regions = changes.pop("labels", 3), changes.pop("regions", None)
    style = changes.pop("style", "modern")
    levels = {"features": [3, 4], "strides": [[1] * dims, [2] * dims], "kernels": [[3] * dims] * 2}
    classic = {"style": "classic", "norm": "none", "activation": "relu", "downsampling": "maxpool"}
    config = parse_config(
        {
            "name": "law",
            "dims": dims,
            "channels": ["c"],
            "labels": {"background": 0, **{f"l{n}": n for n in range(1, labels + 1)}},
            "regions": regions,
            "preprocess": {
                "spacing_mm": None,
                "normalisation": [{"scheme": "zscore"}],
                "crop_to_nonzero": False,
            },
            "network": levels | (classic if style == "classic" else {}),
            "loss": {"class_weights": None},
            "augment": {"rotation_degrees": [-30, 30], "mirror_axes": list(range(dims))},
            "sampling": {"patch_voxels": [8] * dims, "batch_size": 2},
            "training": {
                "learning_rate": 1e-3,
                "steps_per_epoch": 1,
                "workers": 0,
                "validation_every_epochs": 1,
                "precision": "fp32",
            },
            "inference": {"engine": "torch"},
        },
        "the law",
    ).replacing({key.replace("__", "."): value for key, value in changes.items()})
    torch.manual_seed(seed)
    map_ = labels_of(config)
    network = build_network(config.network, dims, input_channels(config.network, ("c",)), map_.outputs)
    state = {key: torch.randn_like(value) * 0.4 for key, value in network.state_dict().items()}
    bundle = Bundle(config, map_, ("c",), state, {}, "0" * 64)
    _balance(bundle)
    return bundle


def _balance(bundle: Bundle) -> None:
    """Brings all outputs to mean 0 and deviation 1 on noise, so that each of them wins somewhere."""
    dims, network = bundle.dims, bundle.config.network
    size = [8 + 2 * border for border in context_voxels(network, dims)]
    with torch.inference_mode():
        outputs = bundle.network()(torch.randn(4, network.slices, *size)).transpose(0, 1).flatten(1)
    deviation = outputs.std(dim=1).clamp_min(1e-3)
    bundle.state["heads.0.weight"] /= deviation.view(-1, *[1] * (dims + 1))
    bundle.state["heads.0.bias"] -= outputs.mean(dim=1)
    bundle.state["heads.0.bias"] /= deviation


def _volume(seed: int, shape: tuple[int, ...], spacing: tuple[float, ...], turn: int = 0, empty: int = 0) -> Volume:
    """Smooth noise; ``turn`` chooses an order of the axes and flips, ``empty`` voxels at each end are exactly 0."""
    rng = np.random.default_rng(seed)
    array = rng.normal(100, 30, shape).astype(np.float32)
    if empty:
        inner = np.zeros_like(array)
        part = tuple(slice(empty, max(n - empty, empty + 1)) for n in shape)
        inner[part] = array[part]
        array = inner
    geometry = Geometry.from_spacing(shape, spacing)
    order = tuple(rng.permutation(len(shape)).tolist()) if turn else tuple(range(len(shape)))
    flips = tuple(bool(turn >> axis & 1) for axis in range(len(shape)))
    turned = np.ascontiguousarray(reorient(array, order, flips))
    return Volume(turned[None], geometry.reoriented(order, flips))


def _agrees(bundles: list[Bundle], volume: Volume) -> None:
    logits = torch.stack([_plain_reference(volume, bundle) for bundle in bundles]).mean(dim=0)
    expected, near = _plain_labels(logits, bool(bundles[0].labels.regions))
    found = Predictor(bundles, "cpu").predict(volume)
    assert found.labels.shape == expected.shape
    different = found.labels != expected
    assert not (different & ~near).any(), f"{int((different & ~near).sum())} of {different.size} voxels"
    assume(len(np.unique(expected)) > 1)


_SETTINGS = settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
_seeds = st.integers(0, 10**6)
_overlaps = st.sampled_from([0.0, 0.3, 0.5])


def _shapes(dims: int, most: int = 15) -> st.SearchStrategy[tuple[int, ...]]:
    """Mostly longer than a window of 8, now and then shorter, down to a single voxel thin."""
    return st.tuples(*[st.integers(1, most)] * dims).filter(lambda shape: prod(shape) > 40)


@_SETTINGS
@given(_seeds, _shapes(3), _overlaps, st.booleans(), st.integers(0, 7), st.integers(0, 3))
def test_volumes_of_any_shape_overlap_and_orientation(
    seed: int, shape: tuple[int, ...], overlap: float, mirror: bool, turn: int, empty: int
) -> None:
    changes = {"inference__overlap": overlap, "inference__mirror": mirror, "preprocess__crop_to_nonzero": empty > 0}
    empty = empty if min(shape) > 2 * empty + 1 else 0
    _agrees([_bundle(seed, 3, **changes)], _volume(seed, shape, (1.0, 1.3, 2.0), turn, empty))


@_SETTINGS
@given(_seeds, _shapes(3, 12), st.tuples(*[st.floats(0.5, 2.2)] * 3), st.integers(0, 7), st.integers(0, 2))
def test_volumes_of_any_spacing(
    seed: int, shape: tuple[int, ...], spacing: tuple[float, float, float], turn: int, empty: int
) -> None:
    changes = {"preprocess__spacing_mm": [1.0, 1.0, 1.0], "preprocess__crop_to_nonzero": empty > 0}
    empty = empty if min(shape) > 2 * empty + 1 else 0
    _agrees([_bundle(seed, 3, **changes)], _volume(seed, shape, spacing, turn, empty))


@_SETTINGS
@given(_seeds, _shapes(3), st.booleans(), st.integers(0, 7))
def test_a_two_dimensional_model_on_volumes(seed: int, shape: tuple[int, ...], resampled: bool, turn: int) -> None:
    changes = {"preprocess__spacing_mm": [1.0, 1.0]} if resampled else {}
    _agrees([_bundle(seed, 2, **changes)], _volume(seed, shape, (0.8, 1.3, 3.0), turn))


@_SETTINGS
@given(_seeds, _shapes(3), st.sampled_from([3, 5]), st.booleans(), st.booleans(), st.integers(0, 7), st.integers(0, 2))
def test_neighbouring_slices_of_volumes(
    seed: int, shape: tuple[int, ...], slices: int, classic: bool, mirror: bool, turn: int, empty: int
) -> None:
    empty = empty if min(shape) > 2 * empty + 1 else 0
    changes = {"inference__mirror": mirror, "preprocess__crop_to_nonzero": empty > 0, "network__slices": slices}
    bundle = _bundle(seed, 2, style="classic" if classic else "modern", **changes)
    shape = tuple(max(n, 2) for n in shape) if classic else shape
    _agrees([bundle], _volume(seed, shape, (0.8, 1.3, 3.0), turn, empty))


@_SETTINGS
@given(_seeds, _shapes(2, 40), _overlaps, st.booleans(), st.integers(0, 3))
def test_pictures(seed: int, shape: tuple[int, ...], overlap: float, mirror: bool, turn: int) -> None:
    bundle = _bundle(seed, 2, inference__overlap=overlap, inference__mirror=mirror, preprocess__spacing_mm=[1.0, 1.0])
    _agrees([bundle], _volume(seed, shape, (0.7, 1.2), turn))


@_SETTINGS
@given(_seeds, _shapes(3, 12), st.booleans(), st.booleans())
def test_many_classes_are_blended_as_features(seed: int, shape: tuple[int, ...], mirror: bool, resampled: bool) -> None:
    changes = {"preprocess__spacing_mm": [1.0, 1.0, 1.0]} if resampled else {}
    bundle = _bundle(seed, 3, labels=9, inference__mirror=mirror, **changes)
    _agrees([bundle], _volume(seed, shape, (0.8, 1.0, 1.7), 3))


@_SETTINGS
@given(_seeds, _shapes(3, 12), st.integers(0, 2))
def test_overlapping_regions(seed: int, shape: tuple[int, ...], empty: int) -> None:
    empty = empty if min(shape) > 2 * empty + 1 else 0
    bundle = _bundle(seed, 3, regions=NESTED, preprocess__spacing_mm=[1.0] * 3, preprocess__crop_to_nonzero=empty > 0)
    _agrees([bundle], _volume(seed, shape, (1.4, 1.0, 0.8), 5, empty))


@_SETTINGS
@given(_seeds, _shapes(2, 40), st.booleans())
def test_networks_that_read_beyond_their_windows(seed: int, shape: tuple[int, ...], mirror: bool) -> None:
    bundle = _bundle(seed, 2, style="classic", inference__mirror=mirror)
    _agrees([bundle], _volume(seed, tuple(max(n, 2) for n in shape), (1.0, 1.0), 1))


@_SETTINGS
@given(_seeds, _shapes(3, 12))
def test_several_models_of_different_windows_and_grids(seed: int, shape: tuple[int, ...]) -> None:
    first = _bundle(seed, 3, preprocess__spacing_mm=[1.0, 1.0, 1.0])
    second = _bundle(seed + 1, 3, sampling__patch_voxels=[12, 6, 8], preprocess__spacing_mm=[1.4, 0.9, 1.1])
    _agrees([first, second], _volume(seed, shape, (0.9, 1.0, 1.6), 6))


def test_a_model_of_neighbouring_slices_labels_no_picture() -> None:
    predictor = Predictor([_bundle(0, 2, network__slices=3)], "cpu")
    with pytest.raises(InputRefusedError, match="made for volumes, the image is a picture"):
        predictor.predict(_volume(0, (16, 16), (1.0, 1.0)))
