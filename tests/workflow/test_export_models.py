"""Models in the formats of other tools say what they say here."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from fresh_process import in_fresh_process
from scipy import ndimage

from unet_med.bundle import load_bundles, read_bundle_info, save_ensemble
from unet_med.errors import ModelError, UsageError
from unet_med.exporting import monai_steps
from unet_med.exporting.exported import TOLERANCE, check_equal, open_exported
from unet_med.workflows.export import export

pytestmark = pytest.mark.usefixtures("one_thread")

INSTALLED = find_spec("openvino") is not None  # asked before a fixture hides it
MakeBundle = Callable[..., Path]
OBLIQUE = np.array([[0.0, -1.1, 0.1, 12.0], [-0.8, 0.0, 0.0, 30.0], [0.0, 0.1, 2.9, -7.0], [0, 0, 0, 1]])
_RUN = """
import os, sys
sys.modules["unet_med"] = None
from monai.bundle import run
for folder in sys.argv[1:]:
    os.chdir(folder)
    run(config_file="configs/inference.json", dataset_dir="in", output_dir="out")
"""


def _images(
    folder: Path, shape: tuple[int, ...] = (25, 30, 14), channels: int = 1, affine: np.ndarray = OBLIQUE
) -> None:
    """Writes an image with a margin of zeros, on a grid that is turned and flipped."""
    rng = np.random.default_rng(3)
    folder.mkdir()
    inside = tuple(slice(3, -2) for _ in shape)
    for number in range(channels):
        image = np.zeros(shape, dtype=np.int16)
        smooth = ndimage.gaussian_filter(rng.normal(size=shape), 1.2)
        image[inside] = (300 + 500 * smooth)[inside]
        name = "a.nii.gz" if channels == 1 else f"a_{number:04d}.nii.gz"
        nib.save(nib.Nifti1Image(image, affine), folder / name)


def _run_monai(bundles: list[Path]) -> None:
    """Runs bundles as MONAI does, in a process that cannot import this package."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *map(str, bundles)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr


def _own_mask(model: Path, images: Path, out: Path) -> np.ndarray:
    from unet_med.io.source import IntakeOptions
    from unet_med.workflows.predict import predict

    outcome = predict(str(model), images, out, device="cpu", intake=IntakeOptions())
    (case,) = outcome.result["cases"]
    assert case["status"] == "done", case
    return np.asarray(nib.load(out / f"{case['id']}.nii.gz").dataobj)


MODELS: dict[str, dict[str, object]] = {
    "cropped": {
        "preprocess__spacing_mm": [1.0, 0.9, 1.3],
        "preprocess__crop_to_nonzero": True,
        "postprocess__keep_largest": ["dark"],
        "postprocess__minimum_voxels": 3,
        "postprocess__fill_holes": ["bright"],
    },
    "of_nnunet": {
        "preprocess__normalisation": [{"scheme": "percentile"}, {"scheme": "zscore", "inside": "filled"}],
        "preprocess__spacing_mm": [1.0, 1.0, 0.6],
        "preprocess__resampling": "nnunet",
        "preprocess__orientation": "LPS",
        "preprocess__axes": [2, 0, 1],
        "inference__gaussian_centre": "voxel",
        "inference__mirror": True,
    },
}


@pytest.mark.usefixtures("inline_worker")
def test_bundles_of_monai_make_the_same_masks_without_this_package(tmp_path: Path, tiny_bundle: MakeBundle) -> None:
    wanted = {}
    for channels, (name, changes) in enumerate(MODELS.items(), start=1):
        more = {"inference__engine": "torch", "training__precision": "fp32"}
        model, bundle = tiny_bundle(name, channels=channels, **changes, **more), tmp_path / f"{name}_monai"
        _shake(model, channels)
        outcome = export(str(model), bundle, "monai-bundle")
        assert outcome.result["check"]["equal_voxels"] >= 0.9999
        _images(bundle / "in", channels=channels)
        wanted[name] = _own_mask(model, bundle / "in", tmp_path / f"{name}_masks")
        assert len(np.unique(wanted[name])) == 3
    _run_monai([tmp_path / f"{name}_monai" for name in MODELS])
    for name, mask in wanted.items():
        (path,) = (tmp_path / f"{name}_monai" / "out").glob("*_seg.nii.gz")
        assert (np.asarray(nib.load(path).dataobj) == mask).mean() > 0.9999


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:DeprecationWarning")
def test_the_description_of_a_bundle_is_complete(tmp_path: Path, tiny_bundle: MakeBundle) -> None:
    meta = {"results": {"held_out": {"n_cases": 2, "mean": {"dice": 0.9, "hd95_mm": None}}}}
    model = tiny_bundle(channels=2, meta=meta)
    export(str(model), tmp_path / "bundle", "monai-bundle")
    described = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    required = "version changelog monai_version pytorch_version numpy_version required_packages_version task"
    required += " description authors copyright network_data_format"
    assert set(required.split()) <= set(described)
    formats = described["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    assert (image["num_channels"], image["spatial_shape"]) == (2, [16, 16, 16])
    assert pred["channel_def"] == {"0": "background", "1": "bright", "2": "dark"}
    assert described["eval_metrics"] == {"mean_dice": 0.9}
    assert "--config_file configs/inference.json" in (tmp_path / "bundle" / "docs" / "README.md").read_text()
    assert described["model_sha256"] == read_bundle_info(model).sha256
    network = torch.jit.load(str(tmp_path / "bundle" / "models" / "model.ts"))
    assert network(torch.zeros(1, 2, 16, 16, 16)).shape == (1, 3, 16, 16, 16)


def test_the_steps_of_a_bundle_need_nothing_of_this_package() -> None:
    tree = ast.parse(Path(monai_steps.__file__).read_text())
    modules = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name) or ""
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    own = {"monai", "numpy", "scipy", "torch"} | set(sys.stdlib_module_names)
    assert {module.partition(".")[0] for module in modules} <= own


