"""Which windows hold nothing, learnt from invented scans, and what whole cases say of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unet_med.bundle import Bundle, load_bundle
from unet_med.config import PipelineConfig, parse_config
from unet_med.data import CachedCase, write_case
from unet_med.geometry import Geometry
from unet_med.inference.emptiness import EmptinessRule
from unet_med.inference.predictor import Predictor
from unet_med.training.emptiness import (
    Confirmation,
    LearntRule,
    WindowExtremes,
    confirm_emptiness,
    learn_emptiness,
    proven_emptiness,
)
from unet_med.volume import Volume

Scan = tuple[np.ndarray, np.ndarray]

WINDOW = 16


def _config(dims: int = 3, window: int = WINDOW) -> PipelineConfig:
    return parse_config(
        {
            "name": "toy",
            "dims": dims,
            "network": {"features": [4, 8], "strides": [[1] * dims, [2] * dims], "kernels": [[3] * dims] * 2},
            "sampling": {"patch_voxels": [window] * dims},
        },
        "the toy",
    )


def _cases(folder: Path, scans: list[Scan]) -> list[CachedCase]:
    found = []
    for number, (image, label) in enumerate(scans):
        image = image[None] if image.ndim == label.ndim else image
        write_case(folder / str(number), image.astype(np.float32), label.astype(np.uint8), None, None)
        found.append(CachedCase(str(number), folder / str(number), label.shape, None))
    return found


def _zscore(image: np.ndarray) -> np.ndarray:
    return (image - image.mean()) / image.std()


def _body(seed: int, shape: tuple[int, ...] = (64, 48, 40)) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """A body with an organ in one half of the field of view."""
    rng = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    centre = np.array([20.0, 20.0, 20.0])[: len(shape)] + rng.uniform(-2, 2, len(shape))
    body = ((place - centre) ** 2).sum(-1) < 17.0**2
    organ = ((place - centre - 3) ** 2).sum(-1) < 6.0**2
    return body, organ, rng


def ct(seed: int) -> Scan:
    """Clipped at the window's ends: air is constant."""
    body, organ, rng = _body(seed)
    hu = np.where(organ, 80.0, np.where(body, 10.0, -1000.0)) + rng.normal(0, 15, body.shape)
    return (hu.clip(-60, 140) - 70) / 30, organ


def mr(seed: int) -> Scan:
    """Rician noise, each image with its own gain."""
    body, organ, rng = _body(seed)
    signal = np.where(organ, 140.0, np.where(body, 90.0, 0.0)) + rng.normal(0, 6, body.shape)
    return _zscore(np.hypot(signal, rng.normal(0, 6, body.shape)) * rng.uniform(0.5, 2)), organ


def bright_field(seed: int) -> Scan:
    cells, nucleus, rng = _body(seed, (96, 80))
    light = np.where(nucleus, 60.0, np.where(cells, 140.0, 220.0)) + rng.normal(0, 4, cells.shape)
    return _zscore(light), nucleus


def fluorescence(seed: int) -> Scan:
    _, nucleus, rng = _body(seed, (96, 80))
    return _zscore(rng.poisson(np.where(nucleus, 120.0, 8.0)).astype(float)), nucleus


def no_air(seed: int) -> Scan:
    body, organ, rng = _body(seed)
    return _zscore(np.where(organ, 140.0, 90.0) + rng.normal(0, 20, body.shape)), organ


@pytest.mark.parametrize("scan", [ct, mr, bright_field, fluorescence])
def test_background_of_any_kind_is_skipped_and_labels_are_not(scan: Callable[[int], Scan], tmp_path: Path) -> None:
    scans = [scan(seed) for seed in range(7)]
    cases, config = _cases(tmp_path, scans[:6]), _config(scans[0][1].ndim)
    learnt = learn_emptiness(cases, config)
    assert learnt.rule is not None, learnt.reason
    assert learnt.share > 0.1
    assert learnt.cases == 6
    image, label = scans[6]
    starts = [range(0, n - WINDOW + 1, 3) for n in label.shape]
    for place in np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, label.ndim):
        part = tuple(slice(at, at + WINDOW) for at in place)
        empty = learnt.rule(torch.tensor(image[part], dtype=torch.float32)[None])
        assert not (empty and label[part].any())
    corner = tuple(slice(n - WINDOW, n) for n in label.shape)
    assert learnt.rule(torch.tensor(image[corner], dtype=torch.float32)[None]), "background of a new image"


