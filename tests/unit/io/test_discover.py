"""Every format of a tree, what is skipped, and that nothing ends the scan."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import tifffile
from PIL import Image

from unet_med.errors import InputRefusedError, NothingUsableError, UsageError
from unet_med.io.dicom.slices import SliceLayout
from unet_med.io.discover import discover, open_source, restore_ref
from unet_med.io.source import IntakeOptions

_SPEC = importlib.util.spec_from_file_location("dicom_writer", Path(__file__).parents[2] / "dicom_writer.py")
w = importlib.util.module_from_spec(_SPEC)
sys.modules["dicom_writer"] = w
_SPEC.loader.exec_module(w)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One image of each kind, and things that are none."""
    root = tmp_path / "tree"
    w.write(root / "scans" / "a", w.Series().slices())
    values = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 2.0, 3.0, 1.0])), root / "scans" / "brain.nii.gz")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(root / "brain.mha"))
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(root / "brain.nrrd"))
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(root / "head.mhd"))
    tifffile.imwrite(root / "cells.tif", values[0].astype(np.uint8))
    Image.fromarray(values[0].astype(np.uint8)).save(root / "cells.png")
    Image.fromarray(np.zeros((8, 9, 3), dtype=np.uint8)).save(root / "Cells.JPG")
    (root / "brain.json").write_text("{}")
    (root / "notes.txt").write_text("text")
    (root / "whatever").write_bytes(bytes(range(256)))
    (root / ".hidden.nii.gz").write_bytes(b"")
    (root / ".git").mkdir()
    return root


def test_every_format_is_found_once(tree: Path) -> None:
    found = discover(tree)
    assert all(ref.usable for ref in found.sources), [ref.reason for ref in found.sources]
    assert [ref.kind for ref in found.sources].count("dicom") == 1
    assert {ref.id: ref.kind for ref in found.sources if ref.kind != "dicom"} == {
        "brain": "mha",
        "brain-2": "nrrd",
        "brain-3": "nifti",
        "Cells": "jpeg",
        "cells-2": "png",
        "cells-3": "tiff",
        "head": "mha",
    }
    assert {one.what: one.count for one in found.skipped} == {
        ".json files": 1,
        ".txt files": 1,
        "data files": 1,
        "hidden files and folders": 2,
        "other files": 1,
    }
    for ref in found.sources:
        source = open_source(ref)
        assert source.read().array.shape == (ref.channels, *ref.geometry.shape)
        assert source.id == ref.id


def test_the_result_does_not_depend_on_where_the_tree_lies(tree: Path, tmp_path: Path) -> None:
    before = [ref.id for ref in discover(tree).sources]
    tree.rename(tmp_path / "elsewhere")
    assert [ref.id for ref in discover(tmp_path / "elsewhere").sources] == before


def test_one_file_is_a_tree_too(tree: Path) -> None:
    assert [ref.id for ref in discover(tree / "brain.nrrd").sources] == ["brain"]
    slice_ = discover(tree / "scans" / "a" / "IM0002.dcm").sources[0]
    assert slice_.shape == (9, 7, 1)


def test_progress_sees_every_file(tree: Path) -> None:
    seen = []
    discover(tree, progress=lambda items, text: seen.extend(items) or items)
    assert len(seen) == 17


def test_series_are_chosen_by_the_beginning_of_their_id(tree: Path) -> None:
    found = discover(tree, IntakeOptions(series=("s013", "head")))
    assert [ref.kind for ref in found.sources] == ["dicom", "mha"]
    assert found.skipped[-1].count == 6
    with pytest.raises(UsageError) as caught:
        discover(tree, IntakeOptions(series=("nothing",)))
    assert "brain" not in str(caught.value)
    assert "8 sources" in str(caught.value)


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(NothingUsableError, match="empty"):
        discover(tmp_path)
    with pytest.raises(UsageError, match="no such") as caught:
        discover(tmp_path / "SECRET^JANE")
    assert "SECRET" not in str(caught.value)
    (tmp_path / "a.txt").write_text("x")
    assert discover(tmp_path).sources == ()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".tif", ".png", ".jpg"])
