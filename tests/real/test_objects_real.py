"""Real nuclei: measured as scikit-image does, and written and read without losing a pixel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from skimage.measure import regionprops_table

from unet_med.geometry import Geometry
from unet_med.instances.measure import measure_objects
from unet_med.io.export.formats import FORMATS
from unet_med.io.export.mask import MaskExport
from unet_med.io.objects.drawn import paint
from unet_med.io.objects.reading import read_outlines
from unet_med.labels import LabelMap
from unet_med.volume import ArraySource, Volume

NUCLEI = LabelMap.from_names({"nucleus": 1}, objects=True)
PROPERTIES = ("label", "area", "perimeter", "solidity", "axis_major_length", "axis_minor_length", "intensity_mean")
OURS = ("label", "area_px", "perimeter_px", "solidity", "axis_major_px", "axis_minor_px", "intensity_mean")


@pytest.mark.parametrize("number", [0, 60, 119])
def test_nuclei_are_measured_and_written(shared_data: Callable[[str], Path], tmp_path: Path, number: int) -> None:
    folder = shared_data("dsb2018_nuclei")
    files = sorted((folder / "labels").iterdir())
    labels = tifffile.imread(files[number]).T
    image = tifffile.imread(folder / "images" / files[number].name)
    image = (image if image.ndim == 2 else image[..., 0]).T
    geometry = Geometry(labels.shape)
    table = measure_objects(labels, geometry, image=image[np.newaxis], names=NUCLEI.names, side=100)
    theirs = regionprops_table(labels, image, properties=PROPERTIES)
    for ours, name in zip(OURS, PROPERTIES, strict=True):
        np.testing.assert_allclose(table.columns[ours], theirs[name], rtol=1e-7, atol=1e-6, err_msg=name)
    source = ArraySource(files[number].stem, Volume(image[np.newaxis], geometry))
    export = MaskExport(source, labels, NUCLEI, objects=table)
    for name in ("geojson", "imagej-roi", "coco"):
        path = tmp_path / f"mask{FORMATS[name].ending}"
        FORMATS[name].write(export, path)
        assert FORMATS[name].check(path, export)["passed"]
        painted = paint(read_outlines(path, image.shape).objects, image.shape)
        assert np.array_equal(painted.labels > 0, labels > 0)
        assert len(painted.kinds) == len(table)


def test_nuclei_in_space_are_measured(shared_data: Callable[[str], Path]) -> None:
    (file,) = (path for path in shared_data("stardist_nuclei3d").rglob("*.tif") if "mask" in path.as_posix())
    labels = tifffile.imread(file).transpose(2, 1, 0)
    table = measure_objects(labels, Geometry(labels.shape), side=48)
    properties = ("label", "area", "solidity", "axis_major_length")
    theirs = regionprops_table(labels, properties=properties)
    for ours, name in zip(("label", "voxels", "solidity", "axis_major_px"), properties, strict=True):
        np.testing.assert_allclose(table.columns[ours], theirs[name], rtol=1e-6, err_msg=name)
