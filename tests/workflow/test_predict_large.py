"""A folder of large images: what was done of one is kept when the command is interrupted, and gone afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from inline_worker import InlineWorker
from large_images import picture

from unet_med.inference import large
from unet_med.inference.casework import CaseWork
from unet_med.workflows import predict as predict_module
from unet_med.workflows.predict import predict

pytestmark = pytest.mark.usefixtures("one_thread")


class LargeWorker(InlineWorker):
    """Takes every image for large."""

    def collect(self) -> dict[str, Any] | None:
        assert self._predictor is not None
        if not self._jobs:
            return None
        work = CaseWork(self._jobs.popleft(), self._predictor, is_large=lambda size: True)
        for stage in (work.read, work.compute, work.write):
            stage()
        return work.result()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_module, "Worker", LargeWorker)
    monkeypatch.setattr("unet_med.volume._BAND_BYTES", 2**13)
    monkeypatch.setattr("unet_med.inference.rows.CHUNK_VALUES", 2**12)


def test_an_interrupted_command_goes_on_in_the_middle_of_an_image(tiny_bundle, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        array = picture((160, 64), seed=ord(name))[0]
        tifffile.imwrite(tmp_path / "in" / f"{name}.tif", array, tile=(32, 32), photometric="minisblack")
    model = str(tiny_bundle(dims=2))
    whole = predict(model, tmp_path / "in", tmp_path / "whole")
    assert whole.exit_code == 0
    true_write, left = large.write_json, [6]

    def interrupted(*arguments: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        true_write(*arguments)

    monkeypatch.setattr(large, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(model, tmp_path / "in", tmp_path / "out")
    monkeypatch.setattr(large, "write_json", true_write)
    kept = list((tmp_path / "out" / "journal").glob("*.kept"))
    assert [folder.name for folder in kept] == ["a.kept"]
    rows = json.loads((kept[0] / "progress.json").read_text())["rows"]
    assert 0 < rows < 160
    again = predict(model, tmp_path / "in", tmp_path / "out")
    assert again.exit_code == 0
    assert not list((tmp_path / "out" / "journal").glob("*.kept"))
    cases = {entry["id"]: entry for entry in again.result["cases"]}
    usual = {entry["id"]: entry for entry in whole.result["cases"]}
    assert 0 < cases["a"]["windows"] < usual["a"]["windows"] and cases["b"]["windows"] == usual["b"]["windows"]
    assert cases["a"]["notes"] == ["went on where an earlier start was interrupted"] and not cases["b"]["notes"]
    for name in ("a", "b"):
        masks = [tifffile.imread(tmp_path / place / f"{name}.tif") for place in ("whole", "out")]
        assert np.array_equal(*masks)
