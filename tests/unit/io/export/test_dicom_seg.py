from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_writer import Series, write
from mask_exports import blobs, dciodvfy, export_of, personal

from unet_med.io.export import dicom_seg


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """An oblique series with a patient; pixels are not square."""
    slices = Series().slices()
    for one in slices:
        personal(one)
    write(tmp_path / "series", slices)
    return tmp_path / "series"


def _likely(labels: np.ndarray) -> np.ndarray:
    return np.stack([np.where(labels == value, 0.8, 0.1) for value in (1, 2)]).astype(np.float32)


@pytest.mark.parametrize("deidentify", [False, True])
@pytest.mark.parametrize("seg_type", ["binary", "fractional"])
def test_is_valid(series: Path, tmp_path: Path, seg_type: str, deidentify: bool) -> None:
    labels = blobs((9, 7, 6))
    export = export_of(series, labels, probabilities=_likely(labels), seg_type=seg_type, deidentify=deidentify)
    path = tmp_path / "mask.dcm"
    dicom_seg.write(export, path)
    assert dciodvfy(path) == []
    assert dicom_seg.check(path, export)["passed"]


def test_label_map_is_valid_but_for_what_a_validator_older_than_the_class_says(series: Path, tmp_path: Path) -> None:
    export = export_of(series, seg_type="labelmap")
    dicom_seg.write(export, tmp_path / "mask.dcm")
    unknown = ("Information Object Not found", "SegmentNumber not monotonically increasing from one by one")
    assert [error for error in dciodvfy(tmp_path / "mask.dcm") if not any(one in error for one in unknown)] == []
