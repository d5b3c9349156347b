"""The geometry stamp passes every way to store the same mask, and none that stores another."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest

from unet_med.errors import InputRefusedError, UsageError
from unet_med.geometry import Geometry, reorient
from unet_med.io.export.formats import FORMATS, parse_formats
from unet_med.io.export.mask import ExportOptions, MaskExport, ReadBack
from unet_med.io.export.stamp import stamp
from unet_med.labels import LabelMap
from unet_med.volume import ArraySource, Volume

LABELS = LabelMap.from_names({"background": 0, "left": 1, "right": 2, "middle": 3})
SHAPE = (14, 14, 12)


def _oblique(spacing: tuple[float, float, float] = (0.7, 1.1, 2.5)) -> np.ndarray:
    rotation, _ = np.linalg.qr(np.array([[0.95, 0.2, 0.1], [-0.15, 0.9, -0.3], [-0.1, 0.3, 0.95]]))
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.sign(np.diag(rotation)) * spacing
    affine[:3, 3] = (-30.0, 12.0, 55.0)
    return affine


def _labels() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:5, 3:6, 2:5] = 1
    labels[9:13, 4:6, 3:5] = 2
    labels[6:8, 8:12, 6:10] = 3
    labels[6, 8, 6] = 0
    return labels


def _export(labels: np.ndarray | None = None, affine: np.ndarray | None = None) -> MaskExport:
    labels = _labels() if labels is None else labels
    geometry = Geometry(labels.shape, _oblique() if affine is None else affine)
    source = ArraySource("s001-abc", Volume(np.zeros((1, *geometry.shape), np.float32), geometry))
    return MaskExport(source, labels, LABELS)


def _found(export: MaskExport, *, exact: bool = True) -> ReadBack:
    return ReadBack("a reader", export.labels, export.geometry, exact)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_order_and_direction_of_axes_do_not_matter(order: tuple[int, ...]) -> None:
    export = _export()
    for flips in product((False, True), repeat=3):
        labels = np.ascontiguousarray(reorient(export.labels, order, flips)).astype(np.int32)
        record = stamp(export, ReadBack("a reader", labels, export.geometry.reoriented(order, flips)))
        assert record["passed"]
        assert (record["labels"], record["pairs"], record["voxels"]) == (3, 3, 0)
        assert record["corner_mm"] < 1e-9
        assert record["centroid_mm"] < 1e-9
        assert record["order"] == {"left_right": True, "anterior_posterior": True, "inferior_superior": True}
        assert json.loads(json.dumps(record)) == record


def test_a_part_of_the_grid_is_enough() -> None:
    export = _export()
    region = (slice(1, 13), slice(3, 13), slice(2, 11))
    assert stamp(export, ReadBack("r", export.labels[region], export.geometry.crop(region)))["passed"]
    short = (slice(1, 12), slice(3, 13), slice(2, 11))
    with pytest.raises(InputRefusedError, match="read back"):
        stamp(export, ReadBack("r", export.labels[short], export.geometry.crop(short)))


def _mirrored(axis: int):
    def change(found: ReadBack) -> ReadBack:
        return replace(found, labels=np.flip(found.labels, axis))

    return change


def _world_mirrored(found: ReadBack) -> ReadBack:
    affine = np.array(found.geometry.affine)
    affine[1] *= -1.0  # the mask is the same, its A/P axis is the wrong way round: LPS taken for RAS
    return replace(found, geometry=Geometry(found.geometry.shape, affine))


def _swapped(found: ReadBack) -> ReadBack:
    return replace(found, labels=np.array([0, 2, 1, 3])[found.labels])


def _moved(voxels: float, axis: int):
    def change(found: ReadBack) -> ReadBack:
        affine = np.array(found.geometry.affine)
        affine[:3, 3] += voxels * affine[:3, axis]
        return replace(found, geometry=Geometry(found.geometry.shape, affine))

    return change


def _transposed(found: ReadBack) -> ReadBack:
    return replace(found, labels=found.labels.transpose(1, 0, 2))


def _spacings_swapped(found: ReadBack) -> ReadBack:
    affine = np.array(found.geometry.affine)
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    affine[:3, :3] *= steps[[1, 0, 2]] / steps
    return replace(found, geometry=Geometry(found.geometry.shape, affine))


def _lost(found: ReadBack) -> ReadBack:
    return replace(found, labels=np.where(found.labels == 3, 0, found.labels))


def _invented(found: ReadBack) -> ReadBack:
    labels = found.labels.copy()
    labels[0, 0, 0] = 9
    return replace(found, labels=labels)


SABOTAGE = {
    "mirrored left and right": (_mirrored(0), "does not lie"),
    "mirrored front and back": (_mirrored(1), "does not lie"),
    "mirrored up and down": (_mirrored(2), "does not lie"),
    "LPS for RAS": (_world_mirrored, "does not lie"),
    "labels swapped": (_swapped, "does not lie"),
    "half a voxel off along I": (_moved(0.5, 0), "mm off"),
    "half a voxel off along J": (_moved(-0.5, 1), "mm off"),
    "half a voxel off along K": (_moved(0.5, 2), "mm off"),
    "transposed": (_transposed, "label"),
    "pixel spacings swapped": (_spacings_swapped, "label|grid|spacing"),
    "a label lost": (_lost, "label middle is missing"),
    "a label invented": (_invented, "label 9 is too much"),
}


@pytest.mark.parametrize("exact", [True, False], ids=["voxels", "contours"])
@pytest.mark.parametrize("name", SABOTAGE)
def test_a_wrong_file_fails(name: str, exact: bool) -> None:
    change, reason = SABOTAGE[name]
    export = _export()
    with pytest.raises(InputRefusedError, match=reason) as caught:
        stamp(export, change(_found(export, exact=exact)))
    assert "read back" in caught.value.what
    assert caught.value.remedy


def test_one_wrong_voxel_fails_where_voxels_are_stored() -> None:
    export = _export()
    labels = export.labels.copy()
    labels[6, 8, 6], labels[7, 11, 9] = 3, 0
    labels[7, 8, 6], labels[6, 11, 9] = 0, 0
    with pytest.raises(InputRefusedError):
        stamp(export, ReadBack("r", labels, export.geometry))


def test_two_labels_with_the_same_centroid_and_size_are_told_apart_by_their_voxels() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[3, 3, 3] = labels[9, 9, 9] = 1
    labels[3, 9, 3] = labels[9, 3, 9] = 2
    export = _export(labels)
    wrong = np.array([0, 2, 1], np.uint8)[labels]
    with pytest.raises(InputRefusedError, match="4 voxels differ"):
        stamp(export, ReadBack("r", wrong, export.geometry))


def _ball() -> np.ndarray:
    grid = np.indices((24, 24, 24)) - 11.5
    return ((grid**2).sum(axis=0) < 100).astype(np.uint8)


def test_contours_may_lose_a_little_and_no_more() -> None:
    export = _export(_ball(), np.eye(4))
    labels = export.labels.copy()
    inside = np.argwhere(labels == 1)
    lost = inside[:: len(inside) // 40]
    labels[tuple(lost.T)] = 0
    record = stamp(export, ReadBack("r", labels, export.geometry, exact=False))
    assert record["dice"] == pytest.approx(2 * labels.sum() / (labels.sum() + export.labels.sum()), abs=1e-5)
    assert record["volume_ml"] == pytest.approx(len(lost) / 1000)
    labels[tuple(inside[::16].T)] = 0
    outside = np.argwhere(labels == 0)
    labels[tuple(outside[:: len(outside) // 200].T)] = 1
    with pytest.raises(InputRefusedError, match="Dice"):
        stamp(export, ReadBack("r", labels, export.geometry, exact=False))
    assert stamp(export, ReadBack("r", labels, export.geometry, exact=False), dice=0.9)["passed"]


def test_a_single_voxel_of_a_contour_may_differ() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:6, 4:8, 4:6] = 1
    export = _export(labels)
    less = labels.copy()
    less[4, 4, 4] = 0
    assert stamp(export, ReadBack("r", less, export.geometry, exact=False))["dice"] < 0.98


def test_an_empty_mask_is_a_mask() -> None:
    export = _export(np.zeros(SHAPE, np.uint8))
    for exact in (True, False):
        record = stamp(export, _found(export, exact=exact))
        assert (record["passed"], record["labels"], record["pairs"]) == (True, 0, 0)


def test_formats_are_known_by_many_names() -> None:
    pictures = ["nifti", "label-tiff", "ome-zarr", "geojson", "imagej-roi", "coco"]
    assert list(FORMATS) == [*pictures, "seg-nrrd", "dicom-seg", "rtstruct", "dicom-sr", "dicom-sc"]
    assert [name for name, one in FORMATS.items() if not one.needs_volume] == pictures
    assert parse_formats([]) == ("nifti",)
    assert parse_formats(["sr,SEG", "nrrd", "seg.nrrd", "nii"]) == ("nifti", "seg-nrrd", "dicom-seg", "dicom-sr")
    assert parse_formats(["dicom_sc"]) == ("dicom-sc",)
    with pytest.raises(UsageError, match="use one of: nifti, label-tiff, ome-zarr") as caught:
        parse_formats(["nifti,analyze"])
    assert "analyze" in caught.value.what
    assert [one.name for one in FORMATS.values() if one.needs_codes] == ["dicom-seg", "dicom-sr"]
    assert not FORMATS["dicom-seg"].needs_probabilities(ExportOptions())
    assert FORMATS["dicom-seg"].needs_probabilities(ExportOptions(seg_type="fractional"))
