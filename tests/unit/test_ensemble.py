"""An ensemble is a model like any other: whole or refused, with its members' weights and post-processing of its own."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from unet_med import bundle as bundle_module
from unet_med.bundle import load_bundle, load_bundles, read_bundle_info, save_bundle, save_ensemble
from unet_med.errors import ConfigError, ModelError
from unet_med.geometry import Geometry
from unet_med.inference.predictor import Predictor
from unet_med.volume import Volume


def shifted(folder: Path, shift: float) -> Path:
    """Writes a model beside another one whose first label is found in more or fewer voxels."""
    good = load_bundle(folder)
    state = {name: value.clone() for name, value in good.state.items()}
    state["heads.0.bias"][1] += shift
    other = folder.with_name(f"{folder.name}_{shift}")
    save_bundle(other, good.config, state, good.meta)
    return other


@pytest.fixture
def ensemble(tiny_bundle, tmp_path: Path) -> Path:
    one = tiny_bundle("one", meta={"training": {"fold": "fold_0"}, "empty_windows": {"rule": 1}})
    config = load_bundle(one).config.replacing({"postprocess.minimum_voxels": 3})
    meta = {"training": {"fold": "cv"}, "results": {"dice": 0.5}}
    save_ensemble(tmp_path / "RUN" / "model", {"fold_0": one, "fold_1": shifted(one, 0.5)}, config, meta)
    return tmp_path / "RUN"


def test_what_it_says_of_itself(ensemble: Path) -> None:
    info = read_bundle_info(ensemble)
    assert info.folder == ensemble / "model"
    assert [member.folder.name for member in info.members] == ["fold_0", "fold_1"]
    assert info.meta["training"] == {"fold": "cv"}
    assert info.config.postprocess.minimum_voxels == 3
    assert len({info.sha256, *(member.sha256 for member in info.members)}) == 3
    files = ["MODEL_CARD.md", "bundle.json", "fold_0", "fold_1", "pipeline.yaml"]
    assert sorted(path.name for path in info.folder.iterdir()) == files


def test_its_members_are_models_of_their_own(ensemble: Path, tmp_path: Path) -> None:
    member = load_bundle(ensemble / "model" / "fold_0")
    assert member.sha256 == load_bundle(tmp_path / "one").sha256
    assert member.config.postprocess.minimum_voxels == 0


def test_loaded_members_share_post_processing_and_origin(ensemble: Path) -> None:
    bundles = load_bundles(ensemble)
    assert [bundle.sha256 for bundle in bundles] == [member.sha256 for member in read_bundle_info(ensemble).members]
    for bundle in bundles:
        assert bundle.config.postprocess.minimum_voxels == 3
        assert bundle.meta["training"] == {"fold": "cv"}
        assert bundle.meta["results"] == {"dice": 0.5}


def test_a_single_model_is_loaded_as_itself(tiny_bundle) -> None:
    folder = tiny_bundle()
    (bundle,) = load_bundles(folder)
    assert bundle.sha256 == load_bundle(folder).sha256


def test_it_predicts_the_mean_of_its_members(ensemble: Path) -> None:
    image = np.random.default_rng(1).normal(size=(1, 20, 18, 17)).astype(np.float32)
    volume = Volume(image, Geometry.from_spacing((20, 18, 17), (1.0, 1.0, 1.0)))
    members = [load_bundle(member.folder) for member in read_bundle_info(ensemble).members]
    cleaned = [dataclasses.replace(one, config=read_bundle_info(ensemble).config) for one in members]
    found = Predictor(load_bundles(ensemble), "cpu").predict(volume).labels
    np.testing.assert_array_equal(found, Predictor(cleaned, "cpu").predict(volume).labels)
    alone = [Predictor([one], "cpu").predict(volume).labels for one in cleaned]
    assert all((found != one).any() for one in alone)


def test_it_is_not_one_network(ensemble: Path) -> None:
    with pytest.raises(ModelError, match=r"an ensemble of 2 models.*model/fold_0"):
        load_bundle(ensemble)


def test_members_are_linked_and_a_new_model_in_their_place_leaves_the_ensemble_as_it_is(
    ensemble: Path, tmp_path: Path
) -> None:
    ours, theirs = ensemble / "model" / "fold_0" / "model.safetensors", tmp_path / "one" / "model.safetensors"
    assert ours.samefile(theirs)
    good = load_bundle(tmp_path / "one")
    save_bundle(tmp_path / "one", good.config, {name: value + 1 for name, value in good.state.items()}, {})
    assert read_bundle_info(ensemble).members[0].sha256 == good.sha256


def test_without_links_members_are_copied(tiny_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(bundle_module.os, "link", refused)
    one = tiny_bundle("one")
    save_ensemble(tmp_path / "both", {"a": one, "b": one}, load_bundle(one).config, {})
    shutil.rmtree(one)
    assert len(load_bundles(tmp_path / "both")) == 2


@pytest.mark.parametrize("damage", ["weights", "missing", "exchanged", "order"])
def test_a_damaged_or_exchanged_member_is_noticed(ensemble: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "_RETRY_SECONDS", 0.0)
    model = ensemble / "model"
    weights = model / "fold_1" / "model.safetensors"
    if damage == "weights":
        content = weights.read_bytes()
        weights.unlink()
        weights.write_bytes(content[:-4] + b"\0\0\1\0")
    elif damage == "missing":
        shutil.rmtree(model / "fold_1")
    elif damage == "exchanged":
        shutil.rmtree(model / "fold_1")
        shutil.copytree(model / "fold_0", model / "fold_1")
    else:
        description = json.loads((model / "bundle.json").read_text(encoding="utf-8"))
        description["members"].reverse()
        (model / "bundle.json").write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(ModelError):
        read_bundle_info(ensemble)


def test_a_member_outside_of_the_folder_is_refused(ensemble: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ensemble / "model" / "bundle.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    description["members"][0]["name"] = "../../one"
    del description["sha256"]
    description["sha256"] = bundle_module._digest(description)
    path.write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(ModelError, match="no proper name"):
        read_bundle_info(ensemble)


def test_a_new_ensemble_takes_the_place_of_the_old_one(ensemble: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    sha256 = save_ensemble(ensemble / "model", {"fold_0": shifted(one, -0.5)}, load_bundle(one).config, {})
    info = read_bundle_info(ensemble)
    assert info.sha256 == sha256
    assert len(info.members) == 1


def test_a_reader_waits_for_a_writer_in_the_middle(ensemble: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ensemble / "model"
    new = ensemble.with_name("new")
    save_ensemble(new, {"fold_0": model / "fold_1", "fold_1": model / "fold_0"}, read_bundle_info(model).config, {})
    for name in ("fold_0", "fold_1"):
        shutil.rmtree(model / name)
        shutil.copytree(new / name, model / name)

    def finish(_: float) -> None:
        (model / "bundle.json").write_bytes((new / "bundle.json").read_bytes())

    monkeypatch.setattr(bundle_module.time, "sleep", finish)
    assert read_bundle_info(ensemble).sha256 == read_bundle_info(new).sha256


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"labels": {"background": 0, "left": 1, "right": 2}}, "labels or channels"),
        ({"channels": 2}, "labels or channels"),
        ({"regions": {"all": [1, 2], "inner": [2]}}, "labels or channels"),
    ],
    ids=["labels", "channels", "regions"],
)
def test_members_of_different_tasks_are_refused(tiny_bundle, tmp_path: Path, changes: dict, reason: str) -> None:
    one = tiny_bundle("one")
    if "regions" in changes:
        good = load_bundle(one)
        other = tmp_path / "other"
        save_bundle(other, good.config.replacing(changes), good.state, {})
    else:
        other = tiny_bundle("other", **changes)
    with pytest.raises(ModelError, match=reason):
        save_ensemble(tmp_path / "both", {"a": one, "b": other}, load_bundle(one).config, {})
    assert not (tmp_path / "both").exists()


def test_no_ensemble_of_ensembles_of_nothing_or_of_open_pipelines(ensemble: Path, tmp_path: Path) -> None:
    config = read_bundle_info(ensemble).config
    with pytest.raises(ModelError, match="no member of another"):
        save_ensemble(tmp_path / "both", {"a": ensemble}, config, {})
    with pytest.raises(ModelError, match="needs a member"):
        save_ensemble(tmp_path / "both", {}, config, {})
    with pytest.raises(ModelError, match="no name of a member"):
        save_ensemble(tmp_path / "both", {"../a": tmp_path / "one"}, config, {})
    with pytest.raises(ConfigError, match="resolved"):
        save_ensemble(tmp_path / "both", {"a": tmp_path / "one"}, config.replacing({"sampling.batch_size": "auto"}), {})
    assert not (tmp_path / "both").exists()
