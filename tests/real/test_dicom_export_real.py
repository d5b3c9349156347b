"""DICOM exports of real series: 0 errors in dciodvfy, and masks that come back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mask_exports import dciodvfy, dice, export_of
from pydicom import dcmread

from unet_med.io.dicom.annotations import inspect_annotation, open_label
from unet_med.io.dicom.headers import read_header
from unet_med.io.export.formats import FORMATS
from unet_med.io.export.mask import source_ref

DICOM = tuple(name for name, one in FORMATS.items() if one.needs_dicom)
SERIES = (
    ("dicom_ct_head", "series", False),
    ("dicom_mr_hippocrop", "Study1_13_HCropVolume", True),
    ("sts_tumour", "dicom/STS_008/MR_T1/image", False),
    ("sts_tumour", "dicom/STS_025/CT/image", True),
    ("dicom2nifti", "philips/anatomical/001/series", True),
)


@pytest.mark.parametrize(("name", "below", "deidentify"), SERIES)
def test_real_series(
    shared_data: Callable[[str], Path], tmp_path: Path, name: str, below: str, deidentify: bool
) -> None:
    folder = shared_data(name) / below
    shape = export_of(folder, np.zeros(1)).geometry.shape
    x, y, z = np.ogrid[: shape[0], : shape[1], : shape[2]]
    field = np.sin(19.0 * x / shape[0]) * np.cos(15.0 * y / shape[1] + 0.3 * z) + 0.1 * x / shape[0]
    low, high = np.quantile(field[::3, ::3], [0.05, 0.9])
    labels = np.where(field > high, 1, np.where(field < low, 2, 0)).astype(np.uint8)
    export = export_of(folder, labels, formats=DICOM, deidentify=deidentify)
    for kind in DICOM:
        path = tmp_path / f"mask{FORMATS[kind].ending}"
        FORMATS[kind].write(export, path)
        assert FORMATS[kind].check(path, export)["passed"]
        assert dciodvfy(path / "0001.dcm" if path.is_dir() else path) == [], kind
    if deidentify:
        header = dcmread(export.dicom.files[0], stop_before_pixels=True)
        texts = [(tmp_path / f"mask{FORMATS[kind].ending}").read_bytes() for kind in DICOM if not FORMATS[kind].folder]
        for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
            value = str(header.get(keyword) or "")
            assert len(value) < 4 or not any(value.encode() in text for text in texts), keyword
        return
    image = source_ref(export.source)
    for kind, least in (("dicom-seg", 1.0), ("rtstruct", 0.99)):
        annotation = inspect_annotation(read_header(tmp_path / f"mask{FORMATS[kind].ending}"))
        found = open_label(annotation, image).read().array[0]
        assert all(dice(found == value, labels == value) >= least for value in (1, 2))
