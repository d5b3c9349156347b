"""Random patches: rare labels come as often as common ones, unlabelled voxels are passed by, slices are channels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_med.config import PipelineConfig, parse_config
from unet_med.data import CachedCase, write_case
from unet_med.errors import ConfigError
from unet_med.patches import PatchDataset, neighbours, patch_loader

STILL = {f"augment.{name}_probability": 0 for name in ("rotation", "scaling", "mirror", "noise", "blur", "brightness")}
STILL |= {f"augment.{name}_probability": 0 for name in ("contrast", "low_resolution", "gamma", "gamma_inverted")}


def config_of(dims: int = 2, channels: int = 1, **changes: Any) -> PipelineConfig:
    base = {
        "name": "patches",
        "dims": dims,
        "channels": [f"c{number}" for number in range(channels)],
        "labels": {"background": 0, "common": 1, "rare": 2},
        "preprocess": {
            "spacing_mm": None,
            "normalisation": [{"scheme": "zscore"}] * channels,
            "crop_to_nonzero": False,
        },
        "network": {"features": [2, 2], "strides": [[1] * dims, [2] * dims], "kernels": [[3] * dims] * 2},
        "augment": {"rotation_degrees": [-30, 30], "mirror_axes": []},
        "sampling": {"patch_voxels": [8] * dims, "batch_size": 4, "foreground_share": 0.5},
    }
    return parse_config(base, "patches").replacing({**STILL, **changes})


def case_of(folder: Path, name: str, label: np.ndarray, image: np.ndarray | None = None, **how: Any) -> CachedCase:
    image = label[None].astype(np.float32) if image is None else image
    write_case(folder / name, image, label, None, (1.0,) * label.ndim, **how)
    return CachedCase(name, folder / name, label.shape, (1.0,) * label.ndim)


@pytest.fixture
def uneven(tmp_path: Path) -> list[CachedCase]:
    """Ten cases with a common label, one of which also holds a rare one, and an empty case."""
    cases = []
    for number in range(11):
        label = np.zeros((40, 40), dtype=np.uint8)
        label[5:30, 5:30] = number < 10
        label[30:32, 30:32] = 2 * (number == 3)
        cases.append(case_of(tmp_path, f"case{number}", label))
    return cases


def test_a_rare_label_is_chosen_as_often_as_a_common_one(uneven: list[CachedCase]) -> None:
    dataset = PatchDataset(uneven, config_of())
    held: Counter[int] = Counter()
    for index in range(1, 1200, 2):  # every second one is centred on a label
        label = dataset[index]["label"]
        assert (label > 0).any()
        held[int(label.max())] += 1
    assert held[2] == pytest.approx(300, abs=60)  # five standard deviations


def test_a_case_gives_way_only_to_a_label_that_it_lacks(uneven: list[CachedCase]) -> None:
    dataset = PatchDataset(uneven, config_of())
    for index in range(300):
        drawn, due = dataset.draw(index).case, dataset.case_of(index)
        forced = index % 2 == 1
        assert drawn is due or (forced and (drawn.id == "case3" or due.id == "case10"))


def test_samples_are_a_function_of_their_number(uneven: list[CachedCase]) -> None:
    config = config_of(**{"augment.rotation_probability": 1.0, "augment.noise_probability": 1.0})
    forward = list(patch_loader(PatchDataset(uneven, config), 4, 0, 12, 0))
    later = list(patch_loader(PatchDataset(uneven, config), 4, 7, 12, 0))
    for one, two in zip(forward[7:], later, strict=True):
        assert one["image"].equal(two["image"])
        assert one["label"].equal(two["label"])


def test_a_set_without_any_label_gives_patches(tmp_path: Path) -> None:
    dataset = PatchDataset([case_of(tmp_path, "empty", np.zeros((20, 20), np.uint8))], config_of())
    assert all(dataset[index]["label"].sum() == 0 for index in range(6))


# ---- voxels that nobody labelled ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_patches_are_centred_on_what_is_labelled(tmp_path: Path, dims: int) -> None:
    label = np.full((40, 36, 30), 255, dtype=np.uint8)
    label[10:13, 20:22, 9] = 1
    label[25:30, 12:14, 20:22] = 0
    case = case_of(tmp_path, "sparse", label, ignored=255)
    dataset = PatchDataset([case], config_of(dims, ignore_label=255))
    seen = set()
    for index in range(60):
        patch = dataset[index]["label"].numpy()
        centre = int(patch[(4,) * dims])
        assert centre == 1 if index % 2 else centre in (0, 1)
        seen.add(centre)
    assert seen == {0, 1}


def test_a_case_of_which_nothing_is_labelled_still_gives_patches(tmp_path: Path) -> None:
    cases = [
        case_of(tmp_path, "none", np.full((20, 20), 255, np.uint8), ignored=255),
        case_of(tmp_path, "some", np.eye(20, dtype=np.uint8), ignored=255),
    ]
    dataset = PatchDataset(cases, config_of(ignore_label=255))
    assert {dataset.draw(index).case.id for index in range(0, 20, 2)} == {"none", "some"}
    assert {dataset.draw(index).case.id for index in range(1, 20, 2)} == {"some"}
    assert dataset[0]["image"].shape == (1, 8, 8)


# ---- neighbouring slices --------------------------------------------------------------------------------------------


@given(size=st.integers(1, 9), count=st.sampled_from([1, 3, 5, 7]), data=st.data())
def test_neighbours_are_those_of_a_mirrored_volume(size: int, count: int, data: st.DataObject) -> None:
    position, reach = data.draw(st.integers(0, size - 1)), count // 2
    padded = np.pad(np.arange(size), reach, mode="reflect" if size > 1 else "edge")
    assert neighbours(position, size, count) == tuple(padded[position : position + count].tolist())


@pytest.mark.parametrize("slices", [1, 3, 5])
def test_slices_are_channels_one_after_the_other(tmp_path: Path, slices: int) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 16, 16, 4)).astype(np.float32)
    label = rng.integers(0, 3, (16, 16, 4)).astype(np.uint8)
    dataset = PatchDataset([case_of(tmp_path, "x", label, image)], config_of(2, 2, **{"network.slices": slices}))
    reach = slices // 2
    padded = np.pad(image, [(0, 0)] * 3 + [(reach, reach)], mode="reflect")
    for index in range(12):
        sample, item = dataset.draw(index), dataset[index]
        assert sample.slices is not None
        place = sample.slices[reach]
        box = tuple(slice(round(c - 3.5), round(c - 3.5) + 8) for c in sample.centre)
        expected = [padded[(channel, *box, place + shift)] for channel in range(2) for shift in range(slices)]
        assert np.array_equal(item["image"].numpy(), np.stack(expected))
        assert np.array_equal(item["label"].numpy(), label[(*box, place)])


def test_a_turned_patch_shows_each_slice_turned_alike(tmp_path: Path) -> None:
    plane = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    image = np.stack([plane * (1 + k) for k in range(5)], axis=-1)[None]
    turning = {"augment.rotation_probability": 1.0, "augment.elastic_probability": 1.0, "network.slices": 3}
    dataset = PatchDataset([case_of(tmp_path, "x", np.ones((16, 16, 5), np.uint8), image)], config_of(**turning))
    for index in range(5):
        slices = dataset.draw(index).slices
        shown = dataset[index]["image"].numpy()
        assert slices is not None
        for place, channel in zip(slices, shown, strict=True):
            np.testing.assert_allclose(channel / (1 + place), shown[1] / (1 + slices[1]), atol=1e-5)


def test_a_picture_has_no_neighbours(tmp_path: Path) -> None:
    picture = case_of(tmp_path, "x", np.ones((16, 16), np.uint8))
    with pytest.raises(ConfigError, match="a picture has no neighbours"):
        PatchDataset([picture], config_of(**{"network.slices": 3}))
