"""A model as a bundle of MONAI, which ``python -m monai.bundle run`` and MONAI Label run without this package.

``models/model.ts`` is the network, ``configs/inference.json`` what stands around it (its steps are in
``scripts/steps.py``), ``configs/metadata.json`` what a model zoo wants to know, ``docs/`` how to run it, and its card.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from unet_med.bundle import Bundle
from unet_med.errors import ModelError
from unet_med.exporting import monai_steps
from unet_med.exporting.exported import Exported
from unet_med.geometry import Geometry
from unet_med.inference.engine.openvino_engine import recorded
from unet_med.inference.predictor import Predictor
from unet_med.io.atomic import write_json
from unet_med.labels import LabelMap
from unet_med.version import __version__
from unet_med.volume import Volume

INFERENCE = "configs/inference.json"
METADATA = "configs/metadata.json"
NETWORK = "models/model.ts"
STEPS = "scripts/steps.py"
README = "docs/README.md"
CARD = "MODEL_CARD.md"
_RESEARCH_ONLY = "Research use only: not a medical device, not for diagnosis or treatment"
_STEPS_MODULE = "scripts.steps"
_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_ENDING = "_seg.nii.gz"
_LEAST_EQUAL = 0.9999
"""Share of voxels whose label must be the same: sums in another order may turn one where two labels are as likely."""


def write_monai_bundle(exported: Exported, folder: Path) -> float:
    """Writes a bundle, and runs it on an invented image.

    Args:
        exported: The network.
        folder: Empty; receives the bundle.

    Returns:
        The share of voxels in which the bundle's mask is that of the model.

    Raises:
        ModelError: The model makes objects or sees neighbouring slices, or the bundle's mask is another.
    """
    config = exported.info.config
    if exported.info.labels.objects:
        raise ModelError(
            "MONAI cannot cut objects out of the model's maps", exported.info.folder.name, "export it as onnx"
        )
    if config.network.slices > 1:
        raise ModelError(
            "a bundle of MONAI cannot show a network neighbouring slices", exported.info.folder.name, "export onnx"
        )
    for name in (INFERENCE, NETWORK, STEPS, README):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    inference = _inference(exported)
    write_json(folder / INFERENCE, inference, INFERENCE)
    shutil.copyfile(monai_steps.__file__, folder / STEPS)
    (folder / STEPS).with_name("__init__.py").touch()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit", category=DeprecationWarning)
        torch.jit.save(recorded(exported.request), str(folder / NETWORK))
    equal = _checked(exported, folder, inference)
    metadata = _metadata(exported, equal)
    write_json(folder / METADATA, metadata, METADATA)
    (folder / README).write_text(_readme(metadata), encoding="utf-8")
    card = exported.info.folder / CARD
    if card.is_file():
        shutil.copyfile(card, (folder / README).with_name(CARD))
    return equal


# ---- what the bundle says --------------------------------------------------------------------------------------------


def _inference(exported: Exported) -> dict[str, Any]:
    """Returns ``inference.json``."""
    return {
        "imports": ["$import glob", "$import numpy", "$import sys", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "print_log": True,
        "datalist": _datalist(exported.request.channels),
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "torch.jit.load",
            "f": f"$@bundle_root + '/{NETWORK}'",
            "map_location": "@device",
        },
        "network": "$@network_def.eval()",
        "settings": _settings(exported.bundles[0]),
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": f"{_STEPS_MODULE}.Prepare", "settings": "@settings"},
            ],
        },
        "inferer": {"_target_": f"{_STEPS_MODULE}.Windows", **_windows(exported)},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": f"{_STEPS_MODULE}.Restore", "settings": "@settings", **_after(exported)},
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "seg",
                    "output_ext": ".nii.gz",
                    "output_dtype": f"$numpy.{exported.info.labels.dtype.__name__}",
                    "resample": False,
                    "separate_folder": False,
                    "print_log": "@print_log",
                },
            ],
        },
        "evaluator": {
            "_target_": f"{_STEPS_MODULE}.Evaluate",
            "cases": "@datalist",
            "preprocessing": "@preprocessing",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "device": "@device",
        },
        "initialize": ["$sys.path.insert(0, @bundle_root)"],
        "run": ["$@evaluator.run()"],
    }


def _datalist(channels: int) -> str:
    """One file for each image, or one for each of its channels: ``NAME_0000.nii.gz``, ``NAME_0001.nii.gz``, ..."""
    if channels == 1:
        return "$[{'image': path} for path in sorted(glob.glob(@dataset_dir + '/*.nii*'))]"
    names = f"[path.replace('_0000.nii', '_%04d.nii' % number) for number in range({channels})]"
    return f"$[{{'image': {names}}} for path in sorted(glob.glob(@dataset_dir + '/*_0000.nii*'))]"


def _settings(bundle: Bundle) -> dict[str, Any]:
    preprocess = bundle.config.model_dump(mode="json")["preprocess"]
    exact = preprocess["resampling"] == "nnunet"
    kept = ("orientation", "axes", "crop_to_nonzero", "normalisation", "spacing_mm", "image_order")
    return {key: preprocess[key] for key in kept} | {
        "nnunet": exact,
        "keeps_range": exact and preprocess["image_order"] == 3,
    }


def _windows(exported: Exported) -> dict[str, Any]:
    config, request = exported.bundles[0].config, exported.request
    axes = config.augment.mirror_axes if config.inference.mirror and config.augment.mirror_axes != "auto" else ()
    return {
        "window": list(request.window),
        "context": list(request.context),
        "overlap": config.inference.overlap,
        "sigma": config.inference.gaussian_sigma,
        "centre": config.inference.gaussian_centre,
        "mirror_axes": [axis for axis in axes if axis < len(request.window)],
    }


def _after(exported: Exported) -> dict[str, Any]:
    labels, settings = exported.info.labels, exported.info.config.postprocess
    value = {label.name: label.index for label in labels.labels}
    return {
        "regions": list(labels.region_values()),
        "postprocess": {
            "keep_largest": [value[name] for name in settings.keep_largest],
            "fill_holes": [value[name] for name in settings.fill_holes],
            "minimum_voxels": settings.minimum_voxels,
        },
    }


def _metadata(exported: Exported, equal: float) -> dict[str, Any]:
    """Returns ``metadata.json``, complete as MONAI's schema wants it."""
    info, request = exported.info, exported.request
    training = info.meta.get("training") or {}
    outputs = dict(enumerate(info.labels.output_names))
    return {
        "schema": _SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by unet-med {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version(name) for name in ("nibabel", "scipy")},
        "supported_apps": {},
        "name": info.config.name,
        "task": f"Segmentation of {', '.join(info.labels.names)} in {info.config.dims}-D images",
        "description": f"U-Net trained on {training.get('n_cases', 'an unknown number of')} cases by unet-med",
        "authors": "not recorded",
        "copyright": "not recorded",
        "data_source": f"data set {training.get('data_digest') or 'not recorded'}",
        "data_type": "nibabel",
        "image_classes": ", ".join(info.channels),
        "label_classes": _classes(info.labels),
        "pred_classes": _classes(info.labels),
        "eval_metrics": _scores(info.meta),
        "intended_use": _RESEARCH_ONLY,
        "references": [],
        "model_sha256": info.sha256,
        "equal_voxels": equal,
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": str(training.get("modality") or "n/a"),
                    "num_channels": request.channels,
                    "spatial_shape": list(request.entering),
                    "dtype": "float32",
                    "value_range": [-10, 10],
                    "is_patch_data": True,
                    "channel_def": {str(number): name for number, name in enumerate(info.channels)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": len(outputs),
                    "spatial_shape": list(request.window),
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": {str(number): name for number, name in outputs.items()},
                }
            },
        },
    }


