"""What is measured of the training set."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from unet_med.errors import InputRefusedError
from unet_med.io.cases import Case
from unet_med.io.nifti import inspect_nifti
from unet_med.planning import CaseFingerprint, Fingerprint, fingerprint


def case(folder: Path, name: str, image: np.ndarray, label: np.ndarray, affine: np.ndarray, **more: bool) -> Case:
    folder.mkdir(exist_ok=True)
    for part, values in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(values, affine), folder / f"{name}_{part}.nii.gz")
    ref = [inspect_nifti(folder / f"{name}_{part}.nii.gz")[0] for part in ("image", "label")]
    return Case(name, (ref[0],), ref[1], **more)


@pytest.fixture
def image() -> np.ndarray:
    values = np.zeros((10, 12, 8), dtype=np.float32)
    values[1:9, 2:10, 0:8] = 5.0
    values[2:4, 3:5, 2:4] = [[[10, 20], [30, 40]], [[50, 60], [70, 80]]]
    return values


@pytest.fixture
def label() -> np.ndarray:
    values = np.zeros((10, 12, 8), dtype=np.uint8)
    values[2:4, 3:5, 2:4] = 1
    values[2, 3, 2] = 2
    return values


def test_shape_spacing_intensities_and_labels(tmp_path: Path, image: np.ndarray, label: np.ndarray) -> None:
    found = fingerprint([case(tmp_path, "a", image, label, np.diag([1.0, 2.0, 3.0, 1.0]))], 4)
    (one,) = found.cases
    assert (one.shape, one.spacing_mm) == ((8, 8, 8), (1.0, 2.0, 3.0))
    assert one.kept_share == pytest.approx(512 / 960)
    assert found.label_voxels == (952, 7, 1, 0)
    (channel,) = found.channels
    assert channel.mean == pytest.approx(45.0)
    assert channel.sd == pytest.approx(np.std(np.arange(10, 81, 10)))
    assert (channel.percentile_00_5, channel.percentile_99_5) == pytest.approx(
        tuple(np.percentile(np.arange(10, 81, 10), (0.5, 99.5)))
    )
    assert found.as_dict()["cases"] == 1


def test_axes_are_counted_towards_ras(tmp_path: Path, image: np.ndarray, label: np.ndarray) -> None:
    affine = np.array([[0, 0, -3.0, 0], [1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])  # I: A, J: S, K: L
    (one,) = fingerprint([case(tmp_path, "a", image, label, affine)], 3).cases
    assert one.spacing_mm == (3.0, 1.0, 2.0)
    assert one.shape == (8, 8, 8)


def test_objects_count_as_one_label(tmp_path: Path, image: np.ndarray, label: np.ndarray) -> None:
    found = fingerprint([case(tmp_path, "a", image, label, np.eye(4), instances=True)], 2)
    assert found.label_voxels == (952, 8)


def test_medians_over_cases(tmp_path: Path, image: np.ndarray, label: np.ndarray) -> None:
    full = np.ones((20, 12, 8), dtype=np.float32)
    more = np.zeros((20, 12, 8), dtype=np.uint8)
    found = fingerprint(
        [
            case(tmp_path, "a", image, label, np.diag([1.0, 1.0, 1.0, 1.0])),
            case(tmp_path, "b", full, more, np.diag([2.0, 1.0, 1.0, 1.0])),
            case(tmp_path, "c", full, more, np.diag([4.0, 1.0, 1.0, 1.0])),
        ],
        3,
    )
    assert found.median_shape == (20, 12, 8)
    assert found.median_spacing_mm == (2.0, 1.0, 1.0)
    assert found.resampled_shapes((2.0, 1.0, 1.0))[:, 0].tolist() == [4, 20, 40]
    assert found.total_voxels == 512 + 2 * 1920
    assert found.kept_share == 1.0


def test_values_outside_the_manifest_are_refused(tmp_path: Path, image: np.ndarray, label: np.ndarray) -> None:
    with pytest.raises(InputRefusedError, match=r"value 2, the manifest knows 0 to 1 \(a\)"):
        fingerprint([case(tmp_path, "a", image, label, np.eye(4))], 2)


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(InputRefusedError, match="no training case"):
        fingerprint([], 2)


def test_what_nobody_labelled_is_neither_counted_nor_measured(
    tmp_path: Path, image: np.ndarray, label: np.ndarray
) -> None:
    label[0, 0] = 200
    label[2, 3, 3] = 200  # the voxel of intensity 20
    found = fingerprint([case(tmp_path, "a", image, label, np.eye(4))], 3, ignore=200)
    assert found.label_voxels == (952 - 8, 6, 1)
    assert found.channels[0].mean == pytest.approx(np.mean([10, 30, 40, 50, 60, 70, 80]))
    with pytest.raises(InputRefusedError, match="value 200"):
        fingerprint([case(tmp_path, "b", image, label, np.eye(4))], 3)


def test_labels_are_found_on_the_patients_side(tmp_path: Path) -> None:
    image = np.full((40, 30, 10), -1000.0, dtype=np.float32)
    image[5:35, 4:26] = 30.0
    label = np.zeros(image.shape, dtype=np.uint8)
    label[8:10, 10, 4] = 1
    to_the_right, to_the_left = np.diag([2.0, 1.0, 1.0, 1.0]), np.diag([-2.0, 1.0, 1.0, 1.0])
    found = fingerprint(
        [case(tmp_path, "a", image, label, to_the_right), case(tmp_path, "b", image, label, to_the_left)], 2
    )
    right, left = (sides.centroids_mm[1] for sides in found.sides())
    assert right == pytest.approx((-22.0, 10.0, 4.0))
    assert left == pytest.approx((22.0, 10.0, 4.0))


def test_turned_volumes_keep_what_belongs_together() -> None:
    one = CaseFingerprint((10, 20, 30), (1.0, 2.0, 3.0), 0.5)
    picture = CaseFingerprint((10, 20), None, 1.0)
    found = Fingerprint((one, picture), (), ()).turned((2, 0, 1))
    assert found.cases == (CaseFingerprint((30, 10, 20), (3.0, 1.0, 2.0), 0.5), picture)
