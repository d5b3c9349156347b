"""A name planted in headers and folder names comes out nowhere but in the user's own private tables."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

import pydicom
import pytest
import torch
import yaml
from toy_set import PIPELINE

from unet_med.io.source import IntakeOptions
from unet_med.phantoms import write_phantoms_3d
from unet_med.workflows.evaluate import evaluate
from unet_med.workflows.manifest import make_manifest
from unet_med.workflows.outcome import Outcome
from unet_med.workflows.predict import predict
from unet_med.workflows.scan import scan
from unet_med.workflows.train import train

SECRET = "SECRET^JANE"
PLANTED = ("PatientName", "PatientID", "AccessionNumber", "StudyDescription", "SeriesDescription", "InstitutionName")


def plant(folder: Path) -> None:
    """Puts the secret into the headers of every series and into the names of their folders."""
    for path in sorted(folder.rglob("*.dcm")):
        dataset = pydicom.dcmread(path)
        owner = f"{SECRET}-{path.parent.name}"[:16] if path.parent.name else SECRET
        for keyword in PLANTED:
            setattr(dataset, keyword, owner)
        dataset.save_as(path)
    for series in sorted((folder / "images").iterdir()):
        label = folder / "labels" / f"{series.name}.nii.gz"
        series.rename(series.with_name(f"{SECRET}-{series.name}"))
        label.rename(label.with_name(f"{SECRET}-{label.name}"))


def assert_clean(text: bytes, what: str) -> None:
    for word in (b"SECRET", b"JANE"):
        assert word not in text, f"{word!r} in {what}"


def test_the_secret_stays_in_the_private_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(2)
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG, logger="unet_med")
    data = tmp_path / f"clinic_{SECRET}"
    write_phantoms_3d(data, cases=4, seed=3)
    plant(data)
    pipeline = tmp_path / "toy.yaml"
    short = PIPELINE | {
        "preprocess": {"spacing_mm": [4.0, 4.0, 6.0]},
        "sampling": {"patch_voxels": [16, 16, 8], "batch_size": 2},
        "training": PIPELINE["training"] | {"epochs": 1, "steps_per_epoch": 2},
    }
    pipeline.write_text(yaml.safe_dump(short), encoding="utf-8")

    outcomes: list[Outcome] = [scan(data / "images", IntakeOptions())]
    (tmp_path / "out").mkdir()
    manifest = tmp_path / "out" / "M.json"
    outcomes.append(make_manifest(data, manifest, folds=2, intake=IntakeOptions()))
    outcomes.append(train(pipeline, manifest, tmp_path / "out" / "RUN", fold="0", device="cpu"))
    outcomes.append(evaluate(str(tmp_path / "out" / "RUN"), manifest, out=tmp_path / "out" / "EVAL", device="cpu"))
    outcomes.append(predict(str(tmp_path / "out" / "RUN"), data / "images", tmp_path / "out" / "MASKS", device="cpu"))

    assert all(outcome.exit_code == 0 for outcome in outcomes), [outcome.lines for outcome in outcomes]
    for outcome in outcomes:
        shown = "\n".join(outcome.lines).replace(str(data), "DATA").replace(str(tmp_path), "PLACE")
        assert_clean(shown.encode(), "the lines of a command")
        assert_clean(json.dumps(outcome.result).encode(), "the result of a command")
    assert_clean(caplog.text.encode(), "the log")
    assert_clean("".join(capfd.readouterr()).encode(), "the terminal")

    written = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(data)]
    assert any(p.name == "mlflow.db" for p in written)
    private = [p for p in written if p.name.endswith(".sources.json") or p.name == "files.json"]
    for path in written:
        assert_clean(path.name.encode(), "a file name")
        if path not in private:
            assert_clean(path.read_bytes(), str(path.relative_to(tmp_path)))
    assert len(private) >= 1
    for path in private:
        assert b"SECRET" in path.read_bytes()
        if os.name != "nt":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
