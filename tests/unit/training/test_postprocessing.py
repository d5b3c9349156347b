"""Post-processing is taken where it helps masks of unseen cases and harms nothing; what was tried is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_med.config import Postprocess
from unet_med.labels import LabelMap
from unet_med.metrics import confusion_counts, dice_iou
from unet_med.training.postprocessing import MaskPairs, choose_postprocess
from unet_med.transforms.postprocess import postprocess_labels

LABELS = LabelMap.from_names({"background": 0, "organ": 1, "spots": 2})
SHAPE = (24, 20, 18)


def case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An organ in one piece, and two spots of which none is the one that counts; the mask is right."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(SHAPE, dtype=np.uint8)
    i, j, k = rng.integers(2, 4, 3)
    truth[i : i + 9, j : j + 9, k : k + 9] = 1
    truth[18:21, 2:5, 2:5] = 2
    truth[18:21, 13:16, 12:15] = 2
    return truth.copy(), truth


def with_islands(mask: np.ndarray, seed: int, value: int = 1) -> np.ndarray:
    mask = mask.copy()
    place = np.random.default_rng(seed).integers(0, 3, 3)
    mask[15, 17, 15 + place[0]] = value
    mask[14 + place[1], 1, 1] = value
    return mask


def mean_dice(pairs: list[tuple[np.ndarray, np.ndarray]], asked: Postprocess, name: str) -> float:
    scores = [dice_iou(confusion_counts(postprocess_labels(m, asked, LABELS), t, LABELS))[name][0] for m, t in pairs]
    return float(np.mean([1.0 if score is None else score for score in scores]))


def test_right_masks_are_left_alone() -> None:
    pairs = [case(seed) for seed in range(5)]
    choice = choose_postprocess(pairs, LABELS, Postprocess())
    assert choice.settings == Postprocess()
    assert choice.before == choice.after == {"organ": 1.0, "spots": 1.0}
    assert choice.as_dict(Postprocess())["chosen"] == {}
    reason = choice.reasons["postprocess.keep_largest"]
    assert "not taken for spots: Dice 1.0000 -> 0.6667" in reason
    assert reason.endswith("organ: no case changes")


def test_the_largest_component_is_kept_of_what_is_in_one_piece_only() -> None:
    pairs = [(with_islands(mask, seed), truth) for seed, (mask, truth) in enumerate(map(case, range(6)))]
    choice = choose_postprocess(pairs, LABELS, Postprocess())
    assert choice.settings.keep_largest == ("organ",)
    assert choice.after["organ"] == 1.0 > choice.before["organ"]
    assert choice.after["spots"] == choice.before["spots"] == 1.0
    reason = choice.reasons["postprocess.keep_largest"]
    assert "helps organ: Dice 0.99" in reason
    assert "(6 of 6 cases better, 0 worse)" in reason
    assert "not taken for spots: Dice 1.0000 -> 0.6667 (0 of 6 cases better, 6 worse)" in reason
    kept = choice.as_dict(Postprocess())
    assert kept["chosen"] == {"keep_largest": ["organ"]}
    assert kept["dice_after"]["organ"] == 1.0


def test_small_components_are_removed_where_several_are_right() -> None:
    pairs = [(with_islands(mask, seed, 2), truth) for seed, (mask, truth) in enumerate(map(case, range(6)))]
    choice = choose_postprocess(pairs, LABELS, Postprocess())
    assert choice.settings.minimum_voxels == 10
    assert choice.settings.keep_largest == ()
    assert choice.after["spots"] == 1.0


def test_holes_are_filled_where_the_truth_has_none() -> None:
    pairs = []
    for mask, truth in map(case, range(4)):
        mask[6, 6, 6:8] = 0
        pairs.append((mask, truth))
    choice = choose_postprocess(pairs, LABELS, Postprocess())
    assert choice.settings.fill_holes == ("organ",)
    assert choice.after["organ"] == 1.0
    hollow = [(mask, mask) for mask, _ in pairs]
    assert choose_postprocess(hollow, LABELS, Postprocess()).settings == Postprocess()


def test_one_odd_case_decides_nothing() -> None:
    pairs = [case(seed) for seed in range(5)]
    pairs[0] = with_islands(pairs[0][0], 0), pairs[0][1]
    assert choose_postprocess(pairs, LABELS, Postprocess()).settings == Postprocess()


def test_a_region_that_would_fall_forbids_a_step() -> None:
    labels = LabelMap.from_names({"background": 0, "organ": 1, "spots": 2}, {"all": [1, 2], "spots only": [2]})
    pairs = []
    for seed, (mask, truth) in enumerate(map(case, range(4))):
        truth[15, 17, 14:18] = truth[14:17, 1, 1] = 2  # called organ by the mask, but at least inside of the region
        pairs.append((with_islands(mask, seed), truth))
    assert choose_postprocess(pairs, LABELS, Postprocess()).settings.keep_largest == ("organ",)
    choice = choose_postprocess(pairs, labels, Postprocess())
    assert choice.settings.keep_largest == ()
    assert "harms another structure" in choice.reasons["postprocess.keep_largest"]


def test_a_false_alarm_in_a_case_without_the_label_counts() -> None:
    empty = np.zeros(SHAPE, dtype=np.uint8)
    wrong = empty.copy()
    wrong[3, 3, 3] = 2
    pairs = [(wrong, empty), (wrong, empty), *(case(seed) for seed in range(3))]
    choice = choose_postprocess(pairs, LABELS, Postprocess())
    assert choice.settings.minimum_voxels == 10
    assert choice.after["spots"] == 1.0
    assert choice.before["spots"] == pytest.approx(0.6)


def test_what_was_asked_for_stays() -> None:
    given = Postprocess(keep_largest=["spots"], minimum_voxels=20)
    pairs = [(with_islands(mask, seed), truth) for seed, (mask, truth) in enumerate(map(case, range(4)))]
    pairs = [(postprocess_labels(mask, given, LABELS), truth) for mask, truth in pairs]
    choice = choose_postprocess(pairs, LABELS, given)
    assert choice.settings.keep_largest == ("spots",)
    assert choice.settings.minimum_voxels == 20


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), cases=st.integers(1, 5), noise=st.floats(0.0, 0.2))
def test_whatever_the_masks_no_label_falls_and_the_numbers_are_those_of_the_choice(
    seed: int, cases: int, noise: float
) -> None:
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(cases):
        truth = np.kron(rng.integers(0, 3, (3, 3, 2)), np.ones((3, 3, 3), dtype=int)).astype(np.uint8)
        wrong = rng.random(truth.shape) < noise
        pairs.append((np.where(wrong, rng.integers(0, 3, truth.shape), truth).astype(np.uint8), truth))
    choice = choose_postprocess(pairs, LABELS, Postprocess())
    for name in LABELS.names:
        assert choice.after[name] >= choice.before[name] - 1e-9
        assert choice.before[name] == pytest.approx(mean_dice(pairs, Postprocess(), name))
        assert choice.after[name] == pytest.approx(mean_dice(pairs, choice.settings, name))


def test_pairs_on_disk_choose_the_same(tmp_path: Path) -> None:
    masks = MaskPairs(tmp_path / "masks")
    pairs = [(with_islands(mask, seed), truth) for seed, (mask, truth) in enumerate(map(case, range(4)))]
    for number, pair in enumerate(pairs):
        masks.keep(f"case.{number}", *pair)
    masks.keep("case.0", *pairs[0])
    masks.keep("nothing", np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8))
    assert masks.names() == ["case.0", "case.1", "case.2", "case.3", "nothing"]
    kept = MaskPairs(tmp_path / "masks", ["case.3", "case.0", "case.1", "case.2"])
    for (mask, truth), (own, own_truth) in zip(pairs, kept, strict=True):
        assert confusion_counts(mask, truth, LABELS) == confusion_counts(own, own_truth, LABELS)
    assert choose_postprocess(kept, LABELS, Postprocess()) == choose_postprocess(pairs, LABELS, Postprocess())
    masks.remove()
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize("place", [(0, 0, 0), (23, 19, 17), (5, 6, 7)])
def test_a_crop_keeps_what_is_a_hole(tmp_path: Path, place: tuple[int, int, int]) -> None:
    """One plane of a label in a volume is open on both sides, also when the volume is cropped to it."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[place[0], 2:9, 2:9] = 1
    mask[place[0], 5, 5] = 0
    MaskPairs(tmp_path).keep("case", mask, mask)
    ((own, _),) = MaskPairs(tmp_path)
    asked = Postprocess(fill_holes=["organ"])
    assert np.count_nonzero(postprocess_labels(own, asked, LABELS)) == np.count_nonzero(mask) == 48
