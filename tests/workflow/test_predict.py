"""A folder in, masks out, whatever happens on the way."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
import SimpleITK
import tifffile
import torch
from inline_worker import InlineWorker

from unet_med.errors import MachineError, ModelError, NothingUsableError, UsageError
from unet_med.inference import process
from unet_med.io.export import nifti as nifti_export
from unet_med.workflows import journal
from unet_med.workflows import predict as predict_module
from unet_med.workflows.predict import predict

OBLIQUE = np.array([[0.0, -0.9, 0.1, 10.0], [0.8, 0.1, 0.2, -20.0], [0.05, 0.15, 2.0, 30.0], [0.0, 0.0, 0.0, 1.0]])


@pytest.fixture
def real_process() -> None:
    """Asked for by tests that need the worker to be a process."""


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    if "real_process" not in request.fixturenames:
        monkeypatch.setattr(predict_module, "Worker", InlineWorker)
    yield
    torch.set_num_threads(before)


def _orthogonal(affine: np.ndarray) -> np.ndarray:
    straight = affine.copy()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    straight[:3, :3] = left @ right * spacing
    return straight


def _nifti(path: Path, seed: int = 0, shape: tuple[int, ...] = (14, 12, 9), affine: np.ndarray | None = None) -> Path:
    array = np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine), path)
    return path


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    for number, name in enumerate(("anna", "bert", "carl")):
        _nifti(folder / f"{name}.nii.gz", number)
    return folder


def _report(out: Path) -> dict[str, dict[str, Any]]:
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {entry["id"]: entry for entry in report["cases"]}


def test_a_mixed_folder(tiny_bundle, scans: Path, tmp_path: Path) -> None:
    _nifti(scans / "deep" / "oblique.nii.gz", 7, (10, 13, 8), _orthogonal(OBLIQUE))
    data = (scans / "anna.nii.gz").read_bytes()
    (scans / "broken.nii.gz").write_bytes(data[: len(data) // 2])
    constant = nib.Nifti1Image(np.ones((9, 9, 9), dtype=np.float32), np.eye(4))
    nib.save(constant, scans / "constant.nii.gz")
    with_nan = np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32)
    with_nan[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(with_nan, np.eye(4)), scans / "nan.nii.gz")
    tifffile.imwrite(scans / "flat.tif", np.zeros((20, 20), np.uint8) + np.arange(20, dtype=np.uint8))
    (scans / "readme.txt").write_text("not an image", encoding="utf-8")
    before = {path: path.read_bytes() for path in scans.rglob("*") if path.is_file()}
    out = tmp_path / "masks"
    outcome = predict(str(tiny_bundle(training__precision="fp32")), scans, out, device="cpu")
    assert outcome.exit_code == 3
    entries = _report(out)
    assert {name: entry["status"] for name, entry in entries.items()} == {
        "anna": "done",
        "bert": "done",
        "carl": "done",
        "oblique": "done",
        "broken": "refused",
        "constant": "refused",
        "nan": "refused",
        "flat": "refused",
    }
    assert "truncated" in entries["broken"]["reason"]
    assert "made for volumes" in entries["flat"]["reason"]
    assert "no number" in entries["nan"]["reason"]
    assert outcome.result["totals"] | {"seconds": 0, "skipped": 0} == {
        "cases": 8,
        "done": 4,
        "refused": 4,
        "failed": 0,
        "seconds": 0,
        "skipped": 0,
    }
    for name in ("anna", "oblique"):
        entry = entries[name]
        assert entry["outputs"] == [f"{name}.nii.gz", f"{name}.json", f"previews/{name}.png"]
        assert all((out / output).stat().st_size for output in entry["outputs"])
        assert entry["seconds"] > 0
        assert entry["peak_memory_mb"] > 50
        assert entry["checks"]["passed"]
    sidecar = json.loads((out / "anna.json").read_text(encoding="utf-8"))
    provenance = sidecar["provenance"]
    assert provenance["model_sha256"] == [outcome.result["model_sha256"]]
    assert len(provenance["input_sha256"]) == 64
    assert provenance["seed"] == 0
    assert (provenance["device"], provenance["precision"]) == ("cpu", ["fp32"])
    assert sidecar["use"] == "Research use only"
    assert {path: path.read_bytes() for path in scans.rglob("*") if path.is_file()} == before
    assert not list(out.rglob("*.part*"))
    assert not list(out.rglob("*.work"))


def test_the_mask_lies_on_the_grid_of_its_source(tiny_bundle, tmp_path: Path) -> None:
    image = _nifti(tmp_path / "in" / "oblique.nii.gz", 7, (10, 13, 8), _orthogonal(OBLIQUE))
    predict(str(tiny_bundle()), tmp_path / "in", tmp_path / "out")
    source, mask = SimpleITK.ReadImage(str(image)), SimpleITK.ReadImage(str(tmp_path / "out" / "oblique.nii.gz"))
    assert mask.GetSize() == source.GetSize()
    assert mask.GetPixelID() == SimpleITK.sitkUInt8
    for corner in ((0, 0, 0), (9, 12, 7), (9, 0, 0), (0, 12, 0), (0, 0, 7)):
        apart = np.subtract(source.TransformIndexToPhysicalPoint(corner), mask.TransformIndexToPhysicalPoint(corner))
        assert np.abs(apart).max() < 1e-3
    array, labels = SimpleITK.GetArrayFromImage(source), SimpleITK.GetArrayFromImage(mask)
    z = (array - array.mean()) / array.std()
    assert np.mean(labels != np.where(z > 0, 1, np.where(z < -1.5, 2, 0))) < 1e-3


def test_volumes_are_told_for_every_label(tiny_bundle, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks"
    predict(str(tiny_bundle()), scans, out)
    with (out / "volumes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["label"]) for row in rows[:2]] == [("anna", "bright"), ("anna", "dark")]
    for row in rows:
        mask = np.asarray(nib.load(out / f"{row['id']}.nii.gz").dataobj)
        voxels = int(np.count_nonzero(mask == {"bright": 1, "dark": 2}[row["label"]]))
        assert int(row["voxels"]) == voxels
        assert float(row["ml"]) == pytest.approx(voxels * 0.002)
        assert row["unit"] == "ml"


def test_pictures_stacks_and_colours(tiny_bundle, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(1)
    plain = rng.integers(0, 255, (23, 31), dtype=np.uint8)
    tifffile.imwrite(folder / "plain.tif", plain)
    movie = rng.integers(0, 2000, (3, 20, 26), dtype=np.uint16)
    tifffile.imwrite(folder / "movie.tif", movie, imagej=True, metadata={"axes": "TYX"})
    tifffile.imwrite(folder / "colour.tif", rng.integers(0, 255, (16, 16, 3), dtype=np.uint8), photometric="rgb")
    out = tmp_path / "out"
    outcome = predict(str(tiny_bundle(dims=2)), folder, out)
    entries = _report(out)
    assert outcome.exit_code == 3
    assert "made for 1 channel, the image has 3" in entries["colour"]["reason"]
    assert tifffile.imread(out / "plain.tif").shape == (23, 31)
    labels = tifffile.imread(out / "movie.tif")
    assert labels.shape == (3, 20, 26)
    for page, mask in zip(movie, labels, strict=True):
        assert np.mean((mask == 1) != (page > page.mean())) < 0.01
    with (out / "volumes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["unit"] for row in rows} == {"px"}
    assert [row["frame"] for row in rows if row["id"] == "movie"] == ["0", "0", "1", "1", "2", "2"]


def test_a_second_start_does_nothing_and_needs_no_model(
    tiny_bundle, real_process, scans: Path, tmp_path: Path, monkeypatch
) -> None:
    model, out = str(tiny_bundle()), tmp_path / "masks"
    first = predict(model, scans, out)
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    monkeypatch.setattr(process, "COMMAND", ("no such program",))
    second = predict(model, scans, out)
    assert second.exit_code == 0
    assert second.result == first.result
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")} == stamps


def test_only_what_is_new_is_done(tiny_bundle, scans: Path, tmp_path: Path) -> None:
    model, out = str(tiny_bundle()), tmp_path / "masks"
    predict(model, scans, out)
    stamp = (out / "anna.nii.gz").stat().st_mtime_ns
    _nifti(scans / "dora.nii.gz", 9)
    _nifti(scans / "bert.nii.gz", 10)
    outcome = predict(model, scans, out)
    assert outcome.result["totals"]["done"] == 4
    assert (out / "anna.nii.gz").stat().st_mtime_ns == stamp
    array = np.asarray(nib.load(scans / "bert.nii.gz").dataobj)
    mask = np.asarray(nib.load(out / "bert.nii.gz").dataobj)
    assert np.mean((mask == 1) != (array > array.mean())) < 1e-2


KILLER = """
import os, signal, sys
from pathlib import Path
from unet_med.inference import casework
compute = casework.CaseWork.compute
def dying(self):
    if self.job.case.id == {case!r}:
        marks = Path({marks!r})
        deaths = len(list(marks.iterdir()))
        if deaths < {times}:
            (marks / str(deaths)).touch()
            (self.job.folder / "half.nii.gz").write_bytes(b"half")
            os.kill(os.getpid(), signal.{signal})
    compute(self)
