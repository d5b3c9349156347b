"""Our scores of membranes against scikit-learn's and scikit-image's, where these compute the same."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import adapted_rand_error, variation_of_information

from unet_med.metrics import membrane_scores

cluster = pytest.importorskip("sklearn.metrics.cluster")


def cells(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Numbers of the cells around random points, with membranes between them."""
    points = np.random.default_rng(seed).uniform(0, shape, (12, len(shape)))
    places = np.moveaxis(np.indices(shape), 0, -1)
    nearest = np.linalg.norm(places[..., None, :] - points, axis=-1).argmin(axis=-1)
    wall = ndimage.morphological_gradient(nearest, 2) > 0
    return np.where(wall, 0, nearest + 1)


def inside(mask: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The partitions that are compared: within true cells, voxels on the mask's membrane being cells alone."""
    known = truth != 0
    ours = mask[known].astype(np.int64)
    ours[ours == 0] = ours.max() + 1 + np.arange(np.count_nonzero(ours == 0))
    return ours, truth[known]


@pytest.mark.parametrize("shape", [(60, 50), (18, 20, 16)])
@pytest.mark.parametrize("seed", [1, 2])
def test_equal_to_scikit_learn_and_near_scikit_image(shape: tuple[int, ...], seed: int) -> None:
    truth = cells(shape, 0)
    mask = cells(shape, seed)
    mask[: shape[0] // 2] = truth[: shape[0] // 2]
    ours, true = inside(mask, truth)
    assert len(np.unique(mask[truth > 0])) > 3
    found = membrane_scores(mask, truth)
    # Pairs of different voxels; the challenge counts each voxel with itself, too.
    (_, only_ours), (only_true, both) = cluster.pair_confusion_matrix(true, ours).astype(float)
    voxels = len(true)
    assert found["v_rand_split"] == pytest.approx((both + voxels) / (both + only_true + voxels), rel=1e-9)
    assert found["v_rand_merge"] == pytest.approx((both + voxels) / (both + only_ours + voxels), rel=1e-9)
    assert found["v_rand"] == pytest.approx(
        2 * (both + voxels) / (2 * (both + voxels) + only_true + only_ours), rel=1e-9
    )
    assert found["v_info_merge"] == pytest.approx(cluster.homogeneity_score(true, ours), rel=1e-9)
    assert found["v_info_split"] == pytest.approx(cluster.completeness_score(true, ours), rel=1e-9)
    assert found["v_info"] == pytest.approx(cluster.v_measure_score(true, ours), rel=1e-9)
    error, over_true, over_ours = adapted_rand_error(true, ours, ignore_labels=())
    assert found["v_rand"] == pytest.approx(1 - error, abs=3 / np.sqrt(voxels))
    assert found["v_rand_merge"] == pytest.approx(over_ours, abs=3 / np.sqrt(voxels))
    assert found["v_rand_split"] == pytest.approx(over_true, abs=3 / np.sqrt(voxels))
    splits, merges = variation_of_information(true, ours)
    entropy = -sum(share * np.log2(share) for share in np.bincount(true)[1:] / voxels if share)
    assert found["v_info_merge"] == pytest.approx(1 - merges / entropy, rel=1e-9)
    assert splits >= 0
