"""nnU-Net's own planner, run by an interpreter that has it: sizes of data sets in, its plans out.

    python nnunet_plans.py WORK_FOLDER < sets.json > plans.json

Each set is ``{"name", "spacing", "shape", "cases", "labels", "planners"}``, its axes z, y, x as nnU-Net has them.
Networks are built without memory: only their sizes count.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any


def write_set(work: Path, known: dict[str, Any]) -> None:
    for folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[folder] = str(work / folder)
        (work / folder / known["name"]).mkdir(parents=True, exist_ok=True)
    cases = known["cases"]
    labels = {"background": 0, **{f"label{n}": n for n in range(1, known["labels"])}}
    dataset = {
        "channel_names": {"0": "MR"},
        "labels": labels,
        "numTraining": cases,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "dataset": {"case": {"images": ["case.nii.gz"], "label": "label.nii.gz"}},
    }
    fingerprint = {
        "spacings": [known["spacing"]] * cases,
        "shapes_after_crop": [known["shape"]] * cases,
        "foreground_intensity_properties_per_channel": {},
        "median_relative_size_after_cropping": 1.0,
    }
    (work / "nnUNet_raw" / known["name"] / "dataset.json").write_text(json.dumps(dataset))
    (work / "nnUNet_preprocessed" / known["name"] / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))


def main(work: Path) -> None:
    sets = json.load(sys.stdin)
    for known in sets:
        write_set(work, known)
    with contextlib.redirect_stdout(sys.stderr):
        import torch
        from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
        from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners

        torch.set_default_device("meta")
        planners = {"plain": ExperimentPlanner}
        for size in ("M", "L", "XL"):
            planners[size] = getattr(residual_encoder_unet_planners, f"nnUNetPlannerResEnc{size}")
        found = {
            known["name"]: {name: planners[name](known["name"]).plan_experiment() for name in known["planners"]}
            for known in sets
        }
    json.dump(found, sys.stdout, default=lambda value: value.tolist() if hasattr(value, "tolist") else str(value))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
