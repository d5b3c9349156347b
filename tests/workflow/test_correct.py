"""Corrected masks become truth: written anew on the image's grid, shown, and trained on from the model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import dicom_writer as w
import numpy as np
import pytest
import yaml
from healthy_sets import load_nifti, manifest_of, save_nifti, write_bodies
from mask_exports import export_of
from object_sets import BOXES, save, squares, write_geojson, write_image
from toy_set import PIPELINE, SHAPE, SPACING, Trained, toy_image

from unet_med.bundle import read_bundle_info
from unet_med.errors import NothingUsableError, UsageError
from unet_med.io.discover import discover, open_source
from unet_med.io.export import seg_nrrd
from unet_med.io.export.mask import MaskExport
from unet_med.labels import LabelMap
from unet_med.manifest import Manifest, ManifestCase, load_manifest
from unet_med.workflows.correct import correct
from unet_med.workflows.manifest import make_manifest
from unet_med.workflows.train import train


def write_sidecar(path: Path, names: dict[int, str]) -> None:
    """Writes what lies beside a mask that a model made."""
    labels = [{"value": value, "name": name} for value, name in names.items()]
    told = {"tool": "unet-med", "labels": labels, "provenance": {"model_sha256": ["ab" * 32]}}
    path.write_text(json.dumps(told), encoding="utf-8")


def of(manifest: Manifest, name: str) -> ManifestCase:
    return next(case for case in (*manifest.training, *manifest.test) if case.id == name)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def bodies(tmp_path: Path) -> Path:
    """Five labelled cases; c5 has an image only."""
    folder = write_bodies(tmp_path / "set", cases=6)
    (folder / "labels/c5.nii.gz").unlink()
    manifest_of(folder, tmp_path / "M.json", folds=2, label_names="1=left,2=right")
    return tmp_path / "M.json"


def label_of(bodies: Path, name: str) -> np.ndarray:
    return load_nifti(bodies.parent / f"set/labels/{name}.nii.gz").astype(np.uint8)


def test_masks_become_truth_and_the_page_shows_what_changed(bodies: Path, tmp_path: Path) -> None:
    masks, predicted = tmp_path / "masks", tmp_path / "predicted"
    changed = label_of(bodies, "c0")
    changed[:, :18] = 0
    save_nifti(masks / "c0_label.nii.gz", changed)
    save_nifti(masks / "c1.nii.gz", label_of(bodies, "c1"))
    found = (load_nifti(bodies.parent / "set/images/c5.nii.gz") > 170).astype(np.uint8)
    save_nifti(predicted / "c5.nii.gz", found)
    write_sidecar(predicted / "c5.json", {1: "left", 2: "right"})
    better = found.copy()
    better[20:] *= 2
    save_nifti(masks / "c5.nii.gz", better)
    save_nifti(masks / "c2.nii.gz", label_of(bodies, "c2"), np.diag([1.3, 1.3, 1.3, 1.0]))
    save_nifti(masks / "stranger.nii.gz", found)
    before = contents(tmp_path)
    outcome = correct(bodies, masks, tmp_path / "OUT", before=predicted)
    assert outcome.exit_code == 3
    assert outcome.result["totals"] == {"new": 0, "changed": 2, "unchanged": 1, "refused": 2}
    refused = {case["id"]: case["reason"] for case in outcome.result["cases"] if case["status"] == "refused"}
    assert set(refused) == {"c2", "stranger"} and "--images" in refused["stranger"]
    new, old = load_manifest(tmp_path / "OUT/manifest.json"), load_manifest(bodies)
    for name, expected in (("c0", changed), ("c1", label_of(bodies, "c1")), ("c5", better)):
        np.testing.assert_array_equal(of(new, name).case.read_label(), expected)
        assert of(new, name).provenance["format"] == "nifti"
    assert {case.id for case in new.training} == {f"c{number}" for number in range(6)} and not new.test
    assert {case.id: case.fold for case in new.training if case.id != "c5"} == {
        case.id: case.fold for case in old.training
    }
    assert of(new, "c5").provenance["before"]["model_sha256"] == ["ab" * 32]
    assert of(new, "c0").provenance["before"]["label_sha256"] == of(old, "c0").sha256["label"]
    assert of(new, "c2").sha256 == of(old, "c2").sha256 and not of(new, "c2").provenance
    left = next(row for case in outcome.result["cases"] if case["id"] == "c0" for row in case["labels"])
    assert left["removed"] == np.count_nonzero(label_of(bodies, "c0") == 1) - np.count_nonzero(changed == 1)
    html = (tmp_path / "OUT/changes.html").read_text(encoding="utf-8")
    assert html.count("data:image/png") == 3
    assert html.index("<code>c2") < html.index("<code>c0") < html.index("<code>c1"), "refused, changed, as they were"
    assert not re.search(r"https?://|<script|src=\"(?!data:)", html)
    assert str(tmp_path) not in html + (tmp_path / "OUT/report.json").read_text(encoding="utf-8")
    assert {path: content for path, content in contents(tmp_path).items() if path in before} == before


def test_a_segmentation_of_3d_slicer_on_a_dicom_series(tmp_path: Path) -> None:
    """The series lies in a folder that is called by its patient, and is named in a private table only."""
    folder = tmp_path / "set/images/SECRET JANE"
    w.write(folder, w.Series(columns=12, rows=10, count=6).slices())
    place = discover(folder).usable[0].geometry
    labels = np.zeros(place.shape, np.uint8)
    labels[3:8, 2:7, 1:4] = 1
    save_nifti(tmp_path / "set/labels/SECRET JANE.nii.gz", labels, place.affine)
    make_manifest(tmp_path / "set", tmp_path / "M.json", label_names="1=liver,2=tumour")
    (case,) = load_manifest(tmp_path / "M.json").training
    labels[5:8, 4:7, 3:5] = 2
    edited = export_of(folder, labels, names=LabelMap.from_names({"background": 0, "liver": 1, "tumour": 2}))
    (tmp_path / "masks").mkdir()
    seg_nrrd.write(edited, tmp_path / f"masks/{case.id}.seg.nrrd")
    outcome = correct(tmp_path / "M.json", tmp_path / "masks", tmp_path / "OUT")
    assert outcome.exit_code == 0
    (new,) = load_manifest(tmp_path / "OUT/manifest.json").training
    np.testing.assert_array_equal(new.case.read_label(), labels)
    assert new.provenance["format"] == "seg-nrrd"
    told = [path for path in (tmp_path / "OUT").rglob("*") if path.is_file()]
    private = [path for path in told if b"SECRET" in path.read_bytes() or "SECRET" in path.name]
    assert [path.name for path in private] == ["manifest.json.sources.json"]


def test_the_names_of_the_model_are_understood(bodies: Path, tmp_path: Path) -> None:
    """The model calls the labels otherwise than the manifest: what lies beside its mask says which is which."""
    source = open_source(load_manifest(bodies).training[0].case.sources[0])
    found, name = label_of(bodies, "c0"), load_manifest(bodies).training[0].id
    assert name == "c0"
    for folder in ("masks", "predicted"):
        (tmp_path / folder).mkdir()
    names = LabelMap.from_names({"background": 0, "kidney one": 1, "kidney two": 2})
    seg_nrrd.write(MaskExport(source, found, names), tmp_path / "masks/c0.seg.nrrd")
    save_nifti(tmp_path / "predicted/c0.nii.gz", found)
    with pytest.raises(NothingUsableError, match="'kidney one'"):
        correct(bodies, tmp_path / "masks", tmp_path / "OUT", before=tmp_path / "predicted")
    write_sidecar(tmp_path / "predicted/c0.json", {1: "kidney one", 2: "kidney two"})
    outcome = correct(bodies, tmp_path / "masks", tmp_path / "OUT", before=tmp_path / "predicted")
    assert outcome.result["totals"]["unchanged"] == 1
    write_sidecar(tmp_path / "predicted/c0.json", {1: "right", 2: "left"})
    with pytest.raises(NothingUsableError, match="another label of the set"):
        correct(bodies, tmp_path / "masks", tmp_path / "OUT2", before=tmp_path / "predicted")


def test_outlines_of_qupath_become_objects(tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / "set", f"p{number}", squares(), number)
        save(tmp_path / f"set/labels/p{number}.tif", squares())
    make_manifest(tmp_path / "set", tmp_path / "M.json", folds=2, task="instance")
    boxes = {1: BOXES[1], 2: (10, 2, 16, 9), 4: (18, 22, 23, 28)}
    write_geojson(tmp_path / "masks/p1.geojson", boxes)
    outcome = correct(tmp_path / "M.json", tmp_path / "masks", tmp_path / "OUT")
    assert outcome.result["cases"][0]["objects"] == {"kept": 1, "changed": 1, "added": 1, "removed": 1}
    new = of(load_manifest(tmp_path / "OUT/manifest.json"), "p1")
    np.testing.assert_array_equal(new.case.read_label() > 0, squares(boxes).T > 0)
    assert len(np.unique(new.case.read_label())) == 4
    assert "data:image/png" in (tmp_path / "OUT/changes.html").read_text(encoding="utf-8")


def test_stored_values_are_those_of_the_set(tmp_path: Path) -> None:
    """Where 255 is read as 1 the new label holds 255, too: one rule reads all labels."""
    folder = write_bodies(tmp_path / "set", cases=3)
    for number in range(3):
        path = folder / f"labels/c{number}.nii.gz"
        save_nifti(path, np.uint8(255) * (load_nifti(path) > 0).astype(np.uint8))
    manifest_of(folder, tmp_path / "M.json", folds=2, label_values="255=1")
    mask = (load_nifti(folder / "labels/c0.nii.gz") > 0).astype(np.uint8)
    mask[:18] = 0
    save_nifti(tmp_path / "masks/c0.nii.gz", mask)
    correct(tmp_path / "M.json", tmp_path / "masks", tmp_path / "OUT")
    new = of(load_manifest(tmp_path / "OUT/manifest.json"), "c0")
    np.testing.assert_array_equal(new.case.read_label(), mask)
    assert set(np.unique(load_nifti(tmp_path / "OUT/labels/c0.nii.gz"))) == {0, 255}


def test_several_masks_of_one_case_are_not_guessed_between(bodies: Path, tmp_path: Path) -> None:
    save_nifti(tmp_path / "masks/c0.nii.gz", label_of(bodies, "c0"))
    save_nifti(tmp_path / "masks/c0_seg.nii.gz", label_of(bodies, "c0"))
    with pytest.raises(NothingUsableError, match="2 masks have this name"):
        correct(bodies, tmp_path / "masks", tmp_path / "OUT")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="not empty"):
        correct(bodies, tmp_path / "masks", tmp_path / "full")


def test_training_goes_on_from_the_model(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a corrected training case, and with an image that the data set did not have."""
    monkeypatch.chdir(tmp_path)
    manifest = load_manifest(trained.manifest)
    learnt = next(case for case in manifest.training if case.fold != 0)
    assert learnt.case.label is not None
    corrected = load_nifti(learnt.case.label.files[0]).copy()
    corrected[..., :6] = 0
    affine = np.diag([*SPACING, 1.0])
    save_nifti(tmp_path / f"masks/{learnt.id}.nii.gz", corrected, affine)
    image, label = toy_image(99)
    assert image.shape == SHAPE
    save_nifti(tmp_path / "images/extra.nii.gz", image, affine)
    save_nifti(tmp_path / "masks/extra.nii.gz", label, affine)
    outcome = correct(trained.manifest, tmp_path / "masks", tmp_path / "OUT", images=tmp_path / "images")
    assert outcome.result["totals"] == {"new": 1, "changed": 1, "unchanged": 0, "refused": 0}
    short = PIPELINE | {"training": PIPELINE["training"] | {"epochs": 1, "steps_per_epoch": 2}}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(short), encoding="utf-8")
    new = load_manifest(tmp_path / "OUT/manifest.json")
    fold = next(number for number in range(3) if number != of(new, "extra").fold and number != learnt.fold)
    again = train(
        tmp_path / "toy.yaml",
        tmp_path / "OUT/manifest.json",
        tmp_path / "RUN",
        fold=str(fold),
        device="cpu",
        start_from=str(trained.run),
    )
    assert again.exit_code == 0
    meta = read_bundle_info(str(tmp_path / "RUN")).meta["training"]
    assert meta["started_from"]["sha256"] == read_bundle_info(str(trained.run)).sha256
    assert of(new, "extra").sha256["image"] in meta["case_sha256"]
