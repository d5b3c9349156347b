"""Objects come out of their own maps, noisy ones too, and do not depend on the tiles they are cut out in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from object_maps import balls, count_matches, maps_of

from unet_med.config import Instances
from unet_med.instances.decode import Objects, Tiling, objects_of
from unet_med.instances.maps import ObjectMaps

THRESHOLDS = Instances()


def same_objects(found: np.ndarray, truth: np.ndarray, iou: float) -> bool:
    count = int(truth.max())
    return int(found.max()) == count == count_matches(found, truth, iou)


@pytest.mark.parametrize(("shape", "count", "radius"), [((160, 120), 30, (6, 14)), ((40, 48, 36), 25, (4, 7))])
def test_touching_objects_come_out_of_their_own_maps(shape, count, radius):
    truth = balls(shape, count, radius, seed=1)
    found = objects_of(maps_of(truth), THRESHOLDS)
    assert same_objects(found.labels, truth, 0.9)


def test_objects_come_out_of_blurred_and_noisy_maps():
    hits = total = wrong = 0
    for seed in range(3):
        truth = balls((192, 192), 60, (5, 14), seed)
        found = objects_of(maps_of(truth, noise=0.08, blur=1.0, seed=seed), Instances(seed_threshold=0.35))
        hits += count_matches(found.labels, truth, 0.5)
        total += len(np.unique(truth)) - 1
        wrong += len(found)
    assert hits / (total + wrong - hits) > 0.95


def test_objects_are_numbered_without_gap_and_lie_in_their_boxes():
    truth = balls((100, 90), 20, (5, 12), seed=3)
    found = objects_of(maps_of(truth), THRESHOLDS)
    assert np.array_equal(np.unique(found.labels), np.arange(len(found) + 1))
    for number, box in enumerate(found.boxes, start=1):
        where = np.argwhere(found.labels == number)
        assert box == tuple(slice(int(a), int(b) + 1) for a, b in zip(where.min(0), where.max(0), strict=True))


def test_the_class_of_an_object_is_that_of_most_of_it():
    truth = balls((120, 120), 20, (6, 12), seed=4)
    classes = {number: 1 + number % 3 for number in range(1, int(truth.max()) + 1)}
    found = objects_of(maps_of(truth, classes, noise=0.1), THRESHOLDS)
    for number, kind in enumerate(found.classes, start=1):
        inside = truth[found.labels == number]
        assert kind == classes[int(np.bincount(inside[inside > 0]).argmax())]


def test_confidence_falls_with_the_probability():
    maps = maps_of(balls((80, 80), 6, (8, 12), seed=5))
    weak = ObjectMaps(maps.classes * 0.7 + 0.15, maps.border, maps.distance)
    sure, unsure = objects_of(maps, THRESHOLDS), objects_of(weak, THRESHOLDS)
    assert len(sure) == len(unsure) == 6
    assert sure.confidence.min() > unsure.confidence.max() > 0.3
    assert sure.confidence.max() <= 1


def test_small_objects_are_left_out():
    truth = balls((160, 160), 30, (3, 12), seed=6)
    everything = objects_of(maps_of(truth), THRESHOLDS)
    sizes = np.bincount(everything.labels.ravel())[1:]
    large = objects_of(maps_of(truth), Instances(minimum_voxels=100))
    assert 0 < (sizes >= 100).sum() < len(sizes)
    assert sorted(np.bincount(large.labels.ravel())[1:]) == sorted(sizes[sizes >= 100])


def test_nothing_is_found_in_nothing():
    empty = objects_of(maps_of(np.zeros((30, 20), dtype=np.uint32)), THRESHOLDS)
    assert (len(empty), int(empty.labels.max()), empty.boxes) == (0, 0, ())


def test_two_summits_are_two_objects_where_the_saddle_is_deep():
    distance = np.zeros((9, 21), dtype=np.float32)
    distance[4, 2:19] = 0.9
    distance[4, 10] = 0.6
    maps = ObjectMaps(np.stack([1 - (distance > 0), distance > 0]).astype(np.float32), 0 * distance, distance)
    assert len(objects_of(maps, Instances(seed_threshold=0.2, seed_depth=0.05))) == 2
    assert len(objects_of(maps, Instances(seed_threshold=0.2, seed_depth=0.5))) == 1


def renumbered(found: Objects) -> np.ndarray:
    """Numbers objects in the order of their first voxels."""
    values, first = np.unique(found.labels, return_index=True)
    new = np.zeros(len(found) + 1, dtype=np.int64)
    new[values[np.argsort(first[1:]) + 1] if values[0] == 0 else values[np.argsort(first)]] = 1 + np.arange(len(found))
    return new[found.labels]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**16), st.integers(24, 60), st.integers(0, 23), st.booleans())
def test_objects_do_not_depend_on_the_tiles(seed, tile, shift, solid):
    shape, radius = ((40, 34, 30), (3, 5)) if solid else ((150, 110), (4, 10))
    truth = balls(shape, 25, radius, seed)
    maps = maps_of(truth, noise=0.05, seed=seed)
    whole = objects_of(maps, THRESHOLDS, tiling=Tiling(4096, 1))
    tiled = objects_of(maps, THRESHOLDS, tiling=Tiling(tile, 24, shift))
    assert np.array_equal(renumbered(whole), renumbered(tiled))
    assert np.allclose(np.sort(whole.confidence), np.sort(tiled.confidence))


def test_a_margin_grows_until_it_holds_the_objects():
    truth = np.zeros((64, 160), dtype=np.uint32)
    truth[20:44, 10:150] = 1
    maps = maps_of(truth)
    assert np.array_equal(
        objects_of(maps, THRESHOLDS, tiling=Tiling(40, 16)).labels, objects_of(maps, THRESHOLDS).labels
    )


def test_labels_are_written_where_they_are_wanted(tmp_path):
    truth = balls((90, 70), 15, (4, 9), seed=8)
    maps = maps_of(truth)
    on_disk = np.lib.format.open_memmap(tmp_path / "labels.npy", mode="w+", dtype=np.uint32, shape=truth.shape)
    found = objects_of(maps, THRESHOLDS, on_disk, Tiling(32, 16))
    assert found.labels is on_disk
    assert np.array_equal(np.load(tmp_path / "labels.npy"), objects_of(maps, THRESHOLDS, tiling=Tiling(32, 16)).labels)
