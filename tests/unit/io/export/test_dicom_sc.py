"""Secondary captures: outlines where the labels are, on every slice, with no text but the legend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_multiframe_writer import Frame, enhanced
from dicom_writer import Series, rotation, write
from mask_exports import blobs, dciodvfy, export_of, label_map, personal
from pydicom import dcmread

from unet_med.errors import InputRefusedError
from unet_med.io.export import dicom_sc
from unet_med.io.export.mask import MaskExport
from unet_med.io.source import IntakeOptions

ORANGE = (230, 159, 0)


def _series(folder: Path, **grid: object) -> Path:
    slices = Series(**grid).slices()
    for one in slices:
        personal(one)
    write(folder, slices)
    return folder


def _write(export: MaskExport, folder: Path) -> list[Path]:
    dicom_sc.write(export, folder)
    assert dicom_sc.check(folder, export)["passed"]
    return sorted(folder.iterdir())


@pytest.mark.parametrize("deidentify", [False, True])
def test_is_valid(tmp_path: Path, deidentify: bool) -> None:
    export = export_of(_series(tmp_path / "in", columns=40, rows=30), deidentify=deidentify)
    files = _write(export, tmp_path / "out")
    assert [file.name for file in files] == [f"{number:04d}.dcm" for number in range(1, 7)]
    assert all(dciodvfy(file) == [] for file in files[:2])
    found = [dcmread(file) for file in files]
    assert len({one.SOPInstanceUID for one in found}) == 6
    assert {one.SeriesInstanceUID for one in found} == {found[0].SeriesInstanceUID}
    assert {one.BurnedInAnnotation for one in found} == {"NO"}
    assert [one.InstanceNumber for one in found] == [1, 2, 3, 4, 5, 6]


def test_pixels_keep_their_place_when_small_slices_are_enlarged(tmp_path: Path) -> None:
    source = {header.SOPInstanceUID: header for header in map(dcmread, _series(tmp_path / "in").iterdir())}
    labels = np.zeros((9, 7, 6), np.uint8)
    labels[5, 2, 3] = 1
    files = _write(export_of(tmp_path / "in", labels, names=label_map(1)), tmp_path / "out")
    found = dcmread(files[3])
    header = source[found.SourceImageSequence[0].ReferencedSOPInstanceUID]
    row, column = np.array(found.ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = map(float, found.PixelSpacing)
    assert between_rows / between_columns == pytest.approx(1.25 / 0.8)
    r, c = np.argwhere((found.pixel_array == ORANGE).all(axis=-1) & (np.arange(found.Rows) < 7 * 57)[:, None]).T
    assert len(r) > 4 * 50
    place = (
        np.array(found.ImagePositionPatient, float)
        + column * between_rows * r.mean()
        + row * between_columns * c.mean()
    )
    pixel = np.array(header.ImagePositionPatient, float) + row * 0.8 * 5 + column * 1.25 * 2
    assert np.linalg.norm(place - pixel) < 1e-3


def test_grey_values_follow_the_window_of_the_header(tmp_path: Path) -> None:
    series = Series(columns=520, rows=10, count=1, between_columns=0.2, turn=rotation(0.0))
    (one,) = series.slices()
    one.WindowCenter, one.WindowWidth = [130.0, 40.0], [100.0, 400.0]
    write(tmp_path / "in", [one])
    (file,) = _write(export_of(tmp_path / "in", np.zeros((520, 10, 1), np.uint8)), tmp_path / "out")
    shown = dcmread(file).pixel_array[:10, :, 0].astype(float)
    values = series.values(series.position(0))
    assert np.abs(shown - ((values - 80.0) / 100.0 * 255.0).clip(0, 255)).max() < 1.1
    one.WindowCenter, one.WindowWidth = -9000.0, 10.0  # shows nothing
    write(tmp_path / "dark", [one])
    (file,) = _write(export_of(tmp_path / "dark", np.zeros((520, 10, 1), np.uint8)), tmp_path / "light")
    assert np.ptp(dcmread(file).pixel_array[:10]) > 200


def test_a_constant_image_and_labels_of_one_colour(tmp_path: Path) -> None:
    slices = Series().slices()
    for one in slices:
        one.PixelData = bytes(len(one.PixelData))
    write(tmp_path / "in", slices)
    names = label_map(3)
    grey = tuple(replace(label, colour=(128, 128, 128)) for label in names.labels)
    _write(export_of(tmp_path / "in", blobs((9, 7, 6), 3), names=replace(names, labels=grey)), tmp_path / "out")


def test_many_labels_and_long_names_fit(tmp_path: Path) -> None:
    names = label_map(60)
    long = tuple(replace(label, name=f"{label.name} {'x' * 300}") for label in names.labels)
    _series(tmp_path / "in", count=1)
    files = _write(export_of(tmp_path / "in", names=replace(names, labels=long)), tmp_path / "out")
    assert dcmread(files[0]).Columns == 9 * 57


def test_tilted_and_enhanced_images(tmp_path: Path) -> None:
    series = Series(columns=20, rows=24, count=8)
    slices = series.slices()
    for number, one in enumerate(slices):
        shifted = series.position(number) + 0.6 * number * series.turn[:, 1]
        one.ImagePositionPatient = [f"{value:.8f}" for value in shifted]
    write(tmp_path / "tilted", slices)
    files = _write(export_of(tmp_path / "tilted", intake=IntakeOptions(untilt=True)), tmp_path / "a")
    assert len(files) == 8
    write(tmp_path / "enhanced", [enhanced(Series(modality="MR"), [Frame(k) for k in (3, 0, 5, 1, 4, 2)])])
    files = _write(export_of(tmp_path / "enhanced"), tmp_path / "b")
    numbers = [dcmread(file).SourceImageSequence[0].ReferencedFrameNumber for file in files]
    assert numbers == [2, 4, 6, 1, 5, 3]


def test_captures_that_show_something_else_are_refused(tmp_path: Path) -> None:
    export = export_of(_series(tmp_path / "in"))
    other = export_of(tmp_path / "in", np.roll(export.labels, 1, axis=0))
    files = _write(export, tmp_path / "out")
    with pytest.raises(InputRefusedError, match="lies elsewhere"):
        dicom_sc.check(tmp_path / "out", other)
    moved = dcmread(files[2])
    moved.ImagePositionPatient = [float(value) + 0.5 for value in moved.ImagePositionPatient]
    moved.save_as(files[2])
    with pytest.raises(InputRefusedError):
        dicom_sc.check(tmp_path / "out", export)
    files[0].unlink()
    with pytest.raises(InputRefusedError, match="5 captures of 6"):
        dicom_sc.check(tmp_path / "out", export)