def test_where_there_is_no_background_there_is_no_rule(tmp_path: Path) -> None:
    learnt = learn_emptiness(_cases(tmp_path, [no_air(seed) for seed in range(6)]), _config())
    assert learnt.rule is None
    assert learnt.reason.startswith("no rule")


@pytest.mark.parametrize("scan", [ct, mr])
def test_one_structure_as_dark_as_air_forbids_the_rule(scan: Callable[[int], Scan], tmp_path: Path) -> None:
    scans = [scan(seed) for seed in range(6)]
    image, label = scans[3]
    label = label.copy()
    label[40:62, 24:46, 10:36] = 1
    learnt = learn_emptiness(_cases(tmp_path, [*scans[:3], (image, label), *scans[4:]]), _config())
    assert learnt.rule is None


def test_a_dark_structure_that_stands_out_in_another_channel_does_not(tmp_path: Path) -> None:
    scans = []
    for seed in range(6):
        image, label = ct(seed)
        label = label.copy()
        label[44:50, 30:36, 20:26] = 1
        pet = np.where(label, 8.0, 0.2) + np.random.default_rng(seed).normal(0, 0.1, label.shape)
        scans.append((np.stack([image, pet]), label))
    learnt = learn_emptiness(_cases(tmp_path, scans), _config())
    assert learnt.rule is not None
    assert len(learnt.rule.low) == 2


def test_no_training_window_with_a_label_is_ever_skipped(tmp_path: Path) -> None:
    config, learnt = _config(window=8), []
    for seed in range(10):
        cases = _cases(tmp_path / str(seed), _specks(seed))
        learnt.append(learn_emptiness(cases, config))
        windows = WindowExtremes.of(cases, (8, 8, 8), config.inference.overlap)
        rule = learnt[-1].rule
        assert rule is None or not (windows.skipped_by(rule) & windows.labelled).any()
    assert 3 <= sum(one.rule is not None for one in learnt) < 10, "both outcomes are tried"


