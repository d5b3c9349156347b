"""What untilting, resampling and filling gaps do to slices, and back: laws that hold for every stack."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.io.dicom.headers import EXPLICIT_LITTLE, Header
from unet_med.io.dicom.slices import Regrid
from unet_med.io.dicom.stacks import PLACE_TOLERANCE, STEP_TOLERANCE_MM, Stack, lay_out
from unet_med.io.source import IntakeOptions

ALL = IntakeOptions(untilt=True, resample_slices=True, allow_gaps=True)
COLUMNS, ROWS = 8, 6


def header(position: np.ndarray, turn: np.ndarray, spacing: tuple[float, float], number: int) -> Header:
    from pathlib import Path

    return Header(
        path=Path(f"{number}"),
        size=0,
        syntax=EXPLICIT_LITTLE,
        sop_class="",
        sop_uid=f"1.{number}",
        study_uid="1",
        series_uid="1",
        series_number=1,
        instance=number,
        modality="CT",
        image_type=(),
        rows=ROWS,
        columns=COLUMNS,
        frames=1,
        samples=1,
        photometric="MONOCHROME2",
        bits_allocated=16,
        bits_stored=16,
        signed=True,
        position=tuple(map(float, position)),
        orientation=(*map(float, turn[:, 0]), *map(float, turn[:, 1])),
        pixel_spacing=(spacing[1], spacing[0]),
        detector_spacing=None,
        frame_uid="1",
        thickness=1.0,
        between=None,
        slope=None,
        has_padding=False,
        burned_in=False,
        has_pixels=True,
    )


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("xyz", angles, degrees=True).as_matrix()


def linear(points: np.ndarray) -> np.ndarray:
    """A value that says where it is, in LPS mm."""
    return points @ np.array([2.0, 3.0, 5.0]) + 40.0


def read(regrid: Regrid, pictures: list[np.ndarray]) -> np.ndarray:
    """The whole grid, NaN where no slice is."""
    out = np.empty(regrid.shape, dtype=np.float32)
    for plane in range(regrid.shape[2]):
        below, above, weight = regrid.neighbours(plane)
        low = regrid.place(pictures[below], below, math.nan)
        out[:, :, plane] = (
            low if weight == 0 else (1 - weight) * low + weight * regrid.place(pictures[above], above, math.nan)
        )
    return out


angles = st.tuples(*[st.floats(-180, 180)] * 3)
spacings = st.tuples(st.floats(0.4, 2.0), st.floats(0.4, 2.0))
slopes = st.tuples(st.floats(-0.6, 0.6), st.floats(-0.6, 0.6))
even = st.integers(4, 8).map(lambda n: [2.5 * k for k in range(n)])
gaps = st.lists(st.sampled_from([1, 1, 1, 2, 3]), min_size=4, max_size=8).map(
    lambda steps: [2.5 * n for n in np.cumsum([0, *steps])]
)
uneven = st.lists(st.floats(1.0, 4.0), min_size=3, max_size=8).map(lambda steps: list(np.cumsum([0.0, *steps])))


@settings(max_examples=60, deadline=None)
@given(angles=angles, spacing=spacings, slope=slopes, heights=st.one_of(even, gaps, uneven), order=st.randoms())
def test_a_linear_phantom_stays_linear(
    angles: tuple[float, float, float],
    spacing: tuple[float, float],
    slope: tuple[float, float],
    heights: list[float],
    order: object,
) -> None:
    turn = rotation(angles)
    positions = [turn @ np.array([slope[0] * h, slope[1] * h, h]) + [1.0, -2.0, 3.0] for h in heights]
    headers = [header(position, turn, spacing, n) for n, position in enumerate(positions)]
    order.shuffle(headers)
    try:
        stack, geometry, regrid, used = lay_out(Stack(tuple(headers)), ALL)
    except InputRefusedError as error:
        assert "too few" in error.what and len(heights) <= 3 + max(np.diff(heights)) / min(np.diff(heights))
        return
    assume(regrid is not None)
    assert [one.instance for one in stack.headers] == list(range(len(heights))), "sorted by position"
    assert used and set(used) <= {"untilt", "resample_slices", "allow_gaps"} and all(used.values())
    assert geometry.shape == regrid.shape
    assert geometry.shear < 1e-9
    drift = np.array([slope[0] / spacing[0], slope[1] / spacing[1]]) * heights[-1]
    assert ("untilt" in used) == (np.abs(drift).max() > 0.1)
    if "untilt" in used:
        assert geometry.shape[:2] == tuple(
            n + math.ceil(round(abs(d), 6)) if abs(d) > 0.01 else n for n, d in zip((COLUMNS, ROWS), drift, strict=True)
        )
    index = np.stack(np.meshgrid(np.arange(COLUMNS), np.arange(ROWS), indexing="ij"), axis=-1)
    pictures = [linear(position + index * spacing @ turn[:, :2].T).astype(np.float32) for position in positions]
    array = read(regrid, pictures)
    grid = np.stack(np.meshgrid(*map(np.arange, regrid.shape), indexing="ij"), axis=-1)
    expected = linear(geometry.to_world(grid) * [-1.0, -1.0, 1.0])
    shifts = np.array([origin[:2] for origin in regrid.origins])
    interior = np.ones(regrid.shape, dtype=bool)
    for plane in range(regrid.shape[2]):
        below, above, weight = regrid.neighbours(plane)
        for number in {below if weight < 1 else above, above if weight > 0 else below}:
            for axis, size in enumerate((COLUMNS, ROWS)):
                own = np.arange(regrid.shape[axis]) - shifts[number][axis]
                ok = (own >= -1e-6) & (own <= size - 1 + 1e-6)
                interior[:, :, plane] &= ok[:, None] if axis == 0 else ok[None, :]
    assert interior.any()
    # what drifts less than is worth moving stays where it is stored, and so does a slice that is nearly in its place
    slack = 0.11 * (5 * max(spacing)) if "untilt" not in used else 0.011 * 5 * max(spacing)
    away = 0.0 if "resample_slices" in used else 5 * max(STEP_TOLERANCE_MM, PLACE_TOLERANCE * min(np.diff(heights)))
    exact = 1e-3 * max(1.0, np.abs(expected).max()) / 100
    assert not np.isnan(array[interior]).any()
    assert np.abs(array - expected)[interior].max() <= (exact + away + (slack if 0 < np.abs(drift).min() < 0.1 else 0))


@settings(max_examples=60, deadline=None)
@given(
    shifts=st.lists(st.tuples(st.floats(0, 4), st.floats(0, 4)), min_size=2, max_size=5),
    steps=st.lists(st.integers(1, 3), min_size=5, max_size=5),
    seed=st.integers(0, 1000),
)
def test_labels_come_back_to_the_slices_they_came_from(
    shifts: list[tuple[float, float]], steps: list[int], seed: int
) -> None:
    heights = np.cumsum([0, *steps])
    regrid = Regrid(
        tuple((x, y, float(k)) for (x, y), k in zip(shifts, heights, strict=False)),
        (COLUMNS + 4, ROWS + 4, int(heights[len(shifts) - 1]) + 1),
    )
    stored = np.random.default_rng(seed).integers(0, 5, (COLUMNS, ROWS, len(shifts))).astype(np.uint8)
    grid = regrid.labels_on_grid(stored)
    assert grid.dtype == stored.dtype and grid.shape == regrid.shape
    assert np.array_equal(regrid.labels_on_slices(grid, (COLUMNS, ROWS)), stored)


@settings(max_examples=40, deadline=None)
@given(
    shifts=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=5), seed=st.integers(0, 1000)
)
def test_whole_shifts_move_voxels_without_changing_them(shifts: list[tuple[int, int]], seed: int) -> None:
    regrid = Regrid(
        tuple((float(x), float(y), float(k)) for k, (x, y) in enumerate(shifts)),
        (COLUMNS + 4, ROWS + 4, len(shifts)),
    )
    stored = np.random.default_rng(seed).integers(1, 99, (COLUMNS, ROWS, len(shifts)))
    labels = regrid.labels_on_grid(stored)
    for number, (x, y) in enumerate(shifts):
        placed = regrid.place(stored[:, :, number].astype(np.float32), number, 0.0)
        assert np.array_equal(placed, labels[:, :, number]), "pictures and labels move alike"
        assert np.array_equal(placed[x : x + COLUMNS, y : y + ROWS], stored[:, :, number])
        assert (placed == 0).sum() == placed.size - COLUMNS * ROWS


@settings(max_examples=40, deadline=None)
@given(x=st.floats(0, 3), y=st.floats(0, 3), seed=st.integers(0, 100))
def test_a_placed_slice_agrees_with_an_independent_interpolation(x: float, y: float, seed: int) -> None:
    from scipy.ndimage import map_coordinates

    picture = np.random.default_rng(seed).normal(size=(COLUMNS, ROWS)).astype(np.float32)
    regrid = Regrid(((x, y, 0.0),), (COLUMNS + 3, ROWS + 3, 1))
    at = np.meshgrid(np.arange(COLUMNS + 3) - x, np.arange(ROWS + 3) - y, indexing="ij")
    expected = map_coordinates(picture, at, order=1, mode="nearest")
    outside = (at[0] < -0.5) | (at[0] > COLUMNS - 0.5) | (at[1] < -0.5) | (at[1] > ROWS - 0.5)
    placed = regrid.place(picture, 0, -7.0)
    assert placed.dtype == np.float32
    assert (placed[outside] == -7.0).all()
    assert np.abs(placed - expected)[~outside].max() < 1e-5


def test_regular_stacks_need_no_regrid() -> None:
    headers = tuple(header(np.array([0.0, 0.0, 2.0 * k]), np.eye(3), (1.0, 1.0), k) for k in range(5))
    _, geometry, regrid, used = lay_out(Stack(headers), ALL)
    assert regrid is None and used == {}
    assert geometry.same_grid(Geometry.from_lps((COLUMNS, ROWS, 5), np.diag([1.0, 1.0, 2.0, 1.0])))
