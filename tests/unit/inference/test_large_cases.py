"""Cases larger than memory come out as those that are not, and are gone on with when they were interrupted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
from allocations import peak_bytes
from large_images import WatchedSource, picture, watched_reads
from PIL import Image
from scipy import ndimage

from unet_med.bundle import load_bundle
from unet_med.inference import large
from unet_med.inference.casework import CaseWork
from unet_med.inference.estimate import CaseSize, held_bytes
from unet_med.inference.maps_store import MapStore
from unet_med.inference.predictor import Predictor
from unet_med.inference.worker import CaseJob
from unet_med.io.cases import Case
from unet_med.io.discover import discover
from unet_med.io.grouping import group_cases
from unet_med.volume import lazily

pytestmark = pytest.mark.usefixtures("one_thread")


class _KilledError(BaseException):
    """As sudden as the end of a process."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that a test image has many."""
    monkeypatch.setattr("unet_med.volume._BAND_BYTES", 2**13)
    monkeypatch.setattr("unet_med.inference.rows.CHUNK_VALUES", 2**12)


@pytest.fixture
def predictor(tiny_bundle) -> Predictor:
    return Predictor([load_bundle(tiny_bundle(dims=2, inference__overlap=0.25))], "cpu")


def _case(folder: Path, array: np.ndarray, axes: str, sizes: dict[str, float] | None = None, **options: Any) -> Case:
    folder.mkdir()
    options |= {"ome": True, "metadata": {"axes": axes, **(sizes or {})}, "photometric": "minisblack"}
    tifffile.imwrite(folder / "slide.tif", array, **options)
    return group_cases(discover(folder).usable)[0]


def _done(predictor: Predictor, case: Case, folder: Path, kept: Path | None, sha256: str = "a") -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    job = CaseJob(case, "slide", folder, {"input_sha256": sha256}, kept=kept)
    work = CaseWork(job, predictor, is_large=None if kept is None else lambda size: True)
    for stage in (work.read, work.compute, work.write):
        stage()
    return work.result()


