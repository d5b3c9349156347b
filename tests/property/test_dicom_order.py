"""File names, instance numbers and the order of files never change what is loaded."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_med.io.dicom.source import DicomSource, inspect_dicom

_SPEC = importlib.util.spec_from_file_location("dicom_writer", Path(__file__).parents[1] / "dicom_writer.py")
w = importlib.util.module_from_spec(_SPEC)
sys.modules["dicom_writer"] = w
_SPEC.loader.exec_module(w)


@settings(max_examples=25, deadline=None)
@given(
    names=st.permutations(range(5)),
    instances=st.permutations(range(5)),
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    sizes=st.tuples(st.floats(0.3, 2.0), st.floats(0.3, 2.0), st.floats(0.5, 5.0)),
    order=st.permutations(range(5)),
)
def test_only_positions_decide(
    names: list[int], instances: list[int], angles: tuple[float, ...], sizes: tuple[float, ...], order: list[int]
) -> None:
    series = w.Series(
        columns=4,
        rows=3,
        count=5,
        between_rows=round(sizes[0], 4),
        between_columns=round(sizes[1], 4),
        step=round(sizes[2], 4),
        turn=w.rotation(*angles),
        origin=(1.0, -2.0, 3.0),
    )
    slices = series.slices()
    for data, instance in zip(slices, instances, strict=True):
        data.InstanceNumber = instance
    with tempfile.TemporaryDirectory() as folder:
        paths = w.write(Path(folder), slices, [f"f{name}" for name in names])
        ref = inspect_dicom([paths[n] for n in order]).sources[0]
        assert ref.usable, ref.reason
        assert ref.files == tuple(paths)
        array = DicomSource(ref).read().array[0]
    index = np.stack(np.meshgrid(*map(np.arange, ref.shape), indexing="ij"), axis=-1)
    expected = w.truth(ref.geometry.to_world(index) * [-1.0, -1.0, 1.0])
    assert np.abs(array - expected).max() <= w.SLOPE * 0.51
