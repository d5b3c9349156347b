"""Voxels with their place."""

from __future__ import annotations

import numpy as np
import pytest

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.volume import ArraySource, ImageSource, Volume


def test_the_array_must_fit_its_grid() -> None:
    with pytest.raises(InputRefusedError, match="does not fit"):
        Volume(np.zeros((1, 3, 4)), Geometry((4, 3)))
    with pytest.raises(InputRefusedError):
        Volume(np.zeros((3, 4)), Geometry((3, 4)))


def test_an_array_is_a_source() -> None:
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    source = ArraySource("a", Volume(array, Geometry.from_spacing((3, 4), (0.5, 2.0))))
    assert isinstance(source, ImageSource)
    assert (source.channels, source.frames, source.geometry.shape) == (2, 1, (3, 4))
    assert source.read().array is array
    part = source.read((slice(1, 3), slice(2, 4)))
    np.testing.assert_array_equal(part.array, array[:, 1:3, 2:4])
    np.testing.assert_allclose(part.geometry.to_world([0, 0]), [0.5, 4.0])
    with pytest.raises(InputRefusedError):
        source.read(frame=1)
