"""Seconds until the command line answers, and until the first window of a prediction is done.

``python tests/benchmarks/bench_startup.py [--repeats 5] [--json FILE]`` prints medians of ``--help``, of ``scan`` of
one image, of the imports of the process that predicts, and of ``predict`` for an image of exactly one window, from
the command to the end of the process: writing, checking and reporting the mask are included, so that the first window
was done earlier. The model has 6 levels of 32 to 320 channels and 128^3 windows, as in ``bench_predict.py``; it was
predicted with before, so that the engine cache is filled. ``--quick`` takes a small network.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from bench_predict import FULL, QUICK, command_seconds, make_bundle, make_volume, surroundings
from machine import markdown, processor

LIMITS_S = {"--help": 1.0, "predict, one window": 5.0}
WORKER = "import unet_med.inference.worker, unet_med.inference.casework, unet_med.inference.predictor"


def commands(folder: Path) -> dict[str, list[str]]:
    """What is timed; ``predict`` writes into a folder of its own every time."""
    python = sys.executable
    images, model = str(folder / "images"), str(folder / "bundle")
    return {
        "--help": [python, "-m", "unet_med", "--help"],
        "scan, one image": [python, "-m", "unet_med", "scan", images],
        "import torch": [python, "-c", "import torch"],
        "imports of the predicting process": [python, "-c", WORKER],
        "predict, one window": [python, "-m", "unet_med", "predict", model, images],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    setting = QUICK if arguments.quick else FULL
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        environment = surroundings(folder, arguments.threads)
        make_bundle(folder / "bundle", setting)
        (folder / "images").mkdir()
        volume = (make_volume([setting["window"]] * 3, 0) * 100 + 500).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / "images" / "case.nii.gz")
        made = 0
        for name, command in commands(folder).items():
            seconds = []
            for number in range(arguments.repeats + 1):
                made += 1
                out = [str(folder / f"out{made}")] if "predict" in command else []
                spent = command_seconds([*command, *out], environment)
                if number:  # the first run fills caches
                    seconds.append(spent)
            rows.append({"what": name, "median_s": statistics.median(seconds), "runs_s": seconds})
        reported = json.loads((folder / f"out{made}" / "report.json").read_text())["cases"][0]
    rows[-1] |= {"engine": reported.get("engine"), "why": reported.get("engine_why")}
    print(f"{processor()}, {arguments.threads} threads; engine: {rows[-1]['engine']} ({rows[-1]['why']})\n")
    lines = [
        [row["what"], f"{row['median_s']:.2f} s", f"{LIMITS_S[row['what']]:.0f} s" if row["what"] in LIMITS_S else ""]
        for row in rows
    ]
    print(markdown(["", "median", "limit"], lines))
    if arguments.json:
        arguments.json.write_text(json.dumps({"processor": processor(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
