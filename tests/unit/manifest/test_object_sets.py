"""Manifests of sets of objects, whatever their truth is stored in; what is read must be what was drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from object_sets import (
    BOXES,
    SHAPE,
    picture_of,
    save,
    squares,
    write_bowl,
    write_coco,
    write_geojson,
    write_image,
    write_masks,
    write_rois,
)

from unet_med.errors import InputRefusedError, UsageError
from unet_med.io.cases import COLOURS_OR_GREYS
from unet_med.io.discover import discover
from unet_med.manifest import BuildOptions, BuildReport, Manifest, build_manifest, load_manifest, save_manifest, verify
from unet_med.workflows.manifest import make_manifest

OBJECTS = squares()


def report_of(folder: Path, **options: object) -> BuildReport:
    return build_manifest(folder, discover(folder), BuildOptions(**options), "set")  # type: ignore[arg-type]


def loaded(folder: Path, path: Path, **options: object) -> Manifest:
    """The manifest as it is read from disk again."""
    save_manifest(report_of(folder, **options).manifest, path)
    manifest = load_manifest(path)
    for case in manifest.training:
        verify(case)
    return manifest


def labels(manifest: Manifest) -> dict[str, np.ndarray]:
    """Labels (rows, columns) of the training cases."""
    return {case.id: case.case.read_label().T for case in manifest.training}


def only(manifest: Manifest) -> np.ndarray:
    (label,) = labels(manifest).values()
    return label


# ---- a mask for each object -----------------------------------------------------------------------------------------


def test_one_mask_for_each_object(tmp_path: Path) -> None:
    one = squares({1: BOXES[1]})
    folder = write_bowl(tmp_path / "bowl", {"a": OBJECTS, "b": one})
    save(folder / "c/images/c.png", picture_of(OBJECTS, 5))
    report = report_of(folder)
    assert "pictures with one mask file for each object: 2" in report.notes
    assert "objects: 4 in 2 images, 1 to 3 in each" in report.notes
    manifest = loaded(folder, tmp_path / "m.json")
    assert (manifest.task, manifest.labels) == ("instance", {"background": 0, "object": 1})
    found = labels(manifest)
    np.testing.assert_array_equal(found["a"], OBJECTS)
    np.testing.assert_array_equal(found["b"], one)
    assert [case.id for case in manifest.test] == ["c"]


def test_folders_of_masks_beside_other_labels(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for name in ("a", "b"):
        write_image(folder, name, OBJECTS, seed=ord(name))
    write_masks(folder / "masks/a", OBJECTS)
    save(folder / "masks/b.tif", OBJECTS)
    found = labels(loaded(folder, tmp_path / "m.json", task="instance"))
    np.testing.assert_array_equal(found["a"], OBJECTS)
    np.testing.assert_array_equal(found["b"], OBJECTS)


def test_where_masks_overlap_the_smaller_object_is_seen(tmp_path: Path) -> None:
    folder = write_bowl(tmp_path / "bowl", {"a": OBJECTS})
    save(folder / "a/masks/a_large.png", np.full(SHAPE, 255, np.uint8))
    found = only(loaded(folder, tmp_path / "m.json"))
    np.testing.assert_array_equal(found, np.where(OBJECTS > 0, OBJECTS + 1, 1))


def test_a_mask_that_changes_is_noticed(tmp_path: Path) -> None:
    folder = write_bowl(tmp_path / "bowl", {"a": OBJECTS})
    manifest = loaded(folder, tmp_path / "m.json")
    save(folder / "a/masks/object009.png", np.uint8(255) * (squares({1: (20, 20, 23, 23)}) > 0))
    with pytest.raises(InputRefusedError, match="its sha256 differs"):
        verify(load_manifest(tmp_path / "m.json").training[0])
    assert manifest.training[0].case.label is not None


@pytest.mark.parametrize(
    ("mask", "what"),
    [
        (np.full((5, 5), 255, np.uint8), "another shape"),
        (np.arange(SHAPE[0] * SHAPE[1], dtype=np.uint16).reshape(SHAPE).astype(np.uint8), "256 different values"),
    ],
)
def test_masks_that_are_none_are_findings(tmp_path: Path, mask: np.ndarray, what: str) -> None:
    folder = write_bowl(tmp_path / "bowl", {"a": OBJECTS})
    save(folder / "a/masks/odd.png", mask)
    (finding,) = report_of(folder).manifest.findings
    assert finding.severity == "error"
    assert what in finding.what


# ---- outlines -------------------------------------------------------------------------------------------------------


def test_outlines_of_every_tool_are_the_same_objects(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for number, name in enumerate(("q", "j", "k")):
        write_image(folder, name, OBJECTS, seed=number)
    write_geojson(folder / "labels/q.geojson", BOXES)
    write_rois(folder / "j_rois.zip", BOXES)
    write_coco(folder / "annotations.json", {"k.tif": BOXES, "elsewhere.tif": BOXES})
    manifest = loaded(folder, tmp_path / "m.json", label_names="1=odd,2=even,3=unclassified")
    found = labels(manifest)
    assert sorted(found) == ["j", "k", "q"]
    for label in found.values():
        np.testing.assert_array_equal(label, OBJECTS)
    classes = {case.id: case.case.classes for case in manifest.training}
    assert classes["k"] == {1: 1, 2: 2, 3: 1}
    assert manifest.labels == {"background": 0, "odd": 1, "even": 2, "unclassified": 3}


def test_outlines_that_are_used_are_not_told_as_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for number, name in enumerate("qj"):
        write_image(folder, name, OBJECTS, seed=number)
    write_geojson(folder / "labels/q.geojson", BOXES)
    write_rois(folder / "labels/j.zip", BOXES)
    (folder / "notes.zip").write_bytes(b"PK")
    outcome = make_manifest(folder, tmp_path / "m.json")
    assert outcome.exit_code == 0
    assert [line for line in outcome.lines if line.startswith("skipped")] == [
        "skipped: 1 .zip files, are archives: unpack them"
    ]
    assert "pictures with outlines of ImageJ: 1" in outcome.lines


def test_classes_of_outlines_are_classes_of_objects(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_image(folder, "q", OBJECTS)
    write_geojson(folder / "images/q.geojson", BOXES, {1: "tumour", 2: "immune", 3: "tumour"})
    manifest = loaded(folder, tmp_path / "m.json")
    assert (manifest.task, manifest.labels) == ("instance", {"background": 0, "immune": 1, "tumour": 2})
    (case,) = manifest.training
    np.testing.assert_array_equal(case.case.classes_of(case.case.read_label()).T, np.array([0, 2, 1, 2])[OBJECTS])
    assert case.sha256["classes"] != loaded_digest(folder, {1: "immune", 2: "immune", 3: "tumour"}, tmp_path)


def loaded_digest(folder: Path, kinds: dict[int, str], place: Path) -> str:
    write_geojson(folder / "images/q.geojson", BOXES, kinds)
    return loaded(folder, place / "other.json").training[0].sha256["classes"]


def test_a_label_image_goes_before_outlines(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_image(folder, "a", OBJECTS)
    save(folder / "labels/a.tif", OBJECTS)
    write_geojson(folder / "labels/a.geojson", {1: BOXES[1]})
    np.testing.assert_array_equal(only(loaded(folder, tmp_path / "m.json", task="instance")), OBJECTS)


def test_two_files_of_outlines_for_one_picture_are_not_guessed(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for number, name in enumerate("ab"):
        write_image(folder, name, OBJECTS, seed=number)
        write_geojson(folder / f"first/{name}.geojson", BOXES)
    write_geojson(folder / "second/a.geojson", {1: BOXES[1]})
    report = report_of(folder)
    assert [case.id for case in report.manifest.training] == ["b"]
    assert any("2 files of outlines" in reason for _, reason in report.left_over)
    np.testing.assert_array_equal(labels(loaded(folder, tmp_path / "m.json", labels="first/*"))["a"], OBJECTS)


def test_objects_are_no_kinds_of_tissue(tmp_path: Path) -> None:
    folder = write_bowl(tmp_path / "bowl", {"a": OBJECTS})
    with pytest.raises(UsageError, match="single objects"):
        report_of(folder, task="semantic")


# ---- what nobody labelled -------------------------------------------------------------------------------------------


def test_regions_of_qupath_say_where_somebody_labelled(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_image(folder, "q", OBJECTS)
    drawn = {**BOXES, 8: (0, 0, 14, 24), 9: (0, 12, 3, 24)}
    write_geojson(folder / "q.geojson", drawn, {8: "Region*", 9: "Ignore*"})
    manifest = loaded(folder, tmp_path / "m.json")
    expected = OBJECTS.astype(int)
    outside = np.ones(SHAPE, bool)
    outside[:14, :24] = False
    outside[:3, 12:24] = True
    expected[outside & (OBJECTS == 0)] = 65535
    np.testing.assert_array_equal(only(manifest), expected)
    assert (manifest.ignore_label, manifest.labels) == (65535, {"background": 0, "object": 1})
    assert manifest.training[0].case.classes is None


def test_crowds_are_left_out_of_learning(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_image(folder, "k", OBJECTS)
    write_coco(folder / "annotations.json", {"k.tif": BOXES}, crowds=1)
    label = only(loaded(folder, tmp_path / "m.json"))
    np.testing.assert_array_equal(label, np.where(OBJECTS == 3, 65535, OBJECTS))


def test_a_picture_of_where_somebody_labelled(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for number, name in enumerate("ab"):
        write_image(folder, name, OBJECTS, seed=number)
        save(folder / f"labels/{name}.tif", OBJECTS)
    region = np.zeros(SHAPE, np.uint8)
    region[:10] = 255
    save(folder / "annotated/a.tif", region)
    manifest = loaded(folder, tmp_path / "m.json", task="instance")
    found = labels(manifest)
    np.testing.assert_array_equal(found["a"], np.where(region > 0, OBJECTS, 65535))
    np.testing.assert_array_equal(found["b"], OBJECTS)
    assert manifest.ignore_label == 65535
    save(folder / "annotated/a.tif", 255 - region)
    with pytest.raises(InputRefusedError, match="the annotated is not the one"):
        verify(load_manifest(tmp_path / "m.json").training[0])


def test_a_value_that_says_nobody_labelled(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    sparse = OBJECTS.copy()
    sparse[12:] = 999
    for number, name in enumerate("ab"):
        write_image(folder, name, OBJECTS, seed=number)
        save(folder / f"labels/{name}.tif", sparse)
    manifest = loaded(folder, tmp_path / "m.json", task="instance", ignore_label=999)
    (case, _) = manifest.training
    assert (manifest.ignore_label, manifest.labels) == (999, {"background": 0, "object": 1})
    notes = report_of(folder, task="instance", ignore_label=999).notes
    assert "objects: 6 in 2 images, 3 to 3 in each" in notes
    np.testing.assert_array_equal(
        case.case.classes_of(case.case.read_label()).T, np.where(sparse == 999, 999, sparse > 0)
    )


# ---- classes, colours, groups ---------------------------------------------------------------------------------------


def test_a_table_gives_label_images_their_classes(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for number, name in enumerate("ab"):
        write_image(folder, name, OBJECTS, seed=number)
        save(folder / f"labels/{name}.tif", OBJECTS)
    rows = [f"{name}.tif,{number},{kind}" for name in "ab" for number, kind in ((1, "live"), (2, "dead"), (3, "live"))]
    (tmp_path / "classes.csv").write_text("\n".join(["image,object,class", *rows, "z,1,live"]), encoding="utf-8")
    report = report_of(folder, classes=tmp_path / "classes.csv")
    assert "1 cases of the table of classes are not in the set, the first is z" in report.notes
    manifest = loaded(folder, tmp_path / "m.json", classes=tmp_path / "classes.csv")
    assert (manifest.task, manifest.labels) == ("instance", {"background": 0, "dead": 1, "live": 2})
    assert manifest.training[0].case.classes == {1: 2, 2: 1, 3: 2}


def test_grey_pictures_among_colour_ones(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for number, name in enumerate("abc"):
        grey = picture_of(OBJECTS, number)
        save(folder / f"images/{name}.tif", grey if name == "a" else np.stack([grey, grey // 2, grey // 3], axis=-1))
        save(folder / f"labels/{name}.tif", OBJECTS)
    report = report_of(folder, task="instance")
    assert "1 grey pictures among 2 in colour: each grey one is read as three equal channels" in report.notes
    manifest = loaded(folder, tmp_path / "m.json", task="instance")
    assert manifest.channels == COLOURS_OR_GREYS
    for case in manifest.training:
        assert case.case.read().channels == case.case.channels == 3
    a, b = (case.case.read().array for case in manifest.training[:2])
    np.testing.assert_array_equal(a[0], a[2])
    assert not np.array_equal(b[0], b[2])


def test_tiles_of_one_field_stay_together(tmp_path: Path) -> None:
    folder = write_bowl(tmp_path / "bowl", {f"t{n}": OBJECTS for n in range(6)})
    rows = [f"t{n},fluorescence,30,24,g{n // 2}" for n in range(6)]
    (tmp_path / "index.csv").write_text("\n".join(["name,kind,width,height,group", *rows]), encoding="utf-8")
    manifest = loaded(folder, tmp_path / "m.json", group_by=str(tmp_path / "index.csv"), folds=3)
    folds = {case.id: case.fold for case in manifest.training}
    assert [folds[f"t{n}"] == folds[f"t{n + 1}"] for n in (0, 2, 4)] == [True] * 3
    assert len(set(folds.values())) == 3


# ---- stacks ---------------------------------------------------------------------------------------------------------


def stack_of(folder: Path, axes: str) -> None:
    """A stack of three planes, and the first and last object drawn on two of them."""
    pictures = np.stack([picture_of(OBJECTS, seed) for seed in range(3)])
    (folder / "images").mkdir(parents=True)
    tifffile.imwrite(folder / "images/s.ome.tif", pictures, ome=True, photometric="minisblack", metadata={"axes": axes})
    path = write_geojson(folder / "labels/s.geojson", {1: BOXES[1], 3: BOXES[3]})
    content = json.loads(path.read_text(encoding="utf-8"))
    for feature, plane in zip(content["features"], (0, 2), strict=True):
        feature["geometry"]["plane"] = {
            "c": -1,
            "z": plane if axes[0] == "Z" else 0,
            "t": plane if axes[0] == "T" else 0,
        }
    path.write_text(json.dumps(content), encoding="utf-8")


def test_outlines_lie_on_their_plane_of_a_volume(tmp_path: Path) -> None:
    stack_of(tmp_path / "set", "ZYX")
    label = only(loaded(tmp_path / "set", tmp_path / "m.json"))  # (planes, rows, columns)
    expected = np.zeros((3, *SHAPE), int)
    expected[0][OBJECTS == 1], expected[2][OBJECTS == 3] = 1, 2
    np.testing.assert_array_equal(label, expected)


def test_outlines_belong_to_their_moment_of_a_movie(tmp_path: Path) -> None:
    stack_of(tmp_path / "set", "TYX")
    found = labels(loaded(tmp_path / "set", tmp_path / "m.json"))
    assert sorted(found) == ["s_p000", "s_p001", "s_p002"]
    np.testing.assert_array_equal(found["s_p000"], OBJECTS == 1)
    np.testing.assert_array_equal(found["s_p001"], np.zeros(SHAPE))
    np.testing.assert_array_equal(found["s_p002"], OBJECTS == 3)
