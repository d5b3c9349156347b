"""Learning to tell objects apart: from a label image of their numbers to a network that knows border and distance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from object_maps import count_matches
from toy_training import toy_config

from unet_med.bundle import labels_of
from unet_med.config import PipelineConfig
from unet_med.data import CachedCase, prepare_cases
from unet_med.device_data import DeviceCases, device_batches
from unet_med.errors import ConfigError
from unet_med.inference import objects as objects_module
from unet_med.inference.objects import Truth, compare_objects
from unet_med.instances.maps import ObjectMaps
from unet_med.instances.targets import object_targets
from unet_med.io.cases import Case
from unet_med.io.nifti import inspect_nifti
from unet_med.manifest import ManifestCase
from unet_med.metrics import summarise_objects
from unet_med.patches import PatchDataset, patch_loader
from unet_med.training.loop import fit
from unet_med.training.schedule import schedule_by_epochs
from unet_med.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
STILL = {f"augment.{name}_probability": 0 for name in ("noise", "blur", "brightness", "contrast", "low_resolution")}
STILL |= {f"augment.{name}_probability": 0 for name in ("rotation", "scaling", "elastic", "gamma", "gamma_inverted")}


def config_of(**changes: Any) -> PipelineConfig:
    return toy_config(task="instance", **changes)


def discs(seed: int, size: int = 40) -> np.ndarray:
    """Numbers of eight discs, some of which touch."""
    rng = np.random.default_rng(seed)
    i, j = np.mgrid[:size, :size]
    objects = np.zeros((size, size), dtype=np.uint16)
    for number in range(8):
        at = rng.integers(2, size - 2, 2)
        objects[(((i - at[0]) ** 2 + (j - at[1]) ** 2) < 30) & (objects == 0)] = 10 + 50 * number
    return objects


def manifest_case(folder: Path, seed: int, objects: np.ndarray, instances: bool = True) -> ManifestCase:
    folder.mkdir(parents=True, exist_ok=True)
    image = (objects > 0) * 2.0 + np.random.default_rng(seed).normal(size=objects.shape)
    for name, array in {"image": image.astype(np.float32), "label": objects}.items():
        nib.save(nib.Nifti1Image(array[..., None], np.eye(4)), folder / f"{name}.nii.gz")
    refs = [inspect_nifti(folder / f"{name}.nii.gz")[0] for name in ("image", "label")]
    case = Case(str(seed), (refs[0],), refs[1], instances=instances)
    return ManifestCase(str(seed), case, 0, str(seed), {"image": f"{seed}" * 64, "label": f"{seed}" * 64})


def prepared(folder: Path, config: PipelineConfig, count: int = 2, ignored: int | None = None) -> list[CachedCase]:
    cases = []
    for seed in range(count):
        objects = discs(seed)
        if ignored is not None:
            objects[:6] = ignored
        cases.append(manifest_case(folder / str(seed), seed, objects))
    labels = replace(labels_of(config), ignored=ignored)
    return list(prepare_cases(cases, config, labels, folder / "cache", lambda items, _: items).cases)


def test_a_prepared_case_holds_classes_borders_and_distances(tmp_path: Path) -> None:
    for number, case in enumerate(prepared(tmp_path, config_of())):
        objects = discs(number)[..., None]
        arrays, expected = case.arrays(), object_targets(objects)
        np.testing.assert_array_equal(case.objects(), objects)
        np.testing.assert_array_equal(arrays["label"][0], objects > 0)
        np.testing.assert_array_equal(arrays["border"][0], expected.border)
        np.testing.assert_array_equal(arrays["distance"][0], expected.distance)
    wider = prepared(tmp_path, config_of(**{"instances.border_voxels": 2.0}))
    assert (wider[0].arrays()["border"] > 0).sum() > (prepared(tmp_path, config_of())[0].arrays()["border"] > 0).sum()


def test_what_nobody_labelled_is_no_object_and_not_learnt(tmp_path: Path) -> None:
    (case, _) = prepared(tmp_path, config_of(ignore_label=65535), ignored=65535)
    arrays = case.arrays()
    assert (arrays["label"][0, :6] == 65535).all()
    assert not arrays["distance"][0, :6].any()
    assert not case.objects()[:6].any()
    assert case.labels == (1,)


def test_a_label_image_of_kinds_is_refused(tmp_path: Path) -> None:
    config = config_of()
    kinds = manifest_case(tmp_path, 1, (discs(1) > 0).astype(np.uint8), instances=False)
    result = prepare_cases(
        [kinds, manifest_case(tmp_path / "x", 2, discs(2))], config, labels_of(config), tmp_path, _as_is
    )
    assert [case_id for case_id, _ in result.refused] == ["1"]
    assert "not numbers of objects" in str(result.refused[0][1])


def _as_is(items: Any, _description: str) -> Any:
    return items


def test_classes_of_objects_cannot_overlap() -> None:
    with pytest.raises(ConfigError, match="cannot overlap"):
        labels_of(config_of(regions={"whole": [1]}))


def test_targets_are_cut_and_mirrored_with_the_image(tmp_path: Path) -> None:
    config = config_of(**STILL, **{"augment.mirror_probability": 1.0})
    cases = prepared(tmp_path, config)
    dataset = PatchDataset(cases, config)
    for index in range(6):
        sample, item = dataset.draw(index), dataset[index]
        assert sample.spatial.flips == (0, 1)
        box = tuple(slice(round(c - 11.5), round(c - 11.5) + 24) for c in sample.centre)
        arrays = {name: array[(0, *box, 0)][::-1, ::-1] for name, array in sample.case.arrays().items()}
        np.testing.assert_array_equal(item["label"], arrays["label"])
        np.testing.assert_array_equal(item["border"], arrays["border"])
        np.testing.assert_allclose(item["distance"], arrays["distance"] / 255, atol=1e-6)
        np.testing.assert_allclose(item["image"][0], arrays["image"], atol=1e-6)


def test_a_turned_patch_has_the_distances_of_turned_objects(tmp_path: Path) -> None:
    turning = {"augment.rotation_probability": 1.0, "augment.mirror_axes": [], "sampling.patch_voxels": [16, 16]}
    config = config_of(**{**STILL, **turning})
    i, j = np.mgrid[:60, :60]
    disc = ((i - 30) ** 2 + (j - 30) ** 2 < 200).astype(np.uint16)
    (case,) = prepare_cases(
        [manifest_case(tmp_path / "disc", 1, disc)], config, labels_of(config), tmp_path / "cache", _as_is
    ).cases
    dataset = PatchDataset([case], config)
    for index in range(6):
        sample, item = dataset.draw(index), dataset[index]
        steps = np.mgrid[:16, :16] - 7.5
        x, y = np.tensordot(sample.spatial.matrix, steps, axes=1) + sample.centre[:, None, None]
        expected = np.clip(1 - np.hypot(x - 30, y - 30) / np.sqrt(200), 0, 1)
        inside = (x > 0) & (x < 59) & (y > 0) & (y < 59)
        assert np.abs(item["distance"].numpy() - expected)[inside].max() < 0.12
        assert set(item["border"].unique().tolist()) <= {0, 1}


def test_batches_of_a_device_are_those_of_the_processor(tmp_path: Path) -> None:
    config = config_of(**{"augment.noise_probability": 0.0, "augment.rotation_probability": 0.7})
    cases = prepared(tmp_path, config)
    dataset = PatchDataset(cases, config)
    for budget in (0, 10**9):
        there = device_batches(DeviceCases(cases, CPU, budget), dataset, 4, 0, 2)
        for ours, theirs in zip(there, patch_loader(dataset, 4, 0, 2, 0), strict=True):
            assert ours.keys() == theirs.keys() == {"image", "label", "border", "distance"}
            for name in ("label", "border"):
                assert ours[name].dtype == theirs[name].dtype == torch.int64
                assert (ours[name] != theirs[name]).float().mean() < 0.01
            torch.testing.assert_close(ours["distance"], theirs["distance"], atol=1e-3, rtol=0)


def test_a_network_learns_border_and_distance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = {"network.features": [8, 16], "network.dropout": 0.0}
    config = config_of(**STILL, **size, **{"training.epochs": 10, "training.steps_per_epoch": 12})
    cases = prepared(tmp_path, config, count=3)
    trainer = Trainer(config, labels_of(config), 1, CPU)
    assert trainer.network.outputs == 4
    told: list[dict[str, float]] = []
    result = fit(
        trainer,
        cases[:2],
        cases[2:],
        tmp_path / "checkpoint",
        resume=False,
        max_seconds=None,
        record=lambda _epoch, metrics, _masks: told.append(dict(metrics)),
    )
    assert {"train/border", "train/distance", "train/dice"} <= told[0].keys()
    for term in ("train/border", "train/distance", "train/loss"):
        assert told[-1][term] < 0.7 * told[0][term]
    assert told[-1]["val/dice/disc"] > 0.8
    assert result.best_score == max(epoch["val/objects/ap_mean"] for epoch in told if "val/objects/ap_mean" in epoch)
    scores, masks = trainer.validate(cases, [cases[0].id])
    hits = objects = 0
    with trainer.evaluating() as network:
        for case in cases:
            (mask, found, _), true = trainer.find(network, case), np.asarray(case.objects())
            np.testing.assert_array_equal(mask, trainer.predict(network, case))
            hits += count_matches(found.labels, true, 0.5)
            objects += len(found) + len(np.unique(true)) - 1
        np.testing.assert_array_equal(masks[cases[0].id], trainer.predict(network, cases[0]))
        monkeypatch.setattr(objects_module, "_MOST_VOXELS", 400)
        _, few, part = trainer.find(network, cases[0])
    assert few.labels.shape == (25, 25, 1)
    assert part == (slice(7, 32), slice(7, 32), slice(0, 1))
    inner = trainer.validate(cases[:1], ())[0]
    match = compare_objects(few, Truth.prepared(cases[0], labels_of(config), part), labels_of(config))
    assert inner["val/objects/ap/0.50"] == summarise_objects([match])["ap"]["0.50"]
    assert hits > 5
    assert scores["val/objects/ap/0.50"] == pytest.approx(hits / (objects - hits))
    with torch.no_grad(), trainer.evaluating() as network:
        image = torch.from_numpy(np.array(cases[2].image()[..., 0]))[None]
        maps = ObjectMaps.from_logits(network(image)[0])
    truth = cases[2].arrays()
    assert np.corrcoef(maps.distance.ravel(), truth["distance"][0, ..., 0].ravel())[0, 1] > 0.7
    on_border = truth["border"][0, ..., 0] > 0
    assert maps.border[on_border].mean() > 2 * maps.border[~on_border].mean()


def test_the_best_weights_of_another_score_are_forgotten(tmp_path: Path) -> None:
    config = config_of()
    trainer = Trainer(config, labels_of(config), 1, CPU)
    trainer.best, trainer.best_score = trainer.final_weights(), 0.9
    checkpoint = trainer.to_checkpoint(schedule_by_epochs(config))
    for by, expected in (("val/objects/ap_mean", 0.9), ("val/dice/mean", None)):
        again = Trainer(config, labels_of(config), 1, CPU)
        again.restore(replace(checkpoint, numbers={**checkpoint.numbers, "best_by": by}))
        assert again.best_score == expected
        assert (again.best is None) == (expected is None)


def test_a_batch_in_pieces_is_learnt_as_if_it_were_whole(tmp_path: Path) -> None:
    weights = []
    for pieces in (1, 2):
        config = config_of(
            **{
                "training.accumulate": pieces,
                "network.dropout": 0.0,
                "training.optimizer": "sgd",
                "training.precision": "fp32",
            }
        )
        cases = prepared(tmp_path, config)
        trainer = Trainer(config, labels_of(config), 1, CPU)
        (batch,) = patch_loader(PatchDataset(cases, config), 4, 0, 1, 0)
        trainer.train_step(batch, 1e-2)
        weights.append(trainer.final_weights())
    for name, whole in weights[0].items():
        torch.testing.assert_close(weights[1][name], whole, atol=1e-5, rtol=1e-4)
