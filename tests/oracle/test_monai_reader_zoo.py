"""MONAI's own transforms see the world where it is: every trap that loads, through ``LoadImaged`` and ``Spacingd``."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path

import dicom_writer as w
import numpy as np
import pytest
import torch
from dicom_zoo import ALL_CASES, Case
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, EnsureChannelFirstd, LoadImage, LoadImaged, Spacingd

from unet_med.errors import UnetMedError, UsageError
from unet_med.io.discover import discover, open_source
from unet_med.io.monai_reader import UnetMedReader

SYNTHETIC = [case for case in ALL_CASES if not case.real]
NAME = "unet_med.io.monai_reader.UnetMedReader"
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def load(reader: object, *keys: str, **options: object) -> LoadImaged:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nvImageCodec")  # MONAI says it for every reader
        return LoadImaged(keys or ("image",), reader=reader, **options)


@pytest.fixture(scope="module")
def loader() -> LoadImaged:
    return load(UnetMedReader())


@pytest.mark.parametrize("case", SYNTHETIC, ids=lambda case: case.name)
def test_a_trap_is_loaded_right_or_not_at_all(case: Case, tmp_path: Path, loader: LoadImaged) -> None:
    if any(importlib.util.find_spec(module) is None for module in case.needs):
        pytest.skip("a module is not installed")
    folder = tmp_path / "in"
    expected = case.write(folder)
    if len(expected.volumes) != 1 or expected.refusals:
        with pytest.raises(UnetMedError):
            loader({"image": folder})
        return
    image = loader({"image": folder})["image"]
    (truth,) = expected.volumes
    array, affine = image.numpy(), image.affine.numpy().astype(np.float64)
    if truth.picture:
        assert truth.differs(array[..., np.newaxis], _as_4x4(affine)) == ""
    else:
        assert truth.differs(array, TO_LPS @ affine) == ""


def _as_4x4(affine: np.ndarray) -> np.ndarray:
    full = np.eye(4)
    full[:2, :2], full[:2, 3] = affine[:2, :2], affine[:2, 2]
    return full


def test_the_world_is_where_it_was_after_resampling(tmp_path: Path) -> None:
    """The phantom's value tells its place, so the resampled voxels must tell the places that their affine claims."""
    w.write(tmp_path, w.Series(columns=24, rows=20, count=14).slices())
    spacing = (1.1, 0.9, 1.7)
    steps = Compose(
        [load(UnetMedReader()), EnsureChannelFirstd("image"), Spacingd("image", pixdim=spacing, mode="bilinear")]
    )
    image = steps({"image": tmp_path})["image"]
    inside = tuple(slice(3, -3) for _ in range(3))
    index = np.indices(image.shape[1:]).reshape(3, -1)
    affine = image.affine.numpy().astype(np.float64)
    places = (TO_LPS @ affine)[:3, :3] @ index + (TO_LPS @ affine)[:3, 3:]
    wanted = w.truth(places.T).reshape(image.shape[1:])
    assert np.linalg.norm(affine[:3, :3], axis=0) == pytest.approx(spacing)
    assert np.abs(image.numpy()[0][inside] - wanted[inside]).max() < 0.02
    assert np.ptp(wanted[inside]) > 100


def test_the_reader_can_be_named_and_given_switches(tmp_path: Path) -> None:
    series = w.Series(turn=np.eye(3), columns=20, rows=16)
    slices = series.slices()
    for number, data in enumerate(slices):
        place = series.position(number) + np.array([0.0, 0.4 * number, 0.0])
        data.ImagePositionPatient = list(place)
        w.set_values(data, series.values(place))
    w.write(tmp_path, slices)
    with pytest.raises(UnetMedError, match="tilt"):
        load(NAME)({"image": tmp_path})
    for reader, options in (
        (NAME, {"untilt": True}),
        (UnetMedReader, {"untilt": True}),
        (UnetMedReader(untilt=True), {}),
    ):
        image = load(reader, **options)({"image": tmp_path})["image"]
        affine = TO_LPS @ image.affine.numpy().astype(np.float64)
        assert abs((affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)).T @ affine[:3, 2])[:2].max() < 1e-6
        middle = [n // 2 for n in image.shape]
        assert image.numpy()[tuple(middle)] == pytest.approx(w.truth(affine[:3, :3] @ middle + affine[:3, 3]), abs=0.05)
    with pytest.raises(UsageError, match="no such option: tilted"):
        UnetMedReader(tilted=True)


def test_workers_decode_compressed_series(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("dicom2nifti") / "generic" / "compressed_jpegls" / "001" / "series"
    own = open_source(discover(folder).sources[0]).read()  # the decoder of this process is at work already
    batches = DataLoader(Dataset([{"image": folder}] * 3, load(UnetMedReader())), batch_size=1, num_workers=2)
    for batch in batches:
        assert torch.equal(batch["image"][0].as_tensor(), torch.from_numpy(own.array[0]))


def test_labels_come_on_the_grid_of_their_series(shared_data: Callable[[str], Path]) -> None:
    root = shared_data("dicom_seg_liver")
    steps = Compose([load(UnetMedReader()), load(UnetMedReader(labels=True), "label", "all", "alone")])
    case = steps(
        {
            "image": root / "ct",
            "label": [root / "seg", root / "ct"],
            "all": root / "seg" / "liver.dcm",
            "alone": root / "nrrd" / "liver_seg.nrrd",
        }
    )
    image, label = case["image"], case["label"]
    assert torch.allclose(image.affine, label.affine, atol=1e-3)
    assert image.shape == label.shape
    assert int(label.sum()) == 107098  # as the data set's own mask
    world = []
    for one in (label, case["all"], case["alone"]):
        index = torch.nonzero(one.as_tensor()).double()
        world.append((index @ one.affine[:3, :3].double().T + one.affine[:3, 3].double()).mean(dim=0))
        assert int((one > 0).sum()) == 107098
    assert torch.allclose(world[0], world[1], atol=1e-2)
    assert torch.allclose(world[0], world[2], atol=1e-2)


def test_contours_come_on_the_grid_of_their_series(shared_data: Callable[[str], Path]) -> None:
    root = shared_data("sts_tumour") / "dicom" / "STS_008" / "MR_T1"
    both = Compose([load(UnetMedReader()), load(UnetMedReader(labels=True), "label")])
    case = both({"image": root / "image", "label": root})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nvImageCodec")
        truth = LoadImage(reader="NibabelReader")(
            shared_data("sts_tumour") / "nifti" / "MR_T1" / "labels" / "STS_008.nii.gz"
        )
    assert torch.allclose(case["label"].affine, case["image"].affine)
    mine, theirs = case["label"].numpy() > 0, truth.numpy() > 0
    turn = np.linalg.inv(truth.affine.numpy()) @ case["label"].affine.numpy()
    assert np.allclose(np.abs(turn[:3, :3]), np.eye(3), atol=1e-3)
    flips = tuple(slice(None, None, 1 if turn[axis, axis] > 0 else -1) for axis in range(3))
    assert 2 * (mine & theirs[flips]).sum() / (mine.sum() + theirs.sum()) > 0.98
    with pytest.raises(UnetMedError, match="no voxels of their own"):
        load(UnetMedReader(labels=True))({"image": root / "rtstruct"})
    with pytest.raises(UsageError, match="4 labels, not one"):
        load(UnetMedReader(labels=True))({"image": root.parents[1]})