def _readme(metadata: Mapping[str, Any]) -> str:
    scores = [f"- {name}: {value:.4g}" for name, value in metadata["eval_metrics"].items()]
    command = f"python -m monai.bundle run --config_file {INFERENCE} --dataset_dir IMAGES --output_dir MASKS"
    lines = [
        f"# {metadata['name']}",
        "",
        f"{metadata['task']}. {metadata['intended_use']}.",
        "",
        f"- channels: {metadata['image_classes']}; several are files NAME_0000.nii.gz, NAME_0001.nii.gz, ...",
        f"- labels: {metadata['pred_classes']}",
        *scores,
        "",
        "Scores, where there are any, are of cases that the model had not seen. In the folder of the bundle:",
        "",
        "    pip install monai torch nibabel scipy fire",
        f"    {command}",
        "",
    ]
    return "\n".join(lines)


def _classes(labels: LabelMap) -> str:
    return ", ".join(["0 background", *(f"{label.index} {label.name}" for label in labels.labels)])


def _scores(meta: Mapping[str, Any]) -> dict[str, float]:
    """Returns the mean scores of the cases that the model had not seen."""
    results = meta.get("results") or {}
    found = results.get("out_of_fold") or results.get("held_out") or {}
    return {f"mean_{name}": value for name, value in (found.get("mean") or {}).items() if value is not None}


