"""The arithmetic of estimates against numbers worked out by hand and against what prediction does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unet_med.bundle import load_bundle
from unet_med.errors import MachineError
from unet_med.geometry import Geometry
from unet_med.inference import estimate
from unet_med.inference.estimate import (
    CaseCost,
    CaseSize,
    Rates,
    check_memory,
    estimate_case,
    folder_seconds,
    held_bytes,
    may_overlap,
    window_count,
)
from unet_med.inference.predictor import Predictor
from unet_med.volume import Volume

RATES = Rates(
    start_seconds=3.0,
    window_seconds=0.5,
    voxel_seconds=1e-6,
    read_seconds=1e-7,
    write_seconds=2e-7,
    case_seconds=0.25,
    peak_bytes=1_000_000,
    probe_bytes=400_000,
    engine="torch fp32",
    engine_why="it was asked for",
)


def _size(shape: tuple[int, ...], spacing: tuple[float, ...] | None = None, **options: int) -> CaseSize:
    geometry = Geometry.from_spacing(shape, spacing or (1.0,) * len(shape))
    return CaseSize(geometry, 1, **({"voxel_bytes": 2} | options))


@pytest.mark.parametrize("shape", [(40, 33, 20), (16, 16, 16), (9, 50, 3)])
@pytest.mark.parametrize("spacing", [None, (1.0, 1.5, 2.0)])
def test_windows_are_those_that_prediction_runs(
    tiny_bundle, shape: tuple[int, int, int], spacing: tuple[float, float, float] | None
) -> None:
    wanted = None if spacing is None else [1.2, 1.2, 1.2]
    bundle = load_bundle(tiny_bundle(preprocess__spacing_mm=wanted))
    size = _size(shape, spacing)
    array = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    prediction = Predictor([bundle], "cpu").predict(Volume(array, size.geometry))
    assert window_count(size.geometry, bundle.config) == prediction.windows
    assert window_count(size.geometry, bundle.config, mirror=True) == 8 * prediction.windows


def test_what_is_held_by_hand(tiny_bundle) -> None:
    """Windows of 16^3, three outputs, two features: features are blended, and the longest axis is gone along."""
    config = load_bundle(tiny_bundle()).config
    held = held_bytes(_size((20, 30, 100)), config)
    voxels = 20 * 30 * 100
    assert held.image == 2 * voxels
    assert held.mask == voxels
    assert held.windows == 4 * 2 * (16 + 1) * 20 * 30
    assert held.slab == 4 * (16 + 2 * 16) * 20 * 30, "and sixteen rows twice while they are read"
    assert held.chunk == 3 * 4 * 3 * 16 * 20 * 30, "no more rows become final at a time than a window has"
    slab_of_many = held_bytes(_size((600, 600, 600)), config).chunk
    assert slab_of_many == 3 * 4 * 3 * (2**22 // 3), "a chunk is no larger than this"
    assert held.total == held.image + held.mask + held.windows + held.slab + held.chunk
    longer = held_bytes(_size((20, 30, 200)), config)
    assert (longer.windows, longer.slab) == (held.windows, held.slab)


def test_of_a_softmax_one_channel_less_is_held(tiny_bundle) -> None:
    config = load_bundle(tiny_bundle()).config.replacing({"network.features": [8, 8]})
    assert held_bytes(_size((20, 30, 100)), config).windows == 4 * (3 - 1) * (16 + 1) * 20 * 30


def test_only_image_and_mask_grow_with_the_length(tiny_bundle) -> None:
    config = load_bundle(tiny_bundle()).config
    short, long = (held_bytes(_size((256, 256, length)), config) for length in (300, 1200))
    assert long.total - short.total == 3 * (short.image + short.mask)


def test_a_case_by_hand(tiny_bundle) -> None:
    config = load_bundle(tiny_bundle()).config
    size = _size((16, 16, 24))
    cost = estimate_case(size, config, RATES)
    voxels = 16 * 16 * 24
    assert cost.windows == 2
    assert cost.compute_seconds == pytest.approx(2 * 0.5 + 1e-6 * voxels)
    assert cost.read_seconds == pytest.approx(1e-7 * voxels)
    assert cost.write_seconds == pytest.approx(0.25 + 2e-7 * voxels)
    assert cost.peak_bytes == 600_000 + held_bytes(size, config).total
    crowded = estimate_case(size, config, RATES, alone=False)
    assert crowded.peak_bytes - cost.peak_bytes == 2 * 3 * voxels, "two more images and masks"
    movie = CaseSize(size.geometry, 1, 2, frames=5)
    assert estimate_case(movie, config, RATES).windows == 10


@pytest.mark.parametrize(
    ("cases", "cores", "seconds"),
    [
        (0, 2, 0.0),
        (1, 2, 3 + 1 + 10 + 2),
        (3, 2, 3 + (1 + 2) + 30 + (2 * 1 + 2 * 2) / 2),
        (3, 6, 3 + (1 + 2) + 30 + (2 * 1 + 2 * 2) / 6),
    ],
)
def test_a_folder_by_hand(cases: int, cores: int, seconds: float) -> None:
    assert folder_seconds([CaseCost(20, 1.0, 10.0, 2.0, 0)] * cases, RATES, cores) == pytest.approx(seconds)


def test_a_case_that_cannot_fit_is_refused_before_it_is_predicted(tiny_bundle) -> None:
    config = load_bundle(tiny_bundle(sampling__patch_voxels=[128] * 3)).config
    size = _size((300, 300, 300))
    held = held_bytes(size, config)
    needed = held.total - held.image
    assert check_memory(size, [config], None, needed) == []
    assert "GB are free" in check_memory(size, [config], None, int(needed / 1.2))[0]
    with pytest.raises(MachineError, match=r"needs about .* --memory-gb"):
        check_memory(size, [config], None, int(needed / 1.3))
    with pytest.raises(MachineError, match="machine with at least"):
        check_memory(size, [config], None, held.mask)
    budget = 0.01
    small = held.mask + held.chunk + int(budget * 1e9)
    assert small < needed / 1.05
    assert check_memory(size, [config], budget, small) == []


def test_large_images_do_not_overlap() -> None:
    size = _size((100, 100, 100))
    assert may_overlap(size, 4 * 9_000_000)
    assert not may_overlap(size, 4 * 9_000_000 - 1)


def _group(folder: Path, limit: str, used: int, cache: int = 0, names: tuple[str, str] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(names or ("memory.max", "memory.current"), (limit, str(used)), strict=True):
        (folder / name).write_text(text + "\n", encoding="ascii")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n", encoding="ascii")


@pytest.mark.parametrize("version", [1, 2])
def test_the_limits_of_containers_count(tmp_path: Path, version: int) -> None:
    """Every group from the process's own up to the root may have a limit; cached files do not count as used."""
    own = tmp_path / "own"
    root = tmp_path / "groups"
    if version == 2:
        own.write_text("0::/job/step\n", encoding="ascii")
        _group(root / "job" / "step", "max", 100)
        _group(root / "job", "8000", 3000, cache=1000)
    else:
        own.write_text("7:cpu:/\n4:memory:/job/step\n", encoding="ascii")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        _group(root / "memory" / "job", "8000", 3000, cache=1000, names=names)
    assert estimate._group_memory(root, own) == [(8000, 2000)]
    assert estimate._group_memory(root, tmp_path / "absent") == []


def test_the_tightest_limit_is_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_group_memory", lambda: [(10**15, 0), (5_000_000, 3_000_000)])
    assert estimate.available_bytes() == 2_000_000
    monkeypatch.setattr(estimate, "_group_memory", lambda: [])
    assert estimate.available_bytes() > 2_000_000
