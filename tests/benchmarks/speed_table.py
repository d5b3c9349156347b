"""The README's table of speed and memory, made from what the benchmarks wrote with ``--json``.

    python tests/benchmarks/speed_table.py FOLDER

FOLDER holds any of ``network.json`` and ``commands.json`` (bench_predict), ``training.json`` (bench_training_step),
``two.json`` (bench_two_processes), ``precision.json``, ``many.json`` and ``long.json`` (bench_memory),
``resample.json``, ``startup.json``, ``folder.json`` and ``skip.json``. What is missing is left out of the table.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from machine import markdown

Row = tuple[str, str, str, str]
HEADER = ("", "beside it", "unet-med", "ratio")


def of_sides(title: str, sides: list[dict[str, Any]], digits: int) -> Iterator[Row]:
    """One row for each of our sides, beside the first side, which is the peer."""
    peer, *ours = sides
    for side in ours:
        engine = f" ({side['engine']})" if side.get("engine") else ""
        ratio = peer["median_s"] / side["median_s"]
        yield (
            f"{title}: {side['side']}{engine}",
            f"{peer['side']}: {peer['median_s']:.{digits}f} s",
            f"{side['median_s']:.{digits}f} s",
            f"{ratio:.1f}x",
        )


def network(found: dict[str, Any]) -> Iterator[Row]:
    """Sliding window over one volume, network time."""
    shape = "x".join(map(str, found["setting"]["shape"]))
    return of_sides(f"predict {shape}, network", found["network"], 1)


def commands(found: dict[str, Any]) -> Iterator[Row]:
    """Image files to mask files."""
    return of_sides("predict, whole commands", found["commands"], 0)


def training(found: dict[str, Any]) -> Iterator[Row]:
    """One step, augmentation running."""
    return of_sides(f"training step, batch {found['setting']['batch']}", found["sides"], 2)


def two(found: dict[str, Any]) -> Iterator[Row]:
    """Samples per second of several processes."""
    one, several = found["sides"]
    yield (
        "two processes on the cores of one, samples/s",
        f"one: {one['samples_per_s']:.2f}",
        f"{several['samples_per_s']:.2f}",
        f"{found['ratio']:.2f}x",
    )


def precision(found: dict[str, Any]) -> Iterator[Row]:
    """Dice of each engine beside fp32 torch."""
    means = [statistics.mean(row["dice"].values()) for row in found["rows"]]
    for row, mean in zip(found["rows"][1:], means[1:], strict=True):
        name = f"Dice of {found['cases']} held-out cases, {row['ran']}"
        yield name, f"{found['rows'][0]['ran']}: {means[0]:.5f}", f"{mean:.5f}", f"{mean - means[0]:+.5f}"


def many(found: dict[str, Any]) -> Iterator[Row]:
    """Peak memory with many classes."""
    for row in found["many classes"]:
        if "peak_bytes" in row:
            yield (
                f"peak memory, {row['size']}, {row['classes']} classes: {row['side']}",
                "",
                f"{row['peak_bytes'] / 1e9:.2f} GB",
                "",
            )


def long(found: dict[str, Any]) -> Iterator[Row]:
    """Peak memory of a short and a long volume, less what must be held."""
    short, tall = ((row["size"], row["peak_bytes"] - row["must_hold_bytes"]) for row in found["long volume"])
    yield (
        f"peak memory less image and mask, {tall[0]}",
        f"{short[0]}: {short[1] / 1e9:.2f} GB",
        f"{tall[1] / 1e9:.2f} GB",
        f"{tall[1] / short[1]:.2f}",
    )


def resample(found: dict[str, Any]) -> Iterator[Row]:
    """Splines beside scipy's."""
    for row in found["rows"]:
        error = f"error {row['error_of_range']:.0e} of range"
        yield (
            f"resample {found['size']}^3 by {row['factor']}, order {row['order']}, {error}",
            f"scipy: {statistics.median(row['scipy_seconds']):.1f} s",
            f"{statistics.median(row['seconds']):.2f} s",
            f"{row['ratio']:.0f}x",
        )


def startup(found: dict[str, Any]) -> Iterator[Row]:
    """Commands from nothing."""
    for row in found["rows"]:
        yield row["what"], "", f"{row['median_s']:.2f} s", ""


def folder(found: dict[str, Any]) -> Iterator[Row]:
    """A folder beside its network time; the doctor's word beside the truth."""
    cases = found["folder"]
    for name in ("with", "without"):
        yield (
            f"{cases['cases']} cases, whole command {name} overlap",
            f"network alone: {cases['network_seconds']:.1f} s",
            f"{cases[f'{name}_overlap_seconds']:.1f} s",
            f"{cases[f'{name}_overlap_ratio']:.2f}",
        )
    for one in found["doctor"]:
        yield (
            f"doctor, {one['setting']}: seconds, MB",
            f"took {one['took_seconds']:.1f} s, {one['took_peak_memory_mb']:.0f} MB",
            f"said {one['said_seconds']:.1f} s, {one['said_peak_memory_mb']:.0f} MB",
            f"{one['seconds_ratio']:.2f}, {one['peak_memory_mb_ratio']:.2f}",
        )


def skip(found: dict[str, Any]) -> Iterator[Row]:
    """Empty windows left out."""
    yield (
        f"{found['windows_skipped']} of {found['windows']} windows are air, {found['voxels_changed']} voxels changed",
        f"all: {found['seconds_without']:.1f} s",
        f"{found['seconds_with']:.1f} s",
        f"{found['ratio']:.2f}x",
    )


PARTS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    part.__name__: part
    for part in (network, commands, training, two, precision, many, long, resample, startup, folder, skip)
}


def main() -> None:
    place = Path(sys.argv[1])
    rows: list[Row] = []
    for name, part in PARTS.items():
        path = place / f"{name}.json"
        if path.exists():
            rows += part(json.loads(path.read_text(encoding="utf-8")))
    print(markdown(HEADER, rows))


if __name__ == "__main__":
    main()
