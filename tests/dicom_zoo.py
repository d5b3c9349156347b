"""A zoo of DICOM traps: each case writes a folder and says what may come out of it, exact volumes or a refusal.

Voxels of the synthetic cases say where they are (2x + 3y + 5z + 40, LPS mm), so that one number tells whether order,
geometry and rescale are right. The cases made of real series change one thing in a series whose voxels and places are
computed here, slice by slice, without the code under test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import dicom_multiframe_writer as m
import dicom_writer as w
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

Field = Callable[[np.ndarray], np.ndarray]
"""Values at positions (..., 3) in LPS mm; NaN where nothing is known."""

ALL_CASES: list[Case] = []


@dataclass(frozen=True, eq=False)
class Truth:
    """A volume that must come out.

    Attributes:
        array: (columns, rows, slices) real values.
        affine: Index to LPS mm, 4x4.
        tolerance: Largest difference of a value.
        picture: A single picture, of which only the pixel size in mm counts.
    """

    array: np.ndarray
    affine: np.ndarray
    tolerance: float = 0.51 * w.SLOPE
    picture: bool = False

    def differs(self, array: np.ndarray, affine: np.ndarray, tolerance_mm: float = 1e-3) -> str:
        """Says how a loaded volume (X, Y, K) with its LPS affine differs, however its axes are stored; empty if not."""
        if self.picture:
            return self._picture_differs(np.squeeze(array), affine, tolerance_mm)
        if sorted(array.shape) != sorted(self.array.shape):
            return f"shape {array.shape}, not {self.array.shape}"
        turn = np.linalg.inv(self.affine) @ affine
        axes = np.rint(turn[:3, :3]).astype(int)
        if not np.array_equal(np.abs(axes).sum(axis=0), [1, 1, 1]) or not np.array_equal(
            np.abs(axes).sum(axis=1), [1, 1, 1]
        ):
            return "another direction or spacing of axes"
        order = np.abs(axes).argmax(axis=1)
        mine = array.transpose(order)
        if mine.shape != self.array.shape:
            return f"shape {array.shape}, not {self.array.shape}"
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in array.shape], indexing="ij")).reshape(3, -1)
        flips = [axes[row, order[row]] < 0 for row in range(3)]
        there = np.array(
            [
                (n - 1 - corners[axis]) if flip else corners[axis]
                for axis, flip, n in zip(order, flips, mine.shape, strict=True)
            ]
        )
        off = np.abs(affine[:3, :3] @ corners + affine[:3, 3:] - self.affine[:3, :3] @ there - self.affine[:3, 3:])
        if not off.max() <= tolerance_mm:
            return f"{off.max():.3g} mm away"
        mine = mine[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
        error = np.abs(mine.astype(np.float64) - self.array)
        return "" if error.max() <= self.tolerance else f"{(error > self.tolerance).mean():.0%} of the values differ"

    def _picture_differs(self, array: np.ndarray, affine: np.ndarray, tolerance_mm: float) -> str:
        if array.shape != self.array.shape:
            return f"shape {array.shape}, not {self.array.shape}"
        own, mine = (np.linalg.norm(one[:-1, :2], axis=0) for one in (self.affine, affine))
        if np.abs(own - mine).max() > tolerance_mm:
            return f"pixels of {mine} mm"
        turns = [array[:: 1 if a else -1, :: 1 if b else -1] for a in (0, 1) for b in (0, 1)]
        return "" if any(np.abs(one - self.array).max() <= self.tolerance for one in turns) else "values differ"


@dataclass(frozen=True, eq=False)
class Expected:
    """What may come out of a case.

    Attributes:
        volumes: All volumes that must be loaded.
        words: What the reason of a refusal must contain; empty where nothing is refused.
        refusals: Number of refused sources.
        notes: Words that must occur in the notes of every loaded volume.
        skipped: Words that must occur in what was skipped.
        world: Values of the world where the refused slices lie, to judge readers that load them all the same; ``None``
            where nothing that is loaded can be known to be right.
        tolerance: Largest difference from ``world``.
        opens: Switches (fields of ``IntakeOptions``) that make the refused series load.
        between: What it then agrees with; ``world`` unless given.
    """

    volumes: tuple[Truth, ...] = ()
    words: tuple[str, ...] = ()
    refusals: int = 0
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    world: Field | None = None
    tolerance: float = 3 * w.SLOPE
    opens: tuple[str, ...] = ()
    between: Field | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """One trap.

    Attributes:
        name: What it is.
        row: The rule that it tests.
        build: Writes the files and says what may come out of them.
        real: The real series that it is made of; empty for a synthetic one.
        needs: Modules without which it cannot be written or read.
    """

    name: str
    row: str
    build: Callable[[Path], Expected] | Callable[[Path, list[FileDataset]], Expected]
    real: str = ""
    needs: tuple[str, ...] = ()

    def write(self, folder: Path, data: Path | None = None) -> Expected:
        """Writes the case below ``folder``; ``data`` holds the real series."""
        if not self.real:
            return self.build(folder)
        return self.build(folder, read_real(data / self.real))


def case(row: str, name: str, real: str = "", needs: tuple[str, ...] = ()) -> Callable[[Callable], Callable]:
    """Registers a case."""

    def register(build: Callable) -> Callable:
        ALL_CASES.append(Case(name, row, build, real, needs))
        return build

    return register


# ---- what comes out -------------------------------------------------------------------------------------------------


def truth_of(series: w.Series, offset: float = 0.0, count: int | None = None, start: int = 0) -> Truth:
    """The volume of a synthetic series."""
    count = series.count if count is None else count
    affine = np.eye(4)
    affine[:3, :3] = series.turn * [series.between_columns, series.between_rows, series.step]
    affine[:3, 3] = series.position(start)
    slices = [series.values(series.position(start + k)).T + offset for k in range(count)]
    return Truth(np.stack(slices, axis=-1), affine)


def load(*volumes: Truth, notes: Sequence[str] = (), skipped: Sequence[str] = ()) -> Expected:
    return Expected(tuple(volumes), notes=tuple(notes), skipped=tuple(skipped))


def refuse(*words: str, world: Field | None = None, opens: Sequence[str] = (), **more: object) -> Expected:
    return Expected(words=words, refusals=1, world=world, opens=tuple(opens), **more)


def read_real(folder: Path) -> list[FileDataset]:
    """The slices of a real series in the order of their positions."""
    slices = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    normal = np.cross(slices[0].ImageOrientationPatient[:3], slices[0].ImageOrientationPatient[3:])
    return sorted(slices, key=lambda data: float(np.dot(data.ImagePositionPatient, normal)))


def truth_of_real(slices: Sequence[FileDataset], tolerance: float = 1e-3) -> Truth:
    """The volume of real slices in order of position, from their own tags."""
    first, last = (np.array(data.ImagePositionPatient, dtype=float) for data in (slices[0], slices[-1]))
    row, column = np.reshape(np.array(slices[0].ImageOrientationPatient, dtype=float), (2, 3))
    affine = np.eye(4)
    affine[:3, 0] = row * float(slices[0].PixelSpacing[1])
    affine[:3, 1] = column * float(slices[0].PixelSpacing[0])
    normal = np.cross(row, column)
    affine[:3, 2] = normal * ((last - first) @ normal) / max(len(slices) - 1, 1)
    affine[:3, 3] = first
    planes = [
        data.pixel_array.T * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0))
        for data in slices
    ]
    return Truth(np.stack(planes, axis=-1), affine, tolerance)


def between(slices: Sequence[FileDataset]) -> Field:
    """The values between real slices in order of position: linear along the normal, and along the drift of a tilt."""
    from scipy.interpolate import RegularGridInterpolator

    row, column = np.reshape(np.array(slices[0].ImageOrientationPatient, dtype=float), (2, 3))
    axes = np.stack([row, column, np.cross(row, column)])
    places = np.array([data.ImagePositionPatient for data in slices], dtype=float) @ axes.T
    steps = [float(slices[0].PixelSpacing[1]), float(slices[0].PixelSpacing[0])]
    values = truth_of_real(slices).array
    look_up = RegularGridInterpolator(
        (np.arange(values.shape[0]), np.arange(values.shape[1]), places[:, 2]), values, bounds_error=False
    )

    def field_(points: np.ndarray) -> np.ndarray:
        own = points @ axes.T
        for axis in (0, 1):
            own[..., axis] -= np.interp(own[..., 2], places[:, 2], places[:, axis])
            own[..., axis] /= steps[axis]
        clipped = np.clip(
            own, np.append([0, 0], places[0, 2]), np.append(np.array(values.shape[:2]) - 1, places[-1, 2])
        )
        return np.where((np.abs(clipped - own) > 1e-4).any(axis=-1), np.nan, look_up(clipped))

    return field_


# ---- synthetic: what must be loaded ---------------------------------------------------------------------------------


@case("plain", "axial CT")
def _(folder: Path) -> Expected:
    series = w.Series(turn=np.eye(3))
    w.write(folder, series.slices())
    return load(truth_of(series))


@case("oblique", "oblique MR, pixels not square")
def _(folder: Path) -> Expected:
    series = w.Series(turn=w.rotation(35, -50, 110), modality="MR", sop_class=MRImageStorage)
    w.write(folder, series.slices())
    return load(truth_of(series))


@case("oblique", "sagittal, rows far apart")
def _(folder: Path) -> Expected:
    series = w.Series(turn=w.rotation(0, 90, 90), between_rows=3.1, between_columns=0.7)
    w.write(folder, series.slices())
    return load(truth_of(series))


@case("sorting", "shuffled InstanceNumber")
def _(folder: Path) -> Expected:
    series = w.Series(count=8)
    slices = series.slices()
    for data, number in zip(slices, (5, 2, 8, 1, 7, 3, 6, 4), strict=True):
        data.InstanceNumber = number
    w.write(folder, slices)
    return load(truth_of(series), notes=["not in spatial order"])


@case("sorting", "InstanceNumber runs from head to foot")
def _(folder: Path) -> Expected:
    series = w.Series()
    slices = series.slices()
    for number, data in enumerate(reversed(slices)):
        data.InstanceNumber = number + 1
    w.write(folder, slices[::-1])
    return load(truth_of(series))


@case("sorting", "no InstanceNumber, random file names without suffix")
def _(folder: Path) -> Expected:
    series = w.Series()
    slices = series.slices()
    for data in slices:
        del data.InstanceNumber
    w.write(folder, slices, ["q", "0003", "Z9", "a.b.c", "I10", "x2"])
    return load(truth_of(series), notes=["instance numbers are missing"])


@case("sorting", "SliceLocation and SpacingBetweenSlices tell lies")
def _(folder: Path) -> Expected:
    series = w.Series()
    slices = series.slices()
    for number, data in enumerate(slices):
        data.SliceLocation, data.SpacingBetweenSlices, data.SliceThickness = 100 - 7 * number, -1.0, 9.0
    w.write(folder, slices)
    return load(truth_of(series))


@case("sorting", "overlapping slices (thickness 5 mm, step 2.5 mm)")
def _(folder: Path) -> Expected:
    series = w.Series()
    slices = series.slices()
    for data in slices:
        data.SliceThickness, data.SpacingBetweenSlices = 5.0, 2.5
    w.write(folder, slices)
    return load(truth_of(series))


@case("sorting", "positions rounded to 0.005 mm")
def _(folder: Path) -> Expected:
    series = w.Series(turn=np.eye(3), origin=(-5.0, -3.0, 2.0))
    slices = series.slices()
    for number, data in enumerate(slices[1:-1]):
        data.ImagePositionPatient[2] = float(data.ImagePositionPatient[2]) + 0.005 * (-1) ** number
    w.write(folder, slices)
    return load(truth_of(series))


@case("several series", "two series in one folder")
def _(folder: Path) -> Expected:
    one, two = w.Series(number=1), w.Series(number=2, origin=(20.0, 4.0, -7.0), step=1.5)
    names = [f"{n:02d}" for n in np.random.default_rng(0).permutation(12)]
    w.write(folder, [*one.slices(), *two.slices()], names)
    return load(truth_of(one), truth_of(two))


@case("several series", "two series of one number and description")
def _(folder: Path) -> Expected:
    one = w.Series(turn=np.eye(3))
    two = w.Series(turn=np.eye(3), study=one.study, frame=one.frame, origin=(-5.0, -3.0, 2.0 + 6 * 2.5))
    slices = [*one.slices(), *two.slices()]
    for data in slices:
        data.SeriesDescription = "THORAX"
    w.write(folder, slices)
    return load(truth_of(one), truth_of(two))


@case("several series", "one series in three folders, with and without suffix")
def _(folder: Path) -> Expected:
    series = w.Series()
    slices = series.slices()
    w.write(folder / "a", slices[::3])
    w.write(folder / "b" / "c", slices[1::3], ["1", "2"])
    w.write(folder / "d", slices[2::3], ["1.IMA", "2"])
    return load(truth_of(series))


@case("several series", "foreign files, DICOMDIR, SR, presentation state, key objects, PDF")
def _(folder: Path) -> Expected:
    series = w.Series()
    w.write(folder, series.slices())
    for name, sop_class, modality in (
        ("SR0001", "1.2.840.10008.5.1.4.1.1.88.11", "SR"),
        ("PR0001", "1.2.840.10008.5.1.4.1.1.11.1", "PR"),
        ("KO0001", "1.2.840.10008.5.1.4.1.1.88.59", "KO"),
        ("PDF0001", "1.2.840.10008.5.1.4.1.1.104.1", "DOC"),
        ("DICOMDIR", "1.2.840.10008.1.3.10", ""),
    ):
        data = w.new_dataset(sop_class)
        data.Modality, data.StudyInstanceUID, data.SeriesInstanceUID = modality, series.study, generate_uid()
        w.write(folder, [data], [name])
    (folder / "readme.txt").write_text("hello")
    (folder / "Thumbs.db").write_bytes(b"\0" * 200)
    return load(truth_of(series), skipped=["structured report", "presentation state", "key object", "DICOMDIR"])


@case("scout", "localizer with ImageType LOCALIZER")
def _(folder: Path) -> Expected:
    series = w.Series()
    scout = w.Series(uid=series.uid, study=series.study, frame=series.frame, turn=w.rotation(0, 90, 0), count=1)
    images = scout.slices()
    images[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    w.write(folder, [*images, *series.slices()])
    return load(truth_of(series), notes=["localizer"])


@case("scout", "three crossing slices without a word in ImageType")
def _(folder: Path) -> Expected:
    series = w.Series(count=8)
    scout = w.Series(uid=series.uid, study=series.study, frame=series.frame, turn=w.rotation(0, 90, 0), count=3)
    w.write(folder, [*series.slices(), *scout.slices()])
    return load(truth_of(series), notes=["3 slices of another orientation"])


@case("duplicates", "a file twice")
def _(folder: Path) -> Expected:
    series = w.Series()
    slices = series.slices()
    w.write(folder, slices)
    w.write(folder / "copy", slices[1:3])
    return load(truth_of(series), notes=["2 duplicate files dropped"])


@case("no frame of reference", "no FrameOfReferenceUID")
def _(folder: Path) -> Expected:
    series = w.Series()
    slices = series.slices()
    for data in slices:
        del data.FrameOfReferenceUID
    w.write(folder, slices)
    return load(truth_of(series), notes=["no frame of reference"])


@case("no frame of reference", "FrameOfReferenceUID only in half of the slices")
def _(folder: Path) -> Expected:
    series = w.Series(count=12)
    slices = series.slices()
    for data in slices[6:]:
        del data.FrameOfReferenceUID
    w.write(folder, slices)
    return load(truth_of(series))


@case("no series UID", "no SeriesInstanceUID")
def _(folder: Path) -> Expected:
    series = w.Series()
    slices = series.slices()
    for data in slices:
        del data.SeriesInstanceUID
    w.write(folder, slices)
    return load(truth_of(series), notes=["no series UID"])


@case("no preamble", "no preamble, no meta group")
def _(folder: Path) -> Expected:
    series = w.Series()
    _write_bare(folder, series.slices())
    return load(truth_of(series))


def _write_bare(folder: Path, slices: Sequence[FileDataset]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(slices):
        bare = Dataset()
        bare.update({tag: data[tag] for tag in data.keys()})  # noqa: SIM118
        dcmwrite(folder / f"{number}", bare, implicit_vr=True, little_endian=True)


def _write_big_endian(folder: Path, slices: Sequence[FileDataset]) -> None:
    folder.mkdir(parents=True)
    for number, data in enumerate(slices):
        stored = data.pixel_array
        data.PixelData = stored.astype(stored.dtype.newbyteorder(">")).tobytes()
        data["PixelData"].VR = "OW"
        data.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        dcmwrite(folder / f"{number}", data, implicit_vr=False, little_endian=False)


def _encoded(syntax: str) -> Callable[[Path], Expected]:
    def build(folder: Path) -> Expected:
        series = w.Series(columns=40, rows=36, between_columns=0.3, between_rows=0.4)
        if syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless):
            slices = series.slices()
            for data in slices:
                data.compress(syntax, generate_instance_uid=False)
        else:
            series.syntax = ExplicitVRLittleEndian if syntax == ExplicitVRBigEndian else syntax
            slices = series.slices()
        if syntax == ExplicitVRBigEndian:
            _write_big_endian(folder, slices)
        else:
            w.write(folder, slices)
        return load(truth_of(series))

    return build


for _syntax, _needs in (
    (ImplicitVRLittleEndian, ()),
    (ExplicitVRBigEndian, ()),
    (DeflatedExplicitVRLittleEndian, ()),
    (RLELossless, ()),
    (JPEG2000Lossless, ("openjpeg",)),
    (JPEGLSLossless, ("jpeg_ls",)),
):
    case("encoding", f"encoded as {_syntax.name}", needs=_needs)(_encoded(_syntax))


@case("encoding", "encoded as JPEG Lossless (.70)", needs=("gdcm",))
def _(folder: Path) -> Expected:
    import gdcm

    series = w.Series(columns=16, rows=12)
    slices = series.slices()
    for path, data in zip(w.write(folder, slices), slices, strict=True):
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(path))
        writer.Write()
        encoded = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = encoded.file_meta.TransferSyntaxUID
        data.PixelData = encoded.PixelData
        data["PixelData"].VR = "OB"
        data["PixelData"].is_undefined_length = True
        data.save_as(path, enforce_file_format=True)
    return load(truth_of(series))


@case("stored type", "unsigned 12 of 16 bits, overlay bits above")
def _(folder: Path) -> Expected:
    series = w.Series()
    slices = series.slices()
    for k, data in enumerate(slices):
        values = series.values(series.position(k))
        stored = np.rint((values + 1000.0) / 0.5).astype(np.uint16)
        w.set_stored(data, stored | (0xF000 if k % 2 else 0x1000), bits_stored=12)
        data.RescaleSlope, data.RescaleIntercept = 0.5, -1000
    w.write(folder, slices)
    truth = truth_of(series)
    return load(Truth(truth.array, truth.affine, 0.26))


@case("rescale", "every slice has its own slope (PET)")
def _(folder: Path) -> Expected:
    series = w.Series(modality="PT", sop_class=PositronEmissionTomographyImageStorage)
    slices = series.slices()
    for k, data in enumerate(slices):
        w.set_values(data, series.values(series.position(k)), slope=0.005 * (k + 1), intercept=0.0)
    w.write(folder, slices)
    truth = truth_of(series)
    return load(Truth(truth.array, truth.affine, 0.016))


@case("rescale", "modality lookup table")
def _(folder: Path) -> Expected:
    series = w.Series(turn=np.eye(3))
    slices = series.slices()
    values = [series.values(series.position(k)) for k in range(series.count)]
    low = int(np.floor(min(v.min() for v in values)))
    table = np.arange(low, low + 256).astype(np.int32) + 1000
    for data, one in zip(slices, values, strict=True):
        w.set_stored(data, np.rint(one - low).astype(np.uint8))
        del data.RescaleSlope, data.RescaleIntercept
        item = Dataset()
        item.add_new(0x00283002, "US", [256, 0, 16])
        item.add_new(0x00283004, "LO", "HU")
        item.add_new(0x00283006, "OW", table.astype(np.uint16).tobytes())
        data.ModalityLUTSequence = [item]
    w.write(folder, slices)
    truth = truth_of(series)
    return load(Truth(np.rint(truth.array) + 1000, truth.affine, 1.001))


@case("padding", "padding of -2000 around a CT")
def _(folder: Path) -> Expected:
    series = w.Series()
    slices = series.slices()
    truth = truth_of(series)
    array = np.rint(truth.array)
    hole = np.zeros(array.shape, dtype=bool)
    hole[:2, :2] = True
    for k, data in enumerate(slices):
        stored = np.where(hole[:, :, k], -2000, array[:, :, k]).T.astype(np.int16)
        w.set_stored(data, stored)
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.add_new(0x00280120, "SS", -2000)
    w.write(folder, slices)
    array[hole] = array[~hole].min()
    return load(Truth(array, truth.affine, 1e-3), notes=["padding"])


@case("MONOCHROME1", "MONOCHROME1 CT keeps its values")
def _(folder: Path) -> Expected:
    series = w.Series()
    slices = series.slices()
    for data in slices:
        data.PhotometricInterpretation = "MONOCHROME1"
    w.write(folder, slices)
    return load(truth_of(series), notes=["MONOCHROME1"])


@case("different stacks", "two orientations in one series")
def _(folder: Path) -> Expected:
    one = w.Series(count=7)
    two = w.Series(uid=one.uid, study=one.study, frame=one.frame, turn=w.rotation(90, 10, 0), count=5)
    w.write(folder, [*one.slices(), *two.slices()])
    return load(truth_of(one), truth_of(two))


@case("different stacks", "two matrix sizes in one series")
def _(folder: Path) -> Expected:
    one = w.Series(count=7)
    two = w.Series(
        uid=one.uid,
        study=one.study,
        frame=one.frame,
        columns=6,
        between_columns=1.2,
        count=5,
        origin=(20.0, 4.0, -20.0),
    )
    w.write(folder, [*one.slices(), *two.slices()])
    return load(truth_of(one), truth_of(two))


@case("single slice", "one CT slice with a thickness")
def _(folder: Path) -> Expected:
    series = w.Series(count=1)
    w.write(folder, series.slices())
    return load(truth_of(series), notes=["single slice"])


@case("gantry tilt", "tilt tag of 15 degrees, slices not tilted")
def _(folder: Path) -> Expected:
    series = w.Series(turn=np.eye(3))
    slices = series.slices()
    for data in slices:
        data.GantryDetectorTilt = 15.0
    w.write(folder, slices)
    return load(truth_of(series))


# ---- synthetic: repeated positions ----------------------------------------------------------------------------------


def repeated(times: int, change: Callable[[Dataset, int, int], None], **how: object) -> tuple[list, list[Truth]]:
    """The same stack several times over, each higher in value by 40; ``change`` gets slice, volume and place."""
    series = w.Series(**{"modality": "MR", "sop_class": MRImageStorage, "turn": w.rotation(10, -20, 30), **how})
    slices, truths = [], []
    for number in range(times):
        for k, data in enumerate(series.slices()):
            w.renew(data)
            data.InstanceNumber = len(slices) + 1
            w.set_values(data, series.values(series.position(k)) + 40.0 * number)
            change(data, number, k)
            slices.append(data)
        truths.append(truth_of(series, 40.0 * number))
    return slices, truths


def _split(name: str, times: int, change: Callable[[Dataset, int, int], None], *notes: str, **how: object) -> None:
    def build(folder: Path) -> Expected:
        slices, truths = repeated(times, change, **how)
        names = [f"{n:03d}.dcm" for n in np.random.default_rng(1).permutation(len(slices))]
        w.write(folder, slices, names)
        return load(*truths, notes=["positions repeat", *notes])

    case("repeats", name)(build)


def _gradient(data: Dataset, number: int, k: int) -> None:
    data.add_new(0x00189087, "FD", 0.0 if number == 0 else 800.0)
    if number:
        data.add_new(0x00189089, "FD", [float(axis == number) for axis in (1, 2, 3)])
    data.ContentTime = f"1010{number}{k}.{k}"


def _values(**values: Sequence[object]) -> Callable[[Dataset, int, int], None]:
    """Sets keywords to the value of the volume."""

    def change(data: Dataset, number: int, k: int) -> None:
        for keyword, several in values.items():
            setattr(data, keyword, several[number])

    return change


def _shuffled(data: Dataset, number: int, k: int) -> None:
    data.InstanceNumber = 1 + (7 * data.InstanceNumber) % 29


def _shuffled_echo(data: Dataset, number: int, k: int) -> None:
    data.EchoNumbers = number + 1
    _shuffled(data, number, k)


def _slice_by_slice(data: Dataset, number: int, k: int) -> None:
    data.TriggerTime, data.InstanceNumber = 33.5 * number, 3 * k + number + 1


_split("two echoes (EchoNumbers)", 2, _values(EchoNumbers=[1, 2], EchoTime=[4.6, 9.2]), "echo")
_split("three echoes (EchoTime alone)", 3, _values(EchoTime=[4.6, 9.2, 13.8]), "ms")
_split("two echoes, InstanceNumber shuffled", 2, _shuffled_echo, "echo")
_split("three cardiac phases numbered slice by slice", 3, _slice_by_slice, "phase")
_split("four time points (TemporalPositionIdentifier)", 4, _values(TemporalPositionIdentifier=[1, 2, 3, 4]))
_split("three cardiac phases (TriggerTime)", 3, _values(TriggerTime=[0.0, 33.5, 67.0]), "phase")
_split("two b-values (DiffusionBValue)", 2, _values(DiffusionBValue=[0.0, 1000.0]), "s/mm2")
_split("b0 and three gradient directions", 4, _gradient, "direction")
_split("inversion times", 2, _values(InversionTime=[150, 900]), "inversion")
_split("flip angles", 2, _values(FlipAngle=[4, 18]), "flip")
_split("dual energy CT (KVP)", 2, _values(KVP=[80, 140]), "kV", modality="CT", sop_class=w.CTImageStorage)
_split(
    "magnitude and phase (ImageType)",
    2,
    _values(ImageType=[["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]]),
    "type",
)
_split("two acquisitions (AcquisitionNumber)", 2, _values(AcquisitionNumber=[1, 2]), "acquisition")
_split("two times (AcquisitionTime)", 2, _values(AcquisitionTime=["101010.5", "101510.25"]), "time")
_split("two times (ContentTime)", 2, _values(ContentTime=["101010.5", "101510.25"]), "time")
_split("time points by InstanceNumber alone", 3, lambda data, number, k: None, "InstanceNumber")
_split(
    "two echoes, magnitude and phase",
    4,
    _values(EchoTime=[4.6, 4.6, 9.2, 9.2], ImageType=[["ORIGINAL", "PRIMARY", part] for part in ("M", "P", "M", "P")]),
    "echo and type",
)


@case("repeats", "two echoes at positions of their own")
def _(folder: Path) -> Expected:
    one = w.Series(modality="MR", sop_class=MRImageStorage)
    two = w.Series(
        modality="MR", sop_class=MRImageStorage, uid=one.uid, study=one.study, frame=one.frame,
        origin=tuple(one.position(0.5)),
    )  # fmt: skip
    slices = []
    for number, series in enumerate((one, two), start=1):
        for k, data in enumerate(series.slices()):
            data.EchoNumbers, data.EchoTime, data.InstanceNumber = number, 4.5 * number, 2 * k + number
            w.set_values(data, series.values(series.position(k)) + 40.0 * (number - 1))
            slices.append(data)
    w.write(folder, slices)
    return load(truth_of(one), truth_of(two, 40.0), notes=["echo"])


@case("repeats", "repeats that nothing tells apart")
def _(folder: Path) -> Expected:
    slices, _ = repeated(2, _shuffled)
    w.write(folder, slices)
    return refuse("12 slices at 6 positions", "no tag tells")


@case("repeats", "the second echo lacks a slice")
def _(folder: Path) -> Expected:
    slices, _ = repeated(2, _values(EchoNumbers=[1, 2]))
    w.write(folder, slices[:-2] + slices[-1:])
    return refuse("11 slices at 6 positions", "1 at")


@case("repeats", "one slice twice, other UID and other pixels")
def _(folder: Path) -> Expected:
    series = w.Series()
    slices = series.slices()
    again = series.slice(2, 99)
    w.set_values(again, series.values(series.position(2)) + 50.0)
    w.write(folder, [*slices, again])
    return refuse("7 slices at 6 positions", "2 at")


# ---- synthetic: what must be refused --------------------------------------------------------------------------------


@case("duplicates", "two files with one SOPInstanceUID and other pixels")
def _(folder: Path) -> Expected:
    series = w.Series()
    slices = series.slices()
    w.write(folder, slices)
    again = deepcopy(slices[2])
    w.set_values(again, series.values(series.position(2)) + 50.0)
    w.write(folder / "again", [again])
    return refuse("same image but differ")


@case("missing slices", "one slice of twelve missing")
def _(folder: Path) -> Expected:
    series = w.Series(count=12)
    slices = series.slices()
    w.write(folder, slices[:10] + slices[11:])
    return refuse("1 slice is missing", "--allow-gaps", world=w.truth, opens=["allow_gaps"])


@case("missing slices", "two gaps, InstanceNumber without holes")
def _(folder: Path) -> Expected:
    series = w.Series(count=14)
    slices = [series.slice(index, n + 1) for n, index in enumerate((0, 1, 2, 5, 6, 7, 8, 10, 11, 12, 13))]
    w.write(folder, slices)
    return refuse("3 slices are missing", "2 between", "1 between", world=w.truth, opens=["allow_gaps"])


@case("uneven steps", "steps of 2.5 and 3.5 mm")
def _(folder: Path) -> Expected:
    series = w.Series()
    places = (0, 1, 2, 3.4, 4.8, 6.2, 7.6)
    w.write(folder, [series.slice(place, n + 1) for n, place in enumerate(places)])
    return refuse("not evenly spaced", "--resample-slices", world=w.truth, opens=["resample_slices"])


@case("uneven steps", "one position wrong by 0.4 mm")
def _(folder: Path) -> Expected:
    series = w.Series()
    w.write(folder, [series.slice(place, n + 1) for n, place in enumerate((0, 1, 2.16, 3, 4, 5, 6))])
    return refuse("not evenly spaced", world=w.truth, opens=["resample_slices"])


@case("uneven steps", "the step grows slowly")
def _(folder: Path) -> Expected:
    series = w.Series()
    w.write(folder, [series.slice(k + 0.004 * k * k, k + 1) for k in range(20)])
    return refuse("not evenly spaced", world=w.truth, opens=["resample_slices"])


@case("uneven steps", "uneven steps and a wide gap")
def _(folder: Path) -> Expected:
    series = w.Series()
    places = (0, 1, 2, 3, 4.4, 5.8, 9.5, 10.5, 11.5)
    w.write(folder, [series.slice(place, n + 1) for n, place in enumerate(places)])
    return refuse(
        "not evenly spaced", "--resample-slices --allow-gaps", world=w.truth, opens=["resample_slices", "allow_gaps"]
    )


def _tilted(series: w.Series, places: Sequence[float], degrees: float, axis: int = 1, tag: bool = True) -> list:
    slices = []
    for number, place in enumerate(places):
        data = series.slice(place, number + 1)
        away = series.turn[:, axis] * np.tan(np.radians(degrees)) * series.step * place
        position = series.position(place) + away
        data.ImagePositionPatient = [w.format_number_as_ds(float(v)) for v in position]
        w.set_values(data, series.values(position))
        if tag:
            data.GantryDetectorTilt = degrees
        slices.append(data)
    return slices


@case("gantry tilt", "CT tilted by 18 degrees")
def _(folder: Path) -> Expected:
    series = w.Series(turn=w.rotation(-18, 0, 0), count=10, rows=12)
    w.write(folder, _tilted(series, range(10), -18.0))
    return refuse("tilted by 18.00 degrees", "--untilt", world=w.truth, opens=["untilt"])


@case("gantry tilt", "tilted by 2.5 degrees, no tilt tag")
def _(folder: Path) -> Expected:
    series = w.Series(count=10)
    w.write(folder, _tilted(series, range(10), -2.5, tag=False))
    return refuse("tilted by 2.50 degrees", world=w.truth, opens=["untilt"])


@case("gantry tilt", "drift along the rows")
def _(folder: Path) -> Expected:
    series = w.Series(count=8, columns=12)
    w.write(folder, _tilted(series, range(8), 12.0, axis=0, tag=False))
    return refuse("tilted by 12.00 degrees", world=w.truth, opens=["untilt"])


@case("gantry tilt", "tilted, and two slices missing")
def _(folder: Path) -> Expected:
    series = w.Series(count=10, rows=12)
    w.write(folder, _tilted(series, (0, 1, 2, 3, 6, 7, 8, 9), 10.0))
    return refuse("2 slices are missing", world=w.truth, opens=["untilt", "allow_gaps"])


@case("gantry tilt", "tilted, and uneven steps")
def _(folder: Path) -> Expected:
    series = w.Series(count=10, rows=12)
    w.write(folder, _tilted(series, (0, 1, 2, 3, 4.5, 6.0, 7.5), -10.0))
    return refuse("not evenly spaced", world=w.truth, opens=["untilt", "resample_slices"])


@case("gantry tilt", "slices of different centres")
def _(folder: Path) -> Expected:
    series = w.Series(turn=np.eye(3))
    slices = series.slices()
    for place, away in ((2, 0.7), (3, -1.1)):
        position = series.position(place) + np.array([away, 0.0, 0.0])
        slices[place].ImagePositionPatient = list(position)
        w.set_values(slices[place], series.values(position))
    w.write(folder, slices)
    return refuse("not above each other", world=w.truth)


@case("truncated", "one file cut in its pixels")
def _(folder: Path) -> Expected:
    series = w.Series(count=10)
    path = w.write(folder, series.slices())[8]
    path.write_bytes(path.read_bytes()[:-60])
    return refuse("truncated", "mm along the slice normal", world=w.truth)


@case("truncated", "one file cut in its header")
def _(folder: Path) -> Expected:
    series = w.Series(count=10)
    path = w.write(folder, series.slices())[8]
    path.write_bytes(path.read_bytes()[: -2 * series.rows * series.columns - 60])
    return refuse("truncated", world=w.truth)


@case("truncated", "the stump of a file beside the slices")
def _(folder: Path) -> Expected:
    series = w.Series(count=10)
    path = w.write(folder, series.slices())[8]
    path.write_bytes(path.read_bytes()[:140])
    return refuse("cannot be read", world=w.truth)


@case("strays", "one slice of another size")
def _(folder: Path) -> Expected:
    series = w.Series(count=8)
    slices = series.slices()
    w.set_values(slices[3], series.values(series.position(3), rows=5))
    w.write(folder, slices)
    return refuse("one slice differs in size", "mm along the slice normal", world=w.truth)


@case("strays", "one slice of another pixel spacing")
def _(folder: Path) -> Expected:
    series = w.Series(count=8)
    slices = series.slices()
    slices[3].PixelSpacing = [1.25, 0.9]
    w.write(folder, slices)
    return refuse("one slice differs")


@case("no position", "CT without positions")
def _(folder: Path) -> Expected:
    slices = w.Series().slices()
    for data in slices:
        del data.ImagePositionPatient
    w.write(folder, slices)
    return refuse("a slice has no position")


@case("no position", "MR without orientation")
def _(folder: Path) -> Expected:
    slices = w.Series(modality="MR", sop_class=MRImageStorage).slices()
    for data in slices:
        del data.ImageOrientationPatient
    w.write(folder, slices)
    return refuse("no orientation")


@case("no position", "CT without PixelSpacing")
def _(folder: Path) -> Expected:
    slices = w.Series().slices()
    for data in slices:
        del data.PixelSpacing
    w.write(folder, slices)
    return refuse("no pixel spacing")


@case("no position", "a single CT slice of unknown thickness")
def _(folder: Path) -> Expected:
    slices = w.Series(count=1).slices()
    del slices[0].SliceThickness
    w.write(folder, slices)
    return refuse("thickness")


@case("skewed", "row and column not perpendicular")
def _(folder: Path) -> Expected:
    slices = w.Series(turn=np.eye(3)).slices()
    for data in slices:
        data.ImageOrientationPatient = [1, 0, 0, 0.1, 0.995, 0]
    w.write(folder, slices)
    return refuse("perpendicular")


@case("no volume", "a fan of slices (rotating planes)")
def _(folder: Path) -> Expected:
    first = w.Series(count=1)
    fan = [w.Series(uid=first.uid, study=first.study, turn=w.rotation(15 * k, 0, 0), count=1) for k in range(6)]
    w.write(folder, [one.slices()[0] for one in fan])
    return refuse("6 different planes")


@case("rescale", "RescaleSlope 0 in one slice")
def _(folder: Path) -> Expected:
    slices = w.Series().slices()
    slices[2].RescaleSlope = 0
    w.write(folder, slices)
    return refuse("rescale slope", world=w.truth)


@case("policy", "colour slices")
def _(folder: Path) -> Expected:
    series = w.Series()
    slices = series.slices()
    for data in slices:
        w.set_stored(data, np.zeros((series.rows, 3 * series.columns), dtype=np.uint8))
        data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = series.columns, 3, "RGB"
        data.PlanarConfiguration = 0
        del data.RescaleSlope, data.RescaleIntercept
    w.write(folder, slices)
    return refuse("colour image")


@case("policy", "secondary captures of a CT")
def _(folder: Path) -> Expected:
    slices = w.Series(sop_class=SecondaryCaptureImageStorage).slices()
    w.write(folder, slices)
    return refuse("secondary capture")


@case("policy", "text burnt into the pixels")
def _(folder: Path) -> Expected:
    slices = w.Series().slices()
    for data in slices:
        data.BurnedInAnnotation = "YES"
    w.write(folder, slices)
    return refuse("burnt into")


@case("multi-frame", "a mosaic of slices in one picture")
def _(folder: Path) -> Expected:
    series = w.Series(modality="MR", sop_class=MRImageStorage, columns=12, rows=12, count=3)
    slices = series.slices()
    for data in slices:
        data.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        data.Manufacturer = "SIEMENS"
    w.write(folder, slices)
    return refuse("mosaic")


# ---- synthetic: pictures --------------------------------------------------------------------------------------------


def _radiograph(folder: Path, modality: str, sop_class: str, photometric: str) -> np.ndarray:
    stored = np.random.default_rng(3).integers(0, 4096, (8, 11)).astype(np.uint16)
    data = w.new_dataset(sop_class)
    data.Modality, data.SeriesNumber, data.InstanceNumber = modality, 4, 1
    w.set_stored(data, stored, bits_stored=12)
    data.PhotometricInterpretation = photometric
    data.ImagerPixelSpacing = [0.2, 0.15]
    w.write(folder, [data])
    return stored.T.astype(float)


@case("pictures", "radiograph with the pixel size of its detector")
def _(folder: Path) -> Expected:
    values = _radiograph(folder, "CR", ComputedRadiographyImageStorage, "MONOCHROME2")
    return load(Truth(values, np.diag([0.15, 0.2, 1.0]), 1e-3, picture=True), notes=["detector"])


@case("MONOCHROME1", "MONOCHROME1 radiograph is turned")
def _(folder: Path) -> Expected:
    values = _radiograph(folder, "DX", DigitalXRayImageStorageForPresentation, "MONOCHROME1")
    return load(Truth(4095 - values, np.diag([0.15, 0.2, 1.0]), 1e-3, picture=True), notes=["MONOCHROME1"])


# ---- synthetic: enhanced multi-frame --------------------------------------------------------------------------------

MR = {"modality": "MR", "sop_class": MRImageStorage}
ALL_SHARED = ("orientation", "measures", "rescale")


@case("multi-frame", "enhanced CT")
def _(folder: Path) -> Expected:
    series = w.Series()
    w.write(folder, [m.enhanced(series, [m.Frame(k) for k in range(6)], shared=ALL_SHARED)])
    return load(truth_of(series))


@case("multi-frame", "enhanced MR, frames shuffled")
def _(folder: Path) -> Expected:
    series = w.Series(count=8, **MR)
    frames = [m.Frame(k, groups=m.stack("1", k + 1), position=(1, k + 1)) for k in (5, 2, 7, 0, 1, 6, 3, 4)]
    w.write(folder, [m.enhanced(series, frames, dimensions=[0x00209056, 0x00209057])])
    return load(truth_of(series))


def _frames(groups: Sequence[dict], order: Sequence[int] = range(6), interleaved: bool = True) -> list:
    """One frame for each place and group, raised by 40 for each group."""
    pairs = [(k, n) for k in order for n in range(len(groups))]
    if not interleaved:
        pairs.sort(key=lambda pair: pair[1])
    return [m.Frame(k, 40.0 * n, groups=groups[n], position=(k + 1, n + 1)) for k, n in pairs]


def _several(name: str, groups: Sequence[dict], pointer: int, *notes: str, interleaved: bool = True) -> None:
    def build(folder: Path) -> Expected:
        series = w.Series(**MR)
        frames = _frames(groups, (3, 0, 5, 1, 4, 2), interleaved)
        w.write(folder, [m.enhanced(series, frames, dimensions=[0x00209057, pointer])])
        return load(*(truth_of(series, 40.0 * n) for n in range(len(groups))), notes=notes)

    case("multi-frame", name)(build)


_several("enhanced MR, two echoes interleaved", [m.echo(4.6), m.echo(9.2)], 0x00189082, "echo")
_several("enhanced MR, two b-values", [m.diffusion(0), m.diffusion(1000)], 0x00189087, "s/mm2")
_several(
    "enhanced MR, b0 and two directions",
    [m.diffusion(0), m.diffusion(800, (1, 0, 0)), m.diffusion(800, (0, 1, 0))],
    0x00189089,
    "direction",
    interleaved=False,
)
_several("enhanced MR, three time points", [m.time_point(n) for n in (1, 2, 3)], 0x00209128, "time")


@case("multi-frame", "enhanced MR, two stacks of other directions")
def _(folder: Path) -> Expected:
    one = w.Series(**MR)
    two = w.Series(turn=w.rotation(90, 10, 0), count=5, **MR)
    first, second = (
        m.enhanced(series, [m.Frame(k, groups=m.stack(name, k + 1)) for k in range(series.count)], shared=())
        for name, series in (("1", one), ("2", two))
    )
    first.PixelData += second.PixelData
    first.NumberOfFrames = 11
    first.PerFrameFunctionalGroupsSequence.extend(second.PerFrameFunctionalGroupsSequence)
    w.write(folder, [first])
    return load(truth_of(one), truth_of(two))


@case("multi-frame", "enhanced MR, private tag in the dimension index")
def _(folder: Path) -> Expected:
    series = w.Series(**MR)
    frames = [m.Frame(k, position=(1, 6 - k)) for k in (3, 0, 5, 1, 4, 2)]
    w.write(folder, [m.enhanced(series, frames, dimensions=[0x20051413, 0x00209057])])
    return load(truth_of(series))


@case("multi-frame", "enhanced CT without frame of reference")
def _(folder: Path) -> Expected:
    series = w.Series()
    data = m.enhanced(series, [m.Frame(k) for k in range(6)])
    del data.FrameOfReferenceUID
    w.write(folder, [data])
    return load(truth_of(series), notes=["no frame of reference"])


@case("multi-frame", "enhanced CT, every frame has its own rescale")
def _(folder: Path) -> Expected:
    series = w.Series()
    w.write(folder, [m.enhanced(series, [m.Frame(k, slope=0.01 + 0.001 * k, intercept=-9.0 * k) for k in range(6)])])
    truth = truth_of(series)
    return load(Truth(truth.array, truth.affine, 0.009))


@case("multi-frame", "enhanced CT, frames compressed (RLE)")
def _(folder: Path) -> Expected:
    series = w.Series()
    data = m.enhanced(series, [m.Frame(k) for k in (2, 0, 1, 5, 3, 4)])
    data.compress(RLELossless, generate_instance_uid=False)
    w.write(folder, [data])
    return load(truth_of(series))


@case("multi-frame", "one series of two enhanced files, a time point each")
def _(folder: Path) -> Expected:
    series = w.Series(**MR)
    files = []
    for n in (0, 1):
        data = m.enhanced(series, [m.Frame(k, 40.0 * n) for k in (4, 1, 0, 5, 2, 3)], instance=n + 1)
        data.AcquisitionTime = f"10101{n}"
        files.append(data)
    w.write(folder, files)
    return load(truth_of(series), truth_of(series, 40.0))


@case("multi-frame", "enhanced MR without positions")
def _(folder: Path) -> Expected:
    data = m.enhanced(w.Series(**MR), [m.Frame(k) for k in range(6)])
    for item in data.PerFrameFunctionalGroupsSequence:
        del item.PlanePositionSequence
    w.write(folder, [data])
    return refuse("no position")


@case("multi-frame", "enhanced CT, a frame missing")
def _(folder: Path) -> Expected:
    series = w.Series(count=9)
    w.write(folder, [m.enhanced(series, [m.Frame(k) for k in (0, 1, 2, 4, 5, 6, 7, 8)])])
    return refuse("1 slice is missing", world=w.truth, opens=["allow_gaps"])


@case("multi-frame", "enhanced CT, frames tilted")
def _(folder: Path) -> Expected:
    series = w.Series(rows=12)
    away = series.turn[:, 1] * 0.3 * series.step
    w.write(folder, [m.enhanced(series, [m.Frame(k, move=tuple(away * k)) for k in range(6)])])
    return refuse("tilted by 16.70 degrees", world=w.truth, opens=["untilt"])


@case("multi-frame", "enhanced MR, a frame twice with other pixels")
def _(folder: Path) -> Expected:
    frames = [m.Frame(0), m.Frame(1), m.Frame(2), m.Frame(2, 30.0), m.Frame(3)]
    w.write(folder, [m.enhanced(w.Series(**MR), frames)])
    return refuse("5 slices at 4 positions")


# ---- made of real series --------------------------------------------------------------------------------------------

HEAD = "dicom_ct_head/series"
HIPPOCAMPUS = "dicom_mr_hippocrop/Study1_13_HCropVolume"
SIEMENS = "dicom2nifti/siemens/anatomical/001/series"
PHILIPS = "dicom2nifti/philips/anatomical/001/series"
JPEG_LS = "dicom2nifti/generic/compressed_jpegls/001/series"
SARCOMA_MR = "sts_tumour/dicom/STS_025/MR_T1/image"
SARCOMA_CT = "sts_tumour/dicom/STS_025/CT/image"
SARCOMA_PET = "sts_tumour/dicom/STS_025/PET/image"


@case("missing slices", "head CT without one slice", real=HEAD)
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    world = between(slices)
    w.write(folder, slices[:9] + slices[10:])
    left = slices[:9] + slices[10:]
    return refuse("1 slice is missing", world=world, tolerance=1e-3, opens=["allow_gaps"], between=between(left))


@case("missing slices", "PET without three slices", real=SARCOMA_PET)
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    world = between(slices)
    left = slices[:5] + slices[6:20] + slices[22:]
    w.write(folder, left)
    return refuse("3 slices are missing", world=world, tolerance=0.01, opens=["allow_gaps"], between=between(left))


@case("repeats", "hippocampus MR, a slice twice with other pixels", real=HIPPOCAMPUS)
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    again = deepcopy(slices[8])
    w.renew(again)
    again.PixelData = slices[9].PixelData
    w.write(folder, [*slices, again])
    return refuse("33 slices at 32 positions")


@case("duplicates", "hippocampus MR, one UID with two contents", real=HIPPOCAMPUS)
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    again = deepcopy(slices[8])
    again.PixelData = slices[9].PixelData
    w.write(folder, slices)
    w.write(folder / "again", [again])
    return refuse("same image but differ")


@case("sorting", "hippocampus MR, InstanceNumber and file names shuffled", real=HIPPOCAMPUS)
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    truth = truth_of_real(slices)
    order = np.random.default_rng(5).permutation(len(slices))
    for data, number in zip(slices, order, strict=True):
        data.InstanceNumber = int(number) + 1
    w.write(folder, slices, [f"{n}" for n in order[::-1]])
    return load(truth, notes=["not in spatial order"])


@case("gantry tilt", "sarcoma MR, positions tilted by 8 degrees", real=SARCOMA_MR)
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    first = np.array(slices[0].ImagePositionPatient, dtype=float)
    for data in slices:
        position = np.array(data.ImagePositionPatient, dtype=float)
        position[1] += np.tan(np.radians(8)) * (position[2] - first[2])
        data.ImagePositionPatient = [w.format_number_as_ds(float(v)) for v in position]
    w.write(folder, slices)
    return refuse("tilted by 8.00 degrees", "--untilt", tolerance=0.01, opens=["untilt"], between=between(slices))


@case("several series", "two series of one study in one folder", real=SIEMENS)
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    other = deepcopy(slices)
    uid, frame = generate_uid(), generate_uid()
    for data in other:
        w.renew(data)
        data.SeriesInstanceUID, data.FrameOfReferenceUID = uid, frame
        data.ImagePositionPatient = [float(v) + 30.0 for v in data.ImagePositionPatient]
        data.PixelData = (data.pixel_array // 2).astype(np.uint16).tobytes()
    w.write(folder, [one for pair in zip(slices, other, strict=True) for one in pair])
    return load(truth_of_real(slices), truth_of_real(other))


@case("truncated", "sarcoma CT, one file cut short", real=SARCOMA_CT)
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    world = between(slices)
    path = w.write(folder, slices)[30]
    path.write_bytes(path.read_bytes()[:-4000])
    return refuse("truncated", world=world, tolerance=1e-3)


@case("strays", "sarcoma MR, one slice of another pixel spacing", real=SARCOMA_MR)
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    slices[11].PixelSpacing = [0.9, 0.9]
    w.write(folder, slices)
    return refuse("one slice differs")


@case("strays", "hippocampus MR, one slice cropped", real=HIPPOCAMPUS)
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    world = between(slices)
    slices[4].PixelData = slices[4].pixel_array[:40].tobytes()
    slices[4].Rows = 40
    w.write(folder, slices)
    return refuse("one slice differs", world=world, tolerance=1e-3, between=between(slices[:4] + slices[5:]))


@case("no position", "sarcoma CT without positions", real=SARCOMA_CT)
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    for data in slices:
        del data.ImagePositionPatient
    w.write(folder, slices)
    return refuse("no position")


@case("uneven steps", "Philips MR, one slice moved by 0.3 mm", real=PHILIPS)
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    normal = np.cross(slices[0].ImageOrientationPatient[:3], slices[0].ImageOrientationPatient[3:])
    position = np.array(slices[1].ImagePositionPatient, dtype=float) + 0.3 * normal
    slices[1].ImagePositionPatient = [w.format_number_as_ds(float(v)) for v in position]
    w.write(folder, slices)
    return refuse("not evenly spaced", tolerance=0.01, opens=["resample_slices"], between=between(slices))


@case("MONOCHROME1", "hippocampus MR declared MONOCHROME1", real=HIPPOCAMPUS)
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    truth = truth_of_real(slices)
    for data in slices:
        data.PhotometricInterpretation = "MONOCHROME1"
    w.write(folder, slices)
    return load(truth, notes=["MONOCHROME1"])


@case("scout", "head CT and its scout", real=HEAD)
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    truth = truth_of_real(slices)
    scout = deepcopy(slices[0])
    w.renew(scout)
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.ImageOrientationPatient, scout.InstanceNumber = [1, 0, 0, 0, 0, -1], 0
    w.write(folder, [scout, *slices])
    return load(truth, notes=["localizer"])


@case("several series", "sarcoma MR over folders, names without suffix", real=SARCOMA_MR)
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    w.write(folder / "A", slices[:9], [f"IM{n}" for n in range(9)])
    w.write(folder / "B", slices[9:], [f"IM{n}" for n in range(len(slices) - 9)])
    return load(truth_of_real(slices))


@case("no preamble", "Siemens MR without preamble and meta group", real=SIEMENS)
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    truth = truth_of_real(slices)
    _write_bare(folder, slices)
    return load(truth)


@case("encoding", "sarcoma CT in big endian", real=SARCOMA_CT)
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    truth = truth_of_real(slices)
    for data in slices:
        del data.StudyID  # longer than the standard allows
    _write_big_endian(folder, slices)
    return load(truth)


@case("encoding", "Siemens MR, RLE", real=SIEMENS)
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    truth = truth_of_real(slices)
    for data in slices:
        data.compress(RLELossless, generate_instance_uid=False)
    w.write(folder, slices)
    return load(truth)


@case("encoding", "Philips MR, JPEG 2000", real=PHILIPS, needs=("openjpeg",))
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    truth = truth_of_real(slices)
    for data in slices:
        data.compress(JPEG2000Lossless, generate_instance_uid=False)
    w.write(folder, slices)
    return load(truth)


@case("missing slices", "JPEG-LS MR without its second slice", real=JPEG_LS, needs=("jpeg_ls",))
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    world = between(slices)
    left = slices[:1] + slices[2:]
    w.write(folder, left)
    return refuse(
        "1 slice is missing", "--allow-gaps", world=world, tolerance=1e-3, opens=["allow_gaps"], between=between(left)
    )


@case("repeats", "Siemens MR as two echoes", real=SIEMENS)
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    other = deepcopy(slices)
    for data in other:
        w.renew(data)
        data.PixelData = (data.pixel_array // 3).astype(np.uint16).tobytes()
    for echo, group in enumerate((slices, other), start=1):
        for data in group:
            data.EchoTime, data.EchoNumbers = 10.0 * echo, echo
    w.write(folder, [one for pair in zip(slices, other, strict=True) for one in pair])
    return load(truth_of_real(slices), truth_of_real(other), notes=["echo"])


@case("no frame of reference", "sarcoma PET without frame of reference", real=SARCOMA_PET)
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    for data in slices:
        del data.FrameOfReferenceUID
    w.write(folder, slices)
    return load(truth_of_real(slices, 0.01), notes=["no frame of reference"])


@case("multi-frame", "hippocampus MR as one enhanced file, frames shuffled", real=HIPPOCAMPUS)
def _(folder: Path, slices: list[FileDataset]) -> Expected:
    truth = truth_of_real(slices)
    series = w.Series(rows=slices[0].Rows, columns=slices[0].Columns, turn=np.eye(3), **MR)
    order = np.random.default_rng(6).permutation(len(slices))
    data = m.enhanced(series, [m.Frame(int(n), slope=None, intercept=0.0) for n in order])
    shared = data.SharedFunctionalGroupsSequence[0]
    shared.PixelMeasuresSequence[0].PixelSpacing = slices[0].PixelSpacing
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = slices[0].ImageOrientationPatient
    for item, n in zip(data.PerFrameFunctionalGroupsSequence, order, strict=True):
        item.PlanePositionSequence[0].ImagePositionPatient = slices[n].ImagePositionPatient
    data.BitsStored, data.HighBit = slices[0].BitsStored, slices[0].HighBit
    data.PixelRepresentation = slices[0].PixelRepresentation
    data.PixelData = b"".join(slices[n].PixelData for n in order)
    w.write(folder, [data])
    return load(truth)
