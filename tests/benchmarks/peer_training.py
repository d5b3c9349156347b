"""nnU-Net's side of ``bench_peer_accuracy.py``, for the interpreter that has nnunetv2."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

CONFIGURATION = "3d_fullres"
FIRST_RATE = 1e-2
POWER = 0.9


def trained(trainer: Any, minutes: float, marks: list[float]) -> list[dict[str, Any]]:
    """Trains for some minutes and leaves a checkpoint at each mark and at the end."""
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    rows: list[dict[str, Any]] = []
    start, steps = time.perf_counter(), 0
    spent = 0.0
    left = [*marks, minutes]
    while left:
        for group in trainer.optimizer.param_groups:
            group["lr"] = FIRST_RATE * max(1e-3, 1 - spent / minutes) ** POWER
        loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
        steps += 1
        spent = (time.perf_counter() - start) / 60
        print(f"{steps} steps, {spent:.2f} min, loss {float(loss):.3f}", flush=True)
        while left and spent >= left[0]:
            name = f"checkpoint_{left.pop(0):g}.pth"
            trainer.save_checkpoint(str(Path(trainer.output_folder) / name))
            rows.append({"minutes": spent, "steps": steps, "checkpoint": name, "masks": f"masks_{steps}"})
            start = time.perf_counter() - spent * 60  # writing is not counted
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--at", default="")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    done = options.out / "trained.json"
    folder = options.out / "preprocessed" / options.dataset
    plans = json.loads((folder / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    dataset = json.loads((folder / "dataset.json").read_text())
    trainer = nnUNetTrainer(plans, CONFIGURATION, options.fold, dataset, torch.device("cpu"))
    if not done.exists():
        rows = trained(trainer, options.minutes, sorted(float(mark) for mark in options.at.split(",") if mark))
        done.write_text(json.dumps(rows, indent=1))
    for row in json.loads(done.read_text()):
        predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
        base = Path(trainer.output_folder).parent
        predictor.initialize_from_trained_model_folder(str(base), (options.fold,), row["checkpoint"])
        predictor.predict_from_files(
            str(options.out / "images"),
            str(options.out / row["masks"]),
            overwrite=False,
            num_processes_preprocessing=1,
            num_processes_segmentation_export=1,
        )


if __name__ == "__main__":
    main()
