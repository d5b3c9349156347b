"""Patches of a cascade's second stage: the image as ever, and one channel for each label of the first stage's mask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unet_med.config import PipelineConfig, parse_config
from unet_med.data import CachedCase, write_case
from unet_med.device_data import DeviceCases, device_batches
from unet_med.labels import LabelMap
from unet_med.patches import PatchDataset, patch_loader
from unet_med.training.trainer import Trainer
from unet_med.transforms import prior as prior_module

SHAPE = (14, 16, 12)
LABELS = {"background": 0, "one": 1, "two": 2}


@pytest.fixture
def cases(tmp_path: Path) -> list[CachedCase]:
    """Prepared cases whose first stage found exactly what is there."""
    made = []
    for number in range(3):
        rng = np.random.default_rng(number)
        label = np.kron(rng.integers(0, 3, [-(-n // 4) for n in SHAPE]), np.ones((4, 4, 4)))
        label = label[tuple(slice(n) for n in SHAPE)].astype(np.uint8)
        image = rng.normal(size=(1, *SHAPE)).astype(np.float32)
        write_case(tmp_path / str(number), image, label, None, (1.0, 1.0, 1.5))
        np.save(tmp_path / f"{number}.npy", label)
        made.append(CachedCase(str(number), tmp_path / str(number), SHAPE, (1.0, 1.0, 1.5), tmp_path / f"{number}.npy"))
    return made


def config_of(**changes: Any) -> PipelineConfig:
    base = {
        "name": "tiny",
        "dims": 3,
        "channels": ["a"],
        "labels": LABELS,
        "cascade": {"spacing_mm": [2.0, 2.0, 3.0]},
        "preprocess": {"spacing_mm": None, "normalisation": [{"scheme": "zscore"}], "crop_to_nonzero": False},
        "network": {"features": [2, 2], "strides": [[1] * 3, [2] * 3], "kernels": [[3] * 3] * 2},
        "loss": {"class_weights": None},
        "augment": {"rotation_degrees": [-30, 30], "mirror_axes": [0, 1, 2], "elastic_probability": 0.3},
        "sampling": {"patch_voxels": [10, 8, 8], "batch_size": 4},
        "training": {"learning_rate": 1e-3, "steps_per_epoch": 2, "workers": 0, "validation_every_epochs": 1},
    }
    return parse_config(base, "tiny").replacing({name.replace("__", "."): value for name, value in changes.items()})


@pytest.fixture
def undamaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prior_module, "RESHAPED", 0.0)
    monkeypatch.setattr(prior_module, "COMPONENT_LOST", 0.0)


@pytest.mark.usefixtures("undamaged")
def test_the_mask_moves_as_the_label_does_and_keeps_its_values(cases: list[CachedCase]) -> None:
    dataset = PatchDataset(cases, config_of())
    for index in range(24):
        item = dataset[index]
        assert item["image"].shape == (3, 10, 8, 8)
        label = item["label"].numpy()
        expected = np.stack([np.where(label == value, 1.0, 0.0) for value in (1, 2)])
        assert np.array_equal(item["image"][1:].numpy(), expected)


def test_the_image_is_the_one_that_is_seen_without_a_cascade(cases: list[CachedCase]) -> None:
    with_prior = PatchDataset(cases, config_of())
    plain = PatchDataset([replace(case, prior_file=None) for case in cases], config_of(cascade__spacing_mm=None))
    for index in range(8):
        ours, theirs = with_prior[index], plain[index]
        assert torch.equal(ours["image"][:1], theirs["image"])
        assert torch.equal(ours["label"], theirs["label"])


def test_damage_depends_on_seed_and_number_alone(cases: list[CachedCase]) -> None:
    first, second = (PatchDataset(cases, config_of()) for _ in range(2))
    other = PatchDataset(cases, config_of(seed=1))
    same = [torch.equal(first[index]["image"], second[index]["image"]) for index in (*range(12), 3)]
    assert all(same)
    damage = [not torch.equal(first[n]["image"][2], (first[n]["label"] == 2).float()) for n in range(40)]
    assert 0 < sum(damage) < 40
    assert damage != [not torch.equal(other[n]["image"][2], (other[n]["label"] == 2).float()) for n in range(40)]


@pytest.mark.parametrize("budget", [0, 10**9])
def test_batches_made_on_a_device_are_the_same(cases: list[CachedCase], budget: int) -> None:
    dataset = PatchDataset(cases, config_of(augment__noise_probability=0.0))
    there = DeviceCases(cases, torch.device("cpu"), budget)
    ours = list(device_batches(there, dataset, 4, 0, 4))
    theirs = list(patch_loader(dataset, 4, 0, 4, workers=0))
    for batch, expected in zip(ours, theirs, strict=True):
        assert torch.equal(batch["image"][:, 1:], expected["image"][:, 1:])
        assert batch["image"].shape == expected["image"].shape


def test_the_unpadded_network_sees_the_mask_around_its_patch(cases: list[CachedCase]) -> None:
    config = config_of(
        network__style="classic",
        network__features=[2, 2],
        sampling__patch_voxels=[4, 4, 4],
        augment__rotation_probability=0.0,
    )
    dataset = PatchDataset(cases, config)
    image = dataset[0]["image"]
    assert image.shape[0] == 3
    assert image.shape[1:] == tuple(p + 2 * c for p, c in zip(dataset.patch, dataset.context, strict=True))


def naive(mask: np.ndarray) -> np.ndarray:
    return np.stack([np.where(mask == value, 1, 0) for value in (1, 2)]).astype(np.float32)


def test_validation_sees_the_mask_as_it_is(cases: list[CachedCase], tmp_path: Path) -> None:
    """The same labels as a network without a cascade gives an image whose further channels are the mask."""
    config = config_of(training__precision="fp32", sampling__patch_voxels=[8, 8, 8])
    labels = LabelMap.from_names(LABELS)
    cascaded = Trainer(config, labels, 1, torch.device("cpu"))
    plain = Trainer(
        config.replacing({"cascade.spacing_mm": None, "channels": ["a", "b", "c"]}), labels, 3, torch.device("cpu")
    )
    plain.network.load_state_dict(cascaded.network.state_dict())
    case = cases[0]
    joined = np.concatenate([case.image(), naive(np.asarray(case.prior()))])
    write_case(tmp_path / "joined", joined, np.asarray(case.label()), None, case.spacing_mm)
    twin = CachedCase("joined", tmp_path / "joined", case.shape, case.spacing_mm)
    with cascaded.evaluating() as first, plain.evaluating() as second:
        assert np.array_equal(cascaded.predict(first, case), plain.predict(second, twin))
