"""SEG in: every kind and coding, frames of any order and place, and what is refused."""

from __future__ import annotations

import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from shutil import which

import annotation_writer as a
import dicom_writer as w
import imagecodecs
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid

from unet_med.errors import InputRefusedError, MachineError
from unet_med.io.dicom.annotations import AnnotationSource, open_label
from unet_med.io.discover import discover, open_source
from unet_med.io.source import IntakeOptions, SourceRef

ROWS, COLUMNS, COUNT = 35, 45, 6


def a_series(**changes: object) -> w.Series:
    return w.Series(**({"columns": COLUMNS, "rows": ROWS, "count": COUNT} | changes))


def numbers(highest: int = 2, seed: int = 0) -> np.ndarray:
    """Returns labels 0 to ``highest`` (slices, rows, columns)."""
    dtype = np.uint8 if highest < 256 else np.uint16
    return np.random.default_rng(seed).integers(0, highest + 1, (COUNT, ROWS, COLUMNS)).astype(dtype)


def pair(folder: Path, **options: object) -> tuple[SourceRef, SourceRef]:
    """Returns the annotation and the image of a folder that holds one of each."""
    found = discover(folder, IntakeOptions(**options))
    assert len(found.annotations) == len(found.sources) == 1
    return found.annotations[0], found.sources[0]


def labels(folder: Path) -> np.ndarray:
    annotation, image = pair(folder)
    assert annotation.usable, annotation.reason
    return open_label(annotation, image).read().array[0]


def refused(folder: Path, *words: str) -> str:
    """Returns the message with which the annotation of a folder is refused."""
    annotation, image = pair(folder)
    with pytest.raises(InputRefusedError) as caught:
        open_label(annotation, image).read()
    for word in words:
        assert word in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert caught.value.remedy or not annotation.usable
    return str(caught.value)


@pytest.fixture
def series(tmp_path: Path) -> w.Series:
    """A series on disk, whose slices lie in the attribute ``made``."""
    one = a_series()
    one.made = one.slices()  # type: ignore[attr-defined]
    w.write(tmp_path, one.made)  # type: ignore[attr-defined]
    return one


def write_seg(folder: Path, series: w.Series, change: Callable[[Dataset], None], *args: object, **more: object) -> None:
    data = a.segmentation(series.made, *args, **more)  # type: ignore[attr-defined,arg-type]
    change(data)
    a.save(data, folder / "truth.dcm")


def same(data: Dataset) -> None:
    """Changes nothing."""


# ---- kinds and codings ----------------------------------------------------------------------------------------------


def _bits(data: Dataset) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(data.PixelData, np.uint8), bitorder="little")
    return bits[: data.NumberOfFrames * ROWS * COLUMNS].reshape(-1, ROWS, COLUMNS)


def _rle(data: Dataset) -> None:
    if data.BitsAllocated > 1:
        data.compress(RLELossless, encoding_plugin="pydicom")
        return
    packed = [np.packbits(frame, bitorder="little").tobytes() for frame in _bits(data)]
    head = np.array([1, 64, *[0] * 14], "<u4").tobytes()
    data.PixelData = encapsulate([head + imagecodecs.packbits_encode(frame) for frame in packed])
    data["PixelData"].VR = "OB"
    data.file_meta.TransferSyntaxUID = RLELossless


def _jpeg_2000(data: Dataset) -> None:
    if data.BitsAllocated > 1:
        data.compress(JPEG2000Lossless)
        return
    frames = [imagecodecs.jpeg2k_encode(f, codecformat="j2k", bitspersample=1, reversible=True) for f in _bits(data)]
    data.PixelData = encapsulate(frames)
    data.file_meta.TransferSyntaxUID = JPEG2000Lossless


def _jpeg_ls(data: Dataset) -> None:
    data.compress(JPEGLSLossless)


def _deflated(data: Dataset) -> None:
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian


CODINGS = {"plain": same, "rle": _rle, "jpeg 2000": _jpeg_2000, "jpeg-ls": _jpeg_ls, "deflated": _deflated}


KINDS_AND_CODINGS = [
    (kind, coding)
    for kind in ("BINARY", "FRACTIONAL", "LABELMAP")
    for coding in CODINGS
    if (kind, coding) != ("BINARY", "jpeg-ls")  # JPEG-LS has no pictures of one bit
]


