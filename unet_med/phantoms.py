"""Invented data sets with exact truth: CT-like DICOM series with two organs, and microscopy pictures of nuclei.

Shapes are formulas in patient millimetres, evaluated at the centre of every voxel, so the truth does not depend on the
grid. No real image went into them, and no real person is named. The same seed gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import tifffile
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from unet_med.geometry import Geometry

FloatArray = npt.NDArray[np.float64]

ORGANS: Mapping[str, int] = {"background": 0, "liver": 1, "kidney": 2}
"""Labels of the 3-D phantoms."""

NUCLEI: Mapping[str, int] = {"background": 0, "nucleus": 1}
"""Labels of the 2-D phantoms, whose files hold object numbers."""

RESCALE_INTERCEPT_HU = -1024
_AIR_HU, _SOFT_HU, _ORGAN_HU, _BONE_HU = -1000.0, 10.0, 75.0, 320.0
NOISE_HU = 12.0
_BINS = 192


@dataclass(frozen=True)
class PhantomSet:
    """Where a phantom data set lies.

    Attributes:
        folder: Holds ``images/``, ``labels/`` and ``unlabelled/``.
        images: One series folder or picture for each labelled case.
        labels: One label file for each labelled case, of the same stem.
        unlabelled: Images for prediction.
        truth: The labels of the unlabelled images, of the same stem.
        label_names: Name to value of each label.
    """

    folder: Path
    images: tuple[Path, ...]
    labels: tuple[Path, ...]
    unlabelled: tuple[Path, ...]
    truth: tuple[Path, ...]
    label_names: Mapping[str, int] = field(default_factory=dict)

    def pairs(self) -> Iterator[tuple[Path, Path]]:
        """Yields image and label of every case, the labelled ones first."""
        yield from zip(self.images + self.unlabelled, self.labels + self.truth, strict=True)


# ---- 3-D: a torso with two organs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Torso:
    """One invented patient: sizes in mm, positions relative to ``centre_mm``, axes R, A, S.

    Attributes:
        centre_mm: Middle of the body, RAS+ mm.
        body_mm: Half axes of the elliptic body in R and A.
        organ_centres_mm: (2, 3) centres of liver and kidney.
        organ_radii_mm: (2, 3) half axes of liver and kidney.
        organ_tilts: (2, 3, 3) rotations of the two organs.
        bend_mm: (2, 3) amplitude of the sine that deforms each organ along each axis.
        bend_phase: (2, 3) phase of that sine.
        bowel: (n, 4) centre and radius of bowel loops, as bright as the organs, with gas inside.
        field_phase: (4, 3) phases of the slow unevenness of soft tissue.
    """

    centre_mm: FloatArray
    body_mm: FloatArray
    organ_centres_mm: FloatArray
    organ_radii_mm: FloatArray
    organ_tilts: FloatArray
    bend_mm: FloatArray
    bend_phase: FloatArray
    bowel: FloatArray
    field_phase: FloatArray

    def organs(self, points_mm: FloatArray) -> npt.NDArray[np.uint8]:
        """Returns the label (0 none, 1 liver, 2 kidney) at points (..., 3) in RAS+ mm."""
        labels = np.zeros(points_mm.shape[:-1], dtype=np.uint8)
        for index in (1, 0):  # the liver wins where the two would meet
            labels[self.organ_radius(index, points_mm) < 1.0] = index + 1
        return labels

    def organ_radius(self, index: int, points_mm: FloatArray) -> FloatArray:
        """Returns the normalised distance from an organ's centre at points (..., 3): below 1 inside."""
        local = (points_mm - self.centre_mm - self.organ_centres_mm[index]) @ self.organ_tilts[index]
        bent = local + self.bend_mm[index] * np.sin(np.roll(local, 1, axis=-1) / 14.0 + self.bend_phase[index])
        return np.asarray(np.linalg.norm(bent / self.organ_radii_mm[index], axis=-1), dtype=np.float64)

    def hounsfield(self, points_mm: FloatArray) -> FloatArray:
        """Returns the noise-free CT number at points (..., 3) in RAS+ mm."""
        local = points_mm - self.centre_mm
        radius = np.linalg.norm(local[..., :2] / self.body_mm, axis=-1)
        waves = np.sin(local[..., None, :] / np.array([9.0, 13.0, 21.0, 34.0])[:, None] + self.field_phase)
        unevenness = waves.prod(axis=-1).sum(axis=-1)
        values = np.where(radius < 1.0, _SOFT_HU + 18.0 * unevenness, _AIR_HU)
        values[(radius > 0.84) & (radius < 0.96)] = _ORGAN_HU  # the muscle wall is as bright as the organs
        spine = np.linalg.norm(local[..., :2] - np.array([0.0, -0.62 * self.body_mm[1]]), axis=-1)
        values[spine < 11.0] = _BONE_HU
        for loop in self.bowel:
            distance = np.linalg.norm(local - loop[:3], axis=-1)
            values[distance < loop[3]] = _ORGAN_HU + 6.0
            values[distance < 0.45 * loop[3]] = -400.0
        labels = self.organs(points_mm)
        grain = np.sin(local[..., 0] / 2.7) * np.sin(local[..., 1] / 3.1) * np.sin(local[..., 2] / 3.7)
        values[labels == 1] = (_ORGAN_HU + 8.0 * unevenness)[labels == 1]
        cortex = self.organ_radius(1, points_mm) > 0.6
        values[labels == 2] = (_ORGAN_HU + np.where(cortex, 18.0, -12.0) + 12.0 * grain)[labels == 2]
        return values


