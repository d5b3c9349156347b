"""Real DICOM series: geometry by an independent calculation, voxels by the reference NIfTI."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from unet_med.geometry import Geometry
from unet_med.io.discover import discover, open_source

_JPEG_LS = "compressed_jpegls"


def test_geometry_of_every_series(shared_data: Callable[[str], Path]) -> None:
    table = shared_data("dicom_geometry.json")
    series = json.loads(table.read_text())
    assert len(series) >= 10
    for name, entries in series.items():
        expected = entries[0]
        ref = discover(table.parent / name).sources[0]
        if _JPEG_LS in name and not ref.usable:
            assert "no decoder is installed for JPEG-LS" in ref.reason
            continue
        assert ref.usable, (name, ref.reason)
        shape = (expected["columns"], expected["rows"], expected["n_files"])
        assert ref.geometry.same_grid(Geometry.from_lps(shape, expected["index_ijk_to_LPS_mm"])), name
        assert ref.modality == expected["modality"]
        assert len(ref.files) == expected["n_files"]
        assert ref.files[0].name == expected["first_file"]
        assert ref.files[-1].name == expected["last_file"]


@pytest.mark.parametrize(
    ("case", "modality"), [("STS_025", "CT"), ("STS_025", "MR_T1"), ("STS_025", "PET"), ("STS_008", "MR_T1")]
)
def test_voxels_of_the_sarcoma_set(shared_data: Callable[[str], Path], case: str, modality: str) -> None:
    root = shared_data("sts_tumour")
    volume = open_source(discover(root / "dicom" / case / modality / "image").sources[0]).read()
    image = nib.load(root / "nifti" / modality / "images" / f"{case}.nii.gz")
    reference = np.asarray(image.dataobj)
    assert volume.geometry.same_grid(Geometry(reference.shape, image.affine), 2e-3)
    step = np.abs(reference).max() * 2**-15
    assert np.abs(volume.array[0] - reference).max() <= step


def test_a_whole_study_with_structure_sets(shared_data: Callable[[str], Path]) -> None:
    found = discover(shared_data("sts_tumour") / "dicom")
    assert [ref.modality for ref in found.sources] == ["PT", "CT", "MR", "MR"]
    assert [one.kind for one in found.annotations if one.usable] == ["rtstruct"] * 4
    assert found.skipped == ()


def test_the_head_phantom(shared_data: Callable[[str], Path]) -> None:
    root = shared_data("dicom_ct_head")
    volume = open_source(discover(root / "series").sources[0]).read()
    reference = nib.load(root / "reference" / "dcm2niix.nii.gz")
    stored = np.asarray(reference.dataobj)
    assert volume.geometry.orientation == "LPS"
    assert nib.aff2axcodes(reference.affine) == ("L", "A", "S")
    assert np.array_equal(volume.array[0], stored[:, ::-1])
    assert np.allclose(volume.geometry.affine[:, 2], reference.affine[:, 2], atol=1e-4)
