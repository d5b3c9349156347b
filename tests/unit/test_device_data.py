"""Batches made on a device against the samples of the data set, one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unet_med.config import PipelineConfig, parse_config
from unet_med.data import CachedCase, write_case
from unet_med.device_data import DeviceCases, device_batches, resident_cases
from unet_med.patches import PatchDataset, patch_loader

CPU = torch.device("cpu")
SHAPE = (14, 16, 12)
IMAGE_BYTES, LABEL_BYTES = 2 * 4 * 14 * 16 * 12, 14 * 16 * 12


@pytest.fixture
def make_cases(tmp_path: Path) -> Callable[..., list[CachedCase]]:
    """Returns a maker of prepared cases: smooth images, so that the last digit of a position does not show."""

    def make(count: int = 3, weights: bool = False, dtype: Any = np.uint8) -> list[CachedCase]:
        axes = np.meshgrid(*[np.linspace(0, 3, n) for n in SHAPE], indexing="ij")
        cases = []
        for number in range(count):
            image = np.stack([np.sin(sum(axes) + number + channel) for channel in range(2)]).astype(np.float32)
            label = (image[0] > 0.2).astype(dtype) + (image[1] > 0.7) * dtype(2)
            folder = tmp_path / str(number)
            write_case(folder, image, label.astype(dtype), image[1] ** 2 if weights else None, (1.0, 1.0, 2.0))
            cases.append(CachedCase(str(number), folder, SHAPE, (1.0, 1.0, 2.0)))
        return cases

    return make


def config_of(dims: int = 3, **changes: Any) -> PipelineConfig:
    one, two, three = [1] * dims, [2] * dims, [3] * dims
    base = {
        "name": "tiny",
        "dims": dims,
        "channels": ["a", "b"],
        "labels": {"background": 0, "one": 1, "two": 2, "three": 3},
        "preprocess": {
            "spacing_mm": None,
            "normalisation": [{"scheme": "zscore"}] * 2,
            "crop_to_nonzero": False,
        },
        "network": {"features": [2, 2], "strides": [one, two], "kernels": [three, three]},
        "augment": {
            "rotation_degrees": [-30, 30],
            "mirror_axes": list(range(dims)),
            "elastic_probability": 0.3,
            "elastic_sd_voxels": 1.0,
            "noise_probability": 0.0,
        },
        "sampling": {"patch_voxels": [10, 8, 8][:dims], "batch_size": 4},
    }
    return parse_config(base, "tiny").replacing({name.replace("__", "."): value for name, value in changes.items()})


def assert_same(batch: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert batch.keys() == expected.keys()
    for name, tensor in expected.items():
        assert batch[name].shape == tensor.shape
        assert batch[name].dtype == tensor.dtype
        if name == "label":  # a voxel half-way between two may go either way
            assert float((batch[name] != tensor).float().mean()) < 1e-3
        else:
            torch.testing.assert_close(batch[name], tensor, rtol=0, atol=1e-4)


@pytest.mark.parametrize("resident", [0, 1, 3])
def test_any_mixture_of_places_gives_the_same_batches(
    make_cases: Callable[..., list[CachedCase]], resident: int
) -> None:
    cases = make_cases()
    dataset = PatchDataset(cases, config_of())
    there = DeviceCases(cases, CPU, resident * (IMAGE_BYTES + LABEL_BYTES))
    assert there.resident == resident
    ours = list(device_batches(there, dataset, 4, 2, 6))
    theirs = list(patch_loader(dataset, 4, 2, 6, workers=0))
    for batch, expected in zip(ours, theirs, strict=True):
        assert_same(batch, expected)


@pytest.mark.parametrize("resident", [True, False])
def test_slices_of_volumes_with_weights(make_cases: Callable[..., list[CachedCase]], resident: bool) -> None:
    cases = make_cases(weights=True, dtype=np.uint16)
    dataset = PatchDataset(cases, config_of(2))
    there = DeviceCases(cases, CPU, 10**9 if resident else 0)
    for batch, expected in zip(
        device_batches(there, dataset, 4, 0, 4), patch_loader(dataset, 4, 0, 4, workers=0), strict=True
    ):
        assert "weight" in batch
        assert_same(batch, expected)


@pytest.mark.parametrize("resident", [0, 2, 3])
@pytest.mark.parametrize("style", ["modern", "classic"])
def test_neighbouring_slices_are_channels(
    make_cases: Callable[..., list[CachedCase]], resident: int, style: str
) -> None:
    cases = make_cases()
    dataset = PatchDataset(cases, config_of(2, network__slices=5, network__style=style))
    there = DeviceCases(cases, CPU, resident * (IMAGE_BYTES + LABEL_BYTES))
    for batch, expected in zip(
        device_batches(there, dataset, 4, 0, 4), patch_loader(dataset, 4, 0, 4, workers=0), strict=True
    ):
        assert batch["image"].shape[:2] == (4, 10)
        assert_same(batch, expected)


def test_networks_without_padding_see_a_mirrored_border(make_cases: Callable[..., list[CachedCase]]) -> None:
    cases = make_cases()
    config = config_of(2, network__style="classic")
    dataset = PatchDataset(cases, config)
    assert any(dataset.context)
    for batch, expected in zip(
        device_batches(DeviceCases(cases, CPU, 10**9), dataset, 3, 0, 3),
        patch_loader(dataset, 3, 0, 3, workers=0),
        strict=True,
    ):
        assert batch["image"].shape[-1] > batch["label"].shape[-1]
        assert_same(batch, expected)


def test_processes_share_a_step(make_cases: Callable[..., list[CachedCase]]) -> None:
    cases = make_cases()
    dataset = PatchDataset(cases, config_of())
    there = DeviceCases(cases, CPU, 10**9)
    whole = next(device_batches(there, dataset, 4, 1, 2))
    for rank in range(2):
        share = next(device_batches(there, dataset, 4, 1, 2, rank, 2))
        torch.testing.assert_close(share["image"], whole["image"][rank::2], rtol=0, atol=1e-4)


def test_noise_is_the_same_at_every_start(make_cases: Callable[..., list[CachedCase]]) -> None:
    cases = make_cases(1)
    dataset = PatchDataset(cases, config_of(augment__noise_probability=1.0))
    there = DeviceCases(cases, CPU, 10**9)
    batches = list(device_batches(there, dataset, 2, 0, 3))
    resumed = next(device_batches(there, dataset, 2, 2, 3))
    assert torch.equal(resumed["image"], batches[2]["image"])
    quiet = next(device_batches(there, PatchDataset(cases, config_of()), 2, 2, 3))
    assert not torch.allclose(resumed["image"], quiet["image"], atol=1e-2)


def test_cases_are_kept_while_the_budget_lasts(make_cases: Callable[..., list[CachedCase]]) -> None:
    cases = make_cases(2, weights=True)
    size = IMAGE_BYTES + LABEL_BYTES + LABEL_BYTES * 4
    assert resident_cases(cases, size - 1) == []
    assert resident_cases(cases, size) == cases[:1]
    assert resident_cases(cases, 2 * size) == cases


def test_a_fault_in_reading_is_raised_where_the_batch_is_asked_for(
    make_cases: Callable[..., list[CachedCase]],
) -> None:
    cases = make_cases(1)
    dataset = PatchDataset(cases, config_of())
    batches = device_batches(DeviceCases(cases, CPU, 0), dataset, 1, 0, 9)
    next(batches)
    (cases[0].folder / "image.npy").unlink()
    with pytest.raises(FileNotFoundError):
        list(batches)


def taught(cases: list[CachedCase], folder: Path, chances: Callable[[CachedCase], np.ndarray]) -> list[CachedCase]:
    """Gives each case what a teacher says of it, (labels, *s) from 0 to 255."""
    files = [folder / f"{case.id}.npy" for case in cases]
    for case, file in zip(cases, files, strict=True):
        np.save(file, chances(case).astype(np.uint8))
    return [replace(case, teacher_file=file) for case, file in zip(cases, files, strict=True)]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("resident", [0, 10**9])
def test_what_a_teacher_says_comes_along(
    make_cases: Callable[..., list[CachedCase]], tmp_path: Path, dims: int, resident: int
) -> None:
    cases = taught(make_cases(), tmp_path, lambda case: 100 * (1 + case.image()))
    dataset = PatchDataset(cases, config_of(dims))
    for batch, expected in zip(
        device_batches(DeviceCases(cases, CPU, resident), dataset, 4, 0, 4),
        patch_loader(dataset, 4, 0, 4, workers=0),
        strict=True,
    ):
        assert batch["teacher"].shape == (4, 2, *dataset.patch)
        assert_same(batch, expected)


def test_what_a_teacher_says_lies_where_the_labels_lie(
    make_cases: Callable[..., list[CachedCase]], tmp_path: Path
) -> None:
    def certain(case: CachedCase) -> np.ndarray:
        return np.stack([case.label() == value for value in (1, 2, 3)]) * 255

    cases = taught(make_cases(), tmp_path, certain)
    still = {"augment__rotation_probability": 0.0, "augment__scaling_probability": 0.0}
    dataset = PatchDataset(cases, config_of(**still, augment__elastic_probability=0.0))
    for batch in patch_loader(dataset, 4, 0, 4, workers=0):
        expected = torch.stack([batch["label"] == value for value in (1, 2, 3)], dim=1).float()
        assert len(batch["label"].unique()) > 1
        torch.testing.assert_close(batch["teacher"], expected, rtol=0, atol=0)
