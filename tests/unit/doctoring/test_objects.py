"""The label doctor on objects: each planted fault is found where it is, healthy sets have none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from healthy_sets import manifest_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from object_sets import BOXES, picture_of, save, squares, write_bowl, write_geojson, write_image
from PIL import Image
from scipy import ndimage

from unet_med.doctoring import examine, quick_findings
from unet_med.doctoring.objects import measure_objects
from unet_med.io.cases import Case
from unet_med.overlays import object_colours
from unet_med.phantoms import write_phantoms_2d
from unet_med.workflows.check import check

CASE = "field02"
MORE = {**BOXES, 4: (17, 10, 22, 16), 5: (2, 22, 8, 28)}


def measured(objects: np.ndarray) -> dict[str, object]:
    found = measure_objects(Case("c", ()), objects)
    return {"repeated": found.repeated, "pieces": found.pieces, "holes": found.holes, "voxels": found.voxels.tolist()}


def write_cells(folder: Path, objects: np.ndarray | None = None) -> Path:
    """Four pictures of five objects; the third holds other ones."""
    for number in range(4):
        own = objects if objects is not None and number == 2 else np.roll(squares(MORE), number - 1, axis=1)
        save(folder / f"images/c{number}.tif", picture_of(own, number))
        save(folder / f"labels/c{number}.tif", own)
    return folder


def findings(folder: Path, place: Path, **options: object) -> set[tuple[str, str, str]]:
    """What is found, but for pictures that are alike: here they are meant to be."""
    found = examine(manifest_of(folder, place / "m.json", task="instance", **options))
    return {(one.kind, one.case, one.severity) for one in found if one.kind != "near_duplicate"}


def test_healthy_objects_have_no_fault(tmp_path: Path) -> None:
    assert findings(write_cells(tmp_path / "cells"), tmp_path) == set()


def without(number: int, box: tuple[int, int, int, int]) -> Callable[[np.ndarray], None]:
    def change(objects: np.ndarray) -> None:
        part = objects[box[0] : box[2], box[1] : box[3]]
        part[part == number] = 0

    return change


def with_box(number: int, box: tuple[int, int, int, int]) -> Callable[[np.ndarray], None]:
    def change(objects: np.ndarray) -> None:
        objects[box[0] : box[2], box[1] : box[3]] = number

    return change


def as_mask(objects: np.ndarray) -> None:
    objects[objects > 0] = 1


def with_background(objects: np.ndarray) -> None:
    objects[objects == 0] = 9


FAULTS = {
    "object_pieces": without(1, (4, 3, 5, 9)),
    "object_holes": without(2, (12, 4, 14, 6)),
    "repeated_number": with_box(2, (17, 22, 22, 27)),
    "mask_not_objects": as_mask,
    "huge_object": with_background,
}


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_found_alone(tmp_path: Path, kind: str) -> None:
    objects = squares(MORE)
    FAULTS[kind](objects)
    assert findings(write_cells(tmp_path / "cells", objects), tmp_path) == {(kind, "c2", "warning")}


def test_tiny_objects(tmp_path: Path) -> None:
    large = {1: (1, 1, 12, 14), 2: (13, 2, 23, 13), 3: (2, 16, 22, 28)}
    for number in range(4):
        objects = squares(large)
        if number == 2:
            objects[12, 14] = 7
        objects = np.roll(objects, number - 2, axis=1)
        save(tmp_path / f"cells/images/c{number}.tif", picture_of(objects, number))
        save(tmp_path / f"cells/labels/c{number}.tif", objects)
    assert findings(tmp_path / "cells", tmp_path) == {("tiny_objects", "c2", "warning")}


def test_drawn_objects_that_overlap_or_are_hidden(tmp_path: Path) -> None:
    folder = tmp_path / "drawn"
    for number, boxes in enumerate((MORE, {**MORE, 6: (6, 8, 10, 12)}, {**MORE, 6: MORE[2]})):
        write_image(folder, f"d{number}", squares(MORE), seed=number)
        write_geojson(folder / f"labels/d{number}.geojson", boxes)
    found = findings(folder, tmp_path)
    assert {(kind, case) for kind, case, _ in found} == {
        ("objects_overlap", "d1"),
        ("objects_overlap", "d2"),
        ("objects_hidden", "d2"),
    }


def test_outlines_beside_the_image_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "drawn"
    write_image(folder, "d", squares(MORE))
    write_geojson(folder / "labels/d.geojson", {**MORE, 6: (100, 100, 120, 130)})
    manifest = manifest_of(folder, tmp_path / "m.json")
    (finding,) = examine(manifest)
    assert (finding.kind, finding.severity) == ("objects_left_out", "warning")
    assert "hold no pixel of the picture are left out (1)" in finding.what


def test_the_page_shows_objects_in_their_colours(tmp_path: Path) -> None:
    objects = squares(MORE)
    FAULTS["repeated_number"](objects)
    manifest_of(write_cells(tmp_path / "cells", objects), tmp_path / "m.json", task="instance")
    check(tmp_path / "m.json", html=tmp_path / "page.html", pictures=tmp_path / "pictures")
    assert "given to several objects far apart" in (tmp_path / "page.html").read_text(encoding="utf-8")
    picture = np.asarray(Image.open(tmp_path / "pictures/repeated_number-c2.png")).reshape(-1, 3)
    colours = object_colours([objects])
    assert {colours[number] for number in MORE} <= {tuple(pixel) for pixel in np.unique(picture, axis=0).tolist()}


def test_an_object_that_goes_on_beyond_the_edge_is_one(tmp_path: Path) -> None:
    objects = squares({**MORE, 6: (21, 1, 24, 4)})
    with_box(6, (21, 6, 24, 9))(objects)
    assert findings(write_cells(tmp_path / "cells", objects), tmp_path) == set()


def test_masks_of_the_bowl_have_no_fault(tmp_path: Path) -> None:
    folder = write_bowl(tmp_path / "bowl", {f"b{n}": np.roll(squares(MORE), n - 1, axis=1) for n in range(3)})
    assert findings(folder, tmp_path) == set()


def test_an_object_without_class_stops_a_training(tmp_path: Path) -> None:
    folder = write_cells(tmp_path / "cells")
    rows = [f"c{case},{number},{'ab'[number % 2]}" for case in range(4) for number in MORE if (case, number) != (1, 4)]
    (tmp_path / "classes.csv").write_text("\n".join(["id,object,class", *rows]), encoding="utf-8")
    manifest = manifest_of(folder, tmp_path / "m.json", classes=tmp_path / "classes.csv")
    errors = [(one.kind, one.case) for one in quick_findings(manifest) if one.severity == "error"]
    assert errors == [("class_missing", "c1")]
    named = manifest_of(folder, tmp_path / "n.json", task="instance", label_names="1=a,2=b")
    assert {one.kind for one in quick_findings(named) if one.severity == "error"} == {"classes_unknown"}


# ---- against other ways to compute it -------------------------------------------------------------------------------


def holes_one_by_one(objects: np.ndarray) -> set[int]:
    """Objects around a hole: every face of a component of background leads to this object, none out of the image."""
    padded = np.pad(objects.astype(np.int64), 1, constant_values=-1)
    free, count = ndimage.label(padded == 0)
    around = [set(padded[ndimage.binary_dilation(free == n) & (free != n)].tolist()) for n in range(1, count + 1)]
    return {found.copy().pop() for found in around if len(found) == 1} - {-1}


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=6), elements=st.integers(0, 3)))
def test_holes_are_those_found_one_by_one(objects: np.ndarray) -> None:
    assert set(measured(objects)["holes"]) == holes_one_by_one(objects)  # type: ignore[call-overload]


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint16, array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=6), elements=st.integers(0, 3)))
def test_every_object_is_whole_or_told(objects: np.ndarray) -> None:
    found = measure_objects(Case("c", ()), objects)
    assert found.numbers.tolist() == [number for number in np.unique(objects).tolist() if number]
    assert found.voxels.tolist() == [int((objects == number).sum()) for number in found.numbers]
    near = np.ones((3,) * objects.ndim)
    for number in found.numbers.tolist():
        parts = ndimage.label(objects == number, near)[1]
        told = number in found.pieces or number in found.repeated
        assert not told or parts > 1
        inner = np.pad(np.zeros(tuple(max(0, n - 2) for n in objects.shape), bool), 1, constant_values=True)
        edge = inner[tuple(slice(0, n) for n in objects.shape)] if inner.shape == objects.shape else np.True_
        labelled, count = ndimage.label(objects == number, near)
        cut = all((np.broadcast_to(edge, objects.shape) & (labelled == n)).any() for n in range(1, count + 1))
        assert told or parts == 1 or cut


def test_the_phantom_has_no_fault_of_objects(tmp_path: Path) -> None:
    write_phantoms_2d(tmp_path / "cells", cases=3, unlabelled=0)
    assert findings(tmp_path / "cells", tmp_path) == set()
