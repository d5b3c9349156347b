"""Thresholds are chosen by exactly the AP that the objects have which come out with them."""

from __future__ import annotations

import numpy as np
import pytest
from object_maps import balls, count_matches, maps_of

from unet_med.config import Instances
from unet_med.instances.decode import objects_of
from unet_med.instances.tuning import IOU_THRESHOLDS, Tuning, tune_objects

GIVEN = Instances()


@pytest.fixture(scope="module")
def cases():
    return [
        (maps_of(truth, noise=0.12, blur=1.5, seed=seed), truth, None)
        for seed, truth in enumerate(balls((128, 128), 40, (4, 11), seed) for seed in (11, 12))
    ]


@pytest.fixture(scope="module")
def tuning(cases) -> Tuning:
    return tune_objects(cases, GIVEN)


def mean_ap(cases, settings: Instances) -> float:
    """Decodes every image and matches pair by pair."""
    objects = [objects_of(maps, settings) for maps, _, _ in cases]
    aps = []
    for iou in IOU_THRESHOLDS:
        hits = sum(count_matches(o.labels, truth, iou) for o, (_, truth, _) in zip(objects, cases, strict=True))
        both = sum(len(o) + len(np.unique(truth)) - 1 for o, (_, truth, _) in zip(objects, cases, strict=True))
        aps.append(hits / (both - hits))
    return float(np.mean(aps))


def test_what_is_chosen_has_the_score_that_is_told(cases, tuning):
    assert tuning.before == pytest.approx(mean_ap(cases, GIVEN))
    assert tuning.after == pytest.approx(mean_ap(cases, tuning.settings))
    assert tuning.after > tuning.before + 0.02


def test_it_counts_what_it_was_chosen_on(tuning, cases):
    assert (tuning.images, tuning.objects) == (2, sum(len(np.unique(truth)) - 1 for _, truth, _ in cases))
    assert set(tuning.as_dict()["chosen"]) == {"foreground_threshold", "seed_threshold", "seed_depth", "minimum_voxels"}
    assert f"{tuning.before:.4f} -> {tuning.after:.4f} on 2 held-out images" in tuning.reason


def test_specks_make_a_smallest_size():
    truth = balls((128, 128), 20, (7, 12), seed=13)
    specks = truth.copy()
    for number, (row, column) in enumerate(np.ndindex(8, 8), start=100):
        part = specks[16 * row + 4 : 16 * row + 9, 16 * column + 4 : 16 * column + 9]
        if not part.any():
            part[...] = number
    tuned = tune_objects([(maps_of(specks), truth, None)], Instances(seed_threshold=0.1))
    assert tuned.settings.minimum_voxels > 25
    assert tuned.after > 0.9 > tuned.before


def test_perfect_settings_are_kept():
    truth = balls((96, 96), 12, (8, 12), seed=14)
    exact = maps_of(truth)
    tuned = tune_objects([(exact, objects_of(exact, GIVEN).labels, None)], GIVEN)
    assert (tuned.settings, tuned.before, tuned.after) == (GIVEN, 1.0, 1.0)


def test_without_objects_nothing_is_chosen():
    nothing = np.zeros((32, 32), dtype=np.uint32)
    assert tune_objects([(maps_of(nothing), nothing, None)], GIVEN) == Tuning(GIVEN, 0.0, 0.0, 1, 0)


def test_what_nobody_labelled_is_no_fault():
    truth = balls((128, 128), 30, (5, 9), seed=15)
    known = np.ones(truth.shape, dtype=bool)
    known[:, 64:] = False
    sparse = np.where(known, truth, 0)
    maps = maps_of(truth)
    assert tune_objects([(maps, sparse, None)], GIVEN).before < 0.7
    assert tune_objects([(maps, sparse, ~known)], GIVEN).before > 0.85
