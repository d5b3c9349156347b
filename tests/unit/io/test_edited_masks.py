"""Masks as viewers save them: right place, right label, or refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from object_sets import BOXES, SHAPE, picture_of, save, squares, write_geojson, write_rois

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry, reorient
from unet_med.io.cases import Case
from unet_med.io.discover import discover
from unet_med.io.edited_masks import on_grid, read_edited

AFFINE = np.array([[0, -0.8, 0, 50], [0.9, 0, 0, -20], [0, 0, 2.5, 7], [0, 0, 0, 1.0]])
NAMES = {"background": 0, "left lung": 1, "liver": 2}
SIZE = (9, 8, 7)


def truth() -> np.ndarray:
    """Two labels that fill neither the first nor the last plane of any axis."""
    labels = np.zeros(SIZE, np.uint8)
    labels[2:5, 1:4, 1:5], labels[5:8, 3:7, 2:6] = 1, 2
    return labels


@pytest.fixture
def case(tmp_path: Path) -> Case:
    path = tmp_path / "images" / "c.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=SIZE).astype(np.float32), AFFINE), path)
    return Case("c", discover(path).usable)


def slicer(
    path: Path,
    layers: np.ndarray,
    segments: Sequence[tuple[str, int, int]],
    geometry: Geometry | None = None,
) -> Path:
    """Writes (I, J, K), or (layer, I, J, K), as 3D Slicer does: segments are (name, value, layer)."""
    place = geometry or Geometry(SIZE, AFFINE)
    lps = place.to_lps()
    several = layers.ndim == 4
    directions = lps[:3, :3].T
    header = {
        "space": "left-posterior-superior",
        "space directions": np.vstack([np.full(3, np.nan), directions]) if several else directions,
        "kinds": (["list"] if several else []) + ["domain"] * 3,
        "space origin": lps[:3, 3],
        "encoding": "gzip",
    }
    for number, (name, value, layer) in enumerate(segments):
        keys = {"ID": f"Segment_{number + 1}", "Name": name, "LabelValue": str(value), "Layer": str(layer)}
        header |= {f"Segment{number}_{key}": text for key, text in keys.items()}
    nrrd.write(str(path), layers, header)
    return path


# ---- 3D Slicer ------------------------------------------------------------------------------------------------------


def test_segments_count_by_their_names(case: Case, tmp_path: Path) -> None:
    """Slicer numbers segments anew when it saves: here the liver comes first."""
    stored = np.array([0, 2, 1], np.uint8)[truth()]
    path = slicer(tmp_path / "c.seg.nrrd", stored, [("Liver", 1, 0), ("left_lung", 2, 0)])
    mask = read_edited(path, case, NAMES)
    np.testing.assert_array_equal(mask.labels, truth())
    assert (mask.format, mask.classes) == ("seg-nrrd", None)


def test_what_was_cut_to_the_labels_goes_back_to_its_place(case: Case, tmp_path: Path) -> None:
    box = (slice(2, 8), slice(1, 7), slice(1, 6))
    turn = (2, 0, 1), (True, False, True)
    place = Geometry(SIZE, AFFINE).crop(box).reoriented(*turn)
    stored = np.ascontiguousarray(reorient(truth()[box], *turn))
    path = slicer(tmp_path / "c.seg.nrrd", stored, [("left lung", 1, 0), ("liver", 2, 0)], place)
    np.testing.assert_array_equal(read_edited(path, case, NAMES).labels, truth())


def test_segments_in_layers(case: Case, tmp_path: Path) -> None:
    layers = np.stack([truth() == 1, truth() == 2]).astype(np.uint8)
    path = slicer(tmp_path / "c.seg.nrrd", layers, [("left lung", 1, 0), ("liver", 1, 1)])
    np.testing.assert_array_equal(read_edited(path, case, NAMES).labels, truth())
    layers[1][truth() == 1] = 1
    slicer(path, layers, [("left lung", 1, 0), ("liver", 1, 1)])
    with pytest.raises(InputRefusedError, match=f"overlap in {np.count_nonzero(truth() == 1)} voxels"):
        read_edited(path, case, NAMES)


def test_a_segment_that_is_no_label_is_refused_unless_it_is_empty(case: Case, tmp_path: Path) -> None:
    named = [("left lung", 1, 0), ("liver", 2, 0), ("couch", 3, 0)]
    path = slicer(tmp_path / "c.seg.nrrd", truth(), named)
    np.testing.assert_array_equal(read_edited(path, case, NAMES).labels, truth())
    slicer(path, np.where(truth() == 2, 3, truth()).astype(np.uint8), named)
    with pytest.raises(InputRefusedError, match=r"called 'couch'.*left lung, liver"):
        read_edited(path, case, NAMES)
    slicer(path, truth(), named[:1])
    with pytest.raises(InputRefusedError, match="segment 2 has no name"):
        read_edited(path, case, NAMES)


# ---- place ----------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    st.permutations(range(3)),
    st.tuples(*[st.booleans()] * 3),
    st.tuples(*[st.integers(-3, 2)] * 3),
    st.tuples(*[st.integers(0, 3)] * 3),
    st.floats(-0.04, 0.04),
)
def test_any_turn_and_shift_by_whole_voxels_is_undone(
    order: list[int], flips: tuple[bool, ...], low: tuple[int, ...], more: tuple[int, ...], off: float
) -> None:
    """The mask's grid begins ``low`` voxels from the image's and ends ``more`` voxels behind it."""
    reference = Geometry(SIZE, AFFINE)
    labels = np.random.default_rng(0).integers(0, 5, SIZE)
    affine = AFFINE.copy()
    affine[:3, 3] = reference.to_world(np.array(low) + off)
    own = Geometry(tuple(n - a + b for n, a, b in zip(SIZE, low, more, strict=True)), affine)
    values = np.zeros(own.shape, labels.dtype)
    expected = np.zeros_like(labels)
    kept = tuple(slice(max(a, 0), None) for a in low)
    expected[kept] = labels[kept]
    start = [max(-a, 0) for a in low]
    values[tuple(slice(a, a + n) for a, n in zip(start, labels[kept].shape, strict=True))] = labels[kept]
    turn = tuple(order), flips
    found = on_grid(np.ascontiguousarray(reorient(values, *turn)), own.reoriented(*turn), reference, "c")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"shift": 0.5}, "between the voxels"),
        ({"scale": 1.1}, "between the voxels"),
        ({"shift": 4.0}, "labelled voxels outside"),
        ({"turn": 30.0}, "between the voxels"),
    ],
)
def test_other_places_are_refused(change: dict[str, float], why: str) -> None:
    affine = AFFINE.copy()
    affine[:3, 3] += change.get("shift", 0.0) * AFFINE[:3, 0]
    affine[:3, :3] *= change.get("scale", 1.0)
    angle = np.deg2rad(change.get("turn", 0.0))
    around = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = around @ affine[:3, :3]
    with pytest.raises(InputRefusedError, match=why):
        on_grid(truth(), Geometry(SIZE, affine), Geometry(SIZE, AFFINE), "c")


# ---- label images ---------------------------------------------------------------------------------------------------


def test_a_label_image_keeps_its_values(case: Case, tmp_path: Path) -> None:
    """ITK-SNAP writes by ITK, here with the axes the other way round."""
    place = Geometry(SIZE, AFFINE).reoriented((1, 0, 2), (True, False, False))
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(reorient(truth(), (1, 0, 2), (True, False, False))).T)
    lps = place.to_lps()
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    SimpleITK.WriteImage(image, str(tmp_path / "c.nii.gz"))
    mask = read_edited(tmp_path / "c.nii.gz", case, NAMES)
    np.testing.assert_array_equal(mask.labels, truth())
    assert mask.format == "nifti"
    with pytest.raises(InputRefusedError, match=r"holds \[2\], which is no label"):
        read_edited(tmp_path / "c.nii.gz", case, {"background": 0, "left lung": 1})
    partly = read_edited(tmp_path / "c.nii.gz", replace(case, unlabelled=2), {"background": 0, "left lung": 1})
    np.testing.assert_array_equal(partly.labels, truth(), "the value of what nobody labelled stays")


def test_a_stack_of_napari_is_a_volume(case: Case, tmp_path: Path) -> None:
    """napari writes the planes of a volume without saying what they are."""
    tifffile.imwrite(tmp_path / "c.tif", np.ascontiguousarray(truth().T), photometric="minisblack")
    mask = read_edited(tmp_path / "c.tif", case, NAMES)
    np.testing.assert_array_equal(mask.labels, truth())
    assert mask.format == "tiff"


def test_a_damaged_mask_is_refused(case: Case, tmp_path: Path) -> None:
    (tmp_path / "c.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputRefusedError, match="cannot be used"):
        read_edited(tmp_path / "c.nii.gz", case, NAMES)


# ---- pictures and outlines ------------------------------------------------------------------------------------------


@pytest.fixture
def picture(tmp_path: Path) -> Case:
    return Case("p", discover(save(tmp_path / "images/p.tif", picture_of(squares()))).usable)


def test_outlines_are_labels_by_their_classes(picture: Case, tmp_path: Path) -> None:
    path = write_geojson(tmp_path / "p.geojson", BOXES, {1: "liver", 2: "Left_Lung", 3: "liver"})
    expected = np.array([0, 2, 1, 2])[squares()].T
    mask = read_edited(path, picture, NAMES)
    np.testing.assert_array_equal(mask.labels, expected)
    assert mask.format == "geojson"
    write_geojson(path, BOXES, {1: "liver", 2: "spleen", 3: "liver"})
    with pytest.raises(InputRefusedError, match=r"class 'spleen'.*left lung, liver"):
        read_edited(path, picture, NAMES)
    write_geojson(path, BOXES)
    with pytest.raises(InputRefusedError, match="no class"):
        read_edited(path, picture, NAMES)
    only = read_edited(path, picture, {"background": 0, "cell": 1})
    np.testing.assert_array_equal(only.labels, squares().T > 0)


def test_outlines_are_objects_where_the_set_has_such(picture: Case, tmp_path: Path) -> None:
    objects = replace(picture, instances=True)
    path = write_geojson(tmp_path / "p.geojson", BOXES, {1: "liver", 2: "left lung", 3: "liver"})
    mask = read_edited(path, objects, NAMES)
    np.testing.assert_array_equal(mask.labels, squares().T)
    assert mask.classes == {1: 2, 2: 1, 3: 2}
    plain = read_edited(write_rois(tmp_path / "p.zip", BOXES), objects, NAMES)
    np.testing.assert_array_equal(plain.labels, squares().T)
    assert (plain.classes, plain.format) == (None, "imagej-roi")
    save(tmp_path / "p.tif", squares() * 7)
    np.testing.assert_array_equal(read_edited(tmp_path / "p.tif", objects, NAMES).labels, squares().T * 7)


def test_overlapping_outlines_are_told(picture: Case, tmp_path: Path) -> None:
    path = write_geojson(tmp_path / "p.geojson", {1: (2, 3, 12, 13), 2: (5, 5, 8, 8)}, {1: "liver", 2: "left lung"})
    mask = read_edited(path, picture, NAMES)
    assert mask.labels[6, 6] == 1, "the smaller one is seen"
    assert any("overlap in 9 voxels" in note for note in mask.notes)


def test_a_mask_of_another_size_is_refused(picture: Case, tmp_path: Path) -> None:
    save(tmp_path / "p.tif", squares(shape=(SHAPE[0] + 1, SHAPE[1])))
    with pytest.raises(InputRefusedError, match="has the shape"):
        read_edited(tmp_path / "p.tif", replace(picture, instances=True), NAMES)


def test_pages_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "movie.tif"
    tifffile.imwrite(path, np.zeros((3, 8, 8), np.uint8), metadata={"axes": "TYX"}, imagej=True)
    (tmp_path / "m.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": []}), encoding="utf-8")
    with pytest.raises(InputRefusedError, match="several pages"):
        read_edited(tmp_path / "m.geojson", Case("m", discover(path).usable), NAMES)
