"""What became of labels and objects, against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unet_med.review.changes import label_changes, object_changes

IMAGES = hnp.arrays(np.int32, (5, 6), elements=st.integers(0, 4))


def test_labels_are_counted() -> None:
    before, after = np.array([1, 1, 1, 2, 0, 0]), np.array([1, 1, 2, 2, 2, 0])
    liver, spleen, empty = label_changes(before, after, {"background": 0, "liver": 1, "spleen": 2, "cyst": 3})
    assert (liver.before, liver.after, liver.added, liver.removed) == (3, 2, 0, 1)
    assert (spleen.before, spleen.after, spleen.added, spleen.removed) == (1, 3, 2, 0)
    assert liver.dice == pytest.approx(4 / 5) and spleen.dice == pytest.approx(2 / 4)
    assert empty.dice is None


@settings(max_examples=80, deadline=None)
@given(IMAGES, IMAGES)
def test_every_object_is_kept_changed_added_or_removed(before: np.ndarray, after: np.ndarray) -> None:
    found = object_changes(before, after)
    old, new = (set(np.unique(image[image > 0]).tolist()) for image in (before, after))
    pairs = {}
    for number in new:
        for other in old:
            one, two = after == number, before == other
            both, either = np.count_nonzero(one & two), np.count_nonzero(one | two)
            if both / either > 0.5:
                pairs[number] = other
    equal = {number for number, other in pairs.items() if ((after == number) == (before == other)).all()}
    assert found.numbers == pairs
    assert (found.kept, found.changed) == (len(equal), len(pairs) - len(equal))
    assert (found.added, found.removed) == (len(new) - len(pairs), len(old) - len(pairs))
    np.testing.assert_array_equal(found.aligned > 0, after > 0)
    for number in new:
        own = np.unique(found.aligned[after == number])
        assert len(own) == 1, "an object has one number"
        assert (own[0] == pairs[number]) if number in equal else (own[0] not in old)
    assert len(np.unique(found.aligned)) == len(np.unique(after)), "no two objects have the same"


def test_other_numbers_are_no_change() -> None:
    before = np.array([[1, 1, 0, 2], [1, 1, 0, 2]])
    after = np.array([[9, 9, 0, 4], [9, 9, 0, 4]])
    found = object_changes(before, after)
    assert (found.kept, found.changed, found.added, found.removed) == (2, 0, 0, 0)
    np.testing.assert_array_equal(found.aligned, before)
