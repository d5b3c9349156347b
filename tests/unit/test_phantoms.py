"""Invented data: exact, deterministic, readable by others, and beyond the reach of a threshold."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
import tifffile

from unet_med.geometry import Geometry
from unet_med.phantoms import (
    NOISE_HU,
    NUCLEI,
    ORGANS,
    PhantomSet,
    best_threshold_dice,
    make_grid,
    make_nuclei,
    make_torso,
    write_phantoms_2d,
    write_phantoms_3d,
)


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> PhantomSet:
    return write_phantoms_3d(tmp_path_factory.mktemp("patients"), cases=3, seed=5, unlabelled=1)


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> PhantomSet:
    return write_phantoms_2d(tmp_path_factory.mktemp("fields"), cases=3, seed=5, unlabelled=1)


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_image_has_its_label_and_the_truth_lies_apart(patients: PhantomSet, fields: PhantomSet) -> None:
    for places, names in ((patients, ORGANS), (fields, NUCLEI)):
        assert (len(places.images), len(places.unlabelled)) == (3, 1)
        assert places.label_names == names
        assert all(image.exists() and label.is_file() for image, label in places.pairs())
        assert {label.parent.name for label in places.truth} == {"truth"}
    assert [p.name for p in patients.images] == [p.name.removesuffix(".nii.gz") for p in patients.labels]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    patients: PhantomSet, fields: PhantomSet, tmp_path: Path
) -> None:
    for places, write in ((patients, write_phantoms_3d), (fields, write_phantoms_2d)):
        again = write(tmp_path / f"{write.__name__}-same", cases=3, seed=5, unlabelled=1)
        other = write(tmp_path / f"{write.__name__}-other", cases=1, seed=6, unlabelled=0)
        assert _digests(again.folder) == _digests(places.folder)
        theirs = _digests(other.folder)
        assert not set(theirs.values()) & set(_digests(places.folder).values())


@pytest.mark.parametrize("number", range(3))
def test_others_read_the_series_on_the_grid_of_its_label(patients: PhantomSet, number: int) -> None:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(patients.images[number])))
    image, label = reader.Execute(), SimpleITK.ReadImage(str(patients.labels[number]))
    ours = make_grid(5, number, make_torso(5, number))
    assert image.GetSize() == label.GetSize() == ours.shape
    for corner in [(0, 0, 0), tuple(n - 1 for n in image.GetSize()), (image.GetSize()[0] - 1, 0, 0)]:
        there = image.TransformIndexToPhysicalPoint(corner)
        np.testing.assert_allclose(label.TransformIndexToPhysicalPoint(corner), there, atol=1e-3)
        np.testing.assert_allclose(ours.to_world(corner) * (-1, -1, 1), there, atol=1e-3)
    values = SimpleITK.GetArrayFromImage(image)
    organs = SimpleITK.GetArrayFromImage(label)
    assert values.min() == -1024  # air and noise
    assert set(np.unique(organs)) == {0, 1, 2}
    for value in (1, 2):
        assert 65 < values[organs == value].mean() < 95
    direction = np.array(image.GetDirection()).reshape(3, 3)
    assert np.abs(direction).max(axis=0).min() < 0.9999  # oblique


def test_headers_name_nobody_and_are_unique(patients: PhantomSet) -> None:
    seen: dict[str, set[str]] = {"SOPInstanceUID": set(), "SeriesInstanceUID": set(), "PatientID": set()}
    files = sorted(patients.folder.rglob("*.dcm"))
    for file in files:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        assert str(header.PatientName).startswith("PHANTOM^")
        assert header.SOPInstanceUID.is_valid
        for tag, values in seen.items():
            values.add(str(header[tag].value))
    assert len(seen["SOPInstanceUID"]) == len(files)
    assert len(seen["SeriesInstanceUID"]) == len(seen["PatientID"]) == 4


def test_patients_differ_in_spacing() -> None:
    spacings = {make_grid(0, number, make_torso(0, number)).spacing_mm for number in range(12)}
    assert len(spacings) > 4


def test_the_truth_does_not_depend_on_the_grid() -> None:
    torso = make_torso(0, 0)
    volumes = []
    for spacing, shape in ((4.0, 40), (1.6, 100)):
        grid = Geometry((shape,) * 3, np.diag([spacing] * 3 + [1.0]))
        affine = grid.affine.copy()  # type: ignore[union-attr]
        affine[:3, 3] = torso.centre_mm - spacing * (shape - 1) / 2
        labels = torso.organs(Geometry(grid.shape, affine).to_world(np.moveaxis(np.indices(grid.shape), 0, -1)))
        volumes.append(np.bincount(labels.ravel(), minlength=3)[1:] * spacing**3)
    np.testing.assert_allclose(volumes[0], volumes[1], rtol=0.03)


def test_no_threshold_finds_the_organs() -> None:
    images, labels = [], []
    for number in range(6):
        torso = make_torso(0, number)
        grid = make_grid(0, number, torso)
        points = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
        noise = np.random.default_rng(number).normal(0.0, NOISE_HU, grid.shape)
        images.append(torso.hounsfield(points) + noise)
        labels.append(torso.organs(points))
    dice = best_threshold_dice(images, labels, (1, 2))
    assert set(dice) == {0, 1, 2}
    assert max(dice.values()) < 0.6


def test_the_best_threshold_is_found_where_there_is_one() -> None:
    random = np.random.default_rng(0)
    labels = [(random.random((20, 20)) > 0.7).astype(int) for _ in range(2)]
    dark = [np.where(label, 1.0, 5.0) + random.uniform(-0.5, 0.5, label.shape) for label in labels]
    assert best_threshold_dice(dark, labels, (1,)) == pytest.approx({0: 1.0, 1: 1.0}, abs=0.01)
    flat = [np.zeros((20, 20)) for _ in labels]
    everything = [2 * label.sum() / (label.size + label.sum()) for label in labels]
    assert best_threshold_dice(flat, labels, (1,))[1] == pytest.approx(np.mean(everything))


def test_a_window_between_brighter_and_darker_counts_as_a_threshold() -> None:
    label = np.repeat([0, 1, 0], 100)
    image = np.repeat([0.0, 1.0, 2.0], 100) + np.linspace(0, 0.5, 300)
    assert best_threshold_dice([image], [label], (1,))[1] > 0.97


@pytest.mark.parametrize("number", range(3))
def test_pictures_declare_their_pixel_size_and_objects_touch(fields: PhantomSet, number: int) -> None:
    picture, objects, pixel_um = make_nuclei(5, number)
    with tifffile.TiffFile(fields.images[number]) as file:
        assert file.is_ome
        assert f'PhysicalSizeX="{pixel_um}"' in (file.ome_metadata or "")
        np.testing.assert_array_equal(file.asarray(), picture)
    with tifffile.TiffFile(fields.labels[number]) as file:
        stored = file.asarray()
        assert stored.dtype == np.uint16
        np.testing.assert_array_equal(stored, objects)
    assert set(np.unique(objects)) == set(range(objects.max() + 1))
    assert objects.max() > 10
    beside = (objects[:, 1:] != objects[:, :-1]) & (objects[:, 1:] > 0) & (objects[:, :-1] > 0)
    assert beside.sum() > 10
    assert picture.max() < 65535
