"""What bfloat16 and OpenVINO cost in Dice, on the held-out cases of a trained model.

``python tests/benchmarks/bench_precision.py MODEL MANIFEST [--fold 0] [--cases N] [--json FILE]`` predicts the cases
of a fold four times on the CPU, by torch and by OpenVINO, in fp32 and in bf16, and prints for each the mean Dice of
every label, its difference from torch in fp32, and the share of voxels that got another label than there. Where the
CPU has no bf16, all four run in fp32, and the table says so.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import markdown, processor

from unet_med.bundle import Bundle, load_bundle
from unet_med.data import read_target
from unet_med.inference.predictor import Predictor
from unet_med.manifest import ManifestCase, load_manifest
from unet_med.metrics import confusion_counts, dice_iou

KINDS = (("torch", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"), ("torch", "bf16"))


def predictors(bundle: Bundle) -> dict[str, Predictor]:
    """The four ways of running one model."""
    made = {}
    for engine, precision in KINDS:
        settings = {"inference.engine": engine, "training.precision": precision}
        made[f"{engine} {precision}"] = Predictor([replace(bundle, config=bundle.config.replacing(settings))], "cpu")
    return made


def compared(cases: list[ManifestCase], ways: dict[str, Predictor]) -> list[dict[str, Any]]:
    """One row for each way: Dice of every label and what differs from the first way."""
    dice: dict[str, dict[str, list[float]]] = {way: {} for way in ways}
    different = dict.fromkeys(ways, 0)
    ran: dict[str, str] = {}
    voxels = 0
    for number, case in enumerate(cases, start=1):
        volume = case.case.read(0)
        reference: np.ndarray | None = None
        for way, predictor in ways.items():
            prediction = predictor.predict(volume)
            reference = prediction.labels if reference is None else reference
            different[way] += int(np.count_nonzero(prediction.labels != reference))
            ran[way] = prediction.engine
            truth = read_target(case, predictor.labels, case.case.read_label(0))
            counts = confusion_counts(prediction.labels, truth, predictor.labels)
            for name, (score, _) in dice_iou(counts).items():
                if score is not None:
                    dice[way].setdefault(name, []).append(score)
        voxels += int(np.prod(volume.geometry.shape))
        print(f"\r{number} of {len(cases)}", end="", flush=True)
    print()
    return [
        {
            "asked": way,
            "ran": ran[way],
            "dice": {name: float(np.mean(scores)) for name, scores in dice[way].items()},
            "other_label_share": different[way] / voxels,
        }
        for way in ways
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--cases", type=int, help="only the first so many")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    manifest = load_manifest(arguments.manifest)
    cases = [case for case in manifest.training if case.fold == arguments.fold][: arguments.cases]
    rows = compared(cases, predictors(load_bundle(arguments.model)))
    names = list(rows[0]["dice"])
    base = float(np.mean(list(rows[0]["dice"].values())))
    lines = []
    for row in rows:
        mean = float(np.mean(list(row["dice"].values())))
        per_label = [f"{row['dice'][name]:.5f}" for name in names]
        lines.append([row["ran"], *per_label, f"{mean:.5f}", f"{mean - base:+.5f}", f"{row['other_label_share']:.2e}"])
    print(f"{processor()}; {len(cases)} cases of fold {arguments.fold}\n")
    print(markdown(["engine", *names, "mean Dice", "difference", "voxels with another label"], lines))
    if arguments.json:
        arguments.json.write_text(json.dumps({"processor": processor(), "cases": len(cases), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