@pytest.mark.parametrize(("kind", "coding"), KINDS_AND_CODINGS)
def test_every_kind_and_coding(tmp_path: Path, series: w.Series, kind: str, coding: str) -> None:
    truth = numbers()
    write_seg(tmp_path, series, CODINGS[coding], truth, ["liver", "spleen"], kind)
    assert np.array_equal(labels(tmp_path), truth.transpose(2, 1, 0))
    annotation, image = pair(tmp_path)
    alone = open_source(annotation)
    assert alone.geometry.same_grid(image.geometry)
    assert np.array_equal(alone.read().array[0], truth.transpose(2, 1, 0))


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_frames_deflated_one_by_one(tmp_path: Path, series: w.Series, kind: str) -> None:
    """Deflated Image Frame Compression, whose name pydicom does not know: its UID is put in after writing."""
    stand_in, meant = b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.1.2.8.1\0"

    def change(data: Dataset) -> None:
        size = ROWS * COLUMNS
        frames = [data.PixelData[n * size : (n + 1) * size] for n in range(data.NumberOfFrames)]
        if kind == "BINARY":
            frames = [np.packbits(frame, bitorder="little").tobytes() for frame in _bits(data)]
        data.PixelData = encapsulate([zlib.compress(frame, 9, wbits=-15) for frame in frames])
        data["PixelData"].VR = "OB"
        data.file_meta.TransferSyntaxUID = stand_in.decode()

    truth = numbers()
    write_seg(tmp_path, series, change, truth, ["liver", "spleen"], kind)
    path = tmp_path / "truth.dcm"
    path.write_bytes(path.read_bytes().replace(stand_in, meant, 1))
    assert np.array_equal(labels(tmp_path), truth.transpose(2, 1, 0))


@pytest.mark.parametrize(("kind", "highest"), [("BINARY", 2), ("LABELMAP", 2), ("LABELMAP", 300)])
def test_big_endian(tmp_path: Path, series: w.Series, kind: str, highest: int) -> None:
    if which("dcmconv") is None:
        pytest.skip("dcmconv of DCMTK is not installed")
    truth = numbers(highest)
    write_seg(tmp_path, series, same, truth, [f"part {n}" for n in range(1, highest + 1)], kind)
    path = tmp_path / "truth.dcm"
    subprocess.run(["dcmconv", "+tb", str(path), str(path)], check=True)
    found = labels(tmp_path)
    assert found.dtype == truth.dtype
    assert np.array_equal(found, truth.transpose(2, 1, 0))


def test_fractions_count_above_half_of_the_maximum(tmp_path: Path, series: w.Series) -> None:
    fractions = np.zeros((COUNT, ROWS, COLUMNS, 2), dtype=np.float64)
    fractions[2, 3, :5, 0] = [0.0, 0.49, 0.5, 0.51, 1.0]
    fractions[2, 3, :5, 1] = [0.0, 0.51, 0.5, 0.49, 0.0]
    write_seg(tmp_path, series, same, fractions, ["liver", "spleen"], "FRACTIONAL", max_fractional_value=100)
    found = labels(tmp_path)
    assert found[:6, 3, 2].tolist() == [0, 2, 0, 1, 1, 0]
    assert found.sum() == 4
    assert pair(tmp_path)[0].notes == ("fractional: voxels above half of the maximum belong to a segment",)


# ---- frames of any order and place ----------------------------------------------------------------------------------


