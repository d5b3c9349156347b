"""What numbers in a mask mean."""

from __future__ import annotations

import numpy as np
import pytest

from unet_med.errors import ConfigError
from unet_med.labels import LabelMap, label_colour

NESTED = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}


def test_names_come_in_the_order_of_their_index() -> None:
    labels = LabelMap.from_names({"background": 0, "b": 2, "a": 1})
    assert labels.names == ("a", "b")
    assert labels.outputs == 3


def test_gaps_in_the_values_are_refused() -> None:
    with pytest.raises(ConfigError, match="without gap"):
        LabelMap.from_names({"background": 0, "a": 1, "b": 3})


def test_a_region_of_unknown_labels_is_refused() -> None:
    with pytest.raises(ConfigError, match="do not exist"):
        LabelMap.from_names({"background": 0, "a": 1}, {"r": [1, 2]})


def test_regions_are_painted_from_outside_inwards() -> None:
    labels = LabelMap.from_names({"background": 0, "edema": 1, "core": 2, "enhancing": 3}, NESTED)
    assert labels.outputs == 3
    assert labels.region_values() == (1, 2, 3)
    logits = np.array([[-1.0, 1, 1, 1], [-1, -1, 1, 1], [-1, -1, -1, 1]])
    np.testing.assert_array_equal(labels.from_outputs(logits), [0, 1, 2, 3])


def test_a_region_without_a_label_of_its_own_is_refused() -> None:
    labels = LabelMap.from_names({"background": 0, "a": 1}, {"r": (1,), "s": (1,)})
    with pytest.raises(ConfigError, match="own"):
        labels.region_values()


def test_exclusive_labels_are_the_largest_output() -> None:
    labels = LabelMap.from_names({"background": 0, "a": 1, "b": 2})
    result = labels.from_outputs(np.array([[3.0, 0, 0], [0, 2, 0], [0, 0, 1]]))
    np.testing.assert_array_equal(result, [0, 1, 2])
    assert result.dtype == np.uint8


def test_many_labels_need_two_bytes() -> None:
    labels = LabelMap.from_names({"background": 0} | {f"n{index}": index for index in range(1, 301)})
    assert labels.from_outputs(np.eye(301)[:, 300:]).dtype == np.uint16


def test_colours_differ() -> None:
    assert len({label_colour(index) for index in range(1, 60)}) == 59
