"""Models are kept whole, checked when they are read, and never executed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unet_med import bundle as bundle_module
from unet_med.bundle import load_bundle, read_bundle_info, save_bundle
from unet_med.errors import ConfigError, MachineError, ModelError


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "bundle.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content.update(changes)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_bundle_comes_back_as_it_was_written(tiny_bundle) -> None:
    folder = tiny_bundle(meta={"training": {"n_cases": 3}, "results": {"dice": float("nan")}})
    bundle = load_bundle(folder)
    again = load_bundle(str(folder))
    assert bundle.sha256 == again.sha256 == read_bundle_info(folder).sha256
    assert bundle.labels.names == ("bright", "dark")
    assert bundle.channels == ("c0",)
    assert bundle.meta == {"training": {"n_cases": 3}, "results": {"dice": None}}
    network = bundle.network()
    assert not network.training
    assert torch.equal(network.state_dict()["heads.0.weight"], bundle.state["heads.0.weight"])
    files = ["MODEL_CARD.md", "bundle.json", "model.safetensors", "pipeline.yaml"]
    assert sorted(path.name for path in folder.iterdir()) == files


def test_the_run_folder_stands_for_its_model(tiny_bundle) -> None:
    folder = tiny_bundle("run/model")
    assert load_bundle(folder.parent).sha256 == load_bundle(folder).sha256


def test_a_run_of_several_folds_names_them(tiny_bundle) -> None:
    tiny_bundle("run/fold_0/model")
    folder = tiny_bundle("run/fold_1/model")
    with pytest.raises(ModelError, match=r"2 models.*fold_0 --also run/fold_1"):
        load_bundle(folder.parents[1])


@pytest.mark.parametrize("name", ["model.safetensors", "bundle.json"])
@pytest.mark.parametrize("kept", [0, 40, 0.5])
def test_a_truncated_file_is_named_with_a_remedy(tiny_bundle, name: str, kept: float) -> None:
    folder = tiny_bundle()
    path = folder / name
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(ModelError) as caught:
        load_bundle(folder)
    assert caught.value.where == name
    assert "damaged" in caught.value.what
    assert caught.value.remedy


def test_missing_weights_are_named(tiny_bundle) -> None:
    folder = tiny_bundle()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="missing"):
        load_bundle(folder)


def test_a_newer_schema_asks_for_an_update(tiny_bundle) -> None:
    folder = tiny_bundle()
    _edit(folder, schema_version=7)
    with pytest.raises(ModelError, match=r"made by a newer unet-med \(schema 7 > 3\).*update"):
        load_bundle(folder)


def test_a_changed_description_is_noticed(tiny_bundle) -> None:
    folder = tiny_bundle()
    _edit(folder, meta={"training": {"case_sha256": []}})
    with pytest.raises(ModelError, match="changed after it was written"):
        load_bundle(folder)


def test_weights_of_another_network_do_not_load(tiny_bundle) -> None:
    good = load_bundle(tiny_bundle())
    state = {key: value for key, value in good.state.items() if key != "heads.0.bias"}
    folder = tiny_bundle("other")
    save_bundle(folder, good.config, state, {})
    with pytest.raises(ModelError, match="do not fit the network"):
        load_bundle(folder).network()


def test_a_network_is_made_of_the_bundles_own_weights_and_no_random_numbers(tiny_bundle) -> None:
    bundle = load_bundle(tiny_bundle())
    before = torch.get_rng_state()
    network = bundle.network()
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: value.data_ptr() for name, value in network.state_dict().items()} == {
        name: value.data_ptr() for name, value in bundle.state.items()
    }


def test_an_unresolved_pipeline_is_no_model(tiny_bundle, tmp_path: Path) -> None:
    good = load_bundle(tiny_bundle())
    open_config = good.config.replacing({"sampling.batch_size": "auto"})
    with pytest.raises(ConfigError, match=r"sampling\.batch_size"):
        save_bundle(tmp_path / "open", open_config, good.state, {})
    assert not (tmp_path / "open").exists()


def test_a_full_disk_keeps_the_old_model(tiny_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_bundle()
    good = load_bundle(folder)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(MachineError):
        save_bundle(folder, good.config, good.state, {"new": True})
    assert load_bundle(folder).sha256 == good.sha256
    assert len(list(folder.iterdir())) == 4


def test_a_reader_waits_for_a_writer_in_the_middle(tiny_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_bundle()
    new = tiny_bundle("new", meta={"new": 1}, seed=5)
    weights = load_bundle(new).state
    weights["heads.0.bias"][0] = 0.25
    save_bundle(new, load_bundle(new).config, weights, {"new": 1})
    (folder / "model.safetensors").write_bytes((new / "model.safetensors").read_bytes())

    def finish(_: float) -> None:
        (folder / "bundle.json").write_bytes((new / "bundle.json").read_bytes())

    monkeypatch.setattr(bundle_module.time, "sleep", finish)
    assert load_bundle(folder).meta == {"new": 1}


@pytest.mark.parametrize("where", ["nothing", "."])
def test_no_model_there(tmp_path: Path, where: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_bundle(tmp_path / where)
    assert caught.value.remedy


def test_an_mlflow_address_without_a_store_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ModelError, match="MLflow is not installed"):
        load_bundle("models:/tiny@candidate")


def test_the_description_is_read_without_torch_or_mlflow(tiny_bundle) -> None:
    folder = tiny_bundle()
    script = (
        "import sys; from unet_med.bundle import read_bundle_info; from pathlib import Path;"
        "read_bundle_info(Path(sys.argv[1])); assert not {'torch', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True)
