"""Whether left and right matter to the labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from unet_med.planning.sides import CaseSides, _holds, measure_sides, paired_sides, sidedness

LABELS = {"background": 0, "one": 1, "two": 2}
Place = tuple[float, float, float] | None


def case(
    one: Place, two: Place = None, voxels: tuple[int, int] = (100, 100), width: float = 300.0, *, whole: bool = True
) -> CaseSides:
    counts = tuple(n if place else 0 for n, place in zip(voxels, (one, two), strict=True))
    return CaseSides((None, one, two), (0, *counts), width, whole)


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (["left kidney", "right kidney"], ("left kidney", "right kidney")),
        (["lung_R", "lung_L"], ("lung_R", "lung_L")),
        (["liver", "tumour"], None),
        (["left kidney", "liver"], None),
        (["bright", "blight"], None),
    ],
)
def test_names_of_sides(names: list[str], pair: tuple[str, str] | None) -> None:
    assert paired_sides(names) == pair
    labels = {"background": 0, **{name: value for value, name in enumerate(names, start=1)}}
    assert (sidedness(labels, ()) is None) == (pair is None)


# ---- measuring -------------------------------------------------------------------------------------------------------


def body(shape: tuple[int, int, int], first: int, last: int) -> np.ndarray:
    image = np.full(shape, -1000.0, dtype=np.float32)
    image[first : last + 1, 5:-5] = 40.0
    return image


def test_centroids_are_counted_from_the_middle_of_the_body() -> None:
    image = body((100, 60, 20), 10, 69)  # off the middle of the image
    label = np.zeros(image.shape, dtype=np.uint8)
    label[20:22, 10:14, 4:8] = 1
    label[60, 30, 19] = 3
    found = measure_sides(image, label, np.flatnonzero(label), (2.0, 1.0, 3.0), 5)
    assert found.voxels == (0, 32, 0, 1, 0)
    assert found.centroids_mm[0] is found.centroids_mm[2] is found.centroids_mm[4] is None
    assert found.centroids_mm[1] == pytest.approx(((20.5 - 39.5) * 2, 11.5, 16.5))
    assert found.centroids_mm[3] == pytest.approx(((60 - 39.5) * 2, 30, 57))
    assert (found.width_mm, found.whole) == (120.0, True)


def test_turned_views_are_measured_as_they_are_seen() -> None:
    image = np.asfortranarray(body((40, 30, 20), 5, 30))
    label = np.zeros(image.shape, dtype=np.uint8)
    label[8, 9, 10] = 1
    plain = measure_sides(image, label, np.flatnonzero(label), (1.0, 1.0, 1.0), 2)
    turned = label[::-1]
    mirrored = measure_sides(image[::-1], turned, np.flatnonzero(turned), (1.0, 1.0, 1.0), 2)
    assert mirrored.centroids_mm[1] == (-plain.centroids_mm[1][0], 9.0, 10.0)


@pytest.mark.parametrize("image", [np.ones((20, 9, 9)), body((20, 30, 9), 0, 12), body((20, 30, 9), 8, 19)])
def test_a_body_that_is_cut_off_has_the_images_middle(image: np.ndarray) -> None:
    label = np.zeros(image.shape, dtype=np.uint8)
    label[4, 4, 4] = 1
    found = measure_sides(image, label, np.flatnonzero(label), (1.0, 1.0, 1.0), 2)
    assert (found.whole, found.width_mm) == (False, 20.0)
    assert found.centroids_mm[1] == (4 - 9.5, 4.0, 4.0)


# ---- deciding --------------------------------------------------------------------------------------------------------


def test_twins_across_the_middle_are_found() -> None:
    rng = np.random.default_rng(0)
    cases = [case((80 + rng.normal(), 10, 5), (-75 + rng.normal(), 12, 4), whole=False) for _ in range(12)]
    reason = sidedness(LABELS, cases)
    assert reason == "one and two lie on opposite sides of the body in 12 of 12 cases"
    swapped = [case(two, one) for one, two in (known.centroids_mm[1:] for known in cases)]
    assert sidedness(LABELS, swapped) == reason
    assert sidedness(LABELS, cases[:3]) is None  # three cases show nothing


def test_a_single_label_always_on_one_side_is_found() -> None:
    cases = [case((-60.0, 0, 0)) for _ in range(30)]
    assert sidedness({"background": 0, "spleen": 1}, cases) == "spleen lies on the left of the body in 30 of 30 cases"
    right = [case((60.0, 0, 0)) for _ in range(30)]
    assert "on the right" in (sidedness({"background": 0, "liver": 1}, right) or "")
    assert sidedness({"background": 0, "spleen": 1}, cases[:8]) is None
    crops = [case((-60.0, 0, 0), whole=False) for _ in range(30)]
    assert sidedness({"background": 0, "spleen": 1}, crops) is None
    middle = [case((-6.0, 0, 0)) for _ in range(30)]
    assert sidedness({"background": 0, "spine": 1}, middle) is None


@pytest.mark.parametrize(
    ("one", "two", "voxels"),
    [
        ((80.0, 0, 0), (60.0, 0, 0), (100, 100)),  # the same side
        ((10.0, 90, 0), (-10.0, -90, 0), (100, 100)),  # one behind the other, as the parts of a hippocampus
        ((80.0, 0, 0), (-80.0, 0, 0), (1000, 100)),  # a large one and a small one are no twins
    ],
)
def test_what_does_not_mirror_each_other_is_no_pair(one: Place, two: Place, voxels: tuple[int, int]) -> None:
    assert sidedness(LABELS, [case(one, two, voxels, whole=False) for _ in range(40)]) is None


def test_labels_on_either_side_are_mirrored() -> None:
    rng = np.random.default_rng(1)
    cases = []
    for number in range(60):
        side = 1.0 if number % 2 else -1.0
        cases.append(case((side * rng.uniform(40, 90), 0, 0), (-side * rng.uniform(40, 90), 0, 0)))
    assert sidedness(LABELS, cases) is None


@given(st.integers(0, 300), st.integers(0, 300), st.sampled_from([0.5, 0.8]), st.integers(1, 400))
def test_claims_are_exact_binomial_bounds(hits: int, more: int, share: float, claims: int) -> None:
    count = hits + more
    level = 0.05 / claims
    low = 0.0 if hits == 0 else float(stats.beta.ppf(level, hits, count - hits + 1))
    if abs(low - share) > 1e-9:
        assert _holds(hits, count, share, claims) == (low > share)


def test_chance_is_seldom_taken_for_a_side() -> None:
    rng = np.random.default_rng(2)
    found = 0
    for _ in range(200):
        sides = rng.choice([-1.0, 1.0], (7, 2)) * rng.uniform(30, 100, (7, 2))
        found += sidedness(LABELS, [case((a, 0, 0), (b, 0, 0)) for a, b in sides]) is not None
    assert found <= 10  # one in twenty
