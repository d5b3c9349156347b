"""The Python API: the layouts of arrays, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
import pytest

import unet_med
from unet_med.errors import InputRefusedError, NothingUsableError, UsageError
from unet_med.inference.predictor import Prediction
from unet_med.volume import Volume


@dataclass
class _Threshold:
    """Stands in for a predictor: labels what is bright in the first channel and remembers what it was given."""

    objects = None
    seen: Volume | None = None

    def predict(self, volume: Volume) -> Prediction:
        self.seen = volume
        return Prediction((volume.array[0] > 0.5).astype(np.uint8), [])


def _model(dims: int, channels: int) -> tuple[unet_med.Model, _Threshold]:
    predictor: Any = _Threshold()
    names = tuple(f"c{n}" for n in range(channels))
    return unet_med.Model(predictor, {"background": 0, "thing": 1}, names, dims), predictor


def test_a_volume_keeps_its_axes_and_gets_its_place() -> None:
    model, predictor = _model(3, 1)
    array = np.random.default_rng(0).random((4, 5, 6))
    mask = model.predict(array, spacing_mm=(0.8, 0.9, 2.5))
    np.testing.assert_array_equal(mask, array > 0.5)
    assert predictor.seen is not None
    assert predictor.seen.geometry.spacing_mm == (0.8, 0.9, 2.5)
    assert predictor.seen.array.dtype == np.float32
    affine = np.diag([-1.0, 2.0, 3.0, 1.0])
    model.predict(array, affine=affine)
    np.testing.assert_array_equal(predictor.seen.geometry.affine, affine)
    model.predict(array)
    assert not predictor.seen.geometry.is_calibrated


def test_channels_of_a_volume_come_first() -> None:
    model, predictor = _model(3, 2)
    array = np.random.default_rng(0).random((2, 4, 5, 6))
    np.testing.assert_array_equal(model.predict(array), array[0] > 0.5)
    assert predictor.seen is not None
    assert predictor.seen.array.shape == (2, 4, 5, 6)


@pytest.mark.parametrize(("channels", "shape"), [(1, (7, 5)), (1, (7, 5, 1)), (3, (7, 5, 3))])
def test_a_picture_is_rows_and_columns_outside_and_x_y_inside(channels: int, shape: tuple[int, ...]) -> None:
    model, predictor = _model(2, channels)
    array = np.random.default_rng(0).random(shape)
    mask = model.predict(array, spacing_mm=(0.5, 0.25))
    first = array if array.ndim == 2 else array[..., 0]
    np.testing.assert_array_equal(mask, first > 0.5)
    assert predictor.seen is not None
    assert predictor.seen.array.shape == (channels, 5, 7)
    assert predictor.seen.geometry.spacing_mm == (0.25, 0.5)
    np.testing.assert_array_equal(predictor.seen.array[0], first.T.astype(np.float32))


def test_a_picture_model_takes_a_volume_slice_by_slice() -> None:
    model, predictor = _model(2, 1)
    array = np.random.default_rng(0).random((4, 5, 6))
    np.testing.assert_array_equal(model.predict(array, spacing_mm=(1, 1, 3)), array > 0.5)
    assert predictor.seen is not None
    assert predictor.seen.array.shape == (1, 4, 5, 6)


@pytest.mark.parametrize(
    ("dims", "channels", "array", "options", "error"),
    [
        (3, 1, np.full((3, 3, 3), np.nan), {}, InputRefusedError),
        (3, 1, np.zeros((3, 3, 3), dtype=complex), {}, InputRefusedError),
        (3, 1, np.array([["a"]]), {}, InputRefusedError),
        (3, 1, np.zeros(3), {}, InputRefusedError),
        (2, 3, np.zeros((7, 5, 4)), {}, InputRefusedError),
        (3, 1, np.zeros((3, 3, 3)), {"spacing_mm": (1, 1)}, UsageError),
        (3, 1, np.zeros((3, 3, 3)), {"spacing_mm": (1, 1, 0)}, UsageError),
        (2, 1, np.zeros((3, 3)), {"affine": np.eye(4)}, UsageError),
    ],
)
def test_what_does_not_fit_is_refused(
    dims: int, channels: int, array: np.ndarray, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        _model(dims, channels)[0].predict(array, **options)


def test_score_says_every_label_and_distances_in_mm() -> None:
    mask, truth = np.zeros((2, 8, 8, 8), dtype=int)
    mask[2:5, 2:5, 2:5] = 3
    truth[2:5, 2:5, 3:6] = 3
    truth[7, 7, 7] = 70000
    scores = unet_med.score(mask, truth, spacing_mm=(1, 1, 2))
    assert set(scores) == {"3", "70000"}
    assert scores["3"]["dice"] == pytest.approx(2 / 3)
    assert scores["3"]["hd95_mm"] == pytest.approx(2.0)
    assert scores["70000"]["dice"] == 0
    assert unet_med.score(mask, truth)["3"]["hd95_mm"] is None  # uncalibrated: no millimetre is invented
    with pytest.raises(InputRefusedError, match="integers"):
        unet_med.score(mask / 2, truth)
    with pytest.raises(InputRefusedError):
        unet_med.score(mask[1:], truth)


def test_read_gives_the_voxels_and_their_place(tmp_path: Any) -> None:
    affine = np.array([[0, -2, 0, 5], [1.5, 0, 0, -7], [0, 0, 3, 9], [0, 0, 0, 1.0]])
    values = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "a.nii.gz")
    volume = unet_med.read(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.array, values[None])
    np.testing.assert_allclose(volume.geometry.affine, affine)
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "b.nii.gz")
    with pytest.raises(UsageError, match="2 images"):
        unet_med.read(tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        unet_med.read(tmp_path / "c.nii.gz")
    assert {source["id"] for source in unet_med.scan(tmp_path)["sources"]} == {"a", "b"}


def test_read_refuses_with_the_reason(tmp_path: Any) -> None:
    (tmp_path / "a.nii").write_bytes(b"no image at all")
    with pytest.raises(InputRefusedError):
        unet_med.read(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NothingUsableError, match="empty"):
        unet_med.read(tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").write_text("nothing here", encoding="utf-8")
    with pytest.raises(NothingUsableError, match="no image"):
        unet_med.read(tmp_path / "empty")
