"""The picture of a source: right way up, in true proportions, from one slice, and none that may tell a name."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import dicom_writer as w
import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from unet_med.errors import InputRefusedError
from unet_med.io.dicom import pixels as dicom_pixels
from unet_med.io.discover import discover
from unet_med.io.source import SourceRef
from unet_med.workflows.thumbnail import GREY_STEP, Thumbnail, may_carry_a_name, thumbnail

SIZE = (24, 30, 36)  # mm to the right, to the front, upwards
SPACING = (1.0, 1.5, 3.0)


def only(path: Path) -> SourceRef:
    (ref,) = discover(path).sources
    return ref


def grey(picture: Thumbnail) -> np.ndarray:
    image = np.asarray(Image.open(io.BytesIO(picture.png)))
    assert image.shape[1::-1] == picture.size
    return image.astype(float)


def patient(axes: str, spacing: tuple[float, float, float]) -> nib.Nifti1Image:
    """A volume whose axes run to ``axes``: bright to the patient's left, brighter to the front, brightest upwards."""
    world = ["LR", "PA", "IS"]
    rows = [next(n for n, pair in enumerate(world) if letter in pair) for letter in axes]
    signs = [1 if letter in "RAS" else -1 for letter in axes]
    shape = [round(SIZE[row] / step) for row, step in zip(rows, spacing, strict=True)]
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (row, sign, step) in enumerate(zip(rows, signs, spacing, strict=True)):
        affine[row, axis] = sign * step
    index = np.indices(shape).reshape(3, -1)
    x, y, z = affine[:3, :3] @ index
    return nib.Nifti1Image((-1.0 * x + 2.0 * y + 4.0 * z).reshape(shape).astype(np.float32), affine)


@pytest.mark.parametrize("order", ["".join(p) for p in permutations("XYZ")])
@pytest.mark.parametrize("signs", list(product((0, 1), repeat=3))[::3])
def test_every_orientation_hangs_the_same_way(tmp_path: Path, order: str, signs: tuple[int, ...]) -> None:
    axes = "".join({"X": "LR", "Y": "PA", "Z": "IS"}[axis][sign] for axis, sign in zip(order, signs, strict=True))
    nib.save(patient(axes, SPACING), tmp_path / "a.nii")
    picture = thumbnail(only(tmp_path / "a.nii"), 100)
    values = grey(picture)
    plane = {"X": "sagittal", "Y": "coronal", "Z": "axial"}[order[2]]  # the third axis has the largest step
    assert picture.caption.startswith(plane)
    left, right, top, bottom = picture.letters
    assert left + right == {"axial": "RL", "coronal": "RL", "sagittal": "AP"}[plane]
    assert top + bottom == {"axial": "AP", "coronal": "SI", "sagittal": "SI"}[plane]
    brighter_right = np.sign(values[:, -1].mean() - values[:, 0].mean())
    assert brighter_right == {"axial": 1, "coronal": 1, "sagittal": -1}[plane]  # left is bright, front is bright
    assert values[0].mean() > values[-1].mean()  # front and head are brighter than back and feet
    width = SIZE[1] if plane == "sagittal" else SIZE[0]
    height = SIZE[1] if plane == "axial" else SIZE[2]
    assert picture.size[0] / picture.size[1] == pytest.approx(width / height, rel=0.06)


def test_stored_slices_hang_as_their_own_plane(tmp_path: Path) -> None:
    """A sagittal DICOM series: rows run to the back, columns to the feet."""
    turn = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    w.write(tmp_path, w.Series(columns=20, rows=30, turn=turn, modality="MR").slices())
    picture = thumbnail(only(tmp_path), 50)
    assert (picture.letters, picture.caption) == ("APSI", "sagittal 4/6")
    assert picture.size[0] / picture.size[1] == pytest.approx(20 * 0.8 / (30 * 1.25), rel=0.05)
    values = grey(picture)
    assert values[:, -1].mean() > values[:, 0].mean()  # 3 y: the back is brighter
    assert values[0].mean() > values[-1].mean()  # 5 z: the head is brighter


def test_only_the_middle_slice_is_decoded_even_where_padding_is_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices = w.Series(modality="MR").slices()
    for data in slices:
        data.add_new(0x00280120, "SS", -32768)
        stored = np.frombuffer(data.PixelData, np.int16).reshape(data.Rows, data.Columns).copy()
        stored[0, :4] = -32768
        data.PixelData = stored.tobytes()
    w.write(tmp_path, slices)
    ref = only(tmp_path)
    read: list[Path] = []
    original = dicom_pixels.read_slice

    def counting(path: Path, *rest: int) -> dicom_pixels.Slice:
        read.append(path)
        return original(path, *rest)

    monkeypatch.setattr(dicom_pixels, "read_slice", counting)
    values = grey(thumbnail(ref, 100))
    assert read == [ref.files[3]]
    assert len(np.unique(values)) > 20  # padding did not swallow the grey values


