"""Masks of DICOM series, ready to be written, and what independent tools say of the files."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unet_med.io.discover import discover, open_source
from unet_med.io.export.mask import ExportOptions, MaskExport
from unet_med.io.source import IntakeOptions
from unet_med.labels import Code, Label, LabelCode, LabelMap, label_colour

SECRETS = ("SECRET", "JANE", "19700203", "20190405", "ACC-77", "HOSPITAL", "DOCTOR")
"""What :func:`personal` plants in headers; no object without a patient holds any of them."""

_TYPES = (("10200004", "Liver"), ("64033007", "Kidney"), ("78961009", "Spleen"), ("15776009", "Pancreas"))


def label_map(count: int = 2, coded: bool = True) -> LabelMap:
    anatomy = Code("SCT", "123037004", "Anatomical Structure")
    codes = [
        LabelCode(anatomy, Code("SCT", *_TYPES[n % len(_TYPES)]), Code("SCT", "7771000", "Left") if n % 2 else None)
        for n in range(count)
    ]
    return LabelMap(
        tuple(
            Label(n + 1, f"{codes[n].type.meaning.lower()} {n + 1}", label_colour(n + 1), codes[n] if coded else None)
            for n in range(count)
        )
    )


def blobs(shape: Sequence[int], count: int = 2, seed: int = 0) -> np.ndarray:
    """Returns smooth random labels 1 to ``count``, each of which occurs."""
    from scipy import ndimage

    random = np.random.default_rng(seed)
    fields = np.stack([ndimage.gaussian_filter(random.standard_normal(shape), 1.5) for _ in range(count)])
    labels = (fields.argmax(axis=0) + 1) * (fields.max(axis=0) > 0.5 * fields.std())
    for value in range(1, count + 1):
        labels.flat[random.integers(labels.size)] = value
    return labels.astype(np.uint8)


def export_of(
    folder: Path,
    labels: np.ndarray | None = None,
    *,
    names: LabelMap | None = None,
    intake: IntakeOptions | None = None,
    series: int = 0,
    probabilities: np.ndarray | None = None,
    **options: Any,
) -> MaskExport:
    """Returns a mask (random blobs unless given) on the series in a folder."""
    source = open_source(discover(folder, intake or IntakeOptions()).usable[series])
    given = blobs(source.geometry.shape) if labels is None else labels
    provenance = {"tool": "unet-med", "model_sha256": ["0123456789abcdef" * 4]}
    return MaskExport(
        source, given, names or label_map(), provenance, ExportOptions(**options), probabilities=probabilities
    )


def personal(dataset: Any) -> None:
    """Gives a header a patient, dates and institutions."""
    dataset.PatientName, dataset.PatientID = "SECRET^JANE", "SECRET-42"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientAge = "19700203", "F", "049Y"
    dataset.PatientWeight = "71"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20190405", "101112", "SECRET7"
    dataset.AccessionNumber, dataset.InstitutionName = "ACC-77", "HOSPITAL"
    dataset.ReferringPhysicianName = "DOCTOR^WHO"
    dataset.StudyDescription, dataset.SeriesDescription = "of SECRET", "of JANE"
    dataset.private_block(0x0011, "SECRET MAKER", create=True).add_new(1, "LO", "SECRET")


def dciodvfy(path: Path) -> list[str]:
    """Returns the errors of dciodvfy; skips where it is not installed."""
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy (Debian package dicom3tools) is not installed")
    done = subprocess.run([program, str(path)], capture_output=True, text=True, check=False, timeout=120)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 1.0 if not total else 2.0 * np.count_nonzero(a & b) / total
