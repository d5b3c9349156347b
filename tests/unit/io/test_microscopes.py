"""Files of microscopes through bioio: scenes, axes, sizes, names; without bioio, what to install."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from unet_med.io import microscopes
from unet_med.io.discover import discover, open_source, restore_ref
from unet_med.io.source import IntakeOptions

SCENES = {
    "field 1": np.arange(2 * 3 * 4 * 5 * 6, dtype=np.uint16).reshape(2, 3, 4, 5, 6),
    "field 2": np.arange(1 * 3 * 1 * 7 * 8, dtype=np.uint16).reshape(1, 3, 1, 7, 8),
}


class _Lazy:
    """What bioio calls dask data: parts of it are computed when they become arrays; ``computed`` are their sizes."""

    computed: ClassVar[list[int]] = []

    def __init__(self, array: np.ndarray) -> None:
        self._array, self.shape = array, array.shape

    def __getitem__(self, index: Any) -> _Lazy:
        return _Lazy(self._array[index])

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self.computed.append(self._array.size)
        return self._array


class _Image:
    """As much of ``bioio.BioImage`` as is used."""

    scenes = tuple(SCENES)
    channel_names = ("DAPI", "GFP", "RFP")
    physical_pixel_sizes = SimpleNamespace(Z=2.0, Y=0.5, X=0.25)
    dtype = np.dtype("uint16")
    dims = SimpleNamespace(order="TCZYX")

    def __init__(self, path: Path, reader: Any) -> None:
        assert reader == "the reader"
        if path.read_bytes() != b"whole":
            raise ValueError(f"{path} is damaged")
        self.set_scene(0)

    def set_scene(self, number: int) -> None:
        self._scene = SCENES[self.scenes[number]]

    @property
    def shape(self) -> tuple[int, ...]:
        return self._scene.shape

    @property
    def dask_data(self) -> _Lazy:
        return _Lazy(self._scene)


@pytest.fixture
def bioio(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    modules = {"bioio": {"BioImage": _Image}} | {
        f"bioio_{kind}": {"Reader": "the reader"} for kind in ("czi", "nd2", "lif")
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    _Lazy.computed.clear()
    return iter(())


@pytest.mark.parametrize("kind", ["czi", "nd2", "lif"])
@pytest.mark.usefixtures("bioio")
def test_each_scene_is_a_source(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"cells.{kind.upper()}").write_bytes(b"whole")
    first, second = discover(tmp_path).sources
    assert (first.id, first.kind, first.axes, first.shape) == ("cells-s1", kind, "TCZYX", (2, 3, 4, 5, 6))
    assert (second.id, second.axes, second.shape) == ("cells-s2", "CYX", (3, 7, 8))
    assert first.channel_names == ("DAPI", "GFP", "RFP")
    assert first.geometry.spacing_mm == pytest.approx((0.00025, 0.0005, 0.002))
    assert second.geometry.spacing_mm == pytest.approx((0.00025, 0.0005))
    source = pickle.loads(pickle.dumps(open_source(first)))
    expected = SCENES["field 1"].transpose(0, 1, 4, 3, 2)
    region = (slice(1, 4), slice(0, 2), slice(2, 3))
    np.testing.assert_array_equal(source.read(region, 1).array, expected[(1, slice(None), *region)])
    assert _Lazy.computed == [3 * 3 * 2 * 1]
    again = restore_ref({"id": "x", "read": dict(second.read_as)}, second.files)
    np.testing.assert_array_equal(open_source(again).read().array, SCENES["field 2"][0, :, 0].transpose(0, 2, 1))


@pytest.mark.usefixtures("bioio")
def test_channels_by_name(tmp_path: Path) -> None:
    (tmp_path / "cells.nd2").write_bytes(b"whole")
    _, ref = discover(tmp_path, IntakeOptions(channels=("gfp",))).sources
    np.testing.assert_array_equal(open_source(ref).read().array[0], SCENES["field 2"][0, 1, 0].T)


@pytest.mark.usefixtures("bioio")
def test_a_damaged_file_is_refused_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "cells.czi").write_bytes(b"half")
    (ref,) = discover(tmp_path).sources
    assert not ref.usable
    assert str(tmp_path) not in ref.reason


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(microscopes.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "cells.czi").write_bytes(b"whole")
    (ref,) = discover(tmp_path).sources
    assert not ref.usable
    assert "unet-med[microscopes]" in ref.reason
