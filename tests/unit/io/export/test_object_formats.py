"""Masks and objects for microscopes' programs: outlines, run lengths, label TIFF and OME-Zarr, also of pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import roifile
import tifffile
from pycocotools.coco import COCO
from scipy import ndimage

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.io.export.formats import FORMATS
from unet_med.io.export.mask import ExportOptions, MaskExport
from unet_med.io.objects.drawn import DrawnObject, paint
from unet_med.io.objects.reading import read_outlines
from unet_med.io.objects.table import ObjectTable
from unet_med.io.sinks import open_mask_sink
from unet_med.labels import LabelMap
from unet_med.volume import ArraySource, Volume

KINDS = LabelMap.from_names({"round": 1, "long": 2}, objects=True)
LISTING = ("geojson", "imagej-roi", "coco")
PICTURES = ("label-tiff", "ome-zarr", *LISTING)


def _objects(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Blobs with holes, in several pieces, touching each other and the border."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 1.0)
    labels, count = ndimage.label(noise > np.quantile(noise, 0.5))
    labels[(labels > count // 2)] += 7
    labels[-1, 1:] = 3  # everywhere along the end
    return np.asarray(labels, dtype=np.uint16)


def _table(labels: np.ndarray, frame: int = 0) -> dict[str, Any]:
    numbers = np.unique(labels)[1:].astype(np.int64)
    return {
        "frame": np.full(len(numbers), frame),
        "label": numbers,
        "class": np.where(numbers % 2, "round", "long").astype(object),
        "confidence": numbers / 1000,
        "area_px": np.array([(labels == number).sum() for number in numbers]),
        "odd": np.where(numbers % 3, np.nan, 1.0),
    }


def _source(shape: tuple[int, ...], frames: int = 1) -> ArraySource:
    class _Movie(ArraySource):
        frames = 0

    source = _Movie if frames > 1 else ArraySource
    source.frames = frames if frames > 1 else source.frames
    return source("plate1", Volume(np.zeros((1, *shape)), Geometry.from_spacing(shape, (0.0005,) * len(shape))))


def _export(labels: np.ndarray, *, movie: bool = False, objects: bool = True) -> MaskExport:
    frames = labels if movie else labels[np.newaxis]
    parts = [_table(one, frame) for frame, one in enumerate(frames)]
    table = ObjectTable({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    return MaskExport(
        _source(frames.shape[1:], len(frames)),
        frames[0],
        KINDS,
        objects=table if objects else None,
        movie=labels if movie else None,
    )


def _written(name: str, export: MaskExport, folder: Path) -> Path:
    path = folder / f"mask{FORMATS[name].ending}"
    FORMATS[name].write(export, path)
    assert FORMATS[name].check(path, export)["passed"]
    return path


def _same_objects(found: np.ndarray, meant: np.ndarray) -> bool:
    """Whether two label images show the same objects, whatever their numbers."""
    pairs = np.unique(np.stack([found.ravel(), meant.ravel()]), axis=1).T
    return len(pairs) == len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1])) and [0, 0] in pairs.tolist()


@pytest.mark.parametrize("name", LISTING)
@pytest.mark.parametrize("shape", [(40, 31), (14, 12, 4)])
def test_objects_come_back_pixel_by_pixel(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    labels = _objects(shape)
    path = _written(name, _export(labels), tmp_path)
    if name == "coco" and len(shape) == 3:
        return  # a file of several pictures
    read = read_outlines(path, shape[:2])
    painted = paint(read.objects, shape)
    assert _same_objects(painted.labels, labels)
    assert painted.overlapping == 0
    kinds = {one.number: one.kind for one in read.objects}
    assert kinds == {int(number): "round" if number % 2 else "long" for number in np.unique(labels)[1:]}
    assert all(one.confidence == pytest.approx(one.number / 1000) for one in read.objects)


@pytest.mark.parametrize("name", LISTING)
def test_frames_of_a_movie_come_back(tmp_path: Path, name: str) -> None:
    movie = np.stack([_objects((20, 22), seed) for seed in range(3)])
    path = _written(name, _export(movie, movie=True), tmp_path)
    for frame, labels in enumerate(movie):
        if name == "coco":
            found = read_outlines(path, (20, 22), f"plate1_t{frame:04d}")
        else:
            found = read_outlines(path, (20, 22))
        assert _same_objects(paint(found.objects, (20, 22), None if name == "coco" else frame).labels, labels)


@pytest.mark.parametrize("name", LISTING)
def test_a_region_of_a_semantic_mask_is_one_annotation(tmp_path: Path, name: str) -> None:
    labels = (_objects((30, 30)) % 3).astype(np.uint8)
    path = _written(name, _export(labels, objects=False), tmp_path)
    found = read_outlines(path, (30, 30)).objects
    areas = np.bincount(labels.ravel())
    assert [(one.kind, one.area) for one in found] == [("round", areas[1]), ("long", areas[2])]


@pytest.mark.parametrize("name", PICTURES)
def test_a_mask_without_objects_is_written(tmp_path: Path, name: str) -> None:
    _written(name, _export(np.zeros((9, 8), dtype=np.uint16)), tmp_path)


@pytest.mark.parametrize("name", ["coco", "geojson", "imagej-roi"])
def test_masks_that_overlap_keep_all_their_pixels(tmp_path: Path, name: str) -> None:
    labels = np.zeros((12, 10), dtype=np.uint16)
    square = np.ones((5, 5), dtype=bool)
    places = [((1, 1), 1), ((4, 3), 2), ((1, 1), 2)]
    masks = [DrawnObject(square, start, number=number) for start, number in places]
    labels[1:6, 1:6], labels[4:9, 3:8] = 1, 2
    export = replace(_export(labels), overlapping=masks)
    found = read_outlines(_written(name, export, tmp_path), (12, 10)).objects
    assert [(one.start, one.area, one.number) for one in found] == [((1, 1), 25, 1), ((4, 3), 25, 2), ((1, 1), 25, 2)]


@pytest.mark.parametrize("name", LISTING)
def test_a_file_that_says_something_else_is_noticed(tmp_path: Path, name: str) -> None:
    labels = np.zeros((12, 10), dtype=np.uint16)
    labels[2:5, 3:7] = 4
    path = _written(name, _export(labels), tmp_path)
    more = labels.copy()
    more[0, 0] = 4
    for other in (np.roll(labels, 1, axis=0), labels * 2, more):
        with pytest.raises(InputRefusedError, match="read back"):
            FORMATS[name].check(path, _export(other))
    mask = DrawnObject(np.ones((3, 4), dtype=bool), (2, 3), number=4)
    for masks in ([mask, mask], [replace(mask, start=(2, 4))]):
        with pytest.raises(InputRefusedError, match="other pixels"):
            FORMATS[name].check(path, replace(_export(labels), overlapping=masks))


def test_qupath_gets_closed_rings_classes_and_measurements(tmp_path: Path) -> None:
    labels = np.zeros((12, 10), dtype=np.uint16)
    labels[2:6, 3:7] = 3
    labels[3, 4] = 0
    content = json.loads(_written("geojson", _export(labels), tmp_path).read_text())
    (feature,) = content["features"]
    outline, hole = feature["geometry"]["coordinates"]
    assert outline[0] == outline[-1] and hole[0] == hole[-1] and len(outline) == len(hole) == 5
    assert sorted(outline[:-1]) == [[2, 3], [2, 7], [6, 3], [6, 7]]
    assert (feature["geometry"]["type"], "plane" in feature["geometry"]) == ("Polygon", False)
    assert feature["properties"]["classification"] == {"name": "round", "color": [230, 159, 0]}
    assert feature["properties"]["objectType"] == "detection"
    assert feature["properties"]["measurements"] == {"label": 3, "confidence": 0.003, "area_px": 15.0, "odd": 1.0}


def test_imagej_gets_names_groups_and_positions(tmp_path: Path) -> None:
    labels = _objects((14, 12, 4))
    rois = roifile.roiread(_written("imagej-roi", _export(labels), tmp_path))
    names = [roi.name for roi in rois]
    assert len(set(names)) == len(names)
    for roi in rois:
        number, z = int(roi.name[:5]), int(roi.name[-4:])
        assert (roi.properties["label"], roi.z_position, roi.position, roi.t_position) == (number, z, z, 0)
        assert roi.group == (1 if number % 2 else 2)
        columns, rows = np.nonzero(labels[:, :, z - 1] == number)
        assert (roi.left, roi.top) == (columns.min(), rows.min())


def test_outlines_far_out_in_a_large_picture_come_back(tmp_path: Path) -> None:
    labels = np.zeros((70_010, 5), dtype=np.uint8)  # beyond the whole numbers of ImageJ's format
    labels[33_000:33_004, 1:4], labels[70_000:70_003, 1:3], labels[70_005:70_009] = 1, 2, 2
    _written("imagej-roi", _export(labels), tmp_path)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # inside pycocotools, with numpy 2
def test_pycocotools_reads_the_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = _objects((40, 31))
    file = COCO(str(_written("coco", _export(labels), tmp_path)))
    (image,) = file.imgs.values()
    assert (image["width"], image["height"], image["file_name"]) == (40, 31, "plate1")
    assert {one["name"] for one in file.cats.values()} == {"round", "long"}
    for one in file.loadAnns(file.getAnnIds()):
        mask = labels == one["object"]
        assert np.array_equal(file.annToMask(one).T, mask)
        box = [int(places.min()) for places in np.nonzero(mask)]
        assert one["bbox"] == box + [int(np.ptp(places)) + 1 for places in np.nonzero(mask)]
        assert one["area"] == mask.sum()
        assert file.cats[one["category_id"]]["name"] == ("round" if one["object"] % 2 else "long")
    capsys.readouterr()


@pytest.fixture
def sink(tmp_path: Path) -> Callable[..., list[Path]]:
    def write(labels: np.ndarray, *formats: str) -> list[Path]:
        target = open_mask_sink(_source(labels.shape), tmp_path / "case1", KINDS, options=ExportOptions(formats))
        target.write(None, labels)
        target.describe(ObjectTable(_table(labels)))
        return target.close()

    return write


def test_a_picture_is_written_in_every_format_that_was_asked_for(sink: Callable[..., list[Path]]) -> None:
    labels = _objects((40, 31))
    files = sink(labels, "nifti", *PICTURES)
    endings = (".tif", ".ome.zarr", ".geojson", ".roi.zip", ".coco.json", ".json")
    assert [path.name for path in files] == [f"case1{ending}" for ending in endings]
    assert np.array_equal(tifffile.imread(files[0]).T, labels)
    sidecar = json.loads(files[-1].read_text())
    assert set(sidecar["checks"]["formats"]) == set(PICTURES)
    assert sidecar["checks"]["readers"] == ["tifffile"]
    assert [path.name for path in sink(labels, "geojson")] == ["case1.geojson", "case1.json"]


def test_a_volume_has_a_label_tiff_beside_its_nifti(sink: Callable[..., list[Path]]) -> None:
    labels = _objects((14, 12, 4))
    files = sink(labels, "nifti", "label-tiff", "ome-zarr", "geojson")
    assert [path.name for path in files[:2]] == ["case1.nii.gz", "case1.tif"]
    with tifffile.TiffFile(files[1]) as file:
        assert file.is_imagej
        assert np.array_equal(file.asarray().transpose(2, 1, 0), labels)
