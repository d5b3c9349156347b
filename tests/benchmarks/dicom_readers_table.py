"""The trap zoo of tests/dicom_zoo.py through this package, SimpleITK, MONAI and dcm2niix, as a table in Markdown.

    python tests/benchmarks/dicom_readers_table.py --data FOLDER_OF_REAL_SERIES > TABLE.md

Without ``--data`` only the synthetic cases run. Each reader gets each folder in a process of its own with a time limit.
Every voxel that comes out is compared with the value of the world at its place:

- right: all volumes with all voxels in their place; or nothing, where nothing exact can be had; or, where the zoo asks
  for a refusal, voxels that agree with the world all the same (a reader may interpolate well).
- refuses: an error or no volume, although an exact one is there.
- wrong: voxels out of their place, volumes mixed or missing. "warns" where the reader said something (on stderr;
  dcm2niix: a line with "warning") that it does not say of a plain series.
- crash: killed by a signal, or longer than the limit.
- loads: colour, secondary captures, burnt-in text, which this package refuses as a matter of policy; nobody's fault.

Readers are used as their documentation shows: ``ImageSeriesReader`` for each series id of each folder of the tree,
``LoadImage(reader=PydicomReader)`` on the folder, ``dcm2niix -o OUT FOLDER``, whose _Tilt and _Eq files count where
they are right.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.util
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from dicom_zoo import ALL_CASES, Case, Expected, Truth

LIMIT_S = 60
LENIENT_MM = 0.05
LENIENT_VALUE = 1.0
"""Of real series, which are stored as whole numbers after interpolation too; at most a hundredth of their range."""

GOOD_SHARE, GOOD_REPAIRED_SHARE = 0.98, 0.85
"""How many voxels must agree; files that a reader untilts have edges that are mixed with their filling."""

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass
class Result:
    """What came out of a reader: volumes as (name, array (X, Y, K), LPS affine), or why none."""

    volumes: list[tuple[str, np.ndarray, np.ndarray]]
    error: str = ""
    said: frozenset[str] = frozenset()
    crashed: bool = False


# ---- readers --------------------------------------------------------------------------------------------------------


def by_unet_med(folder: Path) -> Result:
    """Everything usable; the reasons of what is not."""
    from unet_med.io.discover import discover, open_source

    found = discover(folder)
    volumes = []
    for ref in found.usable:
        volume = open_source(ref).read()
        array = volume.array[0]
        volumes.append((ref.id, array if array.ndim == 3 else array[..., None], volume.geometry.to_lps()))
    return Result(volumes, " ".join(ref.reason for ref in found.sources if not ref.usable))


def by_simpleitk(folder: Path) -> Result:
    """Every series of the tree, with its files in all folders."""
    import SimpleITK

    volumes = []
    folders = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]
    ids = dict.fromkeys(uid for one in folders for uid in SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(str(one)))
    for uid in ids:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(
            SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid, recursive=len(folders) > 1)
        )
        image = reader.Execute()
        array = SimpleITK.GetArrayFromImage(image)
        if array.ndim != 3 or image.GetNumberOfComponentsPerPixel() > 1:
            volumes.append((uid, array, np.eye(4)))
            continue
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        volumes.append((uid, array.transpose(2, 1, 0), affine))
    return Result(volumes)


def by_monai(folder: Path) -> Result:
    """The folder, as one image."""
    from monai.data import PydicomReader
    from monai.transforms import LoadImage

    image = LoadImage(reader=PydicomReader(), image_only=True)(str(folder))
    array = np.asarray(image)
    return Result([("image", array, LPS @ np.asarray(image.affine, dtype=float))])


def by_dcm2niix(folder: Path) -> Result:
    """Every file that it writes; the volumes of a 4-D one each for themselves."""
    import dcm2niix
    import nibabel as nib

    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run(
            [dcm2niix.bin, "-b", "n", "-z", "n", "-f", "%s", "-o", out, str(folder)],
            capture_output=True,
            text=True,
            timeout=LIMIT_S - 5,
            check=False,
        )
        if done.returncode < 0:
            return Result([], f"signal {-done.returncode}", crashed=True)
        volumes = []
        for path in sorted(Path(out).glob("*.nii")):
            image = nib.load(path)
            array = np.asarray(image.get_fdata())
            for one in [array] if array.ndim < 4 else np.moveaxis(array.reshape(*array.shape[:3], -1), -1, 0):
                volumes.append((path.stem, one if one.ndim == 3 else one[..., None], LPS @ image.affine))
        lines = (done.stdout + done.stderr).splitlines()
        said = frozenset(line for line in lines if "warning" in line.lower())
        return Result(volumes, "; ".join(lines)[-300:] if not volumes else "", said)


READERS: dict[str, Callable[[Path], Result]] = {
    "unet-med": by_unet_med,
    "SimpleITK": by_simpleitk,
    "MONAI": by_monai,
    "dcm2niix": by_dcm2niix,
}


def in_process(name: str, folder: Path) -> Result:
    """Runs a reader in a forked process; what it writes to stderr is caught."""
    with tempfile.TemporaryDirectory() as scratch:
        answer, said = Path(scratch) / "answer", Path(scratch) / "stderr"
        process = multiprocessing.get_context("fork").Process(target=_child, args=(name, folder, answer, said))
        process.start()
        process.join(LIMIT_S)
        if process.is_alive():
            process.kill()
            process.join()
            return Result([], "longer than the limit", crashed=True)
        if process.exitcode or not answer.exists():
            return Result([], f"exit {process.exitcode}", crashed=True)
        result = pickle.loads(answer.read_bytes())
        if name != "dcm2niix":
            result.said = frozenset(said.read_text(errors="replace").splitlines()) - {""}
        return result


def _child(name: str, folder: Path, answer: Path, said: Path) -> None:
    file = os.open(said, os.O_CREAT | os.O_WRONLY)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(file, 2)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    try:
        result = READERS[name](folder)
    except Exception:  # noqa: BLE001 - whatever a reader raises is its answer
        result = Result([], traceback.format_exc()[-300:])
    sys.stderr.flush()
    answer.write_bytes(pickle.dumps(result))
    os._exit(0)


# ---- the judge ------------------------------------------------------------------------------------------------------


def verdict(case: Case, expected: Expected, name: str, result: Result, usual: frozenset[str]) -> str:
    """Returns right, refuses, wrong (with or without a warning), crash or loads."""
    if result.crashed:
        return "crash"
    if name == "unet-med" and not all(word in result.error for word in expected.words):
        return "wrong reason"
    if not result.volumes:
        return "refuses" if expected.volumes else "right"
    if expected.words and case.row == "policy":
        return "loads"
    good = loads_exactly(expected.volumes, result) if expected.volumes else agrees(expected, result)
    if good:
        return "right"
    return "wrong, warns" if result.said - usual else "wrong"


def loads_exactly(truths: Sequence[Truth], result: Result) -> bool:
    """Whether each volume came out once; smaller ones (scouts) may come with them."""
    left = list(truths)
    others = []
    for name, array, affine in result.volumes:
        match = next((truth for truth in left if is_it(truth, array, affine)), None)
        if match is None:
            others.append((name, array))
        else:
            left.remove(match)
    smallest = min(truth.array.size for truth in truths)
    return not left and all(array.size < smallest or "_Eq" in name or "_Tilt" in name for name, array in others)


def is_it(truth: Truth, array: np.ndarray, affine: np.ndarray) -> bool:
    """Whether this is the volume, with some tolerance for float32 headers; a picture may be turned or not."""
    if array.ndim not in (2, 3) or array.dtype.kind not in "iuf":
        return False
    lenient = replace(truth, tolerance=3 * truth.tolerance)
    if not lenient.differs(array, affine, LENIENT_MM):
        return True
    return truth.picture and not replace(lenient, array=4095 - truth.array).differs(array, affine, LENIENT_MM)


def agrees(expected: Expected, result: Result) -> bool:
    """Whether all that came out agrees with the world; of dcm2niix's repaired files one is enough."""
    if expected.world is None and expected.between is None:
        return False
    good = []
    for name, array, affine in result.volumes:
        share = GOOD_REPAIRED_SHARE if "_Tilt" in name else GOOD_SHARE
        fits = array.ndim == 3 and array.dtype.kind in "iuf" and in_place(expected, array, affine, share)
        good.append((name, fits))
    repaired = [one for name, one in good if "_Tilt" in name or "_Eq" in name]
    return any(repaired) if repaired else all(one for _, one in good)


