"""Channels by name, and the size of a pixel: what is said, what is given, and what is doubted."""

from __future__ import annotations

from pathlib import Path

import pytest

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.io.channels import by_name, chosen_channels, names_of, read_channels, stored_channels
from unet_med.io.pixel_size import doubtful, is_printers, mm_per_unit, parsed_sizes, seconds_per_unit
from unet_med.io.source import IntakeOptions, SourceRef


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (["DAPI", "GFP"], ("DAPI", "GFP")),
        (["DAPI", ""], ("DAPI", "1")),
        (["DAPI", "dapi"], ("0", "1")),
        (["DAPI"], ("0", "1")),
        ([], ("0", "1")),
    ],
)
def test_a_channel_without_a_name_of_its_own_has_its_number(found: list[str], names: tuple[str, ...]) -> None:
    assert names_of(found, 2) == names


def test_a_name_goes_before_a_number_and_a_record_is_not_mistaken() -> None:
    names = ("2", "GFP", "0")
    picked, record = chosen_channels(names, IntakeOptions(channels=("2", "gfp", "1", "#0")))
    assert picked == read_channels(record) == (0, 1, 1, 0)
    assert chosen_channels(names, IntakeOptions(channels=stored_channels(record)))[0] == picked
    assert chosen_channels(("grey",), IntakeOptions(channels=("GFP",))) == ((0,), {})
    with pytest.raises(InputRefusedError, match=r"GFP \(1\)"):
        chosen_channels(names, IntakeOptions(channels=("7",)))


def _ref(names: tuple[str, ...], **more: object) -> SourceRef:
    geometry = Geometry((4, 4))
    return SourceRef("a", "tiff", (Path("a.tif"),), "CYX", (3, 4, 4), geometry, len(names), names, **more)


def test_a_model_takes_its_channels_by_their_names() -> None:
    ref = _ref(("DAPI", "GFP", "RFP"), read_as={"channels": ["5", "1", "3"]})
    taken = by_name(ref, ("rfp", "DAPI"))
    assert (taken.channel_names, taken.channels, taken.read_as) == (("RFP", "DAPI"), 2, {"channels": ["3", "5"]})
    for wanted in ((), ("DAPI", "GFP", "RFP"), ("CY5",), ("DAPI", "dapi")):
        assert by_name(ref, wanted) is ref
    assert by_name(_ref(("A", "B")), ("B", "A")).read_as == {"channels": ["1", "0"]}


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("0.5", (0.5,)),
        ("0.5,0.5,2", (0.5, 0.5, 2.0)),
        ("0.65um", (0.00065,)),
        ("0.65,0.65,2 um", (0.00065, 0.00065, 0.002)),
        ("4nm,4nm,50nm", (4e-6, 4e-6, 5e-5)),
        ("1e-3,1E-3", (0.001, 0.001)),
        ("5px", ()),
        ("0.5;2", ()),
        ("-1", ()),
        ("0", ()),
        ("1.2.3", ()),
        ("0.5,", ()),
        ("", ()),
        ("nan", ()),
    ],
)
def test_sizes_as_people_write_them(text: str, sizes: tuple[float, ...]) -> None:
    assert parsed_sizes(text) == pytest.approx(sizes)


@pytest.mark.parametrize(
    ("unit", "mm"),
    [
        *((unit, 1e-3) for unit in ("\u00b5m", "\u03bcm", "\\u00B5m", "micron", "micrometer", " um ")),
        *(("nm", 1e-6), ("\u212b", 1e-7), ("mm", 1), ("cm", 10), ("inch", 25.4)),
        *((unit, None) for unit in ("pixel", "", "reference frame")),
    ],
)
def test_units_of_length(unit: str, mm: float | None) -> None:
    assert mm_per_unit(unit) == (None if mm is None else pytest.approx(mm))


def test_units_of_time() -> None:
    assert [seconds_per_unit(unit) for unit in ("s", "min", "ms", "hour", "frame")] == [1, 60, 1e-3, 3600, None]


@pytest.mark.parametrize(
    ("shape", "spacing", "word"),
    [
        ((2048, 2048), (1.0, 1.0), "2.05 m wide"),
        ((2048, 2048), (0.00065, 0.00065), ""),
        ((512, 512, 30), (4e-6, 4e-6, 5e-5), ""),
        ((60_000, 80_000), (0.00025, 0.00025), ""),
        ((512, 512), (1e-9, 1e-9), "less than an atom"),
        ((512, 512), (0.01, 0.001), "10 times"),
        ((512, 512, 9), (0.0005, 0.0005, 2.0), "4e+03 pixels apart"),
    ],
)
def test_what_is_hardly_a_microscopes_pixel_size(shape: tuple[int, ...], spacing: tuple[float, ...], word: str) -> None:
    told = doubtful(shape, spacing)
    assert word in told
    assert bool(word) == bool(told)


def test_resolutions_of_printers_and_screens() -> None:
    assert all(is_printers(dots) for dots in (72, 72.009, 96, 300, 299.9994))
    assert not any(is_printers(dots) for dots in (0.0, 1.0, 65.0, 25400.0, 39074.0))
