"""A model of objects writes numbered objects and their maps, and counts and compares what it found."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
from object_set import disc_bundle, disc_picture, found_objects, write_disc_set

import unet_med
from unet_med.bundle import change_bundle, load_bundle, read_bundle_info
from unet_med.errors import ModelError
from unet_med.geometry import Geometry
from unet_med.inference.casework import do_case
from unet_med.inference.maps_store import MapStore
from unet_med.inference.object_files import picture_of
from unet_med.inference.objects import (
    MapArchive,
    Truth,
    compare_objects,
    find_objects,
    predict_maps,
    score_objects,
)
from unet_med.inference.predictor import Predictor
from unet_med.inference.worker import CaseJob
from unet_med.instances.decode import Objects, objects_of
from unet_med.io.discover import discover
from unet_med.io.grouping import group_cases
from unet_med.io.source import IntakeOptions
from unet_med.labels import LabelMap
from unet_med.manifest import load_manifest
from unet_med.volume import Volume
from unet_med.workflows.manifest import make_manifest

SPARSE = LabelMap.from_names({"background": 0, "disc": 1}, ignored=255, objects=True)


@pytest.fixture
def predictor(tiny_bundle) -> Predictor:
    return Predictor([load_bundle(disc_bundle(tiny_bundle))], "cpu")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_disc_set(tmp_path / "data", cases=2)


def test_a_case_becomes_numbered_objects_and_maps(predictor: Predictor, pictures: Path, tmp_path: Path) -> None:
    case = group_cases(discover(pictures / "images").usable)[0]
    record = do_case(predictor, CaseJob(case, "a", tmp_path / "out", {"tool": "test"}))
    assert record["status"] == "done", record["reason"]
    assert "maps/a.zarr" in record["outputs"]
    mask = tifffile.imread(tmp_path / "out" / "a.tif").T
    truth = disc_picture(0)[1]
    found, true = found_objects(mask, truth)
    assert found == true == int(mask.max())
    assert [(row["frame"], row["class"], row["objects"]) for row in record["objects"]] == [(None, "disc", true)]
    assert {"objects/a.csv", "objects/a.parquet", "previews/a.png"} < set(record["outputs"])
    rows = list(csv.DictReader((tmp_path / "out/objects/a.csv").read_text(encoding="utf-8").splitlines()))
    assert [int(row["area_px"]) for row in rows] == np.bincount(mask.ravel())[1:].tolist()
    assert all(row["class"] == "disc" and 0.5 < float(row["confidence"]) <= 1 for row in rows)
    assert [(row["label"], row["voxels"]) for row in record["volumes"]] == [("disc", int((mask > 0).sum()))]
    kept = objects_of(MapStore.open(tmp_path / "out" / "maps" / "a.zarr"), predictor.objects)
    assert np.array_equal(kept.labels, mask)


def test_a_case_with_truth_is_compared_object_by_object(predictor: Predictor, pictures: Path, tmp_path: Path) -> None:
    make_manifest(pictures, tmp_path / "M.json", folds=2, intake=IntakeOptions(), task="instance")
    truth = load_manifest(tmp_path / "M.json").training[0]
    record = do_case(predictor, CaseJob(truth.case, "a", tmp_path / "out", {"tool": "test"}, truth=truth))
    assert record["status"] == "done", record["reason"]
    assert record["instance"]["matched"]["0.50"] == record["instance"]["n_label"] == record["instance"]["n_mask"]
    assert record["labels"]["disc"]["dice"] > 0.9


def test_an_archive_returns_what_it_was_given(predictor: Predictor, pictures: Path, tmp_path: Path) -> None:
    case = group_cases(discover(pictures / "images").usable)[0]
    archive, objects = MapArchive(tmp_path / "maps"), disc_picture(0)[1]
    unknown = np.zeros(objects.shape, dtype=bool)
    unknown[:, 40:] = True
    truth = Truth(objects, unknown, np.where(unknown, 255, objects > 0).astype(np.uint8), (0.5, 0.5))
    predict_maps(predictor, case.read(), archive.store("a"))
    assert archive.names() == []  # without its truth it is no use
    archive.keep_truth("a", truth)
    (known,) = archive
    assert all(np.array_equal(getattr(known.truth, part), getattr(truth, part)) for part in ("objects", "unknown"))
    assert known.truth.spacing_mm == (0.5, 0.5)
    assert known.middle()[0].shape == objects.shape
    scores = score_objects(objects_of(known.maps, predictor.objects), known.truth, SPARSE)
    assert scores["instance"]["n_label"] == len(np.unique(objects[:, :40])) - 1
    assert scores["instance"]["n_mask"] <= scores["instance"]["n_label"]
    assert scores["labels"]["disc"]["dice"] > 0.9


def test_objects_where_nobody_labelled_are_left_out() -> None:
    found = np.zeros((10, 10), dtype=np.uint32)
    found[1:3, 1:3], found[1:4, 5:9], found[6:9, 6:9] = 1, 2, 3
    truth = np.where(found == 1, 7, 0)
    unknown = np.zeros(found.shape, dtype=bool)
    unknown[:, 6:] = True
    everything, parts = (Truth(truth, where, truth > 0, None) for where in (None, unknown))
    assert compare_objects(objects_in(found), everything, SPARSE)["n_mask"] == 3
    assert compare_objects(objects_in(found), parts, SPARSE)["n_mask"] == 1
    assert compare_objects(objects_in(found), parts, SPARSE)["matched"]["0.95"] == 1


def objects_in(labels: np.ndarray, classes: Sequence[int] | None = None) -> Objects:
    kinds = np.ones(int(labels.max()), np.int32) if classes is None else np.array(classes, np.int32)
    return Objects(labels, kinds, np.ones(len(kinds), np.float32), ())


def test_classes_are_matched_among_themselves() -> None:
    kinds = LabelMap.from_names({"background": 0, "cell": 1, "mitosis": 2}, objects=True)
    truth = np.kron(np.array([[3, 0, 5, 7]]), np.ones((4, 4), dtype=int))
    classes = np.select([truth == 3, truth == 5, truth == 7], [1, 2, 2])
    classes[0, 0] = 2  # resampling may leave a voxel of another class
    found = objects_in(np.kron(np.array([[1, 0, 2, 3]]), np.ones((4, 4), dtype=np.uint32)), (1, 1, 2))
    assert Truth(truth, None, classes, None).kinds() == {3: 1, 5: 2, 7: 2}
    match = compare_objects(found, Truth(truth, None, classes, None), kinds)
    assert match["matched"]["0.95"] == 3
    counts = {kind: (own["n_mask"], own["n_label"], own["matched"]["0.95"]) for kind, own in match["classes"].items()}
    assert counts == {"cell": (2, 1, 1), "mitosis": (1, 2, 1)}
    unknown = truth == 7
    partly = compare_objects(found, Truth(truth, unknown, np.where(unknown, 255, classes), None), kinds)
    assert partly["classes"]["mitosis"]["n_mask"] == 0


def test_an_object_may_have_the_number_that_truth_ignores() -> None:
    labels = np.kron(np.array([[1, 0, 2, 3]]), np.ones((20, 20), dtype=np.uint32))
    volume = Volume(labels[None].astype(np.float32), Geometry.from_spacing(labels.shape, None))
    kinds = [LabelMap.from_names({"background": 0, "disc": 1}, ignored=value, objects=True) for value in (2, None)]
    one, other = (picture_of(objects_in(labels), volume, kind) for kind in kinds)
    assert np.array_equal(one, other)


def test_a_bundle_takes_other_thresholds_and_keeps_its_weights(tiny_bundle) -> None:
    folder = disc_bundle(tiny_bundle, meta={"old": 1})
    before = load_bundle(folder)
    change_bundle(folder, {"instances.seed_threshold": 0.3}, {"objects": {"chosen": True}})
    after = load_bundle(folder)
    assert read_bundle_info(folder).config.instances.seed_threshold == 0.3
    assert after.meta == {"old": 1, "objects": {"chosen": True}}
    assert all(np.array_equal(before.state[name], after.state[name]) for name in before.state)


def test_python_returns_numbers_of_objects(tiny_bundle) -> None:
    picture, truth = disc_picture(3)
    mask = unet_med.load_model(disc_bundle(tiny_bundle), device="cpu").predict(picture.T)
    assert mask.dtype == np.uint32
    assert found_objects(mask.T, truth) == (len(np.unique(truth)) - 1,) * 2


def test_a_model_of_labels_finds_no_objects(tiny_bundle, pictures: Path) -> None:
    image = group_cases(discover(pictures / "images").usable)[0].read()
    with pytest.raises(ModelError, match="tells no objects apart"):
        find_objects(Predictor([load_bundle(tiny_bundle(dims=2))], "cpu"), image)


def test_a_volume_becomes_numbered_objects(tiny_bundle, tmp_path: Path) -> None:
    picture, truth = disc_picture(6, (40, 36, 28), count=7)
    predictor = Predictor([load_bundle(disc_bundle(tiny_bundle, dims=3, instances__seed_threshold=0.3))], "cpu")
    volume = Volume(picture[None].astype(np.float32), Geometry.from_spacing(picture.shape, (0.5, 0.5, 1.0)))
    found = find_objects(predictor, volume)
    assert found_objects(found.labels, truth, 0.5) == (len(np.unique(truth)) - 1,) * 2
