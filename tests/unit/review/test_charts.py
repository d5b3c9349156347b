"""Charts are pictures of what they are given, and bear whatever a data set can be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unet_med.geometry import Geometry
from unet_med.labels import LabelMap
from unet_med.review.charts import calibration_chart, confusion_chart, fingerprint_chart, size_chart
from unet_med.review.reliability import Reliability
from unet_med.review.sheets import Shown, sheet_of

CHANNEL = {"mean": 40.0, "sd": 12.0, "percentile_00_5": 3.0, "percentile_99_5": 90.0}
FINGERPRINT: dict[str, Any] = {"label_voxels": [900, 60, 40], "channels": [CHANNEL, CHANNEL]}
NAMES = ("background", "anterior", "a name that is far too long for a chart")
LABELS = LabelMap.from_names({"background": 0, "a": 1, "b": 2}, ignored=7)


def _is_drawn(picture: np.ndarray) -> bool:
    return picture.dtype == np.uint8 and picture.shape[2] == 3 and min(picture.shape[:2]) > 150 and picture.std() > 5


def _grids(count: int, spacing: tuple[float, ...] | None = (1.0, 1.0, 2.5)) -> list[Geometry]:
    shape = (40, 42, 20) if spacing is None or len(spacing) == 3 else (40, 42)
    return [Geometry.from_spacing((shape[0] + number, *shape[1:]), spacing) for number in range(count)]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 2.5), (0.5, 0.5), None], ids=["3d", "2d", "uncalibrated"])
@pytest.mark.parametrize("held_out", [0, 3])
def test_the_data_set_is_drawn_whatever_it_is(spacing: tuple[float, ...] | None, held_out: int) -> None:
    picture = fingerprint_chart(_grids(8, spacing), _grids(held_out, spacing), FINGERPRINT, NAMES)
    assert _is_drawn(picture)
    bare = fingerprint_chart(_grids(1, spacing), [], {}, NAMES)
    assert _is_drawn(bare)
    assert bare.shape != picture.shape or (bare != picture).any()


def test_objects_are_told_above() -> None:
    objects = {"count": 12, "diameter_5": 4.0, "diameter_50": 9.0, "diameter_95": 20.0}
    picture = fingerprint_chart(_grids(3), [], FINGERPRINT | {"objects": objects}, NAMES)
    assert (picture != fingerprint_chart(_grids(3), [], FINGERPRINT, NAMES)).any()


@pytest.mark.parametrize("kinds", [3, 30])
def test_confusion_shows_the_diagonal(kinds: int) -> None:
    names = [f"label {number}" for number in range(kinds)]
    good = confusion_chart(np.eye(kinds, dtype=int) * 50, names)
    assert _is_drawn(good)
    assert (good != confusion_chart(np.ones((kinds, kinds), dtype=int), names)).any()
    assert _is_drawn(confusion_chart(np.zeros((kinds, kinds), dtype=int), names))


def test_size_and_dice() -> None:
    cases = [{"dice": {"a": 0.8, "b": None}, "label_voxels": {"a": 10**n, "b": 0}} for n in range(1, 5)]
    picture = size_chart(cases)
    assert picture is not None
    assert _is_drawn(picture)
    assert size_chart([{"dice": {"a": None}, "label_voxels": {"a": 0}}]) is None
    assert size_chart([]) is None


def test_calibration_of_some_and_of_none() -> None:
    found = Reliability(("a", "b"))
    empty = calibration_chart(found)
    found.add(np.array([[0.3, 0.9], [0.0, 0.0]], np.float32), np.array([[False, True], [False, False]]))
    assert _is_drawn(calibration_chart(found))
    assert (calibration_chart(found) != empty).any()


@pytest.mark.parametrize("shape", [(24, 30), (24, 30, 12)], ids=["2d", "3d"])
def test_a_sheet_holds_all_its_images(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    labels = np.zeros(shape, dtype=np.int64)
    labels[4:12, 4:12] = 1
    images = [Shown(random.normal(size=(1, *shape)), labels, labels) for _ in range(5)]
    few, many = (sheet_of(images[:count], LABELS) for count in (1, 5))
    assert _is_drawn(many)
    assert many.shape[0] > 1.5 * few.shape[0]
    captioned = sheet_of([Shown(images[0].image, labels, labels, caption="case-1 0.512")], LABELS)
    assert (captioned != few).any()


def test_what_nobody_labelled_is_not_drawn() -> None:
    image = np.random.default_rng(0).normal(size=(1, 24, 30))
    labels = np.zeros((24, 30), dtype=np.int64)
    ignored = labels.copy()
    ignored[5:15, 5:15] = 7
    assert (
        sheet_of([Shown(image, labels, labels)], LABELS) == sheet_of([Shown(image, ignored, ignored)], LABELS)
    ).all()
