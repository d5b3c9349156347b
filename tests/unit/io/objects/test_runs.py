"""Run lengths as COCO's own tools read and write them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from unet_med.errors import InputRefusedError
from unet_med.io.objects.runs import mask_of_runs, packed, run_lengths, unpacked

MASKS = hnp.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@settings(max_examples=150, deadline=None)
@given(MASKS, st.integers(0, 300), st.integers(0, 3), st.integers(0, 40), st.integers(0, 3))
def test_text_is_that_of_pycocotools_and_comes_back(
    mask: np.ndarray, left: int, top: int, right: int, below: int
) -> None:
    size = (left + mask.shape[0] + right, top + mask.shape[1] + below)
    full = np.zeros(size, dtype=np.uint8)
    full[left : left + mask.shape[0], top : top + mask.shape[1]] = mask
    lengths = run_lengths(mask, (left, top), size)
    theirs = coco.encode(np.asfortranarray(full.T))
    assert packed(lengths) == theirs["counts"].decode()
    assert unpacked(packed(lengths)) == lengths
    back = mask_of_runs(lengths, size)
    assert (back is None) == (not mask.any())
    if back is not None:
        small, (i, j) = back
        again = np.zeros(size, dtype=np.uint8)
        again[i : i + small.shape[0], j : j + small.shape[1]] = small
        assert np.array_equal(again, full)
        assert small[0].any() and small[-1].any() and small[:, 0].any() and small[:, -1].any()


def test_long_runs_come_back() -> None:
    lengths = [0, 1, 40_000 * 39_999, 31, 15, 16, 17, 2**20]
    theirs = {"size": [1, sum(lengths)], "counts": packed(lengths).encode()}
    assert unpacked(packed(lengths)) == lengths
    assert coco.area(theirs) == sum(lengths[1::2])


@pytest.mark.parametrize("text", ["\u00e9", "!", "p"])
def test_damaged_text_is_refused(text: str) -> None:
    with pytest.raises(InputRefusedError, match="damaged"):
        unpacked(text)


@pytest.mark.parametrize("lengths", [[3, 2], [7], [-1, 7], [2**62, 2**62, 2**62, 2**62 + 6]])
def test_runs_of_another_picture_are_refused(lengths: list[int]) -> None:
    with pytest.raises(InputRefusedError, match="2 x 3 pixels"):
        mask_of_runs(lengths, (2, 3))