def make_torso(seed: int, number: int) -> Torso:
    """Returns the invented patient of this number; the same arguments give the same patient."""
    random = np.random.default_rng([seed, number, 3])
    size = random.uniform(0.92, 1.08)
    centres = np.array([[25.0, 6.0, 4.0], [-30.0, -10.0, -6.0]]) + random.uniform(-4.0, 4.0, (2, 3))
    radii = np.array([[29.0, 28.0, 40.0], [19.0, 20.0, 32.0]]) * random.uniform(0.9, 1.1, (2, 3))
    loops = random.integers(3, 6)
    bowel = np.column_stack(
        [
            random.uniform(-30.0, 10.0, loops),
            random.uniform(18.0, 38.0, loops),
            random.uniform(-60.0, 60.0, loops),
            random.uniform(7.0, 10.0, loops),
        ]
    )
    return Torso(
        centre_mm=random.uniform(-40.0, 40.0, 3),
        body_mm=np.array([78.0, 66.0]) * size,
        organ_centres_mm=centres * size,
        organ_radii_mm=radii * size,
        organ_tilts=np.stack([_rotation(random.uniform(-18.0, 18.0, 3)) for _ in range(2)]),
        bend_mm=random.uniform(2.0, 4.5, (2, 3)),
        bend_phase=random.uniform(0.0, 2.0 * np.pi, (2, 3)),
        bowel=bowel * np.array([size, size, size, 1.0]),
        field_phase=random.uniform(0.0, 2.0 * np.pi, (4, 3)),
    )


