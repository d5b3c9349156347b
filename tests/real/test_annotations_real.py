"""Real truth in DICOM: contours against the masks made of them by others, a SEG against the NRRD of its authors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from unet_med.geometry import Geometry
from unet_med.io.dicom.annotations import open_label
from unet_med.io.discover import discover, open_source
from unet_med.manifest import BuildOptions, build_manifest, load_manifest, save_manifest

AFFINE_TOLERANCE = 1e-3
SARCOMAS = [("STS_025", "CT"), ("STS_025", "MR_T1"), ("STS_025", "PET"), ("STS_008", "MR_T1")]


def on_grid(path: Path, geometry: Geometry) -> np.ndarray:
    """Returns a reference NIfTI turned into the axes of a grid; its affine must be that of the grid, to 1e-3 mm."""
    image = nib.load(path)
    meant = nib.orientations.io_orientation(np.linalg.inv(geometry.affine) @ image.affine)
    turned = image.as_reoriented(meant)
    assert np.abs(turned.affine - geometry.affine).max() < AFFINE_TOLERANCE
    return np.asarray(turned.dataobj)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


@pytest.mark.parametrize(("case", "modality"), SARCOMAS)
def test_contours_fill_the_mask(shared_data: Callable[[str], Path], case: str, modality: str) -> None:
    root = shared_data("sts_tumour")
    found = discover(root / "dicom" / case / modality)
    annotation, image = found.annotations[0], found.sources[0]
    source = open_label(annotation, image)
    assert source.notes == ("the images that it names are not in the series: placed by the frame of reference",)
    volume = source.read()
    reference = on_grid(root / "nifti" / modality / "labels" / f"{case}.nii.gz", volume.geometry)
    assert dice(volume.array[0] == 1, reference > 0) == 1.0
    assert volume.array[0].any()


@pytest.mark.parametrize(("case", "modality"), SARCOMAS)
def test_images_equal_their_nifti(shared_data: Callable[[str], Path], case: str, modality: str) -> None:
    """PET is stored as 16 bit with a slope of its own for each slice: exact to the last digit of float32."""
    root = shared_data("sts_tumour")
    volume = open_source(discover(root / "dicom" / case / modality / "image").sources[0]).read()
    reference = on_grid(root / "nifti" / modality / "images" / f"{case}.nii.gz", volume.geometry)
    if modality == "PET":
        np.testing.assert_array_max_ulp(volume.array[0], reference.astype(np.float32), maxulp=8)
    else:
        assert np.array_equal(volume.array[0], reference)


@pytest.mark.parametrize(
    "folder",
    [
        "dicom_ct_head",
        "dicom2nifti/siemens/anatomical/001",
        "dicom2nifti/philips/anatomical/001",
        "dicom2nifti/generic/compressed_jpegls/001",
    ],
)
def test_series_equal_the_references_of_other_tools(shared_data: Callable[[str], Path], folder: str) -> None:
    root = shared_data(folder)
    found = discover(root / "series").sources
    assert len(found) == 1
    volume = open_source(found[0]).read()
    references = sorted((root / "reference").glob("*.nii.gz"))
    assert references
    for reference in references:
        assert np.array_equal(volume.array[0], on_grid(reference, volume.geometry))


def test_the_liver_equals_the_nrrd_of_its_authors(shared_data: Callable[[str], Path]) -> None:
    root = shared_data("dicom_seg_liver")
    found = discover(root)
    annotation = found.annotations[0]
    image = next(source for source in found.sources if source.kind == "dicom")
    volume = open_label(annotation, image).read()
    nrrd = SimpleITK.ReadImage(str(root / "nrrd" / "liver_seg.nrrd"))
    reference = SimpleITK.GetArrayFromImage(nrrd).T
    assert (reference > 0).sum() == 107_098
    assert np.array_equal(volume.array[0] == 1, reference > 0)
    affine = np.eye(4)
    affine[:3, :3] = np.array(nrrd.GetDirection()).reshape(3, 3) * nrrd.GetSpacing()
    affine[:3, 3] = nrrd.GetOrigin()
    assert volume.geometry.same_grid(Geometry.from_lps(reference.shape, affine), AFFINE_TOLERANCE)
    alone = open_source(annotation).read()
    assert np.array_equal(alone.array, volume.array)
    assert alone.geometry.same_grid(volume.geometry)
    assert [(one.name, one.code) for one in annotation.layout.segments] == [("Liver", "SCT:10200004")]


def test_a_manifest_of_the_sarcomas(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    root = shared_data("sts_tumour")
    listed = "1=tumour,1=GTV_Mass_CT,1=GTV_Mass_MR_T1,1=GTV_Mass_PET"
    report = build_manifest(
        root / "dicom", discover(root / "dicom"), BuildOptions(label_names=listed, folds=2), "sarcoma"
    )
    assert report.left_over == ()
    assert report.manifest.findings == ()
    save_manifest(report.manifest, tmp_path / "M.json")
    manifest = load_manifest(tmp_path / "M.json")
    assert manifest.labels == {"background": 0, "tumour": 1}
    assert len(manifest.training) == 4
    assert len({case.group for case in manifest.training}) == 2
    voxels = sorted(int(case.case.read_label().sum()) for case in manifest.training)
    assert voxels == sorted(
        int((np.asarray(nib.load(root / "nifti" / modality / "labels" / f"{case}.nii.gz").dataobj) > 0).sum())
        for case, modality in SARCOMAS
    )
