"""Channels that files name: in one order, whatever the order in each file, for a set and for a prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

from unet_med.io.discover import discover
from unet_med.io.grouping import group_cases
from unet_med.manifest import load_manifest
from unet_med.workflows.manifest import make_manifest

VALUES = {"DAPI": 10, "GFP": 20, "RFP": 30}


def _write(path: Path, names: tuple[str, ...]) -> None:
    """Writes a picture whose channels have the values above: which is which can be seen."""
    path.parent.mkdir(exist_ok=True)
    array = np.stack([np.full((20, 30), VALUES[name.upper()], np.uint8) for name in names])
    array[:, 0, 0] = len(path.name) * 7 + ord(path.name[0])
    metadata = {"axes": "CYX", "Channel": {"Name": list(names)}}
    tifffile.imwrite(path, array, metadata=metadata, photometric="minisblack")


ORDERS = (("DAPI", "GFP"), ("DAPI", "GFP"), ("GFP", "DAPI"), ("RFP", "GFP", "DAPI"), ("DAPI", "GFP"))


def test_all_cases_of_a_set_have_their_channels_in_one_order(tmp_path: Path) -> None:
    for number, names in enumerate(ORDERS):
        _write(tmp_path / "images" / f"{'abcde'[number]}.ome.tif", names)
        label = np.zeros((20, 30), np.uint8)
        label[number : number + 5] = 1
        (tmp_path / "labels").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "labels" / f"{'abcde'[number]}.tif", label)
    outcome = make_manifest(tmp_path, tmp_path / "M.json")
    assert any("2 files hold their channels in another order" in line for line in outcome.lines)
    manifest = load_manifest(tmp_path / "M.json")
    assert manifest.channels == ("DAPI", "GFP")
    assert len(manifest.training) == len(ORDERS)
    for one in manifest.training:
        assert one.case.read().array[:, 5, 5].tolist() == [10, 20]


def test_a_model_is_given_the_channels_it_knows(tmp_path: Path) -> None:
    for number, names in enumerate((*ORDERS, ("dapi", "Gfp"))):
        _write(tmp_path / f"{'abcdef'[number]}.ome.tif", names)
    cases = group_cases(discover(tmp_path).usable, ("GFP", "DAPI"))
    assert [case.read().array[:, 5, 5].tolist() for case in cases] == [[20, 10]] * 6
    (wrong,) = {
        tuple(case.read().array[:, 5, 5].tolist()) for case in group_cases(discover(tmp_path / "d.ome.tif").usable)
    }
    assert wrong == (30, 20, 10)  # no names are wanted: as stored
