"""Enhanced multi-frame volumes against highdicom, SimpleITK and dcm2niix: same voxels at the same places."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import dcm2niix
import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from unet_med.io.dicom.source import DicomSource, inspect_dicom

_SPEC = importlib.util.spec_from_file_location(
    "dicom_multiframe_writer", Path(__file__).parents[1] / "dicom_multiframe_writer.py"
)
m = importlib.util.module_from_spec(_SPEC)
sys.modules["dicom_multiframe_writer"] = m
_SPEC.loader.exec_module(m)
w = m.w

SHARED = ("orientation", "measures", "rescale")


def ours(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (X, Y, K) and the affine to LPS mm."""
    (ref,) = inspect_dicom(paths).sources
    assert ref.usable, ref.reason
    return DicomSource(ref).read().array[0], ref.geometry.to_lps()


def assert_same_places(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], tolerance: float) -> None:
    """Both hold the same values at the same mm, whatever the order of their axes."""
    back = np.linalg.inv(b[1])
    index = np.stack(np.meshgrid(*map(np.arange, a[0].shape), indexing="ij"), axis=-1)
    there = index @ (back @ a[1])[:3, :3].T + (back @ a[1])[:3, 3]
    rounded = np.rint(there).astype(int)
    assert np.abs(there - rounded).max() < 1e-3
    assert sorted(a[0].shape) == sorted(b[0].shape)
    assert np.abs(a[0] - b[0][tuple(np.moveaxis(rounded, -1, 0))]).max() <= tolerance


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 0, 5, 1, 4, 2]])
def test_highdicom_agrees(tmp_path: Path, modality: str, order: list[int]) -> None:
    import highdicom

    frames = [m.Frame(k, slope=0.01 + 0.002 * k, intercept=3.0 * k) for k in order]
    paths = w.write(tmp_path, [m.enhanced(w.Series(modality=modality), frames)])
    theirs = highdicom.imread(paths[0]).get_volume(
        dtype=np.float64, apply_real_world_transform=False, apply_presentation_lut=False
    )
    # highdicom's axes are (slice, row, column)
    assert_same_places(ours(paths), (theirs.array, theirs.affine), tolerance=1e-4)


def test_simpleitk_agrees_where_frames_are_in_order(tmp_path: Path) -> None:
    """ITK reads frames in stored order and takes slope and intercept of the first one."""
    frames = [m.Frame(k, slope=0.02, intercept=-5.0) for k in range(6)]
    paths = w.write(tmp_path, [m.enhanced(w.Series(modality="CT"), frames, shared=SHARED)])
    image = SimpleITK.ReadImage(str(paths[0]))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    array = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    mine = ours(paths)
    assert np.abs(mine[1] - affine).max() < 1e-4
    assert_same_places(mine, (array, affine), tolerance=1e-4)


def test_dcm2niix_agrees_where_frames_are_in_order(tmp_path: Path) -> None:
    frames = [m.Frame(k, slope=0.02, intercept=-5.0) for k in range(6)]
    for frame in frames:
        frame.groups, frame.position = m.stack("1", frame.index + 1), (1, frame.index + 1)
    data = m.enhanced(w.Series(modality="CT"), frames, shared=SHARED, dimensions=[0x00209056, 0x00209057])
    paths = w.write(tmp_path / "in", [data])
    out = tmp_path / "out"
    out.mkdir()
    command = [dcm2niix.bin, "-b", "n", "-z", "n", "-f", "x", "-o", str(out), str(tmp_path / "in")]
    subprocess.run(command, check=True, capture_output=True)
    image = nib.load(next(out.glob("*.nii")))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    assert_same_places(ours(paths), (image.get_fdata(), affine), tolerance=1e-3)
