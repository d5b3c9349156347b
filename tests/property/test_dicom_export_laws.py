"""Masks come back from DICOM as they went in, whatever their shape and wherever they lie."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from dicom_writer import Series, rotation, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from mask_exports import dice, export_of
from scipy import ndimage
from skimage.draw import polygon2mask

from unet_med.io.dicom.annotations import inspect_annotation, open_label, values_of
from unet_med.io.dicom.headers import read_header
from unet_med.io.export import dicom_seg, rtstruct
from unet_med.io.export.mask import source_ref

angles = st.floats(-180, 180)
lengths = st.floats(0.2, 4.0)


def _area(corners: np.ndarray) -> float:
    x, y = corners.T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2.0


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=14)))
@settings(deadline=None, max_examples=100)
def test_outlines_hold_exactly_the_pixels_of_their_regions(mask: np.ndarray) -> None:
    regions, count = ndimage.label(mask)
    outlines = [np.array(outline, float) - 0.5 for outline in rtstruct.outlines_of(mask)]
    assert len(outlines) == count
    found = np.zeros(mask.shape, int)
    for outline in outlines:
        inside = polygon2mask(mask.shape, outline)
        assert (inside == rtstruct.filled(outline, mask.shape)).all()
        assert len(np.unique(regions[inside])) == 1
        assert _area(outline) == np.count_nonzero(inside)
        found += inside
    assert (found == mask).all(), "no outline overlaps another one"


@st.composite
def _grids(draw: st.DrawFn) -> Series:
    return Series(
        columns=draw(st.integers(3, 16)),
        rows=draw(st.integers(3, 16)),
        count=draw(st.integers(1, 5)),
        between_rows=draw(lengths),
        between_columns=draw(lengths),
        step=draw(lengths),
        origin=tuple(draw(st.tuples(*[st.floats(-30, 30)] * 3))),
        turn=rotation(draw(angles), draw(angles), draw(angles)),
    )


@given(_grids(), st.integers(0, 2**32 - 1), st.floats(0.0, 1.5), st.sampled_from(["binary", "labelmap", "fractional"]))
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
def test_masks_come_back(series: Series, seed: int, blur: float, seg_type: str) -> None:
    shape = (series.columns, series.rows, series.count)
    random = np.random.default_rng(seed)
    fields = np.stack([ndimage.gaussian_filter(random.standard_normal(shape), blur) for _ in range(3)])
    labels = fields.argmax(axis=0).astype(np.uint8)
    likely = np.stack([np.where(labels == value, 0.9, 0.05) for value in (1, 2)]).astype(np.float32)
    with TemporaryDirectory() as name:
        folder = Path(name)
        slices = series.slices()
        for one in slices:
            one.PixelData = bytes(len(one.PixelData))  # the values of the phantom may not fit so far out
        write(folder / "in", slices)
        export = export_of(folder / "in", labels, seg_type=seg_type, probabilities=likely)
        image = source_ref(export.source)
        for module, least in ((dicom_seg, 1.0), (rtstruct, 0.99)):
            path = folder / "mask.dcm"
            module.write(export, path)
            assert module.check(path, export)["passed"]
            annotation = inspect_annotation(read_header(path))
            found = open_label(annotation, image).read().array[0]
            values = {segment.number: values_of(annotation)[segment.number] for segment in annotation.layout.segments}
            for number in (1, 2):  # a region without contours has no value
                assert dice(found == values.get(number, 0), labels == number) >= least or number not in labels
