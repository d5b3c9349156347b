"""Accuracy of nnU-Net after so many minutes on the same data, fold and cores as ours.

``python tests/benchmarks/bench_peer_accuracy.py M.json OUT --minutes 20 [--at 5,10] [--fold 0] --peer-python PYTHON``
writes the data set of a manifest as nnU-Net wants it, lets nnU-Net plan and preprocess it, and trains its
``nnUNetTrainer`` as it ships (its plan, loaders, augmentation, loss and optimizer, ``3d_fullres``) for the minutes
given. Its polynomial schedule follows the clock, so that a short training ends with a small learning rate as a long
one does. At the end, and after the minutes of ``--at``, the held-out cases are predicted by nnU-Net's own predictor,
with mirroring, and scored by ``unet-med score``. Prediction and preprocessing are not counted.

A folder that is prepared or trained already is used as it is. OUT/results.json lists minutes, steps and Dice.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import markdown, processor

from unet_med.manifest import Manifest, load_manifest
from unet_med.manifest.nnunet_raw import write_raw
from unet_med.workflows.score import score

SIDE = Path(__file__).with_name("peer_training.py")
DATASET = "Dataset001_Peer"
FOLDERS = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}


def prepare(manifest: Manifest, out: Path, peer: Path, environment: dict[str, str]) -> None:
    """nnU-Net's raw layout, its plan and its preprocessed cases, and our folds."""
    raw, prepared = out / "raw" / DATASET, out / "preprocessed" / DATASET
    if (prepared / "splits_final.json").exists():
        return
    if not raw.exists():
        write_raw(manifest, raw, lambda cases, _: cases)
    command = [peer.with_name("nnUNetv2_plan_and_preprocess"), "-d", "1", "-c", "3d_fullres", "-np", "2"]
    subprocess.run([*map(str, command)], check=True, env=environment, stdout=sys.stderr)
    (prepared / "splits_final.json").write_text((raw / "splits_final.json").read_text())


def references(manifest: Manifest, fold: int, out: Path) -> None:
    """Images and labels of the held-out cases, under the names that nnU-Net knows them by."""
    raw = out / "raw" / DATASET
    names = json.loads((raw / "splits_final.json").read_text())[fold]["val"]
    for kind, folder, ending in (("images", "imagesTr", "_0000.nii.gz"), ("labels", "labelsTr", ".nii.gz")):
        (out / kind).mkdir(exist_ok=True)
        for name in names:
            link = out / kind / f"{name}{ending}"
            if not link.exists():
                link.symlink_to((raw / folder / f"{name}{ending}").resolve())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--at", default="", help="minutes after which it is scored, too, separated by commas")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-python", type=Path, required=True, help="interpreter with nnunetv2")
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    places = {name: str(out / folder) for name, folder in FOLDERS.items()}
    environment = {**os.environ, **places, "OMP_NUM_THREADS": str(arguments.threads), "nnUNet_n_proc_DA": "2"}
    manifest = load_manifest(arguments.manifest)
    prepare(manifest, out, arguments.peer_python, environment)
    references(manifest, arguments.fold, out)
    options = [str(out), DATASET, "--fold", str(arguments.fold), "--minutes", str(arguments.minutes)]
    command = [str(arguments.peer_python), str(SIDE), *options, "--at", arguments.at]
    subprocess.run([*command, "--threads", str(arguments.threads)], check=True, env=environment, stdout=sys.stderr)
    rows: list[dict[str, Any]] = json.loads((out / "trained.json").read_text())
    for row in rows:
        result = score(out / row["masks"], out / "labels").result
        row |= {"dice": result["mean"]["dice"], "per_label": {n: e["dice"] for n, e in result["per_label"].items()}}
    (out / "results.json").write_text(json.dumps({"processor": processor(), "rows": rows}, indent=1))
    lines = [[f"{row['minutes']:.1f}", str(row["steps"]), f"{row['dice']:.4f}"] for row in rows]
    print(f"{processor()}, {arguments.threads} threads\n")
    print(markdown(["minutes", "steps of nnU-Net", "Dice"], lines))


if __name__ == "__main__":
    main()
