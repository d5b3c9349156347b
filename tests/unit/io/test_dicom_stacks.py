"""How stacks are split, named, and laid out with the named switches."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

from unet_med.io.dicom.source import inspect_dicom
from unet_med.io.source import IntakeOptions, SourceRef

_SPEC = importlib.util.spec_from_file_location("dicom_writer", Path(__file__).parents[2] / "dicom_writer.py")
w = importlib.util.module_from_spec(_SPEC)
sys.modules["dicom_writer"] = w
_SPEC.loader.exec_module(w)

EVERYTHING = IntakeOptions(untilt=True, resample_slices=True, allow_gaps=True)


def written(folder: Path, volumes: int, change: Callable[[Dataset, int], None]) -> Sequence[SourceRef]:
    series = w.Series(modality="MR", sop_class=MRImageStorage, count=4)
    slices = []
    for number in range(volumes):
        for data in series.slices():
            w.renew(data)
            data.InstanceNumber = len(slices) + 1
            change(data, number)
            slices.append(data)
    w.write(folder, slices)
    return inspect_dicom(sorted(folder.iterdir())).sources


def at(folder: Path, places: Sequence[float], options: IntakeOptions, moves: Sequence[float] = ()) -> SourceRef:
    """A series of slices at these places, in steps of 2.5 mm, moved along the rows by so many mm."""
    series = w.Series(turn=np.eye(3))
    slices = [series.slice(place, number + 1) for number, place in enumerate(places)]
    for data, move in zip(slices, moves, strict=False):
        data.ImagePositionPatient[0] = float(data.ImagePositionPatient[0]) + move
    w.write(folder, slices)
    (ref,) = inspect_dicom(sorted(folder.iterdir()), options).sources
    return ref


@pytest.mark.parametrize(
    ("values", "keyword", "names", "told"),
    [
        ([0.0, 1000.0, 2000.0], "DiffusionBValue", ["b0", "b1000", "b2000"], "b 1000 s/mm2"),
        ([80, 140], "KVP", ["energy80", "energy140"], "energy 140 kV"),
        ([999.8, 1000.2], "DiffusionBValue", ["b1", "b2"], "b 1000.2 s/mm2"),
        ([4.6, 9.2], "EchoTime", ["echo1", "echo2"], "echo 9.2 ms"),
    ],
)
def test_names_say_which(
    tmp_path: Path, values: Sequence[float], keyword: str, names: Sequence[str], told: str
) -> None:
    refs = written(tmp_path, len(values), lambda data, n: setattr(data, keyword, values[n]))
    assert [ref.id.split("-")[-1] for ref in refs] == names
    assert told in refs[1].notes[0]


def test_notes_tell_all_that_differs_and_is_known(tmp_path: Path) -> None:
    def change(data: Dataset, number: int) -> None:
        data.ImageType = ["ORIGINAL", "PRIMARY", "MP"[number], "SECRET JANE" if number else "OTHER"]
        data.FlipAngle = 10 + number
        data.ContentTime = f"10111{number}"

    refs = written(tmp_path, 2, change)
    assert "(flip 10 degrees, M)" in refs[0].notes[0]
    assert "(flip 11 degrees, P)" in refs[1].notes[0]
    assert "SECRET" not in repr([ref.notes for ref in refs])


def test_three_tags_together_tell_volumes_apart(tmp_path: Path) -> None:
    def change(data: Dataset, number: int) -> None:
        data.EchoTime, data.FlipAngle, data.InversionTime = (5.0 + (number >> bit & 1) for bit in range(3))
        data.InstanceNumber = 1 + 5 * data.InstanceNumber % 37

    refs = written(tmp_path, 8, change)
    assert len(refs) == 8
    assert all(ref.usable for ref in refs)
    assert refs[0].id.endswith("echo1-inversion1-flip1")


@pytest.mark.parametrize(
    ("places", "moves", "words"),
    [
        ([0, 1, 2, 3, 40], (), "5 slices are too few to fill 41 planes"),
        ([0, 1.3, 2, 3, 40], (), "5 slices are too few"),
        ([0, 1, 2, 3], (0, 3, 6, 9), "not above each other"),
        ([0, 1, 2, 3, 4], (0, 0, 0.9, 0, 0), "not above each other"),
    ],
)
def test_no_switch_opens_what_is_no_volume(
    tmp_path: Path, places: Sequence[float], moves: Sequence[float], words: str
) -> None:
    ref = at(tmp_path, places, EVERYTHING, moves)
    assert not ref.usable
    assert words in ref.reason
    assert ": " in ref.reason


@pytest.mark.parametrize(
    ("places", "moves", "used", "shape", "note"),
    [
        ([0, 1, 2, 4, 5], (), {"allow_gaps"}, (9, 7, 6), "1 slice is missing: filled by linear interpolation, 1 betw"),
        ([0, 1, 2, 3.2, 4.4], (), {"resample_slices"}, (9, 7, 5), "steps of 2.500 to 3.000 mm: 5 slices interpolated"),
        ([0, 1, 2, 3], (0, 0.5, 1.0, 1.5), {"untilt"}, (11, 7, 4), "tilted by 11.31 degrees (gantry tilt), they move"),
        ([0, 1, 2, 3], (0, -0.5, -1.0, -1.5), {"untilt"}, (11, 7, 4), "from 9 x 7 to 11 x 7 voxels"),
        ([0, 1, 2, 3], (), set(), (9, 7, 4), ""),
    ],
)
def test_switches_are_told_only_where_they_were_needed(
    tmp_path: Path, places: Sequence[float], moves: Sequence[float], used: set[str], shape: tuple[int, ...], note: str
) -> None:
    ref = at(tmp_path, places, EVERYTHING, moves)
    assert ref.usable, ref.reason
    assert {key for key in ref.read_as if ref.read_as[key] is True} == used
    assert ref.shape == shape
    assert any(note in one for one in ref.notes) or not note
    assert (ref.layout.regrid is None) == (not used)
    assert len(ref.layout.slices) == len(places)


def test_untilting_to_the_left_moves_the_corner_of_the_grid(tmp_path: Path) -> None:
    ref = at(tmp_path, [0, 1, 2, 3], EVERYTHING, (0, -0.5, -1.0, -1.5))
    assert np.allclose(ref.geometry.to_lps()[:3, 3], [-5.0 - 1.5, -3.0, 2.0])
    assert [round(origin[0], 4) for origin in ref.layout.regrid.origins] == [1.875, 1.25, 0.625, 0.0]
