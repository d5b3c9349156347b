"""nnU-Net's raw layout in and out; cases of several modalities on different grids, and what they lack."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from unet_med.errors import InputRefusedError, UsageError
from unet_med.manifest import Manifest, load_manifest
from unet_med.workflows.manifest import make_manifest
from unet_med.workflows.plan import plan
from unet_med.workflows.predict import predict
from unet_med.workflows.train import train

SHAPE = (12, 10, 8)
FINE = (24, 20, 8)
CHANNELS = {"0": "T1", "1": "T2"}


def save(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 2.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-(n - 1) * step / 2 for n, step in zip(array.shape, spacing, strict=True)]  # centred at 0
    nib.save(nib.Nifti1Image(array, affine), path)


def image(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 10, shape).astype(np.float32)


def label(values: int = 2) -> np.ndarray:
    array = np.zeros(SHAPE, dtype=np.uint8)
    for value in range(1, values + 1):
        array[value : value + 4, 2:6, 2:6] = value
    return array


def raw_set(folder: Path, description: dict[str, Any], channels: int = 2, values: int = 2, fine: bool = True) -> Path:
    """Five cases; the second channel lies on a finer grid."""
    for number in range(5):
        for channel in range(channels):
            shape, spacing = (FINE, (0.5, 0.5, 2.0)) if channel and fine else (SHAPE, (1.0, 1.0, 2.0))
            save(folder / "imagesTr" / f"c{number}_{channel:04d}.nii.gz", image(shape, 10 * number + channel), spacing)
        save(folder / "labelsTr" / f"c{number}.nii.gz", label(values))
    save(folder / "imagesTs" / "t_0000.nii.gz", image(SHAPE, 99))
    if channels > 1:
        save(folder / "imagesTs" / "t_0001.nii.gz", image(SHAPE, 98))
    (folder / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz", "numTraining": 5, **description}))
    return folder


def content(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def voxels(manifest: Manifest) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {one.id: (one.case.read().array, one.case.read_label()) for one in manifest.training}


LABELS = {"channel_names": CHANNELS, "labels": {"background": 0, "a": 1, "b": 2}}


def test_a_set_of_several_channels_is_read(tmp_path: Path) -> None:
    raw = raw_set(tmp_path / "Dataset001_Toy", LABELS)
    (raw / "splits_final.json").write_text(
        json.dumps([{"train": [], "val": [f"c{n}" for n in fold]} for fold in ((0, 3), (1,), (2, 4))])
    )
    save(raw / "imagesTr" / "notes.nii", image(SHAPE, 1))
    outcome = make_manifest(raw, tmp_path / "M.json")
    assert outcome.exit_code == 0, outcome.lines
    found = load_manifest(tmp_path / "M.json")
    assert found.labels == {"background": 0, "a": 1, "b": 2}
    assert found.channels == ("T1", "T2")
    assert {case.id: case.fold for case in found.training} == {"c0": 0, "c1": 1, "c2": 2, "c3": 0, "c4": 2}
    assert [(case.id, case.case.channels) for case in found.test] == [("t", 2)]
    assert any("does not end in .nii.gz" in entry["reason"] for entry in outcome.result["left_over"])
    volume = found.training[0].case.read()
    assert volume.array.shape == (2, *SHAPE)
    expected = image(FINE, 1).reshape(12, 2, 10, 2, 8).mean((1, 3))  # the corners of four voxels meet at its centre
    np.testing.assert_allclose(volume.array[1], expected, atol=1e-3)


def test_regions_and_unlabelled_voxels_come_from_the_description(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    described = {"channel_names": {"0": "CT"}, "labels": labels, "regions_class_order": [1, 2]}
    raw = raw_set(tmp_path / "Dataset002_Toy", described, channels=1, values=3)
    assert make_manifest(raw, tmp_path / "M.json").exit_code == 0
    found = load_manifest(tmp_path / "M.json")
    assert found.labels == {"background": 0, "whole_rest": 1, "core": 2}
    assert found.regions == {"whole": (1, 2), "core": (2,)}
    assert found.ignore_label == 3
    assert found.findings == ()
    assert found.modality == "CT"
    assert np.unique(found.training[0].case.read_label()).tolist() == [0, 1, 2, 3]


def test_a_plan_takes_them_over_where_the_pipeline_leaves_them_open(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    described = {"channel_names": {"0": "MR"}, "labels": labels, "regions_class_order": [1, 2]}
    raw = raw_set(tmp_path / "set", described, channels=1, values=3)
    make_manifest(raw, tmp_path / "M.json")
    (tmp_path / "p.yaml").write_text("name: test\n")
    planned = plan(tmp_path / "p.yaml", tmp_path / "M.json").result
    assert planned["config"]["regions"] == {"whole": [1, 2], "core": [2]}
    assert planned["config"]["ignore_label"] == 3
    plain = plan(tmp_path / "p.yaml", tmp_path / "M.json", overrides=["regions={}"]).result["config"]
    assert plain["regions"] == {}


def test_a_label_that_is_called_ignore_is_none(tmp_path: Path) -> None:
    raw = raw_set(tmp_path / "set", {"labels": {}}, channels=1)
    (raw / "dataset.json").unlink()
    assert make_manifest(raw, tmp_path / "M.json", label_names="1=a,2=ignore").exit_code == 0
    found = load_manifest(tmp_path / "M.json")
    assert (found.labels, found.ignore_label) == ({"background": 0, "a": 1}, 2)


# ---- written --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fine", [False, True])
def test_what_is_written_reads_as_it_was(tmp_path: Path, fine: bool) -> None:
    """Files that fit are linked; channels on another grid and labels of other values are written anew."""
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    described = {"channel_names": CHANNELS, "labels": labels, "regions_class_order": [1, 2]}
    source = raw_set(tmp_path / "source", described, values=3, fine=fine)
    before = content(source)
    out = tmp_path / "Dataset003_Toy"
    outcome = make_manifest(source, tmp_path / "M.json", folds=2, nnunet=out)
    assert outcome.exit_code == 0, outcome.lines
    assert content(source) == before
    assert (out / "imagesTr" / "c0_0000.nii.gz").is_symlink() != fine
    assert (out / "labelsTr" / "c0.nii.gz").is_symlink()
    make_manifest(out, tmp_path / "N.json")
    ours, theirs = load_manifest(tmp_path / "M.json"), load_manifest(tmp_path / "N.json")
    for key in ("labels", "channels", "regions", "ignore_label"):
        assert getattr(ours, key) == getattr(theirs, key), key
    assert {case.id: case.fold for case in ours.training} == {case.id: case.fold for case in theirs.training}
    for name, (array, mask) in voxels(ours).items():
        other = voxels(theirs)[name]
        np.testing.assert_array_equal(other[0], array)
        np.testing.assert_array_equal(other[1], mask)


def test_values_that_nnunet_wants_in_a_row_are_renumbered(tmp_path: Path) -> None:
    source = raw_set(tmp_path / "source", {"labels": {}}, channels=1)
    (source / "dataset.json").unlink()
    for file in (source / "labelsTr").iterdir():
        stored = np.asarray(nib.load(file).dataobj)
        save(file, np.array([0, 1, 255], dtype=np.uint8)[stored])
    out = tmp_path / "Dataset004_Toy"
    make_manifest(source, tmp_path / "M.json", label_names="1=a,255=ignore", nnunet=out)
    assert json.loads((out / "dataset.json").read_text())["labels"] == {"background": 0, "a": 1, "ignore": 2}
    assert np.unique(np.asarray(nib.load(out / "labelsTr" / "c0.nii.gz").dataobj)).tolist() == [0, 1, 2]


def test_pictures_keep_rows_and_columns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        for part, kind in (("images", "jpg"), ("labels", "png")):
            (tmp_path / "set" / part).mkdir(parents=True, exist_ok=True)
            high = 255 if part == "images" else 2
            picture = rng.integers(0, high, (20, 30), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "set" / part / f"p{number}.{kind}")
    out = tmp_path / "Dataset005_Toy"
    make_manifest(tmp_path / "set", tmp_path / "M.json", task="semantic", nnunet=out)
    assert json.loads((out / "dataset.json").read_text())["file_ending"] == ".tif"
    with Image.open(out / "labelsTr" / "p0.tif") as written, Image.open(tmp_path / "set/labels/p0.png") as stored:
        np.testing.assert_array_equal(np.asarray(written), np.asarray(stored))


def test_nothing_is_written_over_or_from_faulty_labels(tmp_path: Path) -> None:
    source = raw_set(tmp_path / "source", LABELS)
    with pytest.raises(UsageError, match="holds something already"):
        make_manifest(source, tmp_path / "M.json", nnunet=source)
    (source / "imagesTr" / "c1_0001.nii.gz").unlink()
    out = tmp_path / "Dataset006_Toy"
    outcome = make_manifest(source, tmp_path / "M.json", nnunet=out)
    assert outcome.exit_code == 3
    assert any("not written" in line for line in outcome.lines)
    assert not out.exists()


# ---- a missing modality ---------------------------------------------------------------------------------------------

MISSING = r"the image of channel 'T2' \(0001\) is missing"


@pytest.fixture
def lacking(tmp_path: Path) -> Path:
    source = raw_set(tmp_path / "set", LABELS)
    (source / "imagesTr" / "c3_0001.nii.gz").unlink()
    return source


def test_the_manifest_names_case_and_channel(lacking: Path, tmp_path: Path) -> None:
    outcome = make_manifest(lacking, tmp_path / "M.json")
    assert outcome.exit_code == 3
    assert any("'T2' (0001) is missing (c3)" in line for line in outcome.lines)


def test_planning_and_training_refuse_it_by_name(lacking: Path, tmp_path: Path) -> None:
    make_manifest(lacking, tmp_path / "M.json")
    (tmp_path / "p.yaml").write_text("name: test\n")
    with pytest.raises(InputRefusedError, match=MISSING) as error:
        plan(tmp_path / "p.yaml", tmp_path / "M.json")
    assert error.value.where == "c3"
    with pytest.raises(InputRefusedError, match=MISSING):
        train(tmp_path / "p.yaml", tmp_path / "M.json", tmp_path / "RUN", fold="0", device="cpu")


def test_a_manifest_of_others_is_held_to_its_channels(tmp_path: Path) -> None:
    source = raw_set(tmp_path / "set", LABELS)
    entries = [
        {"image": [f"imagesTr/c{n}_{c:04d}.nii.gz" for c in range(2)], "label": f"labelsTr/c{n}.nii.gz"}
        for n in range(5)
    ]
    entries[2]["image"].pop(0)  # type: ignore[union-attr]
    data = {"channel_names": CHANNELS, "labels": LABELS["labels"], "training": entries}
    (source / "M.json").write_text(json.dumps(data))
    with pytest.raises(InputRefusedError, match=r"channel 'T1' \(0000\) is missing") as error:
        load_manifest(source / "M.json").require_clean()
    assert error.value.where == "c2"
    entries[2]["image"].insert(0, "imagesTr/c2_0000.nii.gz")  # type: ignore[union-attr]
    (source / "M.json").write_text(json.dumps(data))
    load_manifest(source / "M.json").require_clean()
    (source / "imagesTr" / "c4_0001.nii.gz").unlink()
    with pytest.raises(InputRefusedError, match="the image of channel 'T2' is missing") as error:
        load_manifest(source / "M.json")
    assert error.value.where == "c4"


def test_prediction_refuses_the_case_and_does_the_others(
    tmp_path: Path, tiny_bundle: Callable[..., Path], inline_worker: None
) -> None:
    torch.set_num_threads(1)
    model = tiny_bundle(channels=2)
    folder = tmp_path / "in"
    for name in ("whole_0000", "whole_0001", "half_0001"):
        save(folder / f"{name}.nii.gz", image(SHAPE, 3))
    outcome = predict(str(model), folder, tmp_path / "out", device="cpu")
    assert outcome.exit_code == 3
    states = {entry["id"]: (entry["status"], entry["reason"]) for entry in outcome.result["cases"]}
    assert states["whole"][0] == "done"
    assert states["half"][0] == "refused"
    assert "the image of channel 'c0' is missing" in states["half"][1]
