"""Slicer's segmentation files: what they say, and that other readers find the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.io.discover import open_source
from unet_med.io.export import seg_nrrd
from unet_med.io.export.mask import MaskExport
from unet_med.io.itk import inspect_itk
from unet_med.labels import Code, Label, LabelCode, LabelMap
from unet_med.volume import ArraySource, Volume

LIVER = LabelCode(Code("SCT", "91723000", "Anatomical Structure"), Code("SCT", "10200004", "Liver"))
KIDNEY = LabelCode(
    Code("SCT", "91723000", "Anatomical Structure"),
    Code("SCT", "64033007", "Kidney"),
    Code("SCT", "7771000", "Left"),
)
LABELS = LabelMap(
    (
        Label(1, "liver", (221, 130, 101), LIVER),
        Label(2, "left kidney \u00b5", (185, 102, 83), KIDNEY),
        Label(3, "thing", (0, 0, 255)),
        Label(4, "absent", (1, 2, 3)),
    )
)


def _affine() -> np.ndarray:
    rotation, _ = np.linalg.qr(np.array([[0.9, 0.3, 0.1], [-0.3, 0.9, -0.2], [-0.1, 0.2, 0.95]]))
    affine = np.eye(4)
    affine[:3, :3] = rotation * (-0.7, 1.3, 2.5)
    affine[:3, 3] = (101.25, -33.5, 7.125)
    return affine


def _export(dtype: str = "uint8") -> MaskExport:
    labels = np.zeros((9, 7, 5), dtype)
    labels[1:4, 2:5, 1:3] = 1
    labels[6:8, 1:3, 2:5] = 2
    labels[8, 6, 0] = 3
    geometry = Geometry(labels.shape, _affine())
    source = ArraySource("case", Volume(np.zeros((1, *labels.shape), np.float32), geometry))
    provenance = {"model_sha256": ["a" * 64], "input_sha256": "b" * 64}
    return MaskExport(source, labels, LABELS, provenance)


def test_the_header_is_what_slicer_reads(tmp_path: Path) -> None:
    path = tmp_path / "case.seg.nrrd"
    seg_nrrd.write(_export(), path)
    header = path.read_bytes().split(b"\n\n")[0].decode("utf-8").split("\n")
    assert header[0] == "NRRD0004"
    fields = dict(line.split(": ", 1) for line in header if ": " in line and not line.startswith("#"))
    assert fields["type"] == "unsigned char"
    assert fields["space"] == "left-posterior-superior"
    assert fields["sizes"] == "9 7 5"
    assert fields["encoding"] == "gzip"
    keys = dict(line.split(":=", 1) for line in header if ":=" in line)
    assert keys["Segmentation_ContainedRepresentationNames"] == "Binary labelmap|"
    assert keys["Segmentation_ReferenceImageExtentOffset"] == "0 0 0"
    assert keys["Segment0_ID"] == "Segment_1"
    assert keys["Segment0_Name"] == "liver"
    assert keys["Segment0_LabelValue"] == "1"
    assert keys["Segment0_Layer"] == "0"
    assert keys["Segment0_Extent"] == "1 3 2 4 1 2"
    assert keys["Segment1_Extent"] == "6 7 1 2 2 4"
    assert keys["Segment3_Extent"] == "0 -1 0 -1 0 -1"
    assert [float(v) for v in keys["Segment0_Color"].split()] == pytest.approx([221 / 255, 130 / 255, 101 / 255], 1e-5)
    assert "~SCT^91723000^Anatomical Structure~SCT^64033007^Kidney~SCT^7771000^Left~" in keys["Segment1_Tags"]
    assert "TerminologyEntry" not in keys["Segment2_Tags"]
    assert keys["unet_med_use"] == "Research use only"
    assert keys["unet_med_model_sha256"] == "a" * 64


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_simpleitk_finds_the_mask(tmp_path: Path, dtype: str) -> None:
    export = _export(dtype)
    path = tmp_path / "case.seg.nrrd"
    seg_nrrd.write(export, path)
    image = SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image).T, export.labels)
    lps = np.array(image.TransformIndexToPhysicalPoint((8, 6, 0)))
    np.testing.assert_allclose(lps * (-1, -1, 1), export.geometry.to_world((8, 6, 0)), atol=1e-9)
    record = seg_nrrd.check(path, export)
    assert record["passed"]
    assert record["labels"] == 3
    assert record["reader"] == "SimpleITK"


def test_pynrrd_finds_the_mask(tmp_path: Path) -> None:
    nrrd = pytest.importorskip("nrrd")
    export = _export()
    path = tmp_path / "case.seg.nrrd"
    seg_nrrd.write(export, path)
    values, header = nrrd.read(str(path))
    np.testing.assert_array_equal(values, export.labels)
    affine = np.eye(4)
    affine[:3, :3] = np.array(header["space directions"]).T
    affine[:3, 3] = header["space origin"]
    np.testing.assert_allclose(affine, export.geometry.to_lps(), atol=1e-12)
    assert header["Segment0_Name"] == "liver"


def test_our_own_reader_finds_the_mask(tmp_path: Path) -> None:
    export = _export()
    path = tmp_path / "case.seg.nrrd"
    seg_nrrd.write(export, path)
    (ref,) = inspect_itk(path)
    assert ref.usable
    assert ref.geometry is not None
    assert ref.geometry.same_grid(export.geometry)
    np.testing.assert_array_equal(open_source(ref).read().array[0], export.labels)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"Segment0_Name:=liver", b"Segment0_Name:=laver", "name of label liver"),
        (b"Segment0_LabelValue:=1", b"Segment0_LabelValue:=2", "labelvalue of label liver"),
        (b"space origin: (-101", b"space origin: (-102", "read back"),
        (b"left-posterior-superior", b"right-anterior-superior", "does not lie"),
    ],
)
def test_a_wrong_file_fails(tmp_path: Path, old: bytes, new: bytes, reason: str) -> None:
    export = _export()
    path = tmp_path / "case.seg.nrrd"
    seg_nrrd.write(export, path)
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    with pytest.raises(InputRefusedError, match=reason):
        seg_nrrd.check(path, export)
