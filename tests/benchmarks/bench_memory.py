"""Peak memory of whole ``unet-med predict`` commands, and whether it grows with the volume.

``python tests/benchmarks/bench_memory.py [--peer] [--json FILE]`` writes synthetic int16 ``.nii.gz`` volumes, predicts
them with random weights, and samples the whole process tree (the command and the process that predicts) while it runs:

1. 384^3, 100 classes, 96^3 windows, 32 channels at the finest level: the peak, which must stay below 4 GB;
2. 512x512x300 and 512x512x1200, 3 classes: the peak less what must be held, the stored image and the uint8 mask. The
   longer volume may need 1.15 times the shorter one's.

On Linux the measure is PSS, in which a page that processes share counts once; elsewhere RSS. The engine cache is empty
before every command, so that converting the network is part of it. ``--peer`` also runs MONAI's
``sliding_window_inference`` with the network, image and windows of 1 in a process of its own, where there is memory for
it. ``--quick`` checks with small volumes that the script runs; its ratios say nothing. About 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from math import prod
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import psutil
from bench_predict import make_bundle, surroundings
from machine import markdown, processor

INTERVAL_S = 0.05
MANY = {"name": "many classes", "features": [32, 64, 128], "window": 96, "classes": 100, "shapes": [[384, 384, 384]]}
LONG = {
    "name": "long volume",
    "features": [8, 16],
    "window": 64,
    "classes": 3,
    "shapes": [[512, 512, 300], [512, 512, 1200]],
}
QUICK = [
    MANY | {"features": [8, 16], "window": 32, "shapes": [[64, 64, 64]]},
    LONG | {"window": 32, "shapes": [[96, 96, 64], [96, 96, 256]]},
]
BAR_BYTES = 4e9
BAR_RATIO = 1.15


def write_volume(path: Path, shape: list[int]) -> None:
    """A noisy bright cylinder in air, int16."""
    rng = np.random.default_rng(0)
    noise = rng.integers(-8, 8, (shape[0], shape[1], 16), dtype=np.int16)
    i, j = np.ogrid[: shape[0], : shape[1]]
    inside = (2 * i / shape[0] - 1) ** 2 + (2 * j / shape[1] - 1) ** 2 < 0.8
    image = np.zeros(shape, dtype=np.int16, order="F")
    for k in range(shape[2]):
        image[..., k] = np.where(inside, 1000 + 10 * noise[..., k % 16] + k % 100, 0)
    nifti = nibabel.Nifti1Image(image, np.eye(4))
    nifti.header.set_xyzt_units("mm")
    nibabel.save(nifti, path)


class TreePeak:
    """The most memory that a process and all that it starts hold together, sampled while it runs."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self.samples = 0
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends sampling."""
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL_S):
            try:
                root = psutil.Process(self._pid)
                held = sum(map(held_bytes, [root, *root.children(recursive=True)]))
            except psutil.NoSuchProcess:
                return
            self.peak = max(self.peak, held)
            self.samples += 1


def held_bytes(process: psutil.Process) -> int:
    """PSS of a process, RSS where the system knows none; 0 when it is gone."""
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        return 1024 * int(text.partition("\nPss:")[2].split()[0])
    except (OSError, ValueError, IndexError):
        try:
            return int(process.memory_info().rss)
        except psutil.Error:
            return 0


def measured(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Peak and seconds of a command, which must succeed."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        watch = TreePeak(process.pid)
        code = process.wait()
        watch.stop()
        if code:
            errors.seek(0)
            raise SystemExit(f"a command ended with {code}:\n{errors.read().decode(errors='replace')[-2000:]}")
    return {"peak_bytes": watch.peak, "samples": watch.samples, "seconds": time.perf_counter() - start}


def our_command(folder: Path, bundle: Path, image: Path, threads: int, repeats: int) -> dict[str, Any]:
    """The whole command, with an empty engine cache each time."""
    runs = []
    for number in range(repeats):
        place = folder / f"run-{image.name}-{number}"
        command = [sys.executable, "-m", "unet_med", "predict", str(bundle), str(image), str(place / "out")]
        place.mkdir()
        runs.append(measured(command, surroundings(place, threads)))
    case = json.loads((place / "out" / "report.json").read_text())["cases"][0]
    row = {key: statistics.median(run[key] for run in runs) for key in ("peak_bytes", "seconds")}
    return row | {"runs": runs, "worker_peak_mb": case["peak_memory_mb"], "engine": case.get("engine")}


def measure(folder: Path, setting: dict[str, Any], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All shapes of one setting."""
    bundle = folder / f"bundle {setting['classes']}"
    make_bundle(bundle, setting)
    rows = []
    for shape in setting["shapes"]:
        size = "x".join(map(str, shape))
        image = folder / f"{size}.nii.gz"
        write_volume(image, shape)
        must = {"must_hold_bytes": 3 * prod(shape), "size": size, "classes": setting["classes"]}
        row = {
            "side": "unet-med predict",
            **must,
            **our_command(folder, bundle, image, arguments.threads, arguments.repeats),
        }
        rows.append(row)
        print(f"{size}: {row['peak_bytes'] / 1e9:.2f} GB, {row['seconds']:.0f} s", file=sys.stderr)
        if arguments.peer and setting["classes"] > 3:
            rows.append(
                {"side": "MONAI sliding_window_inference", **must, **peer(folder, bundle, image, setting, arguments)}
            )
        image.unlink()
    return rows