@pytest.mark.parametrize("content", [b"", b"\0" * 400, b"no image at all " * 40])
def test_damaged_files_are_refused_and_the_others_go_on(tree: Path, suffix: str, content: bytes) -> None:
    (tree / f"damaged{suffix}").write_bytes(content)
    found = discover(tree)
    bad = [ref for ref in found.sources if not ref.usable]
    assert [ref.id for ref in bad] == ["damaged"]
    assert bad[0].reason
    assert str(tree) not in bad[0].reason
    assert len(found.usable) == 8
    with pytest.raises(InputRefusedError):
        open_source(bad[0])


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_are_followed_and_loops_are_not(tree: Path, tmp_path: Path) -> None:
    (tree / "loop").symlink_to(tree, target_is_directory=True)
    (tree / "scans" / "up").symlink_to(tree / "scans", target_is_directory=True)
    (tree / "gone.nii.gz").symlink_to(tree / "nowhere")
    other = tmp_path / "other"
    w.write(other, w.Series(number=14).slices())
    (tree / "linked").symlink_to(other, target_is_directory=True)
    found = discover(tree)
    assert sorted(ref.id[:4] for ref in found.sources if ref.kind == "dicom") == ["s013", "s014"]
    assert len(found.sources) == 9
    assert {one.what: one.count for one in found.skipped}["links to folders"] == 2
    assert {one.what: one.count for one in found.skipped}["special files and broken links"] == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_do_not_hang(tree: Path) -> None:
    os.mkfifo(tree / "pipe.dcm")
    assert len(discover(tree).usable) == 8


def test_known_files_are_found_again(tree: Path) -> None:
    for ref in discover(tree).sources:
        files = ref.files[::-1] if ref.kind == "dicom" else ref.files
        again = restore_ref({"id": ref.id, "read": dict(ref.read_as)}, files)
        assert (again.id, again.files, again.shape, again.notes) == (ref.id, ref.files, ref.shape, ref.notes)
        assert again.geometry.same_grid(ref.geometry)
    folder = restore_ref({"id": "case1"}, [tree / "scans" / "a"])
    assert (folder.id, folder.shape, folder.usable) == ("case1", (9, 7, 6), True)


def test_parts_of_a_dicom_series_are_found_again(tmp_path: Path) -> None:
    """Only the files of a part are stored; they must come back as that part, with the switches it needs."""
    series = w.Series()
    slices = [series.slice(k, k + 1) for k in (0, 1, 2, 4, 5)]
    for echo in (2, 1):
        for data in slices:
            data.EchoNumbers = echo
            data.ImageComments = "SECRET^JANE"
            w.renew(data)
        w.write(tmp_path / f"{echo}", slices)
    found = discover(tmp_path, IntakeOptions(allow_gaps=True)).sources
    assert [dict(ref.read_as) for ref in found] == [
        {"part": "echo1", "allow_gaps": True},
        {"part": "echo2", "allow_gaps": True},
    ]
    for ref in found:
        again = restore_ref({"id": ref.id, "read": dict(ref.read_as)}, ref.files[::-1])
        assert (again.id, again.files, again.shape, again.read_as) == (ref.id, ref.files, ref.shape, ref.read_as)
        assert again.layout == ref.layout
        assert not restore_ref({"id": ref.id, "read": {"part": ref.read_as["part"]}}, ref.files).usable
    both = [file for ref in found for file in ref.files]
    second = restore_ref({"id": "x", "read": dict(found[1].read_as)}, both)
    assert second.files == found[1].files


def test_where_slices_are_stored_is_told(tmp_path: Path) -> None:
    series = w.Series()
    slices = series.slices()
    paths = w.write(tmp_path, slices, [f"{9 - n}.dcm" for n in range(6)])
    layout = discover(tmp_path).sources[0].layout
    assert isinstance(layout, SliceLayout)
    assert (layout.size, layout.regrid) == ((9, 7), None)
    assert layout.spacing_mm == pytest.approx((0.8, 1.25))
    assert layout.step_mm == pytest.approx(2.5)
    assert np.allclose(np.column_stack([layout.row, layout.column, layout.normal]), series.turn, atol=1e-8)
    assert (layout.study_uid, layout.series_uid, layout.frame_uid) == (series.study, series.uid, series.frame)
    ref = discover(tmp_path).sources[0]
    for k, (one, data) in enumerate(zip(layout.slices, slices, strict=True)):
        assert ref.files[one.file] == paths[k]
        assert (one.frame, one.sop_uid) == (0, data.SOPInstanceUID)
        assert one.position == pytest.approx(series.position(k))
    assert "1.2.826" not in repr(ref)


