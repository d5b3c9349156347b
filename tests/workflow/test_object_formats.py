"""One prediction in every format of objects: all say the same."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from inline_worker import InlineWorker
from object_set import disc_bundle, write_disc_set
from pyarrow import parquet

from unet_med.io.objects.drawn import paint
from unet_med.io.objects.reading import read_outlines
from unet_med.workflows import predict as prediction
from unet_med.workflows.predict import predict


def test_all_formats_say_the_same(tmp_path: Path, tiny_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "Worker", InlineWorker)
    images = write_disc_set(tmp_path / "in", cases=1) / "images"
    formats = ["nifti,label-tiff,ome-zarr,geojson", "roi", "coco"]
    assert (
        predict(str(disc_bundle(tiny_bundle)), images, tmp_path / "OUT", formats=formats, device="cpu").exit_code == 0
    )
    labels = tifffile.imread(tmp_path / "OUT" / "discs_0.tif").T
    numbers = np.unique(labels)[1:].tolist()
    assert len(numbers) > 3
    for ending in ("geojson", "roi.zip", "coco.json"):
        found = read_outlines(tmp_path / "OUT" / f"discs_0.{ending}", labels.shape, "discs_0.tif").objects
        assert [one.number for one in found] == numbers
        assert np.array_equal(paint(found, labels.shape).labels, labels)
        assert all(one.kind and one.confidence is not None and 0 < one.confidence <= 1 for one in found)
    stored = zarr.open_group(str(tmp_path / "OUT" / "discs_0.ome.zarr"), mode="r")["labels/mask/0"]
    assert np.array_equal(np.asarray(stored[...]).T, labels)
    with (tmp_path / "OUT" / "objects" / "discs_0.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["label"]) for row in rows] == numbers
    assert [int(row["area_px"]) for row in rows] == np.bincount(labels.ravel())[numbers].tolist()
    table = parquet.read_table(tmp_path / "OUT" / "objects" / "discs_0.parquet")
    assert table.column_names == list(rows[0])
    features = json.loads((tmp_path / "OUT" / "discs_0.geojson").read_text())["features"]
    measured = [feature["properties"]["measurements"]["area_px"] for feature in features]
    assert measured == [float(row["area_px"]) for row in rows]
    sidecar = json.loads((tmp_path / "OUT" / "discs_0.json").read_text())
    assert {name for name, record in sidecar["checks"]["formats"].items() if record["passed"]} == {
        *("label-tiff", "ome-zarr", "geojson", "imagej-roi", "coco")
    }