def test_an_ensemble_is_exported_as_the_mean_of_its_members(tmp_path: Path, tiny_bundle: MakeBundle) -> None:
    members = {"a": tiny_bundle("a"), "b": tiny_bundle("b")}
    for number, folder in enumerate(members.values()):
        _shake(folder, number)
    save_ensemble(tmp_path / "both", members, read_bundle_info(members["a"]).config, {})
    exported = open_exported(str(tmp_path / "both"))
    window = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        alone = [bundle.network()(window) for bundle in load_bundles(tmp_path / "both")]
        together = exported.request.network(window)
    assert not torch.allclose(*alone)
    torch.testing.assert_close(together, (alone[0] + alone[1]) / 2)


def _shake(folder: Path, seed: int, norm: str = "none") -> None:
    """Gives a bundle weights of its own, which see every channel."""
    from unet_med.bundle import load_bundle, save_bundle
    from unet_med.networks import build_network

    bundle = load_bundle(folder)
    config = bundle.config.replacing({"network.norm": norm})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network(config.network, bundle.dims, len(bundle.channels), bundle.labels.outputs)
    save_bundle(folder, config, network.state_dict(), bundle.meta)


def test_members_that_see_different_images_are_refused(tmp_path: Path, tiny_bundle: MakeBundle) -> None:
    members = {"a": tiny_bundle("a"), "b": tiny_bundle("b", preprocess__crop_to_nonzero=True)}
    save_ensemble(tmp_path / "both", members, read_bundle_info(members["a"]).config, {})
    with pytest.raises(ModelError, match="see different images"):
        export(str(tmp_path / "both"), tmp_path / "out", "monai-bundle")
    assert not (tmp_path / "out").exists()


def test_what_says_something_else_is_not_written(tmp_path: Path, tiny_bundle: MakeBundle) -> None:
    exported = open_exported(str(tiny_bundle()))
    network = exported.request.network
    with torch.no_grad():
        assert check_equal(exported, network, "a copy") == 0.0
        near = check_equal(exported, lambda window: network(window) * (1 + TOLERANCE / 2), "nearly")
        assert 0 < near <= TOLERANCE
        for wrong in (lambda window: network(window.flip(2)), lambda window: network(window) * torch.nan):
            with pytest.raises(ModelError, match="says something else"):
                check_equal(exported, wrong, "another")


def test_a_bundle_whose_mask_is_another_is_not_written(
    tmp_path: Path, tiny_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monai_steps.Restore, "_labels", lambda self, logits: logits.argmin(dim=0).numpy())
    with pytest.raises(ModelError, match="mask is another"):
        export(str(tiny_bundle()), tmp_path / "out", "monai-bundle")
    assert not (tmp_path / "out").exists()


def test_only_an_export_is_replaced(tmp_path: Path, tiny_bundle: MakeBundle) -> None:
    model, out = tiny_bundle(), tmp_path / "out"
    (out / "mine").mkdir(parents=True)
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="holds something else"):
            export(str(model), out, "monai-bundle", overwrite)
    (out / "mine").rmdir()
    export(str(model), out, "monai-bundle")
    (out / "old").touch()
    with pytest.raises(UsageError, match="holds an export already"):
        export(str(model), out, "monai-bundle")
    export(str(model), out, "monai-bundle", overwrite=True)
    assert not (out / "old").exists()


def test_onnx_takes_any_number_of_windows(tmp_path: Path, tiny_bundle: MakeBundle) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    model = tiny_bundle(dims=2)
    _shake(model, 0, norm="instance")
    outcome = export(str(model), tmp_path / "out", "onnx")
    assert outcome.result["check"]["largest_relative_difference"] <= TOLERANCE
    described = json.loads((tmp_path / "out" / "model.json").read_text())
    assert described["output"]["outputs"] == ["background", "bright", "dark"]
    session = runtime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    windows = torch.randn(3, *described["input"]["shape"][1:], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = load_bundles(model)[0].network()(windows)
    found = torch.from_numpy(session.run(["logits"], {"image": windows.numpy()})[0])
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not INSTALLED, reason="OpenVINO is not installed")
def test_openvino_runs_what_is_exported_for_it(tmp_path: Path, tiny_bundle: MakeBundle) -> None:
    model = tiny_bundle(dims=2)
    _shake(model, 0, norm="instance")
    assert model.name == "model"
    in_fresh_process(tmp_path, "export_checks", "exports_for_openvino")
