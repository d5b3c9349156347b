"""DICOM exports as others read them: highdicom, SimpleITK, and contours filled by scikit-image from raw headers."""

from __future__ import annotations

from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK
from dicom_writer import Series, write
from mask_exports import blobs, dice, export_of
from pydicom import Dataset, dcmread
from skimage.draw import polygon2mask

from unet_med.io.export import dicom_sc, dicom_seg, rtstruct
from unet_med.io.export.mask import MaskExport

GRID = {"columns": 33, "rows": 21, "count": 7}
SHAPE = (33, 21, 7)


@pytest.fixture
def export(tmp_path: Path) -> MaskExport:
    write(tmp_path / "in", Series(**GRID).slices())
    return export_of(tmp_path / "in", blobs(SHAPE))


@pytest.mark.parametrize("seg_type", ["binary", "labelmap"])
def test_highdicom_reads_voxels_and_affine_of_a_seg(tmp_path: Path, seg_type: str) -> None:
    write(tmp_path / "in", Series(**GRID).slices())
    labels = blobs(SHAPE)
    labels[..., 0] = labels[..., 3] = 0
    export = export_of(tmp_path / "in", labels, seg_type=seg_type)
    dicom_seg.write(export, tmp_path / "mask.dcm")
    volume = hd.seg.segread(tmp_path / "mask.dcm").get_volume(combine_segments=True)
    meant = np.argwhere(labels == 2)
    found = np.argwhere(volume.array == 2)
    place = export.geometry.to_world(meant) * [-1.0, -1.0, 1.0]
    got = found @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    assert len(meant) == len(found)
    assert np.abs(place[np.lexsort(np.rint(place * 1000).T)] - got[np.lexsort(np.rint(got * 1000).T)]).max() < 1e-3


def test_highdicom_reads_probabilities(tmp_path: Path) -> None:
    write(tmp_path / "in", Series(**GRID).slices())
    maps = np.random.default_rng(3).random((2, *SHAPE)).astype(np.float32)
    labels = np.where(maps.max(axis=0) > 0.5, maps.argmax(axis=0) + 1, 0).astype(np.uint8)
    dicom_seg.write(
        export_of(tmp_path / "in", labels, seg_type="fractional", probabilities=maps), tmp_path / "mask.dcm"
    )
    volume = hd.seg.segread(tmp_path / "mask.dcm").get_volume()
    found = volume.to_patient_orientation("LPS").array
    assert found.shape[-1] == 2
    assert sorted(np.rint(found.ravel() * 255)) == sorted(np.rint(maps.ravel() * 255))


def _filled(found: Dataset, headers: dict[str, Dataset], rule: str) -> dict[int, np.ndarray]:
    """Fills the contours slice by slice from the headers of the images they name; (rows, columns, slices)."""
    order = sorted(headers.values(), key=lambda header: int(header.InstanceNumber))
    masks = {}
    for region in found.ROIContourSequence:
        mask = np.zeros((order[0].Rows, order[0].Columns, len(order)), bool)
        for contour in region.ContourSequence:
            header = headers[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            row, column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
            away = np.array(contour.ContourData, float).reshape(-1, 3) - np.array(header.ImagePositionPatient, float)
            between_rows, between_columns = map(float, header.PixelSpacing)
            corners = np.stack([away @ column / between_rows, away @ row / between_columns], axis=1)
            inside = polygon2mask(mask.shape[:2], corners)
            plane = mask[:, :, order.index(header)]
            plane[:] = plane ^ inside if rule == "exclusive or" else plane | inside
        masks[int(region.ReferencedROINumber)] = mask
    return masks


@pytest.mark.parametrize("rule", ["exclusive or", "union"])
def test_contours_are_filled_right_by_every_rule(export: MaskExport, tmp_path: Path, rule: str) -> None:
    ring = np.zeros(SHAPE, np.uint8)
    ring[4:20, 3:18] = 1
    ring[6:18, 5:16] = 0
    ring[9:14, 8:13] = 1
    ring[11, 10] = 2
    for labels in (export.labels, ring):
        export = export_of(tmp_path / "in", labels)
        rtstruct.write(export, tmp_path / "mask.dcm")
        headers = {header.SOPInstanceUID: header for header in map(dcmread, (tmp_path / "in").iterdir())}
        masks = _filled(dcmread(tmp_path / "mask.dcm"), headers, rule)
        for value in (1, 2):
            assert dice(masks[value].transpose(1, 0, 2), labels == value) == 1.0


def test_simpleitk_reads_captures(export: MaskExport, tmp_path: Path) -> None:
    dicom_sc.write(export, tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == 7
    factor = 16  # the smallest that makes 33 columns 512 or more
    for number, file in enumerate(files):
        pixels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))
        pixels = pixels.reshape(pixels.shape[-3:])[: 21 * factor]
        for label in export.label_map.labels:
            mask = label.index == export.labels[:, :, number].T
            coloured = (pixels == label.colour).all(axis=-1).reshape(21, factor, 33, factor)
            touched = coloured.any(axis=(1, 3))
            inner = np.zeros_like(mask)
            inner[1:-1, 1:-1] = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
            assert (touched == (mask & ~inner)).all()
