"""Every trap of the zoo: loaded exactly, or refused with the reason; with the named switches loaded where they help."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_zoo import ALL_CASES, Case, Expected, Field

from unet_med.io.dicom.slices import Regrid, SliceLayout
from unet_med.io.discover import discover, open_source
from unet_med.io.source import IntakeOptions, SourceRef

MOST_CHECKED = 200_000
"""Voxels of a big volume that are compared."""


def test_the_zoo_is_big_enough() -> None:
    assert sum(not case.real for case in ALL_CASES) >= 36
    assert sum(bool(case.real) for case in ALL_CASES) >= 12
    assert len({case.name for case in ALL_CASES}) == len(ALL_CASES)


@pytest.mark.parametrize("case", ALL_CASES, ids=lambda case: case.name)
def test_case(case: Case, tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    for module in case.needs:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    data = None
    if case.real:
        shared_data(case.real)
        data = shared_data("README.md").parent
    expected = case.write(tmp_path / "in", data)
    check_default(tmp_path / "in", expected)
    if expected.opens:
        check_opened(tmp_path / "in", expected)


def check_default(folder: Path, expected: Expected) -> None:
    found = discover(folder)
    usable, refused = list(found.usable), [ref for ref in found.sources if not ref.usable]
    assert len(refused) == expected.refusals, [ref.reason for ref in refused]
    for ref in refused:
        assert all(word in ref.reason for word in expected.words), ref.reason
        assert ": " in ref.reason, "a remedy"
    assert len(usable) == len(expected.volumes)
    left = list(expected.volumes)
    for ref in usable:
        array, affine = loaded(ref)
        said = [truth.differs(array, affine) for truth in left]
        assert "" in said, (ref.id, said)
        left.pop(said.index(""))
        assert all(any(word in note for note in ref.notes) for word in expected.notes), ref.notes
    skipped = " ".join(one.what for one in found.skipped)
    assert all(word in skipped for word in expected.skipped), skipped


def loaded(ref: SourceRef) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (X, Y, K) and their LPS affine; a picture lies in a plane of 1 mm."""
    volume = open_source(ref).read()
    assert volume.array.dtype == np.float32
    assert volume.array.shape == (1, *ref.shape)
    array = volume.array[0]
    return (array if array.ndim == 3 else array[..., np.newaxis]), volume.geometry.to_lps()


def check_opened(folder: Path, expected: Expected) -> None:
    """With its switches the series loads on a rectangular grid that agrees with the world; any fewer do not help."""
    for switch in expected.opens:
        fewer = IntakeOptions(**{other: True for other in expected.opens if other != switch})
        (ref,) = discover(folder, fewer).sources
        assert not ref.usable, f"without {switch}"
        assert f"--{switch.replace('_', '-')}" in ref.reason
    everything = IntakeOptions(untilt=True, resample_slices=True, allow_gaps=True)
    (ref,) = discover(folder, everything).sources
    assert ref.usable, ref.reason
    assert {key for key, value in ref.read_as.items() if value is True} == set(expected.opens)
    assert ref.geometry.shear < 1e-6
    assert isinstance(ref.layout, SliceLayout)
    regrid = ref.layout.regrid
    assert regrid is not None
    assert regrid.shape == ref.shape
    array, affine = loaded(ref)
    check_world(array, affine, regrid, ref.layout.size, expected.between or expected.world, expected.tolerance)
    check_region(ref, array)
    check_labels(ref.layout, array.shape)


def check_world(
    array: np.ndarray, affine: np.ndarray, regrid: Regrid, size: tuple[int, int], world: Field, tolerance: float
) -> None:
    index = np.argwhere(np.ones(array.shape, dtype=bool))
    if len(index) > MOST_CHECKED:
        index = np.random.default_rng(0).choice(index, MOST_CHECKED, replace=False)
    inside = np.ones(len(index), dtype=bool)
    for plane in range(array.shape[2]):
        here = index[:, 2] == plane
        below, above, weight = regrid.neighbours(plane)
        for number in {below if weight < 1 else above, above if weight > 0 else below}:
            for axis in (0, 1):
                own = index[here, axis] - regrid.origins[number][axis]
                inside[here] &= (own >= -1e-6) & (own <= size[axis] - 1 + 1e-6)
    expected = world(index @ affine[:3, :3].T + affine[:3, 3])
    inside &= ~np.isnan(expected)
    stored = size[0] * size[1] * array.shape[2]
    assert inside.mean() > 0.6 * stored / array.size
    assert np.abs(array[tuple(index.T)] - expected)[inside].max() <= tolerance


def check_region(ref: SourceRef, array: np.ndarray) -> None:
    """A part reads as it does in the whole."""
    region = tuple(slice(n // 3, max(n // 3 + 1, 2 * n // 3)) for n in array.shape)
    part = open_source(ref).read(region).array[0]
    assert np.array_equal(part, array[region])


def check_labels(layout: SliceLayout, shape: tuple[int, ...]) -> None:
    """A mask on the grid comes back to the stored slices."""
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 4, (*layout.size, len(layout.slices))).astype(np.uint8)
    grid = layout.labels_on_grid(stored)
    assert grid.shape == shape
    assert layout.labels_on_slices(grid).shape == stored.shape
    if layout.regrid is not None and all(origin[2].is_integer() for origin in layout.regrid.origins):
        assert np.array_equal(layout.labels_on_slices(grid), stored)
