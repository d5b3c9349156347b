"""RTSTRUCT in: contours on slices, holes, references, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import annotation_writer as a
import dicom_writer as w
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from skimage.measure import find_contours, points_in_poly

from unet_med.errors import InputRefusedError, MachineError
from unet_med.io.dicom.annotations import open_label
from unet_med.io.discover import discover
from unet_med.io.polygons import polygon_line, polygon_parity
from unet_med.io.source import IntakeOptions
from unet_med.volume import ImageSource

ROWS, COLUMNS, COUNT = 30, 40, 5
SQUARE = [(3.5, 2.5), (20.5, 2.5), (20.5, 17.5), (3.5, 17.5)]
HOLE = [(8.5, 6.5), (12.5, 6.5), (12.5, 11.5), (8.5, 11.5)]


@pytest.fixture
def structures(tmp_path: Path) -> a.Structures:
    """An oblique series of pixels of 0.8 x 1.25 mm on disk, and what draws on it."""
    series = w.Series(columns=COLUMNS, rows=ROWS, count=COUNT)
    slices = series.slices()
    w.write(tmp_path, slices)
    return a.Structures(series, slices)


def opened(folder: Path, data: Dataset, **options: object) -> ImageSource:
    a.save(data, folder / "truth.dcm")
    found = discover(folder, IntakeOptions(**options))
    assert len(found.annotations) == len(found.sources) == 1
    assert found.annotations[0].usable, found.annotations[0].reason
    return open_label(found.annotations[0], found.sources[0])


def drawn(folder: Path, structures: a.Structures, contours: Sequence[np.ndarray]) -> np.ndarray:
    return opened(folder, structures.dataset({"liver": contours})).read().array[0]


def block(columns: slice, rows: slice) -> np.ndarray:
    mask = np.zeros((COLUMNS, ROWS), dtype=bool)
    mask[columns, rows] = True
    return mask


# ---- filling --------------------------------------------------------------------------------------------------------

corner = st.tuples(st.floats(-4.0, 24.0), st.floats(-4.0, 19.0))


@settings(max_examples=200, deadline=None)
@given(st.lists(corner, min_size=3, max_size=8))
def test_a_triangle_fan_is_filled_as_by_another_library(corners: list[tuple[float, float]]) -> None:
    """Any triangle: scikit-image says which centres are inside; those on the line are left out of the comparison."""
    size = (20, 15)
    grid = np.stack(np.meshgrid(np.arange(20), np.arange(15), indexing="ij"), -1).reshape(-1, 2)
    for start in range(len(corners) - 2):
        triangle = np.array(corners[start : start + 3])
        inside = points_in_poly(grid, triangle).reshape(size)
        edges = (np.roll(triangle, -1, axis=0) - triangle)[:, None]
        to_grid = grid[None] - triangle[:, None]
        apart = np.abs(edges[..., 0] * to_grid[..., 1] - edges[..., 1] * to_grid[..., 0])
        near = (apart < 1e-6 * (1 + np.abs(edges).max())).any(axis=0).reshape(size)
        assert np.array_equal(polygon_parity(triangle, size)[~near], inside[~near])


@settings(max_examples=100, deadline=None)
@given(st.lists(corner, min_size=3, max_size=9), st.integers(0, 8))
def test_the_first_corner_and_the_direction_do_not_matter(corners: list[tuple[float, float]], turn: int) -> None:
    points, size = np.array(corners), (20, 15)
    one = polygon_parity(points, size)
    off_line = ~polygon_line(points, size)
    for other in (np.roll(points, turn, axis=0), points[::-1]):
        assert np.array_equal(polygon_parity(other, size)[off_line], one[off_line])


def test_centres_on_the_line() -> None:
    """Contours that run through pixel centres, as some programs draw them, keep these pixels on all sides."""
    points = np.array([(2.0, 3.0), (6.0, 3.0), (6.0, 8.0), (2.0, 8.0)])
    mask = polygon_parity(points, (10, 12)) | polygon_line(points, (10, 12))
    assert np.argwhere(mask).min(axis=0).tolist() == [2, 3]
    assert np.argwhere(mask).max(axis=0).tolist() == [6, 8]
    assert mask.sum() == 5 * 6


def test_a_mask_comes_back_from_its_contours() -> None:
    random = np.random.default_rng(4)
    noise = random.normal(size=(40, 30))
    mask = np.zeros((44, 34), dtype=bool)
    mask[2:-2, 2:-2] = sum(np.roll(noise, shift, axis) for shift in (-1, 0, 1) for axis in (0, 1)) > 0.5
    back = np.zeros_like(mask)
    for contour in find_contours(mask.astype(float), 0.5):
        back ^= polygon_parity(contour, mask.shape)
    assert np.array_equal(back, mask)


# ---- contours on slices ---------------------------------------------------------------------------------------------


def test_a_contour_on_an_oblique_slice_of_oblong_pixels(tmp_path: Path, structures: a.Structures) -> None:
    found = drawn(tmp_path, structures, [structures.points(2, SQUARE)])
    assert np.array_equal(found[:, :, 2], block(slice(4, 21), slice(3, 18)))
    assert found.sum() == 17 * 15


def test_two_contours_of_one_slice(tmp_path: Path, structures: a.Structures) -> None:
    other = [(25.5, 20.5), (30.5, 20.5), (30.5, 28.5), (25.5, 28.5)]
    found = drawn(tmp_path, structures, [structures.points(1, SQUARE), structures.points(1, other)])
    both = block(slice(4, 21), slice(3, 18)) | block(slice(26, 31), slice(21, 29))
    assert np.array_equal(found[:, :, 1], both)


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
def test_a_hole_and_an_island_in_it(tmp_path: Path, structures: a.Structures, kind: str) -> None:
    island = [(9.5, 7.5), (11.5, 7.5), (11.5, 10.5), (9.5, 10.5)]
    contours = [structures.points(3, one) for one in (HOLE, SQUARE, island)]
    found = opened(tmp_path, structures.dataset({"liver": contours}, kind)).read().array[0]
    meant = block(slice(4, 21), slice(3, 18)) & ~block(slice(9, 13), slice(7, 12))
    assert np.array_equal(found[:, :, 3], meant | block(slice(10, 12), slice(8, 11)))


def test_a_keyhole(tmp_path: Path, structures: a.Structures) -> None:
    inner = [(8.5, 2.5), (8.5, 6.5), (8.5, 11.5), (12.5, 11.5), (12.5, 6.5), (8.5, 6.5), (8.5, 2.5)]
    path = [SQUARE[0], *inner, *SQUARE[1:]]
    found = drawn(tmp_path, structures, [structures.points(3, path)])
    meant = block(slice(4, 21), slice(3, 18)) & ~block(slice(9, 13), slice(7, 12))
    assert np.array_equal(found[:, :, 3], meant)


def test_a_ball_has_the_volume_of_its_contours(tmp_path: Path, structures: a.Structures) -> None:
    contours = [structures.points(index, a.circle((18.2, 14.7), 11.0)) for index in range(COUNT)]
    source = opened(tmp_path, structures.dataset({"liver": contours}))
    found = source.read().array[0]
    corners = np.array(a.circle((18.2, 14.7), 11.0))
    after = np.roll(corners, -1, axis=0)
    area = 0.5 * abs(np.sum(corners[:, 0] * after[:, 1] - after[:, 0] * corners[:, 1]))
    assert found.sum() == pytest.approx(COUNT * area, rel=0.02)
    centre = source.geometry.to_world(np.argwhere(found)).mean(axis=0)
    meant = np.mean([structures.points(index, [(18.2, 14.7)])[0] for index in range(COUNT)], axis=0) * (-1, -1, 1)
    assert np.abs(centre - meant).max() < 0.1


def test_several_regions(tmp_path: Path, structures: a.Structures) -> None:
    other = [(25.5, 20.5), (30.5, 20.5), (30.5, 28.5), (25.5, 28.5)]
    regions = {"liver": [structures.points(1, SQUARE)], "spleen": [structures.points(1, other)]}
    found = opened(tmp_path, structures.dataset(regions)).read().array[0]
    assert np.array_equal(
        found[:, :, 1], 1 * block(slice(4, 21), slice(3, 18)) + 2 * block(slice(26, 31), slice(21, 29))
    )


def test_contours_drawn_on_the_slices_of_a_tilted_gantry(tmp_path: Path) -> None:
    series = w.Series(columns=COLUMNS, rows=ROWS, count=COUNT, turn=np.eye(3))
    slices = series.slices()
    for index, data in enumerate(slices):
        x, y, z = series.position(index)
        data.ImagePositionPatient = [x, y + 1.25 * index, z]
    w.write(tmp_path, slices)
    structures = a.Structures(series, slices)
    contours = [structures.points(index, SQUARE) + np.array([0, 1.25 * index, 0]) for index in range(COUNT)]
    source = opened(tmp_path, structures.dataset({"liver": contours}), untilt=True)
    stored = source.image.layout.labels_on_slices(source.read().array[0])
    for index in range(COUNT):
        assert np.array_equal(stored[:, :, index], block(slice(4, 21), slice(3, 18)))


# ---- references and notes -------------------------------------------------------------------------------------------


def test_contours_that_name_absent_images(tmp_path: Path, structures: a.Structures) -> None:
    source = opened(tmp_path, structures.dataset({"liver": [structures.points(2, SQUARE)]}, known_images=False))
    assert source.notes == ("the images that it names are not in the series: placed by the frame of reference",)
    assert source.read().array.sum() == 17 * 15


def test_what_is_unusual_is_noted(tmp_path: Path, structures: a.Structures) -> None:
    crossing = [(18.5, 10.5), (30.5, 10.5), (30.5, 16.5), (18.5, 16.5)]
    beyond = [(30.5, 20.5), (60.5, 20.5), (60.5, 28.5), (30.5, 28.5)]
    contours = [structures.points(0, SQUARE), structures.points(0, SQUARE), structures.points(0, SQUARE[:2])]
    contours += [structures.points(3, SQUARE), structures.points(3, crossing), structures.points(3, beyond)]
    data = structures.dataset({"liver": contours})
    data.ROIContourSequence[0].ContourSequence.append(structures._contour(contours[0], "OPEN_PLANAR", True))
    data.ROIContourSequence[0].ContourSequence.append(structures._contour(contours[0][:1], "POINT", True))
    source = opened(tmp_path, data)
    found = source.read().array[0]
    assert source.notes == (
        "contours that are not closed are left out: 2",
        "contours are there twice: the second is left out (1)",
        "contours cross each other: what they share counts as outside (1)",
        "contours of fewer than three points are left out (1)",
        "contours reach beyond the picture: cut off (1)",
        "slices without a contour lie between slices with one: they stay empty (2)",
    )
    assert np.array_equal(found[:, :, 0], block(slice(4, 21), slice(3, 18)))
    meant = block(slice(4, 21), slice(3, 18)) ^ block(slice(19, 31), slice(11, 17))
    assert np.array_equal(found[:, :, 3], meant | block(slice(31, 40), slice(21, 29)))


# ---- refused --------------------------------------------------------------------------------------------------------


def _shifted(structures: a.Structures, data: Dataset) -> None:
    data.ROIContourSequence[0].ContourSequence[0].ContourOffsetVector = [0, 0, 1]


def _elsewhere(structures: a.Structures, data: Dataset) -> None:
    uid = generate_uid()
    data.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = uid
    data.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = uid


def _moved(index: float) -> Callable[[a.Structures, Dataset], None]:
    def change(structures: a.Structures, data: Dataset) -> None:
        contour = structures._contour(structures.points(index, SQUARE), "CLOSED_PLANAR", True)
        data.ROIContourSequence[0].ContourSequence = [contour]

    return change


def _across(structures: a.Structures, data: Dataset) -> None:
    series = structures.series
    points = np.stack([series.position(0), series.position(4), series.position(4) + 9 * series.turn[:, 0]])
    data.ROIContourSequence[0].ContourSequence = [structures._contour(points, "CLOSED_PLANAR", True)]


def _cut(structures: a.Structures, data: Dataset) -> None:
    contour = data.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData = contour.ContourData[:-3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_elsewhere, "another frame of reference than the image"),
        (_moved(1.4), "between the slices of the image, 1.00 mm from the nearest"),
        (_moved(COUNT + 1), "beyond the first or last slice of the image, 5.00 mm from it"),
        (_moved(-1), "beyond the first or last slice of the image, 2.50 mm from it"),
        (_across, "a contour runs across the slices"),
        (_cut, "a contour has a broken list of points"),
        (_shifted, "shifted out of its plane"),
    ],
)
def test_contours_that_fit_no_slice_are_refused(
    tmp_path: Path, structures: a.Structures, change: Callable[[a.Structures, Dataset], None], words: str
) -> None:
    data = structures.dataset({"liver": [structures.points(2, SQUARE)]})
    change(structures, data)
    with pytest.raises(InputRefusedError) as caught:
        opened(tmp_path, data).read()
    assert words in str(caught.value)
    assert caught.value.remedy


def test_nearly_on_a_slice_is_on_it(tmp_path: Path, structures: a.Structures) -> None:
    found = drawn(tmp_path, structures, [structures.points(2.1, SQUARE)])
    assert np.array_equal(found[:, :, 2], block(slice(4, 21), slice(3, 18)))


def test_regions_that_overlap_are_named(tmp_path: Path, structures: a.Structures) -> None:
    data = structures.dataset({"liver": [structures.points(1, SQUARE)], "lesion": [structures.points(1, HOLE)]})
    with pytest.raises(InputRefusedError, match=r"regions 1 \(liver\) and 2 \(lesion\) overlap in 20 voxels"):
        opened(tmp_path, data).read()


def _no_region(data: Dataset) -> None:
    data.ROIContourSequence[0].ReferencedROINumber = 7


def _two_frames(data: Dataset) -> None:
    data.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = generate_uid()


def _all_open(data: Dataset) -> None:
    for region in data.ROIContourSequence:
        for contour in region.ContourSequence:
            contour.ContourGeometricType = "OPEN_PLANAR"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_no_region, "contours belong to no region that is listed"),
        (_two_frames, "contours in 2 frames of reference"),
        (_all_open, "holds no closed contour"),
    ],
)
def test_a_set_without_sense_is_refused(
    tmp_path: Path, structures: a.Structures, change: Callable[[Dataset], None], words: str
) -> None:
    data = structures.dataset({"liver": [structures.points(1, SQUARE)], "spleen": [structures.points(2, SQUARE)]})
    change(data)
    a.save(data, tmp_path / "truth.dcm")
    annotation = discover(tmp_path).annotations[0]
    assert not annotation.usable
    assert words in annotation.reason


def test_damaged_files_are_refused_and_nothing_else(tmp_path: Path, structures: a.Structures) -> None:
    data = structures.dataset({"liver": [structures.points(1, SQUARE), structures.points(2, a.circle((20, 12), 6))]})
    path = a.save(data, tmp_path / "truth.dcm")
    whole = path.read_bytes()
    random = np.random.default_rng(12)
    outcomes = set()
    for _ in range(150):
        changed = bytearray(whole)
        for place in random.integers(132, len(changed), random.integers(1, 20)):
            changed[place] = random.integers(0, 256)
        path.write_bytes(bytes(changed[: random.integers(400, len(changed))] if random.random() < 0.3 else changed))
        found = discover(tmp_path)
        for annotation in found.annotations:
            try:
                open_label(annotation, found.sources[0]).read()
                outcomes.add("read")
            except (InputRefusedError, MachineError) as error:
                assert "SECRET" not in str(error)
                outcomes.add("refused")
    assert outcomes == {"read", "refused"}
