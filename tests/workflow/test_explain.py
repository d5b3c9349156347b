"""One case explained: maps on its own grid, a page that loads nothing, and numbers that say whether to believe it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from toy_set import Trained

from unet_med.errors import NothingUsableError, UsageError
from unet_med.workflows.explain import explain
from unet_med.workflows.outcome import Outcome

pytestmark = pytest.mark.usefixtures("one_thread")


def case_of(trained: Trained) -> Path:
    return trained.data / "imagesTr" / "toy_00.nii.gz"


@pytest.fixture(scope="module")
def explained(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    out = tmp_path_factory.mktemp("explained") / "OUT"
    return out, explain(str(trained.run), case_of(trained), out, block_mm=8.0, device="cpu")


def test_maps_lie_on_the_image(trained: Trained, explained: tuple[Path, Outcome]) -> None:
    out, outcome = explained
    image = nib.load(case_of(trained))
    assert outcome.exit_code == 0
    (first, second) = outcome.result["labels"]
    assert outcome.result["not_found"] == []
    files = [entry["maps"][kind]["file"] for entry in (first, second) for kind in ("gradcam", "occlusion")]
    files += [outcome.result["uncertainty"]["model"]["file"]]
    assert len(set(files)) == 5
    for name in files:
        found = nib.load(out / name)
        assert found.shape == image.shape
        assert np.array_equal(found.affine, image.affine)
        assert found.get_data_dtype() == np.float32
        assert np.isfinite(found.get_fdata()).all()


def test_the_numbers_are_those_of_the_file(explained: tuple[Path, Outcome]) -> None:
    out, outcome = explained
    assert json.loads((out / "explain.json").read_text(encoding="utf-8")) == outcome.result
    assert outcome.result["unit"] == "mm"
    for entry in outcome.result["labels"]:
        assert 0.5 < entry["confidence"] <= 1.0
        for one in entry["maps"].values():
            deletion, random = one["deletion"], one["randomised"]
            assert one["shown"] == (deletion["shown"] and random["shown"])
            assert deletion["shown"] == (deletion["area"] < min(deletion["random_areas"]))
            assert deletion["map"][0] == pytest.approx(entry["confidence"], abs=1e-6)
            assert len(random["correlations"]) == 3
        assert any(line.startswith(f"{entry['name']}:") for line in outcome.lines)


def test_occlusion_marks_the_ball(trained: Trained, explained: tuple[Path, Outcome]) -> None:
    """A network that learnt bright balls on a dark ground loses a ball when it is hidden, not when the ground is."""
    out, outcome = explained
    truth = nib.load(trained.data / "labelsTr" / "toy_00.nii.gz").get_fdata()
    for value, entry in enumerate(outcome.result["labels"], start=1):
        heat = nib.load(out / entry["maps"]["occlusion"]["file"]).get_fdata()
        assert heat[truth == value].mean() > 3 * np.abs(heat[truth == 0]).mean()
        assert entry["maps"]["occlusion"]["deletion"]["shown"]


def test_the_page_loads_nothing_and_shows_every_map(explained: tuple[Path, Outcome]) -> None:
    out, outcome = explained
    text = (out / "explain.html").read_text(encoding="utf-8")
    told = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert "default-src 'none'" in told
    assert "http" not in told.replace("http-equiv", "")
    disagreements = sum("disagreement_file" in one for one in outcome.result["uncertainty"].values())
    assert told.count("<img ") == 5 + disagreements
    assert told.count("<svg ") == 4
    for entry in outcome.result["labels"]:
        assert f"<h2>{entry['name']}</h2>" in told
    assert "no dropout" in told


def test_a_finished_one_is_not_made_again(
    trained: Trained, explained: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, outcome = explained
    monkeypatch.setattr("unet_med.workflows.explain._explained", None)
    again = explain(str(trained.run), case_of(trained), out, block_mm=8.0, device="cpu")
    assert again.result == outcome.result
    assert again.lines == outcome.lines
    with pytest.raises(UsageError, match="another job"):
        explain(str(trained.run), case_of(trained), out, block_mm=5.0, device="cpu")


def test_what_cannot_be_explained(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no label 'spleen'"):
        explain(str(trained.run), case_of(trained), tmp_path / "a", labels=("spleen",))
    with pytest.raises(UsageError, match="6 cases, not one"):
        explain(str(trained.run), trained.data / "imagesTr", tmp_path / "b")
    with pytest.raises(UsageError, match="does not exist"):
        explain(str(trained.run), tmp_path / "none.nii.gz", tmp_path / "c")
    (tmp_path / "notes.txt").write_text("no image", encoding="utf-8")
    with pytest.raises(NothingUsableError, match="no image"):
        explain(str(trained.run), tmp_path / "notes.txt", tmp_path / "d")


def test_a_picture_and_two_models(tiny_bundle, tmp_path: Path) -> None:
    """Pictures become TIFF; two models and mirrored axes have their disagreement."""
    picture = np.random.default_rng(0).normal(100, 10, (20, 24)).astype(np.float32)
    picture[5:11, 6:15] += 80
    tifffile.imwrite(tmp_path / "image.tif", picture)
    models = [str(tiny_bundle(name, dims=2)) for name in ("one", "two")]
    out = tmp_path / "OUT"
    outcome = explain(models[0], tmp_path / "image.tif", out, also=models[1:], labels=("bright",), device="cpu")
    assert outcome.result["unit"] == "voxels"
    assert [entry["name"] for entry in outcome.result["labels"]] == ["bright"]
    found = tifffile.imread(out / "bright_occlusion.tif")
    assert found.shape == picture.shape
    assert found[5:11, 6:15].mean() > found.mean()
    told = outcome.result["uncertainty"]
    assert (told["ensemble"]["samples"], told["tta"]["samples"]) == (2, 4)
    assert told["ensemble"]["disagreement_max"] < 1e-3, "twice the same model"
    assert tifffile.imread(out / told["tta"]["disagreement_file"]).shape == picture.shape
    assert "missing" in told["dropout"]