def _kill(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Ends the process, as it were, after so many records of progress."""
    true_write, left = large.write_json, [calls]

    def killed(*arguments: Any) -> None:
        if not left[0]:
            raise _KilledError
        left[0] -= 1
        true_write(*arguments)

    monkeypatch.setattr(large, "write_json", killed)


@pytest.mark.parametrize(("shape", "axes"), [((96, 160), "YX"), ((3, 64, 80), "TYX"), ((5, 80, 64), "ZYX")])
def test_a_large_case_is_the_same_case(predictor, tmp_path: Path, monkeypatch, shape, axes) -> None:
    case = _case(tmp_path / "in", picture(shape)[0], axes, tile=(32, 32), compression="deflate")
    usual = _done(predictor, case, tmp_path / "usual", None)
    read = watched_reads(monkeypatch, "size")
    found = _done(predictor, case, tmp_path / "large", tmp_path / "kept")
    assert found["status"] == usual["status"] == "done"
    assert max(read) <= np.prod(shape[-2:]) * (shape[0] if axes[0] == "Z" else 1) / 2
    assert found["outputs"] == usual["outputs"]
    assert found["volumes"] == usual["volumes"] and min(row["voxels"] for row in found["volumes"]) > 0
    masks = [tifffile.imread(tmp_path / place / "slide.tif") for place in ("usual", "large")]
    assert np.array_equal(*masks) and masks[0].shape == shape
    previews = [np.asarray(Image.open(tmp_path / place / "previews" / "slide.png")) for place in ("usual", "large")]
    assert np.array_equal(*previews)


def test_the_mask_of_a_large_volume_with_a_pixel_size_is_a_nifti(predictor, tmp_path: Path) -> None:
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0}
    case = _case(tmp_path / "in", picture((6, 40, 30))[0], "ZYX", sizes)
    usual = _done(predictor, case, tmp_path / "usual", None)
    found = _done(predictor, case, tmp_path / "large", tmp_path / "kept")
    assert found["outputs"] == usual["outputs"] and "slide.nii.gz" in found["outputs"]
    assert found["volumes"] == usual["volumes"]
    masks = [nib.load(tmp_path / place / "slide.nii.gz") for place in ("usual", "large")]
    assert np.array_equal(*(np.asarray(mask.dataobj) for mask in masks))
    assert np.array_equal(masks[0].affine, masks[1].affine)


@pytest.mark.parametrize(("shape", "axes", "calls"), [((160, 96), "YX", 4), ((3, 64, 80), "TYX", 5)])
def test_a_killed_case_goes_on_in_the_middle(predictor, tmp_path: Path, monkeypatch, shape, axes, calls) -> None:
    case = _case(tmp_path / "in", picture(shape)[0], axes)
    usual = _done(predictor, case, tmp_path / "usual", None)
    _kill(monkeypatch, calls)
    with pytest.raises(_KilledError):
        _done(predictor, case, tmp_path / "first", tmp_path / "kept")
    monkeypatch.undo()
    state = json.loads((tmp_path / "kept" / "progress.json").read_text())
    assert state["frame"] * shape[-2] + state["rows"] > 0
    found = _done(predictor, case, tmp_path / "second", tmp_path / "kept")
    assert found["status"] == "done" and 0 < found["windows"] < usual["windows"]
    assert found["notes"] == ["went on where an earlier start was interrupted"]
    masks = [tifffile.imread(tmp_path / place / "slide.tif") for place in ("usual", "second")]
    assert np.array_equal(*masks)
    assert _done(predictor, case, tmp_path / "third", tmp_path / "kept", sha256="b")["windows"] == usual["windows"]


def test_a_killed_case_goes_on_along_the_axis_on_which_it_began(predictor, tmp_path: Path, monkeypatch) -> None:
    """With less memory another one would be chosen, whose rows are not those that are final."""
    case = _case(tmp_path / "in", picture((96, 160))[0], "YX", tile=(32, 32))
    usual = _done(predictor, case, tmp_path / "usual", None)
    _kill(monkeypatch, 3)
    with pytest.raises(_KilledError):
        _done(predictor, case, tmp_path / "first", tmp_path / "kept")
    monkeypatch.undo()
    monkeypatch.setattr("unet_med.inference.predictor._HELD_BYTES", 0)
    found = _done(predictor, case, tmp_path / "second", tmp_path / "kept")
    assert 0 < found["windows"] < usual["windows"]
    _done(predictor, case, tmp_path / "anew", tmp_path / "other")
    axes = [json.loads((tmp_path / place / "progress.json").read_text())["along"] for place in ("kept", "other")]
    assert axes == [1, 0]
    masks = [tifffile.imread(tmp_path / place / "slide.tif") for place in ("usual", "second")]
    assert np.array_equal(*masks)


@pytest.mark.parametrize("task", ["semantic", "instance"])
def test_a_case_killed_while_it_is_written_is_not_predicted_again(tiny_bundle, tmp_path, monkeypatch, task) -> None:
    predictor = Predictor([load_bundle(tiny_bundle(dims=2, task=task))], "cpu")
    case = _case(tmp_path / "in", picture((48, 64))[0], "YX")
    usual = _done(predictor, case, tmp_path / "usual", None)

    def killed(*_: Any) -> None:
        raise _KilledError

    monkeypatch.setattr("unet_med.inference.casework._close", killed)
    with pytest.raises(_KilledError):
        _done(predictor, case, tmp_path / "first", tmp_path / "kept")
    monkeypatch.undo()
    found = _done(predictor, case, tmp_path / "second", tmp_path / "kept")
    assert found["status"] == "done" and (found["windows"], usual["windows"] > 0) == (0, True)
    assert found["outputs"] == usual["outputs"] and found["volumes"] == usual["volumes"]
    masks = [tifffile.imread(tmp_path / place / "slide.tif") for place in ("usual", "second")]
    assert np.array_equal(*masks)


@pytest.mark.parametrize("is_killed", [False, True])
def test_objects_of_a_large_case_are_the_same(tiny_bundle, tmp_path: Path, monkeypatch, is_killed: bool) -> None:
    """Their maps are kept in files, and so are their numbers."""
    low = {"instances__seed_threshold": 0.1, "instances__foreground_threshold": 0.75}
    model = tiny_bundle(dims=2, task="instance", **low)
    predictor = Predictor([load_bundle(model)], "cpu")
    noise = np.random.default_rng(0).normal(0, 1, (48, 64))
    case = _case(tmp_path / "in", (1000 + 5000 * ndimage.gaussian_filter(noise, 3)).astype(np.uint16), "YX")
    usual = _done(predictor, case, tmp_path / "usual", None)
    if is_killed:
        _kill(monkeypatch, 3)
        with pytest.raises(_KilledError):
            _done(predictor, case, tmp_path / "first", tmp_path / "kept")
        monkeypatch.undo()
    found = _done(predictor, case, tmp_path / "large", tmp_path / "kept")
    assert found["status"] == usual["status"] == "done"
    assert found["outputs"] == usual["outputs"] and found["objects"] == usual["objects"]
    assert found["volumes"] == usual["volumes"]
    masks = [tifffile.imread(tmp_path / place / "slide.tif") for place in ("usual", "large")]
    assert np.array_equal(*masks) and masks[0].max() > 2
    maps = [MapStore.open(tmp_path / place / "maps" / "slide.zarr").read_stored() for place in ("usual", "large")]
    assert np.array_equal(*maps)


def test_of_a_movie_the_objects_of_one_frame_are_held(tiny_bundle, tmp_path: Path) -> None:
    predictor = Predictor([load_bundle(tiny_bundle(dims=2, task="instance"))], "cpu")
    case = _case(tmp_path / "in", picture((3, 32, 40))[0], "TYX")
    work = CaseWork(CaseJob(case, "slide", tmp_path, {"input_sha256": "a"}), predictor)
    work.read()
    work.compute()
    assert sum(frame.objects is not None for frame in work._frames) == 1
    work.write()
    found = work.result()
    assert found["status"] == "done", found["reason"]
    assert {row["frame"] for row in found["objects"]} == {0, 1, 2}


def test_memory_does_not_grow_with_the_length_of_an_image(tiny_bundle, tmp_path: Path) -> None:
    model = tiny_bundle(dims=2, sampling__patch_voxels=[64, 64], inference__overlap=0.1)
    predictor = Predictor([load_bundle(model)], "cpu")
    peaks = []
    for length in (1024, 6144):
        case = _case(tmp_path / f"in{length}", picture((length, 256))[0], "YX", tile=(32, 256))
        kept = tmp_path / f"kept{length}"
        peaks.append(peak_bytes(lambda: _done(predictor, case, tmp_path / f"out{length}", kept)))  # noqa: B023
    assert peaks[1] < peaks[0] + 0.5 * 5120 * 256, peaks  # a byte for each pixel would be twice as much


def test_a_preview_holds_no_more_than_it_shows(monkeypatch) -> None:
    monkeypatch.setattr(large, "PREVIEW_SIDE", 64)
    monkeypatch.setattr(large, "_ROWS", 32)
    source = WatchedSource(picture((200, 2000)))
    image = lazily(source).array
    found: list[np.ndarray] = []
    peak = peak_bytes(lambda: found.append(large.thinned(image, (200, 2000))))
    assert np.array_equal(found[0], source.array[:, ::32, ::32])
    assert peak < source.array.nbytes / 4


def test_what_is_large(tmp_path: Path, predictor) -> None:
    case = _case(tmp_path / "in", picture((160, 96))[0], "YX")
    size = CaseSize.of(case)
    assert size.image_bytes == 3 * 160 * 96
    assert not size.is_large(None, 10**6) and size.is_large(None, 10**5)
    assert size.is_large(0.00001, 10**9) and not size.is_large(1.0, 10**9)
    objects = CaseSize.of(case, objects=True)
    assert objects.image_bytes == 10 * 160 * 96 and objects.is_large(None, 5 * 10**5)
    assert not size.is_large(None, 5 * 10**5)
    movie = replace(objects, frames=3)
    assert movie.is_large(None, 4 * 26 * 160 * 96 - 1) and not movie.is_large(None, 4 * 26 * 160 * 96)
    config = predictor._models[0].bundle.config
    assert held_bytes(objects, config).mask == 8 * 160 * 96
    usual = held_bytes(size, config)
    there = held_bytes(CaseSize(size.geometry, 1, 2, on_disk=True), config)
    assert (usual.mask, there.mask) == (160 * 96, 0)
    assert there.windows == usual.windows
