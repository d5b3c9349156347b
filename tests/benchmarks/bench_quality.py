"""How well Dice is predicted without a truth, and the plot to look at.

``python tests/benchmarks/bench_quality.py RUN/metrics.json [--picture FILE] [--json FILE]`` takes the held-out cases of
a training (of all folds after ``train --fold cv``), predicts the Dice of each by a rule that was chosen and fitted
without it, and prints for each label its error beside that of always saying the mean. The picture has predicted Dice
to the right, true Dice upwards, and the line on which they are equal.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from machine import markdown
from PIL import Image, ImageDraw

from unet_med.inference.quality.calibration import FEATURES, MINIMUM_CASES, calibrated, comparable, unseen
from unet_med.labels import label_colour

SIDE, MARGIN, DOT = 640, 60, 4


def rows_of(metrics: dict[str, Any], label: str) -> list[dict[str, float | None]]:
    """Dice and features of the cases where Dice exists."""
    cases = [case for case in metrics["cases"] if case["dice"].get(label) is not None]
    return [{key: case.get(key, {}).get(label) for key in ("dice", *FEATURES)} for case in cases]


def picture(points: dict[str, tuple[np.ndarray, np.ndarray]]) -> Image.Image:
    """Scatter of predicted and true Dice, one colour for each label."""
    lowest = min(float(np.min(pair)) for pair in points.values())
    low = np.floor(lowest * 10) / 10
    canvas = Image.new("RGB", (SIDE + 2 * MARGIN, SIDE + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(canvas)

    def place(x: float, y: float) -> tuple[float, float]:
        return MARGIN + SIDE * (x - low) / (1 - low), MARGIN + SIDE * (1 - y) / (1 - low)

    for tick in np.arange(low, 1.001, 0.1):
        draw.line([place(tick, low), place(tick, 1)], fill=(225, 225, 225))
        draw.line([place(low, tick), place(1, tick)], fill=(225, 225, 225))
        draw.text(place(tick, low - 0.01 * (1 - low)), f"{tick:.1f}", fill="black", anchor="mt")
        draw.text((MARGIN - 8, place(low, tick)[1]), f"{tick:.1f}", fill="black", anchor="rm")
    draw.line([place(low, low), place(1, 1)], fill="black", width=2)
    for number, (label, (found, dice)) in enumerate(points.items(), start=1):
        for x, y in zip(found, dice, strict=True):
            across, down = place(float(np.clip(x, low, 1)), float(y))
            draw.ellipse([across - DOT, down - DOT, across + DOT, down + DOT], fill=label_colour(number))
        draw.text((MARGIN + 10, MARGIN + 16 * number), label, fill=label_colour(number))
    draw.text((MARGIN + SIDE / 2, SIDE + 1.6 * MARGIN), "predicted Dice", fill="black", anchor="mm")
    draw.text((MARGIN, MARGIN / 2), "true Dice", fill="black", anchor="lm")
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("metrics", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    metrics = json.loads(arguments.metrics.read_text(encoding="utf-8"))
    points, models = {}, {}
    for label in metrics["per_label"]:
        x, dice, names = comparable(rows_of(metrics, label))
        if len(dice) >= MINIMUM_CASES:
            points[label] = (unseen(x, dice, names)[0], dice)
            models[label] = calibrated(rows_of(metrics, label), always_there=False)
    table = [
        [
            label,
            str(model.cases),
            model.rule.method if model.rule else "none",
            f"{model.error:.4f}",
            f"{model.error_of_mean:.4f}",
            f"{model.gain[0]:+.4f} to {model.gain[1]:+.4f}",
            "-" if model.correlation is None else f"{model.correlation:.2f}",
        ]
        for label, model in models.items()
    ]
    print(markdown(["label", "cases", "rule", "error", "of the mean", "gain, 95 %", "correlation"], table))
    if arguments.picture and points:
        picture(points).save(arguments.picture)
    if arguments.json:
        found = {label: model.to_json() for label, model in models.items()}
        arguments.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
