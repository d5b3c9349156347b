"""One image stored in all 48 axis orders and flips, and obliquely: the same mask in the world every time."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy.spatial.transform import Rotation
from toy_set import SPACING, Trained, toy_image

from unet_med.workflows.predict import predict

ORDERS = list(itertools.permutations(range(3)))
FLIPS = list(itertools.product((False, True), repeat=3))
TURN = Rotation.from_euler("zyx", (17, -12, 9), degrees=True).as_matrix()


def store(path: Path, image: np.ndarray, affine: np.ndarray, order: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    """Writes the same image with its axes permuted and reversed, the affine changed to match."""
    turned, header = image.transpose(order), affine[:, [*order, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            turned = np.flip(turned, axis)
            header[:3, 3] += header[:3, axis] * (turned.shape[axis] - 1)
            header[:3, axis] *= -1
    nib.save(nib.Nifti1Image(np.ascontiguousarray(turned), header), path)


def name_of(order: tuple[int, ...], flips: tuple[bool, ...]) -> str:
    return "".join(map(str, order)) + "_" + "".join("n" if flip else "p" for flip in flips)


@pytest.fixture(scope="module")
def masks(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("orientations")
    image, _ = toy_image(100)
    straight = np.diag([*SPACING, 1.0])
    straight[:3, 3] = (-31.0, 12.5, 204.0)
    oblique = np.eye(4)
    oblique[:3, :3] = TURN @ straight[:3, :3]
    oblique[:3, 3] = straight[:3, 3]
    (folder / "in").mkdir()
    for order, flips in itertools.product(ORDERS, FLIPS):
        store(folder / "in" / f"straight_{name_of(order, flips)}.nii.gz", image, straight, order, flips)
    for order, flips in itertools.product(ORDERS[::2], FLIPS[::3]):
        store(folder / "in" / f"oblique_{name_of(order, flips)}.nii.gz", image, oblique, order, flips)
    outcome = predict(str(trained.run), folder / "in", folder / "out", device="cpu")
    assert outcome.exit_code == 0, outcome.lines
    return folder / "out"


def centroids(path: Path) -> dict[int, np.ndarray]:
    """World position (LPS mm) of each label, computed by SimpleITK alone."""
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(sitk.ReadImage(str(path), sitk.sitkUInt8))
    return {label: np.array(statistics.GetCentroid(label)) for label in statistics.GetLabels()}


def test_all_48_give_the_same_mask_in_the_world(masks: Path) -> None:
    reference = masks / f"straight_{name_of((0, 1, 2), (False,) * 3)}.nii.gz"
    expected = nib.as_closest_canonical(nib.load(reference))
    wanted = centroids(reference)
    assert set(wanted) == {1, 2}
    paths = sorted(masks.glob("straight_*.nii.gz"))
    assert len(paths) == 48
    for path in paths:
        canonical = nib.as_closest_canonical(nib.load(path))
        np.testing.assert_allclose(canonical.affine, expected.affine, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(canonical.dataobj), np.asarray(expected.dataobj))
        for label, position in centroids(path).items():
            np.testing.assert_allclose(position, wanted[label], atol=1e-3)


def test_the_mask_lies_on_the_balls(masks: Path) -> None:
    _, truth = toy_image(100)
    found = np.asarray(nib.load(masks / f"straight_{name_of((0, 1, 2), (False,) * 3)}.nii.gz").dataobj)
    for label in (1, 2):
        overlap = 2 * ((found == label) & (truth == label)).sum() / ((found == label).sum() + (truth == label).sum())
        assert overlap > 0.8


def test_oblique_masks_turn_with_the_image(masks: Path) -> None:
    wanted = centroids(masks / f"straight_{name_of((0, 1, 2), (False,) * 3)}.nii.gz")
    to_lps = np.diag([-1.0, -1.0, 1.0])
    origin = to_lps @ np.array([-31.0, 12.5, 204.0])
    paths = sorted(masks.glob("oblique_*.nii.gz"))
    assert len(paths) == 9
    for path in paths:
        for label, position in centroids(path).items():
            turned = origin + to_lps @ TURN @ to_lps @ (wanted[label] - origin)
            np.testing.assert_allclose(position, turned, atol=0.02)


def test_each_mask_has_exactly_the_grid_of_its_image(masks: Path) -> None:
    for path in sorted(masks.glob("*.nii.gz")):
        source = nib.load(masks.parent / "in" / path.name)
        mask = nib.load(path)
        assert mask.shape == source.shape
        np.testing.assert_array_equal(mask.affine, source.affine)
        assert mask.get_data_dtype() == np.uint8