casework.CaseWork.compute = dying
from unet_med.inference.worker import main
main()
"""


def _killer(monkeypatch: pytest.MonkeyPatch, marks: Path, case: str, times: int) -> None:
    marks.mkdir()
    name = "SIGKILL" if hasattr(signal, "SIGKILL") else "SIGTERM"
    code = KILLER.format(case=case, marks=str(marks), times=times, signal=name)
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-P", "-c", code))


@pytest.mark.parametrize(("times", "status", "code"), [(2, "done", 0), (3, "failed", 3)])
def test_a_killed_worker_costs_no_other_case(
    tiny_bundle, real_process, scans: Path, tmp_path: Path, monkeypatch, times: int, status: str, code: int
) -> None:
    _killer(monkeypatch, tmp_path / "marks", "bert", times)
    model, out = str(tiny_bundle()), tmp_path / "masks"
    outcome = predict(model, scans, out)
    entries = _report(out)
    assert {name: entry["status"] for name, entry in entries.items()} == {
        "anna": "done",
        "bert": status,
        "carl": "done",
    }
    assert outcome.exit_code == code
    assert len(list((tmp_path / "marks").iterdir())) == times
    assert not list(out.rglob("half*"))
    assert (out / "bert.nii.gz").exists() == (status == "done")
    if status == "failed":
        assert "died 3 times" in entries["bert"]["reason"]
        assert predict(model, scans, out).exit_code == 3  # and is not tried again
        assert _report(out)["bert"]["status"] == "failed"


def test_a_worker_that_cannot_start_is_told(
    tiny_bundle, real_process, scans: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-c", "raise SystemExit(7)"))
    with pytest.raises(MachineError, match="exit code 7"):
        predict(str(tiny_bundle()), scans, tmp_path / "masks")
    assert not (tmp_path / "masks").exists()


def _start(model: Path, scans: Path, out: Path) -> subprocess.Popen[bytes]:
    command = (
        "import sys; from pathlib import Path; from unet_med.workflows.predict import predict;"
        "predict(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))"
    )
    return subprocess.Popen([sys.executable, "-c", command, str(model), str(scans), str(out)], stderr=subprocess.PIPE)


def _wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(0.02)


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGINT"])
def test_a_stopped_command_goes_on_where_it_was(tiny_bundle, tmp_path: Path, signal_name: str) -> None:
    scans = tmp_path / "scans"
    for number in range(6):
        _nifti(scans / f"case{number}.nii.gz", number, (48, 48, 40))
    model, out = tiny_bundle(), tmp_path / "masks"
    running = _start(model, scans, out)
    _wait_for(lambda: len(list(out.glob("*.nii.gz"))) >= 1)
    workers = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(getattr(signal, signal_name))
    running.communicate(timeout=30)
    _wait_for(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers), 15)
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    for name in finished:
        nib.load(out / name).get_fdata()
    if signal_name == "SIGINT":
        assert not list((out / "journal").glob("*.claim.json"))
        assert not list(out.rglob("*.work"))
    recorded = {f"{path.name.removesuffix('.done.json')}.nii.gz" for path in (out / "journal").glob("*.done.json")}
    outcome = predict(str(model), scans, out)
    assert outcome.exit_code == 0
    assert outcome.result["totals"]["done"] == 6
    assert {name: (out / name).stat().st_mtime_ns for name in recorded} == {name: finished[name] for name in recorded}
    assert not list((out / "journal").glob("*.claim.json"))
    assert not list(out.rglob("*.work"))
    assert not list(out.rglob(".*part*"))


def test_two_commands_share_a_folder(tiny_bundle, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    for number in range(8):
        _nifti(scans / f"case{number}.nii.gz", number, (30, 30, 30))
    model, out = tiny_bundle(), tmp_path / "masks"
    both = [_start(model, scans, out) for _ in range(2)]
    for one in both:
        _, errors = one.communicate(timeout=120)
        assert one.returncode == 0, errors
    assert sum(entry["status"] == "done" for entry in _report(out).values()) == 8
    assert not list((out / "journal").glob("*.claim.json"))


def test_parts_make_the_whole(tiny_bundle, scans: Path, tmp_path: Path) -> None:
    model, out = str(tiny_bundle()), tmp_path / "masks"
    (scans / "broken.nii.gz").write_bytes(b"no gzip")
    first, second = (predict(model, scans, out, part=part) for part in ("1/2", "2/2"))
    assert [one.result["totals"]["done"] for one in (first, second)] == [2, 3]
    assert [one.exit_code for one in (first, second)] == [3, 0]  # what is refused counts once
    for wrong in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(UsageError, match="--part"):
            predict(model, scans, out, part=wrong)


def test_several_models_and_mirroring_are_other_jobs(tiny_bundle, scans: Path, tmp_path: Path) -> None:
    one, two = str(tiny_bundle("one")), str(tiny_bundle("two", seed=3))
    out = tmp_path / "masks"
    outcome = predict(one, scans, out, also=[two], tta=True)
    assert outcome.exit_code == 0
    assert len(outcome.result["also_sha256"]) == 1
    for other in ({"also": [two]}, {"tta": True}, {}):
        with pytest.raises(UsageError, match="another job"):
            predict(one, scans, out, **other)
    assert predict(one, scans, out, overwrite=True).exit_code == 0


def test_out_with_other_files_is_left_alone(tiny_bundle, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks"
    out.mkdir()
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="other file"):
        predict(str(tiny_bundle()), scans, out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("place", [".", "masks", "deep/down"])
def test_nothing_is_written_into_the_input(tiny_bundle, scans: Path, place: str) -> None:
    with pytest.raises(UsageError, match="input folder"):
        predict(str(tiny_bundle()), scans, scans / place)


def test_one_file_is_an_input_too(tiny_bundle, scans: Path) -> None:
    out = scans.parent / "masks"
    assert predict(str(tiny_bundle()), scans / "anna.nii.gz", out).result["totals"]["done"] == 1


def test_reserved_names_get_out_of_the_way(tiny_bundle, tmp_path: Path) -> None:
    _nifti(tmp_path / "in" / "report.nii.gz")
    out = tmp_path / "out"
    outcome = predict(str(tiny_bundle()), tmp_path / "in", out)
    assert outcome.result["cases"][0]["outputs"][0] == "report-case.nii.gz"
    assert _report(out)["report"]["status"] == "done"


def test_channels_of_one_case_are_put_together(tiny_bundle, tmp_path: Path) -> None:
    _nifti(tmp_path / "in" / "x_0000.nii.gz", 0)
    _nifti(tmp_path / "in" / "x_0001.nii.gz", 1)
    outcome = predict(str(tiny_bundle(channels=2)), tmp_path / "in", tmp_path / "out")
    assert [entry["id"] for entry in outcome.result["cases"]] == ["x"]
    assert outcome.exit_code == 0


def test_no_usable_input(tiny_bundle, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(NothingUsableError, match="empty"):
        predict(str(tiny_bundle()), empty, tmp_path / "out")
    (empty / "bad.nii.gz").write_bytes(b"no gzip at all")
    with pytest.raises(NothingUsableError, match="cannot be used"):
        predict(str(tiny_bundle("again")), empty, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_cases_refused_is_nothing_usable(tiny_bundle, scans: Path, tmp_path: Path) -> None:
    outcome = predict(str(tiny_bundle(channels=2)), scans, tmp_path / "out")
    assert outcome.exit_code == 4
    assert {entry["status"] for entry in outcome.result["cases"]} == {"refused"}


@pytest.mark.parametrize("formats", [["analyze"], ["nifti", "bmp"]])
def test_unknown_formats_are_named(tiny_bundle, scans: Path, tmp_path: Path, formats: list[str]) -> None:
    with pytest.raises(UsageError, match="use one of: nifti"):
        predict(str(tiny_bundle()), scans, tmp_path / "out", formats=formats)


def test_a_dicom_format_without_a_dicom_series_is_refused_before_anything_is_made(
    tiny_bundle, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InlineWorker, "wait_ready", None)
    with pytest.raises(NothingUsableError, match="no image is one"):
        predict(str(tiny_bundle()), scans, tmp_path / "out", formats=["nifti,rtstruct"])
    assert not (tmp_path / "out").exists()


def test_what_computed_is_told(tiny_bundle, scans: Path, tmp_path: Path) -> None:
    outcome = predict(str(tiny_bundle()), scans, tmp_path / "out", device="cpu")
    for entry in outcome.result["cases"]:
        assert entry["engine"].split()[0] in ("torch", "openvino")
        assert entry["windows"] == 1
        assert entry["windows_skipped"] == 0
    name, precision = outcome.result["cases"][0]["engine"].split()
    told = [line for line in outcome.lines if line.startswith("computed on")]
    assert told == [f"computed on cpu by {name} in {precision}: {outcome.result['cases'][0]['engine_why']}"]


def test_a_damaged_or_newer_model_stops_before_anything_is_made(tiny_bundle, scans: Path, tmp_path: Path) -> None:
    model = tiny_bundle()
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-20])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        predict(str(model), scans, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_absent_device_leaves_no_folder(tiny_bundle, real_process, scans: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match="no device"):
        predict(str(tiny_bundle()), scans, tmp_path / "out", device="cuda")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_keeps_what_is_finished(
    tiny_bundle, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = nifti_export.save_nifti

    def full(part: Path, *rest: Any) -> None:
        if "bert" in part.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(part, *rest)

    model, out = str(tiny_bundle()), tmp_path / "masks"
    with monkeypatch.context() as patch:
        patch.setattr(nifti_export, "save_nifti", full)
        with pytest.raises(MachineError, match="disk full"):
            predict(model, scans, out)
    assert {name: entry["status"] for name, entry in _report(out).items()} == {"anna": "done"}
    assert not list(out.rglob("*.work"))
    assert not list((out / "journal").glob("*.claim.json"))
    assert predict(model, scans, out).result["totals"]["done"] == 3


def test_a_disk_that_fills_up_while_records_are_written(
    tiny_bundle, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = journal.write_json

    def full(path: Path, content: dict[str, Any], where: str) -> None:
        if path.name == "carl.done.json":
            raise MachineError("disk full", where, "free some space")
        write(path, content, where)

    model, out = str(tiny_bundle()), tmp_path / "masks"
    with monkeypatch.context() as patch:
        patch.setattr(journal, "write_json", full)
        with pytest.raises(MachineError):
            predict(model, scans, out)
    assert set(_report(out)) == {"anna", "bert"}
    assert predict(model, scans, out).exit_code == 0


def test_a_folder_that_cannot_be_written_is_told(tiny_bundle, scans: Path, tmp_path: Path, monkeypatch) -> None:
    model = str(tiny_bundle())
    mkdir = Path.mkdir

    def denied(self: Path, *arguments: object, **options: object) -> None:
        if self.name == "out":
            raise OSError(errno.EACCES, "Permission denied")
        mkdir(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(MachineError, match="cannot be written"):
        predict(model, scans, tmp_path / "out")


LOOKING = """
import sys
from unet_med.inference import casework, worker
result = casework.CaseWork.result
def looking(self):
    heavy = sorted({"monai", "mlflow", "pandas", "torch"} & set(sys.modules))
    return result(self) | {"notes": heavy}
casework.CaseWork.result = looking
worker.main()
"""


def test_the_parent_imports_no_torch_and_the_worker_no_monai(
    tiny_bundle, real_process, scans: Path, tmp_path: Path
) -> None:
    script = (
        "import sys; from pathlib import Path; from unet_med.inference import process;"
        "process.COMMAND = (*process.COMMAND[:-1], sys.argv[4]);"
        "from unet_med.workflows.predict import predict;"
        "predict(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]));"
        "assert not {'torch', 'monai', 'mlflow'} & set(sys.modules)"
    )
    arguments = [str(tiny_bundle()), str(scans), str(tmp_path / "out"), LOOKING]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True)
    assert all(entry["notes"] == ["torch"] for entry in _report(tmp_path / "out").values())


def test_predictions_need_no_mask_of_a_run_before(tiny_bundle, scans: Path, tmp_path: Path) -> None:
    model, out = str(tiny_bundle()), tmp_path / "masks"
    predict(model, scans, out)
    (out / "bert.nii.gz").unlink()
    predict(model, scans, out)
    assert (out / "bert.nii.gz").exists()
