"""Thresholds are chosen by exactly the AP that the objects have which come out with them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from object_maps import balls, count_matches, maps_of

from unet_med.config import Instances
from unet_med.instances.decode import objects_of
from unet_med.instances.tuning import IOU_THRESHOLDS, ObjectTuner, Tuning
from unet_med.metrics import match_classes, overlap_table

GIVEN = Instances(seed_threshold=0.6, seed_depth=0.02)


def tune_objects(cases, given: Instances) -> Tuning:
    tuner = ObjectTuner(given)
    for number, (maps, truth, unknown) in enumerate(cases):
        tuner.add(maps, truth, unknown, group=number)
    return tuner.choose()


@pytest.fixture(scope="module")
def cases():
    return [
        (maps_of(truth, noise=0.12, blur=1.5, seed=seed), truth, None)
        for seed, truth in enumerate(balls((128, 128), 40, (4, 11), seed) for seed in (11, 12))
    ]


@pytest.fixture(scope="module")
def tuning(cases) -> Tuning:
    return tune_objects(cases, GIVEN)


def counts(cases, settings: Instances) -> tuple[np.ndarray, int]:
    """Decodes every image and matches pair by pair: hits at each IoU; objects, predicted and true."""
    hits, both = np.zeros(len(IOU_THRESHOLDS)), 0
    for maps, truth, _ in cases:
        objects = objects_of(maps, settings)
        hits += [count_matches(objects.labels, truth, iou) for iou in IOU_THRESHOLDS]
        both += len(objects) + len(np.unique(truth)) - 1
    return hits, both


def aps(cases, settings: Instances) -> list[float]:
    hits, both = counts(cases, settings)
    return list(hits / (both - hits))


def test_what_is_chosen_has_the_score_that_is_told(cases, tuning):
    told = tuning.as_dict()
    assert tuning.before == pytest.approx(aps(cases, GIVEN))
    assert tuning.after == pytest.approx(aps(cases, tuning.settings))
    assert told["ap_mean_after"] > told["ap_mean_before"] + 0.02


def test_images_are_also_scored_by_what_others_chose(cases, tuning):
    others = [tune_objects([cases[1]], GIVEN).settings, tune_objects([cases[0]], GIVEN).settings]
    apart = [counts([case], settings) for case, settings in zip(cases, others, strict=True)]
    hits, both = (sum(part) for part in zip(*apart, strict=True))
    assert tuning.unseen == pytest.approx(hits / (both - hits))
    assert np.mean(tuning.unseen) <= np.mean(tuning.after)


def test_it_counts_what_it_was_chosen_on(tuning, cases):
    assert (tuning.images, tuning.objects) == (2, sum(len(np.unique(truth)) - 1 for _, truth, _ in cases))
    told = tuning.as_dict()
    assert set(told["chosen"]) == {"foreground_threshold", "seed_threshold", "seed_depth", "minimum_voxels"}
    assert f"{told['ap_mean_before']:.4f} -> {told['ap_mean_after']:.4f} (" in tuning.reason
    assert json.loads(json.dumps(told)) == told


def test_an_object_of_another_class_is_not_found() -> None:
    truth = balls((96, 96), 16, (5, 9), seed=16)
    kinds = {number: 1 + number % 2 for number in range(1, 17)}
    mistaken = {number: 1 if number % 3 == 0 else kind for number, kind in kinds.items()}
    maps = maps_of(truth, mistaken, noise=0.05, blur=1.0)
    tuner = ObjectTuner(GIVEN)
    tuner.add(maps, truth, kinds=kinds)
    tuning = tuner.choose()
    found = objects_of(maps, tuning.settings)
    table = overlap_table(found.labels, truth)
    said = dict(enumerate(map(str, found.classes.tolist()), start=1))
    by_class = match_classes(table, said, {number: str(kind) for number, kind in kinds.items()}).values()
    objects = len(found) + len(kinds)
    for iou, ap in zip(IOU_THRESHOLDS, tuning.after, strict=True):
        hits = sum(match["matched"][f"{iou:.2f}"] for match in by_class)
        assert ap == pytest.approx(hits / (objects - hits))
    wrong = sum(kinds[number] != kind for number, kind in mistaken.items())
    assert wrong == 3
    assert 0.5 < tuning.after[0] <= (16 - wrong) / 16
    assert tune_objects([(maps, truth, None)], GIVEN).after[0] > tuning.after[0]


def test_specks_make_a_smallest_size():
    truth = balls((128, 128), 20, (7, 12), seed=13)
    specks = truth.copy()
    for number, (row, column) in enumerate(np.ndindex(8, 8), start=100):
        part = specks[16 * row + 4 : 16 * row + 9, 16 * column + 4 : 16 * column + 9]
        if not part.any():
            part[...] = number
    tuned = tune_objects([(maps_of(specks), truth, None)], Instances(seed_threshold=0.1))
    assert tuned.settings.minimum_voxels > 25
    assert tuned.after[0] > 0.9 > tuned.before[0]


def test_perfect_settings_are_kept():
    truth = balls((96, 96), 12, (8, 12), seed=14)
    exact = maps_of(truth)
    tuned = tune_objects([(exact, objects_of(exact, GIVEN).labels, None)], GIVEN)
    assert (tuned.settings, set(tuned.before), set(tuned.after)) == (GIVEN, {1.0}, {1.0})


def test_without_objects_nothing_is_chosen():
    nothing = np.zeros((32, 32), dtype=np.uint32)
    assert tune_objects([(maps_of(nothing), nothing, None)], GIVEN) == Tuning(
        GIVEN, (0.0,) * 10, (0.0,) * 10, None, 1, 0
    )


def test_what_nobody_labelled_is_no_fault():
    truth = balls((128, 128), 30, (5, 9), seed=15)
    known = np.ones(truth.shape, dtype=bool)
    known[:, 64:] = False
    sparse = np.where(known, truth, 0)
    maps = maps_of(truth)
    assert tune_objects([(maps, sparse, None)], GIVEN).before[0] < 0.7
    assert tune_objects([(maps, sparse, ~known)], GIVEN).before[0] > 0.85
