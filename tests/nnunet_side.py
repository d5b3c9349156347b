"""Runs in nnU-Net's own interpreter: trains tiny models with its trainer, and predicts with its predictor.

    python nnunet_side.py WORK

``WORK/jobs.json`` lists jobs; each has ``name``, ``configuration``, ``folds``, ``mirror``, ``steps`` and a folder
``WORK/raw/NAME`` in nnU-Net's raw layout, with ``plans.json`` beside ``dataset.json``. Of each case in ``imagesTs`` the
masks of nnU-Net's predictor and what its network saw are written to ``WORK/theirs/NAME/CASE.npz``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

WORK = Path(sys.argv[1]).resolve()
for variable in ("raw", "preprocessed", "results"):
    os.environ[f"nnUNet_{variable}"] = str(WORK / variable)
os.environ |= {"nnUNet_compile": "f", "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}

import numpy as np  # noqa: E402
import torch  # noqa: E402
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: E402


def files_of(folder: Path, case: str) -> list[str]:
    return [str(path) for path in sorted(folder.glob(f"{case}_*.nii.gz"))]


def names_in(folder: Path) -> list[str]:
    return sorted({path.name[: -len("_0000.nii.gz")] for path in folder.glob("*.nii.gz")})


def trainer_of(job: dict[str, Any], plans: dict[str, Any], dataset: dict[str, Any], fold: int) -> nnUNetTrainer:
    place = WORK / "preprocessed" / plans["dataset_name"]
    for configuration in plans["configurations"].values():
        (place / configuration["data_identifier"]).mkdir(parents=True, exist_ok=True)
        (place / configuration["data_identifier"] / "case.b2nd").touch()  # only the kind of file is looked at
    stored = {**json.loads(json.dumps(plans)), "continue_training": False}
    trainer = nnUNetTrainer(stored, job["configuration"], fold, dataset, torch.device("cpu"))
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = tuple(job["mirror"]) or None
    trainer.optimizer = torch.optim.Adam(trainer.network.parameters(), 5e-3)
    return trainer


def samples_of(trainer: nnUNetTrainer, raw: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    plans, configuration = trainer.plans_manager, trainer.configuration_manager
    samples = []
    for case in names_in(raw / "imagesTr"):
        reader = plans.image_reader_writer_class()
        data, properties = reader.read_images(files_of(raw / "imagesTr", case))
        label, _ = reader.read_seg(str(raw / "labelsTr" / f"{case}.nii.gz"))
        preprocessor = configuration.preprocessor_class(verbose=False)
        data, label, _ = preprocessor.run_case_npy(data, label, properties, plans, configuration, trainer.dataset_json)
        samples.append((torch.from_numpy(data).float(), torch.from_numpy(label.astype(np.int64)).clamp(min=0)))
    return samples


def batch_of(
    trainer: nnUNetTrainer, samples: list[tuple[torch.Tensor, torch.Tensor]], rng: np.random.Generator
) -> dict[str, Any]:
    """Random patches; every other one has a labelled voxel in its middle, as far as it can."""
    patch = list(trainer.configuration_manager.patch_size)
    images, labels = [], []
    for number in range(2):
        image, label = samples[rng.integers(len(samples))]
        if len(patch) == 2:
            plane = int(rng.integers(image.shape[1]))
            image, label = image[:, plane], label[:, plane]
        missing = [max(0, wanted - size) for wanted, size in zip(patch, image.shape[1:], strict=True)]
        padding = [part for amount in reversed(missing) for part in (amount // 2, amount - amount // 2)]
        image, label = (torch.nn.functional.pad(one, padding) for one in (image, label))
        found = (label[0] > 0).nonzero()
        centre = found[rng.integers(len(found))] if number and len(found) else None
        box = []
        for axis, (wanted, size) in enumerate(zip(patch, image.shape[1:], strict=True)):
            start = int(rng.integers(size - wanted + 1))
            if centre is not None:
                start = int(np.clip(int(centre[axis]) - wanted // 2, 0, size - wanted))
            box.append(slice(start, start + wanted))
        images.append(image[(slice(None), *box)])
        labels.append(label[(slice(None), *box)])
    return {"data": torch.stack(images), "target": targets_of(trainer, torch.stack(labels))}


def targets_of(trainer: nnUNetTrainer, label: torch.Tensor) -> list[torch.Tensor]:
    """The label at each level of deep supervision; one channel for each region where there are regions."""
    manager = trainer.label_manager
    if manager.has_regions:
        members = [region if isinstance(region, tuple | list) else [region] for region in manager.foreground_regions]
        label = torch.cat([torch.isin(label, torch.tensor(list(one))) for one in members], dim=1)
    scales = trainer._get_deep_supervision_scales()
    sizes = [[round(n * share) for n, share in zip(label.shape[2:], scale, strict=True)] for scale in scales]
    return [torch.nn.functional.interpolate(label.float(), size, mode="nearest") for size in sizes]


def train(job: dict[str, Any], raw: Path, plans: dict[str, Any], dataset: dict[str, Any], fold: int) -> Path:
    torch.manual_seed(fold)
    rng = np.random.default_rng(fold)
    trainer = trainer_of(job, plans, dataset, fold)
    samples = samples_of(trainer, raw)
    trainer.network.train()
    losses = [trainer.train_step(batch_of(trainer, samples, rng))["loss"] for _ in range(job["steps"])]
    trainer.logger.log("train_losses", np.mean(losses[-10:]), 0)
    trainer._best_ema = np.float64(0.5)
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    folder = Path(trainer.output_folder).parent
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


def predict(job: dict[str, Any], raw: Path, folder: Path) -> None:
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), tuple(job["folds"]))
    out = WORK / "theirs" / job["name"]
    out.mkdir(parents=True)
    for case in names_in(raw / "imagesTs"):
        data, properties = predictor.plans_manager.image_reader_writer_class().read_images(
            files_of(raw / "imagesTs", case)
        )
        preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
        seen, _, _ = preprocessor.run_case_npy(
            data,
            None,
            dict(properties),
            predictor.plans_manager,
            predictor.configuration_manager,
            predictor.dataset_json,
        )
        mask = predictor.predict_single_npy_array(data, properties)
        np.savez(out / f"{case}.npz", mask=np.transpose(mask, (2, 1, 0)), seen=seen)
    shutil.copytree(folder, WORK / "models" / job["name"])


def main() -> None:
    torch.set_num_threads(1)
    for job in json.loads((WORK / "jobs.json").read_text()):
        raw = WORK / "raw" / job["name"]
        plans, dataset = (json.loads((raw / name).read_text()) for name in ("plans.json", "dataset.json"))
        folder = [train(job, raw, plans, dataset, fold) for fold in job["folds"]][-1]
        predict(job, raw, folder)


main()
