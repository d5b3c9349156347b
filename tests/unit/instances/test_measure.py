"""Measures of objects: those of scikit-image, whatever the blocks."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.measure import regionprops, regionprops_table

from unet_med.geometry import Geometry
from unet_med.instances.measure import count_objects, measure_objects
from unet_med.io.objects.table import ObjectTable, joined, write_table

EXACT = ("label", "area_px", "voxels", "border", "perimeter_px", "solidity", "intensity_min", "intensity_max")


def _blobs(shape: tuple[int, ...], seed: int, share: float = 0.55) -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 1.6)
    labels, _ = ndimage.label(smooth > np.quantile(smooth, share))
    return np.asarray(labels, dtype=np.uint16)


def _same(one: ObjectTable, other: ObjectTable, rtol: float = 1e-9) -> None:
    assert list(one.columns) == list(other.columns)
    for name, column in one.columns.items():
        if name == "class":
            assert column.tolist() == other.columns[name].tolist()
        elif name in EXACT and name != "perimeter_px":
            assert np.array_equal(column, other.columns[name]), name
        else:
            np.testing.assert_allclose(column, other.columns[name], rtol=rtol, atol=1e-6, err_msg=name)


def test_pictures_are_measured_as_scikit_image_does() -> None:
    labels, image = _blobs((150, 130), 1), np.random.default_rng(2).normal(100, 30, (1, 150, 130))
    table = measure_objects(labels, Geometry(labels.shape), image=image)
    theirs = regionprops(labels, image[0])
    assert len(table) == len(theirs) > 20
    columns = {name: column.tolist() for name, column in table.columns.items()}
    assert columns["label"] == [one.label for one in theirs]
    assert columns["area_px"] == [one.num_pixels for one in theirs]
    near = {
        "x_px": [one.centroid[0] for one in theirs],
        "y_px": [one.centroid[1] for one in theirs],
        "axis_major_px": [one.axis_major_length for one in theirs],
        "axis_minor_px": [one.axis_minor_length for one in theirs],
        "perimeter_px": [one.perimeter for one in theirs],
        "solidity": [one.solidity for one in theirs],
        "intensity_mean": [one.intensity_mean for one in theirs],
        "intensity_min": [one.intensity_min for one in theirs],
        "intensity_max": [one.intensity_max for one in theirs],
        "intensity_sd": [one.intensity_std for one in theirs],
    }
    for name, values in near.items():
        np.testing.assert_allclose(columns[name], values, rtol=1e-7, atol=1e-6, err_msg=name)
    longish = [place for place, one in enumerate(theirs) if one.axis_major_length > 1.01 * one.axis_minor_length]
    turned = [np.degrees(theirs[place].orientation) for place in longish]  # from their rows, our x, to their columns
    apart = (np.array([columns["orientation_deg"][place] for place in longish]) + turned) % 180
    assert np.minimum(apart, 180 - apart).max() < 1e-5
    touching = [min(one.bbox[:2]) == 0 or one.bbox[2] == 150 or one.bbox[3] == 130 for one in theirs]
    assert columns["border"] == touching


def test_volumes_are_measured_as_scikit_image_does() -> None:
    labels, spacing = _blobs((26, 30, 22), 3, 0.8), (0.0005, 0.0005, 0.002)
    theirs = [one for one in regionprops(labels, spacing=spacing) if one.num_pixels > 8]
    labels[~np.isin(labels, [one.label for one in theirs])] = 0
    table = measure_objects(labels, Geometry.from_spacing(labels.shape, spacing))
    columns = {name: column.tolist() for name, column in table.columns.items()}
    assert columns["voxels"] == [one.num_pixels for one in theirs]
    near = {
        "volume_um3": [one.area * 1e9 for one in theirs],
        "z_um": [one.centroid[2] * 1e3 for one in theirs],
        "axis_major_um": [one.axis_major_length * 1e3 for one in theirs],
        "axis_minor_um": [one.axis_minor_length * 1e3 for one in theirs],
    }
    plain = regionprops(labels)
    near["solidity"] = [one.solidity for one in plain]
    near["axis_major_px"] = [one.axis_major_length for one in plain]
    for name, values in near.items():
        np.testing.assert_allclose(columns[name], values, rtol=1e-6, atol=2e-6, err_msg=name)
    assert "perimeter_px" not in columns


def test_known_shapes_have_their_known_measures() -> None:
    labels = np.zeros((60, 40), dtype=np.uint32)
    labels[10:30, 5:9] = 7  # along x
    x, y = np.indices(labels.shape)
    labels[4 * np.abs((x - 45) + (y - 25)) + np.abs((x - 45) - (y - 25)) < 12] = 4_000_000_000  # right and up
    table = measure_objects(labels, Geometry.from_spacing(labels.shape, (0.0005, 0.0005)))
    diagonal, bar = (table.rows()[number] for number in (4_000_000_000, 7))
    assert (bar["area_px"], bar["area_um2"], bar["x_px"], bar["y_um"]) == (80, 20.0, 19.5, 3.25)
    assert (bar["solidity"], bar["perimeter_px"], bar["perimeter_um"], bar["orientation_deg"]) == (1.0, 44.0, 22.0, 0.0)
    assert bar["axis_major_px"] == pytest.approx(4 * np.sqrt((20**2 - 1) / 12))
    assert diagonal["orientation_deg"] == pytest.approx(45.0)
    flat = measure_objects(labels, Geometry.from_spacing(labels.shape, (0.0005, 0.005)))
    assert "perimeter_um" not in flat.columns  # of pixels that are not square it has no meaning
    assert 80 < flat.rows()[4_000_000_000]["orientation_deg"] < 90


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, 3)),
    st.integers(2, 6),
)
def test_blocks_make_no_difference_to_pictures(labels: np.ndarray, side: int) -> None:
    image = np.random.default_rng(0).normal(1e4, 1, (2, *labels.shape))
    geometry = Geometry(labels.shape)
    whole = measure_objects(labels, geometry, image=image)
    _same(measure_objects(labels, geometry, image=image, side=side), whole)
    theirs = {one.label: one.solidity for one in regionprops(labels)}
    assert {label: row["solidity"] for label, row in whole.rows().items()} == pytest.approx(theirs)


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 7)] * 3), elements=st.integers(0, 2)), st.integers(2, 5))
def test_blocks_make_no_difference_to_volumes(labels: np.ndarray, side: int) -> None:
    geometry = Geometry.from_spacing(labels.shape, (0.001, 0.001, 0.003))
    whole = measure_objects(labels, geometry, image=labels[np.newaxis] * 2.0)
    parts = measure_objects(labels, geometry, image=labels[np.newaxis] * 2.0, side=side)
    for name in ("axis_x", "axis_y", "axis_z"):  # of a ball any direction is the longest
        del whole.columns[name], parts.columns[name]
    _same(parts, whole, 1e-7)


class _Watched:
    """Labels that remember how much was read of them at once."""

    def __init__(self, labels: np.ndarray) -> None:
        self.labels, self.shape, self.most = labels, labels.shape, 0

    def __getitem__(self, region: tuple[slice, ...]) -> np.ndarray:
        part = self.labels[region]
        self.most = max(self.most, part.size)
        return part


def test_of_an_object_as_large_as_the_image_only_blocks_are_read() -> None:
    labels = _blobs((90, 80), 4)
    labels[40:45] = labels[:, 70] = 999
    watched = _Watched(labels)
    _same(measure_objects(watched, Geometry(labels.shape), side=16), measure_objects(labels, Geometry(labels.shape)))
    assert watched.most <= 20**2


def test_classes_and_counts() -> None:
    labels = np.zeros((50, 20), dtype=np.uint16)
    labels[1:3, 1:3], labels[5:10, 5:10], labels[20:24, 0:4] = 1, 2, 5
    geometry = Geometry.from_spacing(labels.shape, (0.1, 0.1))
    names = ("round", "long", "none")
    given_ = {"classes": [1, 2, 1, 1, 1], "confidence": [0.9, 0.8, 0, 0, 0.7]}
    table = measure_objects(labels, geometry, names=names, **given_)
    assert table.columns["class"].tolist() == ["round", "long", "round"]
    assert table.columns["confidence"].tolist() == [0.9, 0.8, 0.7]
    assert table.columns["border"].tolist() == [False, False, True]
    round_, long, none = count_objects(table, geometry, names)
    assert round_ == {
        "class": "round",
        "objects": 2,
        "density": 0.2,
        "unit": "1/mm2",
        "covered": 0.02,
        "mean_size": 10.0,
    }
    assert (long["objects"], none["objects"], none["mean_size"], none["density"]) == (1, 0, None, 0.0)
    assert count_objects(table, Geometry(labels.shape), names)[0]["density"] is None


def test_an_image_without_objects_has_an_empty_table(tmp_path: Path) -> None:
    for shape in ((5, 6), (5, 6, 7), (2500, 3)):
        table = measure_objects(
            np.zeros(shape, dtype=np.uint8), Geometry(shape), image=np.zeros((1, *shape)), names=("a",)
        )
        assert len(table) == 0
        assert "intensity_sd" in table.columns
        assert count_objects(table, Geometry(shape), ("a",))[0]["objects"] == 0
        write_table(table, tmp_path / "empty.parquet")
        assert len(write_table(table, tmp_path / "empty.csv").read_text().splitlines()) == 1


def test_tables_are_written_and_joined(tmp_path: Path) -> None:
    from pyarrow import parquet

    labels = _blobs((40, 40), 5)
    first = measure_objects(labels, Geometry(labels.shape), names=("cell",))
    second = measure_objects(labels, Geometry(labels.shape), image=labels[np.newaxis], names=("cell",))
    table = joined([first, second], case=["a", "b"], frame=[0, 3])
    assert len(table.of_frame(3)) == len(second)
    with write_table(table, tmp_path / "objects.csv").open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    stored = parquet.read_table(write_table(table, tmp_path / "objects.parquet"))
    assert list(rows[0]) == stored.column_names == list(table.columns)
    assert [row["case"] for row in rows] == stored["case"].to_pylist() == ["a"] * len(first) + ["b"] * len(second)
    assert {row["confidence"] for row in rows} == {""}
    assert stored["confidence"].null_count == len(table)
    assert [row["intensity_mean"] == "" for row in rows] == [row["case"] == "a" for row in rows]
    np.testing.assert_allclose(stored["x_px"].to_numpy(), table.columns["x_px"], rtol=0)
    np.testing.assert_allclose([float(row["x_px"]) for row in rows], table.columns["x_px"], rtol=1e-6)


def test_it_is_faster_than_scikit_image() -> None:
    labels = np.kron(np.arange(1, 145).reshape(12, 12), np.ones((20, 20), dtype=np.int32))
    x, y = np.indices(labels.shape) % 20 - 9.5
    labels[np.hypot(x, y) > 8] = 0
    image = labels[np.newaxis].astype(np.float64)
    measure_objects(labels, Geometry(labels.shape), image=image)
    began = time.process_time()
    measure_objects(labels, Geometry(labels.shape), image=image)
    ours = time.process_time() - began
    began = time.process_time()
    properties = ("area", "centroid", "axis_major_length", "perimeter", "solidity", "intensity_mean", "intensity_std")
    regionprops_table(labels, image[0], properties=properties)
    assert ours < 0.5 * (time.process_time() - began)