def _specks(seed: int) -> list[Scan]:
    """Labelled blocks of a few voxels, bright to faint, anywhere in noise of several levels."""
    rng = np.random.default_rng(seed)
    scans = []
    for _ in range(7):
        shape = tuple(rng.integers(14, 40, 3))
        image, label = rng.normal(0, rng.uniform(0, 0.05), shape), np.zeros(shape, bool)
        for _ in range(rng.integers(1, 4)):
            at, size = rng.integers(0, shape), rng.integers(1, 5, 3)
            block = tuple(slice(a, a + s) for a, s in zip(at, size, strict=True))
            label[block] = True
            image[block] += rng.uniform(0.02 * seed, 3)
        image[: shape[0] // 3] += rng.uniform(0, 0.2)
        scans.append((image, label))
    return scans


def test_extremes_are_those_of_the_windows_that_prediction_lays(tmp_path: Path) -> None:
    image, label = mr(0)
    (case,) = _cases(tmp_path, [(image[:, :20, :11], label[:, :20, :11])])
    windows = WindowExtremes.of([case], (16, 16, 16), 0.5)
    starts = [(a, b) for a in range(0, 49, 8) for b in (0, 4)]
    assert len(windows.low) == len(starts)
    for (a, b), low, high in zip(starts, windows.low, windows.high, strict=True):
        part = case.image()[0, a : a + 16, b : b + 16]
        assert (low[0], high[0]) == (part.min(), part.max())


def test_a_two_dimensional_network_sees_volumes_slice_by_slice(tmp_path: Path) -> None:
    cases = _cases(tmp_path, [ct(seed) for seed in range(6)])
    learnt = learn_emptiness(cases, _config(2))
    assert learnt.rule is not None
    assert learnt.rule.window == (WINDOW, WINDOW)
    assert len(WindowExtremes.of(cases[:1], (16, 16), 0.5).low) == 7 * 5 * 40


def test_too_few_cases_or_windows_are_not_enough(tmp_path: Path) -> None:
    four = learn_emptiness(_cases(tmp_path / "four", [ct(seed) for seed in range(4)]), _config())
    assert four.rule is None
    assert "in 4 of 4 cases; at least 2% in 5 cases are needed" in four.reason
    unlabelled = [(image, np.zeros_like(label)) for image, label in map(ct, range(5))]
    assert learn_emptiness(_cases(tmp_path / "none", unlabelled), _config()).rule is None
    assert learn_emptiness([], _config()).rule is None


# ---- the proof on whole cases: the model's label 1 is what is brighter than the image's mean ------------------------


def _volume(seed: int) -> Volume:
    """Dark for two thirds, but for one voxel that the model calls bright: 1.3 sd above the background."""
    image = np.random.default_rng(seed).normal(0, 0.01, (48, 16, 16)).astype(np.float32)
    image[32:] += 8
    image[5, 5, 5] = 5.0
    return Volume(image[None], Geometry.from_spacing(image.shape, (1.0, 1.0, 1.0)))


def _rule(spread: float, high: float = 0.8) -> EmptinessRule:
    return EmptinessRule((16, 16, 16), (-1.0,), (high,), (spread,))


@pytest.fixture
def bundle(tiny_bundle: Callable[..., Path]) -> Bundle:
    return load_bundle(tiny_bundle())


def test_a_rule_that_changes_a_voxel_is_found_out(bundle: Bundle) -> None:
    volumes = [_volume(seed) for seed in range(3)]
    assert confirm_emptiness(_rule(0.2), bundle, volumes, "cpu") == Confirmation(3, 0)
    assert confirm_emptiness(_rule(2.0), bundle, volumes, "cpu") == Confirmation(1, 1)


def test_images_without_a_window_to_skip_prove_nothing(bundle: Bundle) -> None:
    assert confirm_emptiness(_rule(0.2, high=-0.9), bundle, [_volume(0)], "cpu") == Confirmation(0, 0)


def test_the_proof_ends_after_its_time(bundle: Bundle) -> None:
    assert confirm_emptiness(_rule(0.2), bundle, map(_volume, range(9)), "cpu", max_seconds=0) == Confirmation(1, 0)


@pytest.mark.parametrize(
    ("spread", "kept", "words"),
    [(0.2, 0.2, "the same"), (2.0, 1.0, "the same"), (4.0, None, "no rule: it would change 1 voxels")],
    ids=["right", "right once tightened", "wrong"],
)
def test_only_a_proven_rule_goes_into_the_bundle(
    spread: float, kept: float | None, words: str, bundle: Bundle, tmp_path: Path
) -> None:
    volumes = {str(number): _volume(number) for number in range(2)}
    cases = _cases(tmp_path, [(_zscore(v.array[0]), np.zeros(v.geometry.shape)) for v in volumes.values()])
    readers = {name: (lambda volume=volume: volume) for name, volume in volumes.items()}
    learnt = LearntRule(_rule(spread), "10% of the training windows hold nothing", 0.1, 5)
    entry = proven_emptiness(learnt, bundle, cases, readers, "cpu")
    rule = EmptinessRule.from_json(entry["rule"])
    assert rule == (None if kept is None else _rule(kept))
    assert words in entry["reason"]
    assert entry["share_of_training_windows"] == 0.1
    assert entry["confirmed_on"] == (0 if kept is None else 2)
    unproven = proven_emptiness(learnt, bundle, [], readers, "cpu")
    assert (unproven["rule"], unproven["confirmed_on"]) == (None, 0)


def test_prediction_skips_by_the_bundle_s_rule_unless_the_pipeline_forbids(bundle: Bundle) -> None:
    skipping = replace(bundle, meta={"empty_windows": {"rule": _rule(0.2).to_json()}})
    assert Predictor([skipping], "cpu").predict(_volume(0)).windows_skipped == 2
    forbidden = replace(skipping, config=bundle.config.replacing({"inference.skip_empty": False}))
    assert Predictor([forbidden], "cpu").predict(_volume(0)).windows_skipped == 0