def make_grid(seed: int, number: int, torso: Torso) -> Geometry:
    """Returns the oblique grid on which a patient is scanned, about 41 x 34 x 26 voxels of 4 to 6 mm."""
    random = np.random.default_rng([seed, number, 7])
    spacing = np.array([random.choice([4.0, 4.2, 4.5]), random.choice([4.0, 4.2, 4.5]), random.choice([5.0, 5.5, 6.0])])
    shape = np.array([172.0, 144.0, 140.0]) // spacing
    directions = np.diag([-1.0, -1.0, 1.0]) @ _rotation(random.uniform(-12.0, 12.0, 3))
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = torso.centre_mm - affine[:3, :3] @ ((shape - 1) / 2.0)
    # a DICOM file holds decimals of at most 16 characters: the grid is what the file will say
    affine[:3, 3] = [float(_decimal(value)) for value in affine[:3, 3]]
    return Geometry((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def write_phantoms_3d(
    folder: Path, cases: int = 12, seed: int = 0, unlabelled: int = 3, truth: Path | None = None
) -> PhantomSet:
    """Writes CT-like DICOM series of invented patients with exact labels of two organs.

    ``folder/images/<case>/*.dcm`` and ``folder/labels/<case>.nii.gz`` (uint8, on the series' grid) are for training,
    ``folder/unlabelled/<case>/*.dcm`` for prediction; the labels of the latter lie in ``truth``.

    Args:
        folder: Where to write; made if missing.
        cases: Number of labelled patients.
        seed: The same seed gives the same files.
        unlabelled: Number of further patients.
        truth: Folder for the labels of the unlabelled; default ``folder/truth``.
    """
    places = _places(folder, truth, [f"patient{n + 1:02d}" for n in range(cases + unlabelled)], cases, ("", ".nii.gz"))
    for number, (series, label) in enumerate(places.pairs()):
        torso = make_torso(seed, number)
        grid = make_grid(seed, number, torso)
        points = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
        noise = np.random.default_rng([seed, number, 11]).normal(0.0, NOISE_HU, grid.shape)
        _write_series(series, torso.hounsfield(points) + noise, grid, seed, number)
        _write_label(label, torso.organs(points), grid)
    return replace(places, label_names=ORGANS)


def _places(
    folder: Path, truth: Path | None, names: Sequence[str], labelled: int, suffixes: tuple[str, str]
) -> PhantomSet:
    """Returns where the images and labels of these cases lie; the first ``labelled`` ones are for training."""
    of_image, of_label = suffixes
    training, others = names[:labelled], names[labelled:]
    return PhantomSet(
        folder,
        images=tuple(folder / "images" / f"{name}{of_image}" for name in training),
        labels=tuple(folder / "labels" / f"{name}{of_label}" for name in training),
        unlabelled=tuple(folder / "unlabelled" / f"{name}{of_image}" for name in others),
        truth=tuple((truth or folder / "truth") / f"{name}{of_label}" for name in others),
    )


def _write_label(path: Path, labels: npt.NDArray[np.uint8], grid: Geometry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(labels, grid.affine, dtype=np.uint8)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code=1)
    image.set_qform(grid.affine, code=1)
    nibabel.save(image, path)


def _write_series(folder: Path, values_hu: FloatArray, grid: Geometry, seed: int, number: int) -> None:
    """Writes one file for each slice; instance numbers run against the slice normal in every second patient."""
    folder.mkdir(parents=True, exist_ok=True)
    affine = grid.to_lps()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = affine[:3, :3] / spacing
    stored = np.clip(np.rint(values_hu) - RESCALE_INTERCEPT_HU, 0, 4095).astype(np.uint16)
    slices = grid.shape[2]
    study, series, frame = (_uid(seed, number, part) for part in ("study", "series", "frame of reference"))
    for k in range(slices):
        instance = k + 1 if number % 2 == 0 else slices - k
        dataset = _header(seed, number, instance)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        dataset.ImagePositionPatient = [_decimal(value) for value in affine[:3, :3] @ [0, 0, k] + affine[:3, 3]]
        dataset.ImageOrientationPatient = [_decimal(value) for value in (*cosines[:, 0], *cosines[:, 1])]
        dataset.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]  # between rows, between columns
        dataset.SliceThickness = _decimal(spacing[2])
        dataset.Columns, dataset.Rows = grid.shape[:2]
        dataset.PixelData = np.ascontiguousarray(stored[:, :, k].T).tobytes()
        dataset.save_as(folder / f"IM{instance:04d}.dcm", enforce_file_format=True)


def _header(seed: int, number: int, instance: int) -> FileDataset:
    """Returns the tags that do not depend on the place of the slice."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(seed, number, f"instance {instance}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid(0, 0, "implementation")
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20200101", "120000", ""
    dataset.ContentDate, dataset.ContentTime = "20200101", "120000"
    dataset.Modality, dataset.Manufacturer, dataset.ReferringPhysicianName = "CT", "unet-med phantom", ""
    dataset.StudyDescription = dataset.SeriesDescription = "phantom, no real patient"
    dataset.PatientName, dataset.PatientID = f"PHANTOM^{number + 1:02d}", f"PHANTOM{number + 1:02d}"
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = str(number + 1), number + 1, instance
    dataset.AcquisitionNumber, dataset.PositionReferenceIndicator, dataset.KVP = 1, "", "120"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = str(RESCALE_INTERCEPT_HU), "1", "HU"
    return dataset


def _uid(seed: int, number: int, part: str) -> Any:
    return generate_uid(entropy_srcs=["unet-med phantom", str(seed), str(number), part])


def _decimal(value: float) -> str:
    """Returns a DICOM decimal string (at most 16 characters)."""
    return f"{value:.9f}".rstrip("0").rstrip(".") if abs(value) < 1e5 else f"{value:.8g}"


def _rotation(degrees: FloatArray) -> FloatArray:
    """Returns the rotation about x, then y, then z."""
    result = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        a, b = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result


# ---- 2-D: touching nuclei --------------------------------------------------------------------------------------------


def write_phantoms_2d(
    folder: Path, cases: int = 16, seed: int = 0, unlabelled: int = 4, truth: Path | None = None
) -> PhantomSet:
    """Writes OME-TIFF pictures of touching nuclei with exact object labels.

    ``folder/images/<case>.ome.tif`` (uint16, pixel size declared) and ``folder/labels/<case>.tif`` (uint16 object
    numbers) are for training, ``folder/unlabelled/<case>.ome.tif`` for prediction; the labels of the latter lie in
    ``truth``.

    Args:
        folder: Where to write; made if missing.
        cases: Number of labelled pictures.
        seed: The same seed gives the same files.
        unlabelled: Number of further pictures.
        truth: Folder for the labels of the unlabelled; default ``folder/truth``.
    """
    places = _places(
        folder, truth, [f"field{n + 1:02d}" for n in range(cases + unlabelled)], cases, (".ome.tif", ".tif")
    )
    for number, (image, label) in enumerate(places.pairs()):
        picture, objects, pixel_um = make_nuclei(seed, number)
        _write_picture(image, picture, pixel_um, number)
        _write_objects(label, objects, pixel_um)
    return replace(places, label_names=NUCLEI)


def make_nuclei(
    seed: int, number: int, shape: tuple[int, int] = (160, 192)
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16], float]:
    """Returns a picture (rows, cols), its object numbers (rows, cols) and the pixel size in um."""
    random = np.random.default_rng([seed, number, 2])
    pixel_um = float(random.choice([0.4, 0.5]))
    y, x = np.indices(shape) * pixel_um
    height, width = shape[0] * pixel_um, shape[1] * pixel_um
    best = np.full(shape, np.inf)
    objects = np.zeros(shape, dtype=np.uint16)
    brightness = [0.0]
    for row in _place_nuclei(random, height, width):
        centre_y, centre_x, major, minor, angle = row
        along = (x - centre_x) * np.cos(angle) + (y - centre_y) * np.sin(angle)
        across = (y - centre_y) * np.cos(angle) - (x - centre_x) * np.sin(angle)
        radius = np.hypot(along / major, across / minor)
        closer = (radius < 1.0) & (radius < best)
        brightness.append(float(random.uniform(0.12, 0.75)))
        objects[closer] = len(brightness) - 1
        best[closer] = radius[closer]
    signal = np.asarray(brightness)[objects] * (1.0 - 0.35 * np.where(objects > 0, best, 0.0) ** 2)
    lamp_y, lamp_x = random.uniform(-0.5, 0.5, 2)
    uneven = 0.95 * np.exp(-((x / width - 0.5 - lamp_x) ** 2 + (y / height - 0.5 - lamp_y) ** 2) / 0.18)
    clean = 0.08 + uneven + signal
    noisy = random.poisson(clean * 900.0) / 900.0 + random.normal(0.0, 0.02, shape)
    picture = np.clip(np.rint(noisy * 16000.0), 0, 65535).astype(np.uint16)
    _, compact = np.unique(objects, return_inverse=True)  # a covered nucleus leaves no gap in the numbers
    return picture, compact.reshape(shape).astype(np.uint16), pixel_um


def _place_nuclei(random: np.random.Generator, height: float, width: float) -> list[FloatArray]:
    """Returns (y, x, half axes, angle) of nuclei in um, in clumps of one to four that touch."""
    clumps = max(4, round(height * width / 480.0))
    placed: list[FloatArray] = []
    for _ in range(clumps):
        centre = random.uniform([0.0, 0.0], [height, width])
        for _ in range(int(random.integers(1, 5))):
            major, minor = random.uniform(4.5, 6.5), random.uniform(3.4, 4.6)
            placed.append(np.array([*centre, major, minor, random.uniform(0.0, np.pi)]))
            heading = random.uniform(0.0, 2.0 * np.pi)
            centre = centre + random.uniform(7.0, 9.0) * np.array([np.sin(heading), np.cos(heading)])
    kept: list[FloatArray] = []
    for nucleus in placed:
        if all(np.hypot(*(nucleus[:2] - other[:2])) > 6.5 for other in kept):
            kept.append(nucleus)
    return kept


def _write_picture(path: Path, picture: npt.NDArray[np.uint16], pixel_um: float, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "axes": "YX",
        "UUID": f"urn:uuid:00000000-0000-4000-8000-{number:012d}",
        "PhysicalSizeX": pixel_um,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": pixel_um,
        "PhysicalSizeYUnit": "µm",
    }
    tifffile.imwrite(path, picture, ome=True, photometric="minisblack", metadata=metadata, compression="zlib")


def _write_objects(path: Path, objects: npt.NDArray[np.uint16], pixel_um: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        path, objects, imagej=True, resolution=(1.0 / pixel_um, 1.0 / pixel_um), metadata={"axes": "YX", "unit": "um"}
    )


# ---- how far a threshold gets ----------------------------------------------------------------------------------------


def best_threshold_dice(
    images: Sequence[npt.NDArray[Any]], labels: Sequence[npt.NDArray[np.integer[Any]]], values: Sequence[int]
) -> dict[int, float]:
    """Returns, for each label value, the mean Dice of the best intensity window; key 0 stands for any label.

    One window ``low <= image < high`` is chosen with the truth in hand for all images together, which also covers
    plain thresholds from below and from above: an upper bound of what thresholding can do.

    Args:
        images: Arrays of any shape.
        labels: Arrays of the same shapes.
        values: Label values to look at.
    """
    pooled = np.concatenate([np.asarray(image, dtype=np.float64).ravel() for image in images])
    edges = np.append(np.unique(np.quantile(pooled, np.linspace(0.0, 1.0, _BINS))), np.inf)
    total: dict[int, FloatArray] = {}
    for image, label in zip(images, labels, strict=True):
        inside = np.digitize(image, edges[:-1]) - 1
        everything = _cumulative(inside.ravel(), edges.size - 1)
        for value in (0, *values):
            wanted = (label > 0) if value == 0 else (label == value)
            hits = _cumulative(inside[wanted], edges.size - 1)
            chosen = everything[None, :] - everything[:, None]
            dice = 2.0 * (hits[None, :] - hits[:, None]) / np.maximum(chosen + hits[-1], 1)
            total[value] = total.get(value, np.zeros_like(dice)) + np.where(chosen > 0, dice, 0.0)
    return {value: float(dice.max()) / len(images) for value, dice in total.items()}


def _cumulative(bins: npt.NDArray[np.integer[Any]], count: int) -> FloatArray:
    counts = np.bincount(bins, minlength=count)
    return np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)])