# ---- whether it says the same ----------------------------------------------------------------------------------------


def _checked(exported: Exported, folder: Path, inference: Mapping[str, Any]) -> float:
    """Runs the bundle's configuration on an invented image; returns the share of equal voxels."""
    volume = _invented(exported)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        paths = []
        for number, channel in enumerate(volume.array):
            paths.append(str(work / f"image_{number:04d}.nii.gz"))
            nib.save(nib.Nifti1Image(channel, volume.geometry.affine), paths[-1])
        own_steps = json.loads(json.dumps(inference).replace(f'"{_STEPS_MODULE}.', f'"{monai_steps.__name__}.'))
        changes = {
            "bundle_root": str(folder),
            "output_dir": name,
            "print_log": False,
            "datalist": [{"image": paths if len(paths) > 1 else paths[0]}],
            "device": "$torch.device('cpu')",
        }
        _run(own_steps | changes)
        found = np.asarray(nib.load(work / f"image_0000{_ENDING}").dataobj)
    wanted = Predictor([_exact(bundle) for bundle in exported.bundles], "cpu").predict(volume).labels
    equal = float((found.reshape(wanted.shape) == wanted).mean())
    if equal < _LEAST_EQUAL:
        raise ModelError(
            f"the bundle's mask is another in {1 - equal:.2%} of the voxels",
            exported.info.folder.name,
            "export it in another format",
        )
    return equal


def _run(config: dict[str, Any]) -> None:
    with _quiet():
        from monai.bundle import ConfigParser

        parser = ConfigParser(config)
        parser.get_parsed_content("evaluator").run()


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, libraries warn of nothing, and the folder of the bundle is no place to import from."""
    before = list(sys.path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.path[:] = before


def _exact(bundle: Bundle) -> Bundle:
    """The model in float32 by torch, with every window computed: what has been exported."""
    settings = {"inference.engine": "torch", "inference.skip_empty": False, "training.precision": "fp32"}
    return replace(bundle, config=bundle.config.replacing(settings))


def _invented(exported: Exported) -> Volume:
    """Returns an image of blobs a little larger than a window, on a grid that is not the network's."""
    rng = np.random.default_rng(0)
    window, spacing = exported.request.window, exported.bundles[0].config.preprocess.spacing_mm
    ndim = 3
    sizes = [1.0] * ndim if spacing is None or spacing == "auto" else [*spacing, *[1.0] * (ndim - len(spacing))]
    shape = tuple(int(size * 1.3) + 2 for size in [*window, *[2] * (ndim - len(window))])
    affine = np.diag([-0.9 * sizes[0], 1.1 * sizes[1], sizes[2], 1.0])
    affine[:3, 3] = (20.0, -10.0, 5.0)
    noise: npt.NDArray[Any] = rng.normal(size=(len(exported.info.channels), *shape))
    blobs = np.stack([ndimage.gaussian_filter(channel, 2.0) for channel in noise])
    return Volume((500 * blobs + 20 * noise).astype(np.float32), Geometry(shape, affine))
