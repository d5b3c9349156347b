"""Several formats of one mask: all of them, checked, or none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.io.atomic import whole_files
from unet_med.io.cases import FrameSource
from unet_med.io.export import nifti, seg_nrrd
from unet_med.io.export.mask import ExportOptions, MaskExport
from unet_med.io.export.sidecars import itksnap_labels, slicer_colours, write_label_tables
from unet_med.io.sinks import open_mask_sink
from unet_med.labels import Label, LabelMap
from unet_med.volume import ArraySource, Volume

LABELS = LabelMap.from_names({"background": 0, "left": 1, "right": 2})
BOTH = ExportOptions(("nifti", "seg-nrrd"))
AFFINE = np.array([[-0.5, 0, 0, 10], [0, 0.75, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1.0]])


def _source(geometry: Geometry | None = None) -> ArraySource:
    geometry = geometry or Geometry((8, 8, 5), AFFINE)
    return ArraySource("case", Volume(np.zeros((1, *geometry.shape), np.float32), geometry))


def _mask() -> np.ndarray:
    mask = np.zeros((8, 8, 5), np.uint8)
    mask[1:3, 1:3, 1:3] = 1
    mask[5:7, 4:7, 2:5] = 2
    return mask


def _close(folder: Path, options: ExportOptions = BOTH) -> list[Path]:
    sink = open_mask_sink(_source(), folder / "case", LABELS, {"seed": 7}, options)
    sink.write(None, _mask())
    return sink.close()


def test_every_format_is_written_and_checked(tmp_path: Path) -> None:
    files = _close(tmp_path)
    assert [file.name for file in files] == ["case.nii.gz", "case.seg.nrrd", "case.json"]
    sidecar = json.loads(files[-1].read_text(encoding="utf-8"))
    assert sidecar["files"] == ["case.nii.gz", "case.seg.nrrd"]
    assert sidecar["use"] == "Research use only"
    assert sidecar["checks"]["passed"]
    for name in BOTH.formats:
        record = sidecar["checks"]["formats"][name]
        assert record["passed"]
        assert record["reader"] == "SimpleITK"
        assert record["voxels"] == 0
        assert record["pairs"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["case.json", "case.nii.gz", "case.seg.nrrd"]


def test_labels_of_the_options_replace_those_of_the_model(tmp_path: Path) -> None:
    blue = LabelMap((Label(1, "left", (0, 0, 255)), Label(2, "right", (0, 255, 0))))
    files = _close(tmp_path, ExportOptions(("seg-nrrd",), labels=blue.with_known_codes()))
    assert [file.name for file in files] == ["case.seg.nrrd", "case.json"]
    sidecar = json.loads(files[-1].read_text(encoding="utf-8"))
    assert [entry["colour"] for entry in sidecar["labels"]] == [[0, 0, 255], [0, 255, 0]]
    assert b"Segment0_Color:=0 0 1" in files[0].read_bytes()


def _mirrored(export: MaskExport) -> dict[str, Any]:
    return {"labels": np.flip(export.labels, 1)}


def _swapped(export: MaskExport) -> dict[str, Any]:
    return {"labels": np.array([0, 2, 1], np.uint8)[export.labels]}


def _transposed(export: MaskExport) -> dict[str, Any]:
    return {"labels": export.labels.transpose(1, 0, 2)}


def _moved(export: MaskExport) -> dict[str, Any]:
    affine = AFFINE.copy()
    affine[1, 3] += 0.375
    return {"source": _source(Geometry((8, 8, 5), affine))}


@pytest.mark.parametrize("module", [nifti, seg_nrrd], ids=["nifti", "seg-nrrd"])
@pytest.mark.parametrize("sabotage", [_mirrored, _swapped, _transposed, _moved])
def test_a_writer_that_errs_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, sabotage: Callable[[MaskExport], dict[str, Any]]
) -> None:
    true_write = module.write

    def wrong(export: MaskExport, path: Path) -> None:
        changed = {"source": export.source, "labels": export.labels} | sabotage(export)
        true_write(MaskExport(label_map=export.label_map, **changed), path)

    monkeypatch.setattr(module, "write", wrong)
    with pytest.raises(InputRefusedError, match="read back") as caught:
        _close(tmp_path)
    assert caught.value.what.startswith("nifti: " if module is nifti else "seg-nrrd: ")
    assert list(tmp_path.iterdir()) == []


def test_the_stamp_alone_catches_a_mirrored_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nifti, "same_values", lambda *_: None)
    true_write = nifti.write
    monkeypatch.setattr(
        nifti, "write", lambda export, path: true_write(MaskExport(**(vars(export) | _mirrored(export))), path)
    )
    with pytest.raises(InputRefusedError, match="right does not lie anterior of label left"):
        _close(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["dicom-seg", "rtstruct", "dicom-sr", "dicom-sc"])
def test_dicom_formats_need_a_dicom_series(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputRefusedError, match=f"{name} refers to the slices of a DICOM series") as caught:
        open_mask_sink(_source(), tmp_path / "case", LABELS, None, ExportOptions(("nifti", name)))
    assert caught.value.remedy


@pytest.mark.parametrize("geometry", [Geometry((9, 5)), Geometry.from_spacing((9, 5), (0.1, 0.1)), Geometry((9, 5, 4))])
def test_what_has_no_place_has_only_tiff(tmp_path: Path, geometry: Geometry) -> None:
    with pytest.raises(InputRefusedError, match="seg-nrrd cannot hold"):
        open_mask_sink(_source(geometry), tmp_path / "case", LABELS, None, ExportOptions(("seg-nrrd",)))
    sink = open_mask_sink(_source(geometry), tmp_path / "case", LABELS, None, ExportOptions())
    assert [file.suffix for file in sink.close()] == [".tif", ".json"]


def test_one_frame_of_a_source_is_found_through_its_wrapper() -> None:
    export = MaskExport(FrameSource(_source(), 0), _mask(), LABELS)
    assert export.dicom is None


def test_files_and_folders_appear_together_or_not_at_all(tmp_path: Path) -> None:
    paths = [tmp_path / "a.txt", tmp_path / "b.sc"]
    (tmp_path / "b.sc").mkdir()
    (tmp_path / "b.sc" / "old").touch()
    with whole_files(paths, "case") as (file, folder):
        file.write_text("a", encoding="utf-8")
        folder.mkdir()
        (folder / "new").touch()
        assert not paths[0].exists()
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["a.txt", "b.sc", "new"]
    other = [tmp_path / "c.txt", tmp_path / "d.sc"]
    with pytest.raises(ValueError, match="stop"), whole_files(other, "case") as (file, folder):
        file.touch()
        folder.mkdir()
        (folder / "new").touch()
        raise ValueError("stop")
    with pytest.raises(FileNotFoundError), whole_files(other, "case") as (file, _):
        file.touch()  # the second is never written
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["a.txt", "b.sc", "new"]


def test_tables_of_labels_are_those_of_itksnap_and_slicer(tmp_path: Path) -> None:
    labels = LabelMap((Label(1, "left kidney", (185, 102, 83)), Label(300, 'a "b"', (0, 7, 255))))
    snap = [line for line in itksnap_labels(labels).splitlines() if not line.startswith("#")]
    assert snap == [
        '    0     0    0    0        0  0  0    "Clear Label"',
        '    1   185  102   83        1  1  1    "left kidney"',
        "  300     0    7  255        1  1  1    \"a 'b'\"",
    ]
    slicer = [line for line in slicer_colours(labels).splitlines() if not line.startswith("#")]
    assert slicer == ["0 Background 0 0 0 0", "1 left_kidney 185 102 83 255", '300 a_"b" 0 7 255 255']
    files = write_label_tables(tmp_path, labels)
    stamps = [file.stat().st_mtime_ns for file in files]
    assert write_label_tables(tmp_path, labels) == files
    assert [file.stat().st_mtime_ns for file in files] == stamps
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.ctbl", "labels.itksnap.txt"]
