from __future__ import annotations

import time

import numpy as np
import pytest

from unet_med.errors import InputRefusedError
from unet_med.metrics import Overlap, match_objects, overlap_of_blocks, overlap_table


def as_dict(table: Overlap) -> dict[str, dict[object, int]]:
    """The table in words that do not depend on positions."""
    return {
        "mask": dict(zip(table.mask_ids.tolist(), table.mask_voxels.tolist(), strict=True)),
        "label": dict(zip(table.label_ids.tolist(), table.label_voxels.tolist(), strict=True)),
        "pairs": {
            (int(table.mask_ids[row]), int(table.label_ids[column])): int(shared)
            for row, column, shared in zip(table.rows, table.columns, table.shared, strict=True)
        },
    }


def by_brute_force(mask: np.ndarray, label: np.ndarray) -> dict[str, dict[object, int]]:
    ours, theirs = ([int(value) for value in np.unique(array) if value != 0] for array in (mask, label))
    pairs = {(a, b): int(np.sum((mask == a) & (label == b))) for a in ours for b in theirs}
    return {
        "mask": {a: int(np.sum(mask == a)) for a in ours},
        "label": {b: int(np.sum(label == b)) for b in theirs},
        "pairs": {pair: voxels for pair, voxels in pairs.items() if voxels},
    }


def random_pair(shape: tuple[int, ...], objects: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(0, objects + 1, shape).astype(np.uint16) for _ in range(2))


@pytest.mark.parametrize("shape", [(17,), (12, 19), (5, 6, 7)])
@pytest.mark.parametrize("order", ["CC", "FF", "CF", "FC"])
def test_the_table_is_that_of_counting(shape: tuple[int, ...], order: str) -> None:
    mask, label = (np.array(array, order=how) for array, how in zip(random_pair(shape, 5), order, strict=True))
    assert as_dict(overlap_table(mask, label)) == by_brute_force(mask, label)
    view = np.pad(mask, 2)[tuple(slice(2, -2) for _ in shape)]
    assert as_dict(overlap_table(view, label)) == by_brute_force(mask, label)


def test_numbers_may_be_of_any_size_and_type() -> None:
    mask, label = random_pair((20, 20), 4)
    expected = by_brute_force(mask, label)
    far = np.array([0, 2**40, 3, 2**33 + 1, 7])
    found = as_dict(overlap_table(far[mask], label.astype(np.uint8)))
    assert found["pairs"] == {(int(far[a]), b): voxels for (a, b), voxels in expected["pairs"].items()}
    assert as_dict(overlap_table(mask > 2, label > 2)) == by_brute_force(
        (mask > 2).astype(int), (label > 2).astype(int)
    )


def test_blocks_give_the_table_of_the_whole() -> None:
    mask, label = random_pair((21, 30), 6)
    regions = [np.s_[i : i + 8, j : j + 11] for i in range(0, 21, 8) for j in range(0, 30, 11)]
    assert as_dict(overlap_of_blocks((mask[r], label[r]) for r in regions)) == as_dict(overlap_table(mask, label))


def test_nothing_overlaps_nothing() -> None:
    nothing = {"mask": {}, "label": {}, "pairs": {}}
    assert as_dict(overlap_table(np.zeros((4, 0), np.uint8), np.zeros((4, 0), np.uint8))) == nothing
    assert as_dict(overlap_table(np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.uint8))) == nothing
    assert as_dict(overlap_of_blocks([])) == nothing


def test_some_of_the_objects() -> None:
    mask, label = random_pair((15, 15), 5)
    table = overlap_table(mask, label)
    some = table.only(table.mask_ids % 2 == 1, table.label_ids > 2)
    expected = by_brute_force(mask * (mask % 2), label * (label > 2))
    assert as_dict(some) == expected
    np.testing.assert_array_equal(some.iou, some.shared / some.union)


def test_blocks_of_other_shapes_are_refused() -> None:
    with pytest.raises(InputRefusedError, match="cannot be compared"):
        overlap_of_blocks([(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))])


def test_a_thousand_objects_on_each_side_of_a_large_image_are_quick() -> None:
    side, count = 3072, 32
    grid = np.arange(side) * count // side
    label = (grid[:, None] * count + grid + 1).astype(np.uint16)
    mask = np.roll(label, (7, 11), (0, 1))
    best = np.inf
    for _ in range(3):
        started = time.process_time()
        match = match_objects(mask, label)
        best = min(best, time.process_time() - started)
    assert match["n_mask"] == match["n_label"] == count**2
    assert match["matched"]["0.50"] == count**2
    assert best < 1.0
