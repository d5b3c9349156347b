"""MLflow's own tools load what was trained, without this package and without any pickled code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from unet_med.bundle import load_bundle, save_bundle, save_ensemble
from unet_med.training.flavour import write_flavour
from unet_med.training.store import quiet_environment

_LOAD = """
import sys
sys.modules["unet_med"] = None  # as where it is not installed
import json
from pathlib import Path
import mlflow
import numpy as np
folder = Path(sys.argv[1])
example = mlflow.models.Model.load(str(folder)).load_input_example(str(folder))
network = mlflow.pytorch.load_model(str(folder))
import torch
with torch.no_grad():
    np.save(folder / "logits.npy", network(torch.from_numpy(example)).numpy())
signed = mlflow.pyfunc.load_model(str(folder), model_config={"device": "cpu"})
np.save(folder / "signed.npy", signed.predict(example))
print(json.dumps([list(map(int, spec.shape)) for spec in signed.metadata.get_input_schema().inputs]))
"""


def _loaded(folder: Path) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Loads the folder in a process of its own that does not know this package."""
    home = folder.parent / "home"
    home.mkdir()
    environment = {**quiet_environment(), "PATH": os.environ["PATH"], "HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(folder)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return np.load(folder / "logits.npy"), np.load(folder / "signed.npy"), json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_mlflow_loads_the_network_and_knows_what_it_takes(tiny_bundle, tmp_path: Path) -> None:
    bundle = tiny_bundle(seed=1)
    folder = tmp_path / "dressed"
    folder.mkdir()
    assert write_flavour(bundle, folder)
    logits, signed, shapes = _loaded(folder)
    assert shapes == [[1, 1, 16, 16, 16]]
    example = np.array(json.loads((folder / "input_example.json").read_text(encoding="utf-8")))
    with torch.no_grad():
        expected = load_bundle(bundle).network()(torch.from_numpy(example.astype(np.float32))).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(signed, expected, rtol=1e-4, atol=1e-5)
    places = (str(Path.cwd()).encode(), str(Path.home()).encode(), b"site-packages", str(tmp_path).encode())
    for path in (path for path in folder.rglob("*") if path.suffix != ".npy" and path.is_file()):
        content = path.read_bytes()
        assert not [place for place in places if len(place) > 1 and place in content], path.name


def test_an_ensemble_is_the_mean_of_its_members(tiny_bundle, tmp_path: Path) -> None:
    one, other = tiny_bundle("one", seed=1), tiny_bundle("other", seed=2)
    loaded = load_bundle(other)
    shifted = {name: value + 0.5 if name == "heads.0.bias" else value for name, value in loaded.state.items()}
    save_bundle(other, loaded.config, shifted, {})
    save_ensemble(tmp_path / "both", {"a": one, "b": other}, loaded.config, {})
    (tmp_path / "dressed").mkdir()
    assert write_flavour(tmp_path / "both", tmp_path / "dressed")
    together = torch.export.load(tmp_path / "dressed" / "data" / "model.pt2").module()
    image = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = (load_bundle(one).network()(image) + load_bundle(other).network()(image)) / 2
        torch.testing.assert_close(together(image), expected, rtol=1e-4, atol=1e-5)


def test_members_for_patches_of_different_sizes_stay_a_bundle(tiny_bundle, tmp_path: Path) -> None:
    small, large = tiny_bundle("small"), tiny_bundle("large", sampling__patch_voxels=[16, 16, 32])
    save_ensemble(tmp_path / "both", {"a": small, "b": large}, load_bundle(small).config, {})
    assert not write_flavour(tmp_path / "both", tmp_path / "dressed")
    assert not (tmp_path / "dressed").exists()


def test_a_network_that_cannot_be_recorded_stays_a_bundle(
    tiny_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("/home/jane/secret")

    monkeypatch.setattr(torch.export, "export", fail)
    assert not write_flavour(tiny_bundle(), tmp_path / "dressed")
    assert "cannot be recorded (RuntimeError)" in caplog.text
    assert "jane" not in caplog.text