def in_place(expected: Expected, array: np.ndarray, affine: np.ndarray, share: float) -> bool:
    """Whether the voxels have the values of their places; what lies outside, or was filled up, does not count."""
    index = np.stack(np.meshgrid(*map(np.arange, array.shape), indexing="ij"), axis=-1)
    places = index @ affine[:3, :3].T + affine[:3, 3]
    fields = [field for field in (expected.world, expected.between) if field is not None]
    world = fields[0](places)
    counted = ~np.isnan(world) & (array > array.min())
    if counted.mean() < 0.5:
        return False
    good = np.abs(array - world) <= 3 * expected.tolerance
    if expected.between is not None:
        good |= np.abs(array - fields[-1](places)) <= min(LENIENT_VALUE, 0.01 * np.ptp(array))
    return bool(good[counted].mean() > share)


# ---- the table ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the real series")
    parser.add_argument("--only", default="", help="cases whose name contains this; says more about each")
    options = parser.parse_args()
    for module in ("monai.data", "nibabel", "SimpleITK", "unet_med.io.discover", "unet_med.io.dicom.source"):
        importlib.import_module(module)  # once, before the forks

    with tempfile.TemporaryDirectory() as folder:
        ALL_CASES[0].write(Path(folder) / "in")
        usual = {name: in_process(name, Path(folder) / "in").said for name in READERS}
    opened = 0
    rows, tallies = [], {name: Counter[str]() for name in READERS}
    for case in ALL_CASES:
        if options.only not in case.name or (case.real and not (options.data and (options.data / case.real).exists())):
            continue
        if any(importlib.util.find_spec(module) is None for module in case.needs):
            continue
        with tempfile.TemporaryDirectory() as folder:
            expected = case.write(Path(folder) / "in", options.data)
            cells = []
            opened += bool(expected.opens)
            for name in READERS:
                result = in_process(name, Path(folder) / "in")
                said = verdict(case, expected, name, result, usual[name])
                tallies[name][said] += 1
                cells.append(said if said == "right" else f"**{said}**")
                if options.only:
                    print(
                        name,
                        said,
                        [(v[0], v[1].shape) for v in result.volumes],
                        result.error,
                        result.said - usual[name],
                        file=sys.stderr,
                    )
        wanted = f"load {len(expected.volumes)}" if expected.volumes else "refuse"
        rows.append([str(len(rows) + 1), case.row, case.name + (" (real)" if case.real else ""), wanted, *cells])
    versions = {"unet-med": "", "SimpleITK": version("SimpleITK"), "MONAI": version("monai")}
    versions["dcm2niix"] = version("dcm2niix")
    print("# DICOM readers in the trap zoo\n")
    print(f"Measured on {datetime.datetime.now(datetime.UTC):%Y-%m-%d} by `tests/benchmarks/dicom_readers_table.py`, ")
    print("which says what the words mean. (real): made of a real series by changing one thing.")
    print(f"Of what unet-med refuses here, {opened} cases load exactly with `--untilt`, `--resample-slices` or ")
    print("`--allow-gaps` (checked by `tests/oracle/test_dicom_zoo.py`).\n")
    table(["", *(f"{name} {versions[name]}".strip() for name in READERS)], totals(tallies, len(rows)))
    print()
    table(["#", "rule", "case", "expected", *READERS], rows)


def totals(tallies: dict[str, Counter[str]], count: int) -> list[list[str]]:
    """Returns the rows of the small table."""
    lines = [[f"right, of {count}", *(str(tally["right"]) for tally in tallies.values())]]
    for word, meaning in (
        ("wrong", "wrong, silently"),
        ("wrong, warns", "wrong, with a warning"),
        ("refuses", "refuses what can be loaded"),
        ("crash", "crash"),
        ("wrong reason", "refuses for another reason"),
        ("loads", "loads what is refused as policy"),
    ):
        lines.append([meaning, *(str(tally[word]) for tally in tallies.values())])
    return lines


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints Markdown."""
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
