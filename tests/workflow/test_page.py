"""An output folder becomes pages: those of its masks, with its images where they are still there."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import dicom_writer as w
import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from toy_set import write_toy_set

from unet_med.errors import UsageError
from unet_med.io.source import IntakeOptions
from unet_med.workflows.manifest import make_manifest
from unet_med.workflows.page import page
from unet_med.workflows.predict import predict

pytestmark = pytest.mark.usefixtures("one_thread", "inline_worker")


def _scans(folder: Path) -> Path:
    folder.mkdir()
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    for number, name in enumerate(("anna", "bert")):
        array = np.random.default_rng(number).normal(100, 20, (14, 12, 9)).astype(np.float32)
        nib.save(nib.Nifti1Image(array, affine), folder / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((9, 9, 9), np.float32), affine), folder / "constant.nii.gz")
    return folder


def _view(out: Path, name: str) -> dict[str, object]:
    text = (out / "pages" / "cases" / f"{name}.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="view">(.*?)</script>', text)
    return json.loads(found[1]) if found else {}


def test_a_folder_becomes_pages(tiny_bundle, tmp_path: Path) -> None:
    scans, out, model = _scans(tmp_path / "scans"), tmp_path / "out", str(tiny_bundle())
    predict(model, scans, out, device="cpu")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    outcome = page(out, pdf=True)
    assert outcome.exit_code == 0
    assert outcome.result == {"pages": "pages/index.html", "cases": 3, "look_at": [], "without_image": 0}
    assert {path: path.read_bytes() for path in before} == before
    index = (out / "pages" / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'data-id="(\w+)"', index) == ["constant", "anna", "bert"]
    for name in ("anna", "bert", "constant"):
        assert f"cases/{name}.html" in index
        assert (out / "pages" / "cases" / f"{name}.pdf").read_bytes().startswith(b"%PDF-1.4")
    view = _view(out, "anna")
    assert view["shape"] == [14, 12, 9]
    assert len(view["images"]) == 1
    assert view["letters"] == "RLAPSI"
    text = (out / "pages" / "cases" / "anna.html").read_text(encoding="utf-8")
    for expected in ("Geometry stamp", "Model card", "Research use only: not a medical device", "bright"):
        assert expected in text
    assert _view(out, "constant") == {}
    assert str(tmp_path) not in text + index


def test_pages_are_made_anew_and_follow_their_images(tiny_bundle, tmp_path: Path) -> None:
    scans, out = _scans(tmp_path / "scans"), tmp_path / "out"
    predict(str(tiny_bundle()), scans, out, device="cpu")
    page(out)
    (out / "pages" / "cases" / "gone.html").write_text("of an earlier start", encoding="utf-8")
    (scans / "anna.nii.gz").unlink()
    shutil.copy(scans / "constant.nii.gz", scans / "bert.nii.gz")
    outcome = page(out)
    assert outcome.result["without_image"] == 2
    assert not (out / "pages" / "cases" / "gone.html").exists()
    for name, why in (("anna", "does not lie where it did"), ("bert", "was changed since")):
        assert _view(out, name)["images"] == []
        assert why in (out / "pages" / "cases" / f"{name}.html").read_text(encoding="utf-8")


def test_the_model_card_of_another_model_is_refused(tiny_bundle, tmp_path: Path) -> None:
    scans, out, model = _scans(tmp_path / "scans"), tmp_path / "out", str(tiny_bundle())
    predict(model, scans, out, device="cpu")
    (out / "journal" / "models.json").unlink()  # as an older version left it
    page(out)
    text = (out / "pages" / "cases" / "anna.html").read_text(encoding="utf-8")
    assert "Model card" not in text
    page(out, model)
    assert "Model card" in (out / "pages" / "cases" / "anna.html").read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="another model"):
        page(out, str(tiny_bundle("other", meta={"training": {"n_cases": 4}})))


def test_true_labels_are_drawn_too(tiny_bundle, tmp_path: Path) -> None:
    data, out = write_toy_set(tmp_path / "data", 2), tmp_path / "out"
    make_manifest(data, tmp_path / "M.json", folds=2, intake=IntakeOptions())
    predict(str(tiny_bundle()), data / "imagesTr", out, device="cpu")
    page(out, data=tmp_path / "M.json")
    sheet = base64.b64decode(str(_view(out, "toy_01")["reference"]).partition(",")[2])
    found = np.bincount(np.asarray(Image.open(io.BytesIO(sheet))).ravel())[1:]
    truth = np.bincount(np.asarray(nib.load(data / "labelsTr" / "toy_01.nii.gz").dataobj).ravel())[1:]
    assert found.tolist() == truth.tolist()
    assert "true labels" in (out / "pages" / "cases" / "toy_01.html").read_text(encoding="utf-8")


def test_a_folder_without_predictions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no predictions"):
        page(tmp_path)


def test_nothing_of_a_patient_is_on_a_page(tiny_bundle, tmp_path: Path) -> None:
    """A series and its folder carry the secret; its picture is shown, and that of an ultrasound is not."""
    scans = tmp_path / "SECRET-JANE"
    w.write(scans / "ct", w.Series(number=1, columns=20, rows=18, count=9).slices())
    w.write(scans / "us", w.Series(number=2, columns=20, rows=18, count=9, modality="US").slices())
    out = tmp_path / "out"
    predict(str(tiny_bundle()), scans, out, device="cpu", intake=IntakeOptions())
    page(out, pdf=True)
    shown = {}
    for path in (out / "pages").rglob("*"):
        if path.is_file():
            assert b"SECRET" not in path.read_bytes()
            if path.parent.name == "cases" and path.suffix == ".html":
                shown[path.stem[:4]] = _view(out, path.stem)
    assert len(shown["s001"]["images"]) == 1
    assert shown["s002"]["images"] == []
    ultrasound = next((out / "pages" / "cases").glob("s002*.pdf"))
    assert b"/Subtype /Image" not in ultrasound.read_bytes()


@pytest.mark.slow
def test_a_browser_shows_the_slices(tiny_bundle, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser is installed")
    scans, out = _scans(tmp_path / "scans"), tmp_path / "out"
    predict(str(tiny_bundle()), scans, out, device="cpu")
    page(out)
    for name, expected in (("cases/anna.html", 'data-state="ready"'), ("index.html", "0 of 3 reviewed")):
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
        options += ["--virtual-time-budget=10000", "--dump-dom", (out / "pages" / name).as_uri()]
        done = subprocess.run([browser, *options], capture_output=True, text=True, check=True, timeout=120)
        assert expected in done.stdout