def test_frames_in_any_order_and_empty_ones_left_out(tmp_path: Path, series: w.Series) -> None:
    truth = numbers()
    truth[[0, 3]] = 0
    truth[4][truth[4] == 2] = 0

    def shuffle(data: Dataset) -> None:
        order = np.random.default_rng(5).permutation(data.NumberOfFrames)
        bits = _bits(data)[order]
        groups = data.PerFrameFunctionalGroupsSequence
        data.PerFrameFunctionalGroupsSequence = [groups[int(n)] for n in order]
        data.PixelData = np.packbits(bits.ravel(), bitorder="little").tobytes() + b"\0"
        data.PixelData = data.PixelData[: len(data.PixelData) // 2 * 2]

    write_seg(tmp_path, series, shuffle, truth, ["liver", "spleen"])
    assert dcmread(tmp_path / "truth.dcm").NumberOfFrames == 7
    assert np.array_equal(labels(tmp_path), truth.transpose(2, 1, 0))
    alone = open_source(pair(tmp_path)[0]).read()
    assert alone.array.shape == (1, COLUMNS, ROWS, COUNT - 1)
    assert np.array_equal(alone.array[0], truth.transpose(2, 1, 0)[:, :, 1:])


def plane_of(series: w.Series, index: float, pixels: np.ndarray, shift: tuple[float, float] = (0, 0)) -> a.Plane:
    """Returns a frame on slice ``index`` whose first pixel is at (column, row) = ``shift`` of the slice."""
    across = shift[0] * series.between_columns * series.turn[:, 0] + shift[1] * series.between_rows * series.turn[:, 1]
    place = series.position(index) + across
    return a.Plane(pixels, place, series.turn[:, 0], series.turn[:, 1], series.between_rows, series.between_columns)


@pytest.mark.parametrize("flip_rows", [False, True])
@pytest.mark.parametrize("flip_columns", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_turned_frames(tmp_path: Path, series: w.Series, flip_rows: bool, flip_columns: bool, transposed: bool) -> None:
    truth = numbers(1)
    planes = []
    for index, pixels in enumerate(truth):
        one = plane_of(series, index, pixels)
        corner = np.array(one.position)
        if flip_columns:
            corner = corner + one.row * one.between_columns * (COLUMNS - 1)
            one = a.Plane(one.pixels[:, ::-1], corner, -one.row, one.column, one.between_rows, one.between_columns)
        if flip_rows:
            corner = corner + one.column * one.between_rows * (ROWS - 1)
            one = a.Plane(one.pixels[::-1], corner, one.row, -one.column, one.between_rows, one.between_columns)
        if transposed:
            one = a.Plane(one.pixels.T, corner, one.column, one.row, one.between_columns, one.between_rows)
        planes.append(one)
    a.save(a.plain_seg(series, planes), tmp_path / "truth.dcm")
    assert np.array_equal(labels(tmp_path), truth.transpose(2, 1, 0))
    annotation, _ = pair(tmp_path)
    own = open_source(annotation).read()
    image = labels(tmp_path)
    inside = own.geometry.to_world(np.argwhere(own.array[0]))
    meant = pair(tmp_path)[1].geometry.to_world(np.argwhere(image))
    assert np.allclose(np.sort(inside, axis=0), np.sort(meant, axis=0), atol=1e-3)


def test_frames_across_the_slices(tmp_path: Path, series: w.Series) -> None:
    """Sagittal frames of an axial series: rows run along the stack."""
    truth = numbers(1)
    planes = []
    for column in range(COLUMNS):
        place = series.position(0) + column * series.between_columns * series.turn[:, 0]
        turn = series.turn[:, 1], series.turn[:, 2]
        planes.append(a.Plane(truth[:, :, column], place, *turn, series.step, series.between_rows))
    a.save(a.plain_seg(series, planes), tmp_path / "truth.dcm")
    assert np.array_equal(labels(tmp_path), truth.transpose(2, 1, 0))


def test_a_smaller_frame_lies_where_its_position_says(tmp_path: Path, series: w.Series) -> None:
    part = numbers(1)[0, :10, :12]
    a.save(a.plain_seg(series, [plane_of(series, 2, part, shift=(7, 20))]), tmp_path / "truth.dcm")
    truth = np.zeros((COLUMNS, ROWS, COUNT), dtype=np.uint8)
    truth[7:19, 20:30, 2] = part.T
    assert np.array_equal(labels(tmp_path), truth)


def test_slices_of_a_tilted_gantry(tmp_path: Path) -> None:
    """The frames lie on the stored slices; the labels on the grid that the slices are brought onto."""
    series = a_series(turn=np.eye(3))
    slices = series.slices()
    for index, data in enumerate(slices):
        x, y, z = series.position(index)
        data.ImagePositionPatient = [x, y + 1.0 * index, z]
    w.write(tmp_path, slices)
    truth = np.zeros((COUNT, ROWS, COLUMNS), dtype=np.uint8)
    truth[:, 10:20, 8:30] = 1
    a.save(a.segmentation(slices, truth), tmp_path / "truth.dcm")
    annotation, image = pair(tmp_path, untilt=True)
    assert image.usable, image.reason
    found = open_label(annotation, image).read()
    assert found.array.shape[1:] == image.shape
    assert np.array_equal(image.layout.labels_on_slices(found.array[0]), truth.transpose(2, 1, 0))
    centres = found.geometry.to_world(np.argwhere(found.array[0]))
    first, last = centres[centres[:, 2] < 3], centres[centres[:, 2] > 14]
    assert -5.7 < last[:, 1].mean() - first[:, 1].mean() < -4.3  # 5 mm towards the back, in RAS


# ---- refused --------------------------------------------------------------------------------------------------------


def test_overlap_names_both_segments_and_the_voxels(tmp_path: Path, series: w.Series) -> None:
    masks = np.zeros((COUNT, ROWS, COLUMNS, 2), dtype=np.uint8)
    masks[1:4, 5:15, 5:15, 0] = 1
    masks[2:5, 10:20, 10:20, 1] = 1
    write_seg(tmp_path, series, same, masks, ["liver", "tumour"])
    refused(tmp_path, "segments 1 (liver) and 2 (tumour) overlap in 50 voxels")


@pytest.mark.parametrize(("values", "meant"), [({1: 3, 2: 3}, {0, 3}), ({1: 0, 2: 1}, {0, 1}), ({1: 2, 2: 0}, {0, 2})])
def test_overlap_of_one_label_or_with_nothing_is_none(
    tmp_path: Path, series: w.Series, values: dict[int, int], meant: set[int]
) -> None:
    masks = np.zeros((COUNT, ROWS, COLUMNS, 2), dtype=np.uint8)
    masks[1:4, 5:15, 5:15, 0] = 1
    masks[2:5, 10:20, 10:20, 1] = 1
    write_seg(tmp_path, series, same, masks, ["liver", "tumour"])
    annotation, image = pair(tmp_path)
    told = {"segments": {str(number): value for number, value in values.items()}}
    source = AnnotationSource(SourceRef(**{**vars(annotation), "read_as": told}), image)
    found = source.read().array[0].transpose(2, 1, 0)
    chosen = [number - 1 for number, value in values.items() if value]
    assert set(np.unique(found)) == meant
    assert np.array_equal(found > 0, masks[..., chosen].any(axis=-1))


def test_another_grid(tmp_path: Path, series: w.Series) -> None:
    mask = numbers(1)[0, :10, :12]
    for shift, index, words in (
        ((7.5, 20), 2, "its pixels lie between those of the image"),
        ((7, 20), 2.4, "its frames lie between the slices"),
        ((7, 20), 8, "voxels of the segmentation lie outside of the image"),
        ((40, 20), 2, "voxels of the segmentation lie outside of the image"),
    ):
        a.save(a.plain_seg(series, [plane_of(series, index, mask, shift)]), tmp_path / "truth.dcm")
        refused(tmp_path, words)
    for change in ("between_columns", "between_rows"):
        coarse = plane_of(series, 2, mask)
        setattr(coarse, change, 2 * getattr(coarse, change))
        a.save(a.plain_seg(series, [coarse]), tmp_path / "truth.dcm")
        refused(tmp_path, "on another grid than the image: its pixels have another size")
    turned = plane_of(series, 2, mask)
    turned.row, turned.column = turned.row + 0.1 * turned.column, turned.column - 0.1 * turned.row
    a.save(a.plain_seg(series, [turned]), tmp_path / "truth.dcm")
    refused(tmp_path, "another direction")


def test_another_frame_of_reference(tmp_path: Path, series: w.Series) -> None:
    write_seg(tmp_path, series, lambda data: setattr(data, "FrameOfReferenceUID", generate_uid()), numbers(1))
    refused(tmp_path, "another frame of reference than the image")


def _foreign(data: Dataset) -> None:
    data.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()
    data.ReferencedSeriesSequence[0].ReferencedInstanceSequence = []
    for group in data.PerFrameFunctionalGroupsSequence:
        group.DerivationImageSequence = []


def test_references_to_absent_images(tmp_path: Path, series: w.Series) -> None:
    truth = numbers(1)
    write_seg(tmp_path, series, _foreign, truth)
    annotation, image = pair(tmp_path)
    source = open_label(annotation, image)
    assert source.notes == ("it names another series: placed by the frame of reference",)
    assert np.array_equal(source.read().array[0], truth.transpose(2, 1, 0))

    def unknown(data: Dataset) -> None:
        _foreign(data)
        del data.FrameOfReferenceUID

    write_seg(tmp_path, series, unknown, truth)
    refused(tmp_path, "names neither the series nor the frame of reference")


def _stranger(data: Dataset) -> None:
    data.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 9


def _too_bright(data: Dataset) -> None:
    data.MaximumFractionalValue = 100


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("BINARY", lambda data: setattr(data, "SegmentationType", "WHATEVER"), "of no known type"),
        ("BINARY", lambda data: setattr(data, "PixelData", data.PixelData[:100]), "truncated"),
        ("BINARY", lambda data: data.PerFrameFunctionalGroupsSequence.pop(), "says of"),
        ("BINARY", _stranger, "segment 9, which is not listed"),
        ("BINARY", lambda data: delattr(data, "SegmentSequence"), "lists no segment"),
        ("BINARY", lambda data: setattr(data, "Rows", 0), "frames of 45 x 0 pixels"),
        ("FRACTIONAL", lambda data: delattr(data, "MaximumFractionalValue"), "does not say which value means all"),
        ("FRACTIONAL", _too_bright, "holds 255, more than its maximum"),
        ("LABELMAP", lambda data: data.SegmentSequence.pop(), "the label map holds 2, which is no segment"),
        ("BINARY", lambda data: delattr(data, "SharedFunctionalGroupsSequence"), "no orientation and no pixel spacing"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, series: w.Series, kind: str, change: Callable[[Dataset], None], words: str
) -> None:
    write_seg(tmp_path, series, change, numbers(), ["liver", "spleen"], kind)
    refused(tmp_path, words)


def test_damaged_files_are_refused_and_nothing_else(tmp_path: Path, series: w.Series) -> None:
    write_seg(tmp_path, series, same, numbers(), ["liver", "spleen"])
    path = tmp_path / "truth.dcm"
    whole = path.read_bytes()
    random = np.random.default_rng(11)
    outcomes = set()
    for _ in range(120):
        data = bytearray(whole)
        for place in random.integers(132, len(data), random.integers(1, 30)):
            data[place] = random.integers(0, 256)
        path.write_bytes(bytes(data[: random.integers(400, len(data))] if random.random() < 0.3 else data))
        found = discover(tmp_path)
        for annotation in found.annotations:
            try:
                if found.sources and found.sources[0].usable:
                    open_label(annotation, found.sources[0]).read()
                outcomes.add("read")
            except (InputRefusedError, MachineError) as error:
                assert "SECRET" not in str(error)
                outcomes.add("refused")
    assert outcomes == {"read", "refused"}


# ---- what is said of it ---------------------------------------------------------------------------------------------


def test_names_and_codes(tmp_path: Path, series: w.Series) -> None:
    write_seg(tmp_path, series, same, numbers(), [("Liver (whole)", a.LIVER), ("SECRET tumour", a.TISSUE)])
    segments = pair(tmp_path)[0].layout.segments
    assert [one.code for one in segments] == ["SCT:10200004", "SCT:85756007"]
    assert segments[0].name == "Liver_whole"
    assert segments[1].name.startswith("name-")


def test_names_in_other_letters_stay_apart(tmp_path: Path, series: w.Series) -> None:
    names = ["\u809d A", "\u813e A", "Leber", ""]
    truth = numbers(4)

    def change(data: Dataset) -> None:
        data.SpecificCharacterSet = "ISO_IR 192"
        data.SegmentSequence[3].SegmentLabel = ""

    write_seg(tmp_path, series, change, truth, [*names[:3], "x"])
    found = [one.name for one in pair(tmp_path)[0].layout.segments]
    assert len(set(found)) == 4
    assert all(name.isascii() for name in found)
    assert found[2:] == ["Leber", "unnamed_4"]


def test_a_copy_is_dropped(tmp_path: Path, series: w.Series) -> None:
    write_seg(tmp_path, series, same, numbers(1))
    (tmp_path / "again.dcm").write_bytes((tmp_path / "truth.dcm").read_bytes())
    assert pair(tmp_path)[0].notes == ("1 duplicate file dropped",)


def test_series_chooses_images_and_their_annotations(tmp_path: Path, series: w.Series) -> None:
    write_seg(tmp_path, series, same, numbers(1))
    w.write(tmp_path / "other", a_series(number=14).slices())
    everything = discover(tmp_path)
    truth, image = everything.annotations[0], everything.sources[0]
    for chosen in (image.id, truth.id):
        found = discover(tmp_path, IntakeOptions(series=(chosen,)))
        assert [one.id for one in (*found.sources, *found.annotations)] == [image.id, truth.id]
    other = discover(tmp_path, IntakeOptions(series=(everything.sources[1].id,)))
    assert (len(other.sources), other.annotations) == (1, ())
    assert ("other sources", 2) in [(one.what, one.count) for one in other.skipped]