def test_pictures_tell_their_place_only_where_they_have_one(tmp_path: Path) -> None:
    series = w.Series(modality="CR", step=1.5)
    placed, loose = series.slices()[:2]
    del loose.ImagePositionPatient
    w.write(tmp_path, [placed, loose])
    first, second = discover(tmp_path).sources
    assert isinstance(first.layout, SliceLayout)
    assert first.layout.slices[0].position == pytest.approx(series.position(0))
    assert second.usable
    assert second.layout is None


def test_switches_are_restored(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((5, 6, 7), dtype=np.uint8), photometric="minisblack")
    assert not discover(tmp_path).sources[0].usable
    ref = discover(tmp_path, IntakeOptions(axes="ZYX", pixel_size_mm=(0.1, 0.2, 0.3))).sources[0]
    again = restore_ref({"id": "stack", "read": dict(ref.read_as)}, ref.files)
    assert again.geometry.spacing_mm == (0.1, 0.2, 0.3)
    assert again.shape == ref.shape


def test_files_that_changed_are_refused(tree: Path) -> None:
    ref = next(ref for ref in discover(tree).sources if ref.kind == "dicom")
    changed = restore_ref({"id": "case"}, [*ref.files[:2], *ref.files[3:]])
    assert not changed.usable
    assert "missing" in changed.reason
    nothing = restore_ref({"id": "case"}, [tree / "whatever"])
    assert (nothing.id, nothing.usable) == ("case", False)
    with pytest.raises(UsageError):
        restore_ref({"id": "case"}, [])


def test_unknown_kinds_are_refused(tree: Path) -> None:
    ref = discover(tree / "brain.nrrd").sources[0]
    with pytest.raises(InputRefusedError, match="kind fits"):
        open_source(type(ref)(**{**vars(ref), "kind": "fits"}))


def test_scanning_dicom_imports_no_heavy_library(tmp_path: Path) -> None:
    w.write(tmp_path, w.Series().slices())
    code = (
        "import sys; from pathlib import Path; from unet_med.workflows.scan import scan;"
        "assert scan(Path(sys.argv[1])).exit_code == 0;"
        "heavy = {'torch', 'monai', 'nibabel', 'SimpleITK', 'tifffile', 'pydicom', 'scipy'} & set(sys.modules);"
        "sys.exit(' '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_dicom_is_known_by_its_content_whatever_its_suffix(tmp_path: Path) -> None:
    suffixes = (".jpg", ".nii", ".nii.gz", ".tif", ".txt", ".pdf")
    w.write(tmp_path, w.Series().slices(), [f"SECRET^JANE.{n}{suffix}" for n, suffix in enumerate(suffixes)])
    found = discover(tmp_path)
    (ref,) = found.sources
    assert (ref.usable, ref.kind, len(ref.files)) == (True, "dicom", 6)
    assert found.skipped == ()
    assert "SECRET" not in ref.id
    again = restore_ref({"id": ref.id, "read": dict(ref.read_as)}, ref.files)
    assert (again.usable, again.shape) == (True, ref.shape)


def test_archives_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "all.zip").write_bytes(b"PK")
    (tmp_path / "notes.txt").write_text("x")
    assert {one.what: one.reason for one in discover(tmp_path).skipped} == {
        ".txt files": "are no images",
        ".zip files": "are archives: unpack them",
    }


@pytest.mark.parametrize("name", ["IM6", "1.2.840.6", "IM6.dcm"])
@pytest.mark.parametrize("content", [b"", bytes(4000)])
def test_a_file_that_was_never_filled_is_missing_from_its_series(tmp_path: Path, name: str, content: bytes) -> None:
    """The last slice: without it the rest would look like a whole series."""
    w.write(tmp_path, w.Series().slices()[:5], [f"IM{n}" for n in range(5)])
    (tmp_path / name).write_bytes(content)
    (ref,) = discover(tmp_path).sources
    assert not ref.usable
    assert "1 file in its folder cannot be read" in ref.reason


def test_all_truncated_slices_are_named(tmp_path: Path) -> None:
    paths = w.write(tmp_path, w.Series(turn=np.eye(3)).slices())
    for path in paths[1:5]:
        path.write_bytes(path.read_bytes()[:-20])
    (ref,) = discover(tmp_path).sources
    assert ref.reason.startswith("4 files are truncated (slice at 4.50 mm along the slice normal, ")
    assert " and 1 more)" in ref.reason
