"""Outlines of QuPath, ImageJ and COCO files."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import roifile
from pycocotools import mask as coco

from unet_med.errors import InputRefusedError
from unet_med.io.objects.coco import read_coco
from unet_med.io.objects.drawn import DrawnObjects, paint
from unet_med.io.objects.geojson import read_geojson
from unet_med.io.objects.imagej_roi import read_imagej_rois
from unet_med.io.objects.reading import outline_kind, read_outlines

SIZE = (20, 16)
RING = [[2, 3], [6, 3], [6, 8], [2, 8], [2, 3]]
HOLE = [[3, 4], [5, 4], [5, 6], [3, 6], [3, 4]]


def _write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _feature(kind: str, coordinates: Any, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties}


def _areas(found: DrawnObjects) -> list[int]:
    return [one.area for one in found.objects]


# ---- QuPath -------------------------------------------------------------------------------------------------------


def test_features_of_qupath(tmp_path: Path) -> None:
    features = [
        _feature("Polygon", [RING, HOLE], classification={"name": "Tumor", "color": [1, 2, 3]}, name="first"),
        _feature(
            "MultiPolygon", [[RING], [[[10, 10], [12, 10], [12, 11], [10, 11]]]], classification={"names": ["A", "B"]}
        ),
        _feature("Point", [3, 3]),
        _feature("LineString", RING[:2]),
        _feature("Polygon", [[[50, 50], [60, 50], [60, 60], [50, 50]]]),
        _feature("Polygon", [RING], measurements={"label": 12, "confidence": 0.5, "Area": 20.0}),
    ]
    features[0]["geometry"]["plane"] = {"c": -1, "z": 2, "t": 3}
    features[5]["nucleusGeometry"] = features[0]["geometry"]
    found = read_geojson(_write(tmp_path / "a.geojson", {"type": "FeatureCollection", "features": features}), SIZE)
    first, second, last = found.objects
    assert _areas(found) == [20 - 4, 20 + 2, 20]
    assert (first.kind, first.name, first.z, first.t, first.box) == ("Tumor", "first", 2, 3, (slice(2, 6), slice(3, 8)))
    assert (second.kind, second.z, second.number) == ("A: B", None, None)
    assert (last.number, last.confidence, last.kind) == (12, 0.5, "")
    assert found.kinds == ("Tumor", "A: B")
    assert [note.rsplit("(", 1)[1] for note in found.notes] == ["1)", "1)", "2)"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: f,
        lambda f: [f],
        lambda f: f["geometry"],
        lambda f: {"type": "GeometryCollection", "geometries": [f["geometry"]]},
    ],
)
def test_every_way_to_wrap_a_geometry(tmp_path: Path, wrap: Any) -> None:
    path = _write(tmp_path / "a.geojson", wrap(_feature("Polygon", [RING])))
    assert outline_kind(path) == "geojson"
    assert _areas(read_outlines(path, SIZE)) == [20]


# ---- ImageJ -------------------------------------------------------------------------------------------------------


def _roi(**what: Any) -> roifile.ImagejRoi:
    roi = roifile.ImagejRoi.frompoints(what.pop("points", RING[:-1]), name=what.pop("name", "one"))
    for name, value in what.items():
        setattr(roi, name, value)
    return roi


def _zip(path: Path, *rois: roifile.ImagejRoi) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for number, roi in enumerate(rois):
            file.writestr(f"{number}.roi", roi.tobytes())
        file.writestr("__MACOSX/._0.roi", b"nothing of ours")
        file.writestr("readme.txt", "nothing of ours")
    return path


def test_outlines_of_imagej(tmp_path: Path) -> None:
    kinds, box = roifile.ROI_TYPE, {"left": 1, "top": 2, "right": 7, "bottom": 10}
    path = _zip(
        tmp_path / "RoiSet.zip",
        _roi(roitype=kinds.TRACED, props="class: nucleus\nlabel: 4\nconfidence: 0.75\n", z_position=3, t_position=2),
        _roi(roitype=kinds.POLYGON, group=2, position=5),
        _roi(points=np.array(RING[:-1]) + 0.25),
        roifile.ImagejRoi(roitype=kinds.RECT, **box),
        roifile.ImagejRoi(roitype=kinds.OVAL, **box),
        _roi(roitype=kinds.POINT),
        roifile.ImagejRoi(roitype=kinds.LINE, **box),
    )
    assert outline_kind(path) == "imagej-roi"
    found = read_outlines(path, SIZE)
    assert _areas(found)[:4] == [20, 20, 20, 48]
    centres = (np.argwhere(np.ones(SIZE)) + 0.5 - [4, 6]) / [3, 4]
    assert _areas(found)[4] == int((np.hypot(*centres.T) < 1).sum())
    traced, grouped = found.objects[:2]
    assert (traced.kind, traced.number, traced.confidence, traced.z, traced.t) == ("nucleus", 4, 0.75, 2, 1)
    assert (grouped.kind, grouped.number, grouped.position, grouped.name) == ("group 2", None, 4, "one")
    assert found.notes == ("lines, points and texts are left out (2)",)


def test_a_composite_has_holes_and_curves(tmp_path: Path) -> None:
    path = []
    for ring in (RING, HOLE):
        path += [value for number, point in enumerate(ring[:-1]) for value in (min(number, 1), *point)] + [4]
    circle = 4 / 3 * (2**0.5 - 1) * 4  # control points of a quarter circle of radius 4 around (12, 8)
    path += [0, 12, 4, 3, 12 + circle, 4, 16, 8 - circle, 16, 8, 1, 12, 8, 4]
    roi = roifile.ImagejRoi(roitype=roifile.ROI_TYPE.RECT, left=2, top=3, right=16, bottom=8)
    roi.multi_coordinates, roi.shape_roi_size = np.array(path, dtype=np.float32), len(path)
    (tmp_path / "one.roi").write_bytes(roi.tobytes())
    found = read_imagej_rois(tmp_path / "one.roi", SIZE)
    centres = np.argwhere(np.ones(SIZE)) + 0.5 - [12, 8]
    quarter = (np.hypot(*centres.T) < 4) & (centres[:, 0] > 0) & (centres[:, 1] < 0)
    assert _areas(found) == [20 - 4 + int(quarter.sum())]


def test_a_drawn_ellipse_is_exact(tmp_path: Path) -> None:
    ratio = struct.unpack(">BBh", struct.pack(">f", 0.5))
    roi = _roi(subtype=roifile.ROI_SUBTYPE.ELLIPSE)
    data = bytearray(roi.tobytes())
    data[18:34] = struct.pack(">ffff", 4, 4, 14, 4)  # the ends of the long axis
    data[52:56] = struct.pack(">BBh", *ratio)
    (tmp_path / "one.roi").write_bytes(data)
    centres = (np.argwhere(np.ones(SIZE)) + 0.5 - [9, 4]) / [5, 2.5]
    assert _areas(read_imagej_rois(tmp_path / "one.roi", SIZE)) == [int((np.hypot(*centres.T) < 1).sum())]


# ---- COCO ---------------------------------------------------------------------------------------------------------


def _coco(tmp_path: Path, annotations: list[dict[str, Any]], names: tuple[str, ...] = ("a.png",)) -> Path:
    images = [{"id": 5 + n, "file_name": f"train/{name}", "width": 20, "height": 16} for n, name in enumerate(names)]
    categories = [{"id": 3, "name": "nucleus"}, {"id": 8, "name": "debris"}]
    annotations = [{"id": n, "image_id": 5, "category_id": 3, "iscrowd": 0} | one for n, one in enumerate(annotations)]
    return _write(tmp_path / "coco.json", {"images": images, "annotations": annotations, "categories": categories})


def test_polygons_and_both_kinds_of_run_lengths(tmp_path: Path) -> None:
    full = np.zeros((16, 20), dtype=np.uint8, order="F")
    full[3:8, 2:6] = 1
    short = coco.encode(full)["counts"].decode()
    long = [2 * 16 + 3, 5, 11, 5, 11, 5, 11, 5, 320 - 2 * 16 - 3 - 4 * 5 - 3 * 11]
    ring = [float(value) for point in RING for value in point]
    path = _coco(
        tmp_path,
        [
            {"segmentation": {"size": [16, 20], "counts": short}, "score": 0.25},
            {"segmentation": {"size": [16, 20], "counts": long}, "category_id": 8, "iscrowd": 1},
            {"segmentation": [ring, [10, 10, 12, 10, 12, 12, 10, 12]]},
            {"segmentation": [], "bbox": [1, 1, 2, 2]},
            {"segmentation": [ring], "image_id": 6},
        ],
        ("a.png", "b.png"),
    )
    assert outline_kind(path) == "coco"
    file = read_coco(path)
    first, crowd, polygon = file.objects(file.picture("a.png")).objects
    theirs = coco.frPyObjects([ring, [10, 10, 12, 10, 12, 12, 10, 12]], 16, 20)
    assert [one.area for one in (first, crowd, polygon)] == [20, 20, int(coco.area(coco.merge(theirs)))]
    assert (first.kind, first.confidence, first.crowd, crowd.kind, crowd.crowd) == (
        "nucleus",
        0.25,
        False,
        "debris",
        True,
    )
    assert np.array_equal(paint([first], SIZE).labels.T, full)
    assert _areas(read_outlines(path, SIZE, "b.tif")) == [20]
    with pytest.raises(InputRefusedError, match="no image of this name"):
        read_outlines(path, SIZE, "c.png")
    with pytest.raises(InputRefusedError, match="20 x 16"):
        read_outlines(path, (16, 20), "b.png")


# ---- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        {"type": "FeatureCollection", "features": 3},
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[1, 2]]}},
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[["a", 2], [3, 4]]]}},
        {"type": "Feature", "geometry": {"type": "MultiPolygon", "coordinates": 7}},
        {"type": "Other"},
    ],
)
def test_damaged_geojson_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(InputRefusedError):
        read_geojson(_write(tmp_path / "a.geojson", content), SIZE)


@pytest.mark.parametrize(
    "one",
    [
        {"segmentation": {"size": [20, 16], "counts": [320]}},
        {"segmentation": {"size": [16, 20], "counts": [321]}},
        {"segmentation": {"size": [16, 20], "counts": ["x"]}},
        {"segmentation": [[1, 2, 3]]},
        {"segmentation": 3},
    ],
)
def test_damaged_coco_is_refused(tmp_path: Path, one: dict[str, Any]) -> None:
    with pytest.raises(InputRefusedError):
        read_outlines(_coco(tmp_path, [one]), SIZE)


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    good = [
        _write(tmp_path / "a.geojson", _feature("Polygon", [RING, HOLE], classification={"name": "x"})),
        _coco(
            tmp_path, [{"segmentation": [[1, 2, 8, 2, 8, 9]]}, {"segmentation": {"size": [16, 20], "counts": [9, 311]}}]
        ),
        _zip(tmp_path / "b.zip", _roi(), _roi(points=np.array(RING) + 0.5)),
    ]
    (tmp_path / "c.roi").write_bytes(_roi(props="class: x\n").tobytes())
    refused = 0
    for path in (*good, tmp_path / "c.roi"):
        data = path.read_bytes()
        for _ in range(40):
            broken = bytearray(data[: random.integers(1, len(data) + 1)] if random.random() < 0.3 else data)
            for place in random.integers(0, len(broken), random.integers(1, 6)):
                broken[place] = random.integers(0, 256)
            mutated = tmp_path / f"mutated{path.suffix}"
            mutated.write_bytes(broken)
            try:
                paint(read_outlines(mutated, SIZE).objects, SIZE)
            except InputRefusedError:
                refused += 1
    assert 40 < refused < 160


def test_what_holds_no_outlines_is_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        file.writestr("a.tif", b"II")
    for path in (tmp_path / "images.zip", _write(tmp_path / "settings.json", {"a": 1}), tmp_path / "a.tif"):
        assert outline_kind(path) is None
    with pytest.raises(InputRefusedError, match="no outlines"):
        read_outlines(tmp_path / "settings.json", SIZE)