def test_hounsfield_units_are_shown_as_soft_tissue_and_positrons_dark(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(-1000, 1000, 41, dtype=np.int16), (40, 1))  # 50 HU for each column
    for modality in ("CT", "PT", "MR"):
        slices = w.Series(rows=40, columns=41, between_rows=1, between_columns=1, modality=modality, turn=np.eye(3))
        written = slices.slices()
        for data in written:
            w.set_stored(data, ramp)
            data.RescaleSlope, data.RescaleIntercept = 1, 0
        w.write(tmp_path / modality, written)
    ct, pt, mr = (grey(thumbnail(only(tmp_path / name), 41))[20] for name in ("CT", "PT", "MR"))
    assert (ct[:16] == 0).all()  # below -160 HU
    assert (ct[25:] == 255 // GREY_STEP * GREY_STEP).all()  # above 240 HU
    assert 110 < ct[21] < 145  # 50 HU is in the middle
    assert pt[0] > 200 > 50 > pt[-1]
    assert (np.diff(mr) >= 0).all()
    assert len(np.unique(mr)) > 35


def test_pictures_show_their_colours_and_frames(tmp_path: Path) -> None:
    colours = np.zeros((20, 30, 3), dtype=np.uint8)
    colours[:, :15, 0], colours[:10, :, 2] = 200, 100
    tifffile.imwrite(tmp_path / "c.tif", colours, photometric="rgb")
    picture = thumbnail(only(tmp_path / "c.tif"), 60)
    assert np.array_equal(grey(picture), colours // GREY_STEP * GREY_STEP)
    assert picture.letters == picture.caption == ""
    film = np.stack([np.full((8, 9), n, np.uint8) for n in range(5)])
    film[2, :, :4] = 250
    tifffile.imwrite(tmp_path / "f.ome.tif", film, photometric="minisblack", metadata={"axes": "TYX"})
    picture = thumbnail(only(tmp_path / "f.ome.tif"), 60)
    assert picture.caption == "3/5"
    assert (grey(picture)[:, 0] > grey(picture)[:, -1]).all()


def test_large_slices_become_small_and_odd_ones_stay_visible(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "long.tif", np.arange(3000 * 4, dtype=np.uint16).reshape(4, 3000))
    assert thumbnail(only(tmp_path / "long.tif"), 64).size == (64, 8)
    values = np.full((50, 60), np.nan, dtype=np.float32)
    tifffile.imwrite(tmp_path / "nan.tif", values)
    assert (grey(thumbnail(only(tmp_path / "nan.tif"), 64)) == 0).all()


@pytest.mark.parametrize(
    ("modality", "burnt", "hidden"), [("DX", "YES", True), ("DX", "NO", False), ("US", None, True), ("XC", None, True)]
)
def test_pixels_that_may_tell_a_name_are_not_shown(
    tmp_path: Path, modality: str, burnt: str | None, hidden: bool
) -> None:
    data = w.Series(modality=modality, sop_class="1.2.840.10008.5.1.4.1.1.1.1").slices()[:1]
    for name in ("ImagePositionPatient", "ImageOrientationPatient"):
        delattr(data[0], name)
    if burnt:
        data[0].BurnedInAnnotation = burnt
    w.write(tmp_path, data)
    ref = only(tmp_path)
    assert ref.usable
    assert may_carry_a_name(ref) is hidden
    if hidden:
        with pytest.raises(InputRefusedError, match="may carry a name"):
            thumbnail(ref, 50)
    else:
        assert thumbnail(ref, 50).png


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    paths = w.write(tmp_path, w.Series().slices())
    ref = only(tmp_path)
    for path in paths:
        path.write_bytes(b"gone")
    with pytest.raises(InputRefusedError):
        thumbnail(ref, 50)
    with pytest.raises(InputRefusedError, match="refused source"):
        thumbnail(replace(ref, usable=False, geometry=None), 50)


def test_of_a_large_picture_the_smaller_copy_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies are of other values, to be told apart; a large picture without any is not drawn."""
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        options = {"tile": (32, 32), "photometric": "minisblack"}
        file.write(np.zeros((512, 512), np.uint8), subifds=2, metadata={"axes": "YX"}, **options)
        for level, colour in ((1, 1), (2, 2)):
            values = np.full((512 >> level, 512 >> level), colour, np.uint8)
            values[::2] *= 100
            file.write(values, subfiletype=1, metadata=None, **options)
    ref = only(tmp_path / "a.ome.tif")
    assert len(np.unique(grey(thumbnail(ref, 100)))) > 1
    assert not grey(thumbnail(replace(ref, levels=()), 100)).any()
    monkeypatch.setattr("unet_med.workflows.thumbnail._LARGEST", 512 * 511)
    assert thumbnail(ref, 100).size == (100, 100)
    with pytest.raises(InputRefusedError, match="too large"):
        thumbnail(replace(ref, levels=()), 100)