def peer(
    folder: Path, bundle: Path, image: Path, setting: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """MONAI's sliding window in its own process; nothing where its logits would not fit."""
    wanted = 4.4 * setting["classes"] * prod(setting["shapes"][0])
    if wanted > psutil.virtual_memory().available:
        return {"why": f"not measured: its logits alone take {wanted / 1e9:.0f} GB"}
    command = [sys.executable, str(Path(__file__)), "--as-peer", str(bundle), str(image)]
    return measured(command, surroundings(folder, arguments.threads))


def run_peer(bundle: Path, image: Path) -> None:
    """What MONAI users do: read, normalise, slide, arg max, write."""
    import torch
    from monai.inferers import sliding_window_inference

    from unet_med.bundle import load_bundle

    loaded = load_bundle(bundle)
    network = loaded.network().eval()
    source = nibabel.load(image)
    values = torch.from_numpy(np.asarray(source.dataobj, dtype=np.float32))
    values = ((values - values.mean()) / values.std())[None, None]
    window = tuple(loaded.config.sampling.patch_voxels)
    with torch.inference_mode():
        logits = sliding_window_inference(values, window, 1, network, overlap=0.5, mode="gaussian")
    labels = logits[0].argmax(dim=0).to(torch.uint8).numpy()
    nibabel.save(nibabel.Nifti1Image(labels, source.affine), image.with_name("peer.nii.gz"))


def table(rows: list[dict[str, Any]]) -> str:
    """Peaks, and what is left of them without the image and the mask."""
    lines = []
    for row in rows:
        if "peak_bytes" not in row:
            lines.append([row["side"], row["size"], str(row["classes"]), row["why"], "", "", ""])
            continue
        peak = row["peak_bytes"]
        rest = peak - row["must_hold_bytes"]
        seconds, engine = f"{row['seconds']:.0f} s", row.get("engine") or ""
        lines.append(
            [
                row["side"],
                row["size"],
                str(row["classes"]),
                f"{peak / 1e9:.2f} GB",
                f"{rest / 1e9:.2f} GB",
                seconds,
                engine,
            ]
        )
    return markdown(["", "volume", "classes", "peak", "less image and mask", "time", "engine"], lines)


def verdicts(results: dict[str, Any]) -> list[str]:
    """The bars of each part."""
    said = []
    if MANY["name"] in results:
        peak = results[MANY["name"]][0]["peak_bytes"]
        said.append(f"100 classes: {peak / 1e9:.2f} GB, bar {BAR_BYTES / 1e9:.0f} GB: {passed(peak < BAR_BYTES)}")
    if LONG["name"] in results:
        short, long = (row["peak_bytes"] - row["must_hold_bytes"] for row in results[LONG["name"]])
        said.append(
            f"4 times as long: {long / short:.3f} of the rest, bar {BAR_RATIO}: {passed(long < BAR_RATIO * short)}"
        )
    return said


def passed(holds: bool) -> str:
    return "met" if holds else "MISSED"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["many", "long"])
    parser.add_argument("--peer", action="store_true", help="also MONAI's sliding window with many classes")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--as-peer", nargs=2, type=Path, metavar=("BUNDLE", "IMAGE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_peer:
        run_peer(*arguments.as_peer)
        return
    settings = QUICK if arguments.quick else [MANY, LONG]
    linux = Path("/proc/self/smaps_rollup").exists()
    results: dict[str, Any] = {
        "processor": processor(),
        "threads": arguments.threads,
        "measure": "PSS of the process tree" if linux else "RSS of the process tree",
        "interval_s": INTERVAL_S,
        "quick": arguments.quick,
    }
    print(f"{results['processor']}, {arguments.threads} threads, {results['measure']}\n")
    with tempfile.TemporaryDirectory() as place:
        for setting in settings:
            if arguments.only in (None, setting["name"].split()[0]):
                results[setting["name"]] = measure(Path(place), setting, arguments)
                print(table(results[setting["name"]]), end="\n\n")
    results["bars"] = verdicts(results)
    print("\n".join(results["bars"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
