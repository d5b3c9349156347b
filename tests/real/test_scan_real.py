"""The intake report on real series: labels find their images, every usable source has a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from unet_med.workflows.scan import scan

Shared = Callable[[str], Path]


def test_labels_belong_to_the_series_that_lies_beside_them(shared_data: Shared) -> None:
    root = shared_data("sts_tumour") / "dicom"
    outcome = scan(root)
    table = outcome.private()
    assert outcome.exit_code == 0
    assert len(outcome.result["annotations"]) == 4
    for entry in outcome.result["annotations"]:
        home = Path(table[entry["id"]][0]["file"]).parents[1]
        assert entry["kind"] == "rtstruct"
        assert entry["segments"][0]["name"].startswith("GTV_Mass")
        assert [Path(table[name][0]["file"]).parents[1] for name in entry["refers_to"]] == [home]


def test_a_segmentation_belongs_to_its_slices(shared_data: Shared) -> None:
    result = scan(shared_data("dicom_seg_liver")).result
    (entry,) = result["annotations"]
    (image,) = [one["id"] for one in result["sources"] if one["kind"] == "dicom"]
    assert (entry["kind"], entry["usable"], entry["refers_to"]) == ("dicom-seg", True, [image])
    assert [(one["number"], one["name"]) for one in entry["segments"]] == [(1, "Liver")]
    assert entry["segments"][0]["code"]


def test_labels_alone_are_usable_where_they_have_a_grid(shared_data: Shared) -> None:
    alone = scan(shared_data("dicom_seg_liver") / "seg")
    assert (alone.exit_code, alone.result["annotations"][0]["refers_to"]) == (0, [])
    assert scan(shared_data("sts_tumour") / "dicom" / "STS_008" / "MR_T1" / "rtstruct").exit_code == 4


def test_each_real_series_has_a_picture(shared_data: Shared, tmp_path: Path) -> None:
    for name in ("dicom_ct_head", "dicom2nifti", "dicom_seg_liver", "tiff_formats", "sct_spinal_cord"):
        outcome = scan(shared_data(name), html=tmp_path / f"{name}.html")
        text = (tmp_path / f"{name}.html").read_text(encoding="utf-8")
        assert "no picture" not in text
        assert text.count("data:image/png;base64,") == outcome.result["summary"]["usable"]
