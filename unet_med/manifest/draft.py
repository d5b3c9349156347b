"""A case on its way into the manifest, and how a manifest is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unet_med.io.cases import Case
from unet_med.manifest.model import Split, Task
from unet_med.manifest.pairing import Pair


@dataclass(frozen=True)
class BuildOptions:
    """How a manifest is made.

    Attributes:
        images, labels: Patterns of the image and label files, relative to the folder.
        folds: Number of folds.
        group_by: A regular expression, or a CSV file.
        task: ``semantic`` or ``instance``; ``None`` to look at the labels.
        label_values: ``"255=1"``: how stored label values are to be read.
        label_names: ``"1=liver,2=tumour"``; for segments in DICOM several names may mean one value, ``0=NAME`` leaves a
            segment out, and ``0=*`` all that are not named.
        seed: Of the folds.
        classes: A CSV file that names the class of each object.
        ignore_label: Value of voxels that nobody labelled.
    """

    images: str | None = None
    labels: str | None = None
    folds: int = 5
    group_by: str | None = None
    task: Task | None = None
    label_values: str | None = None
    label_names: str | None = None
    seed: int = 0
    classes: Path | None = None
    ignore_label: int | None = None


@dataclass(frozen=True)
class Draft:
    """A case on its way into the manifest, and how a manifest is made."""

    case: Case
    pair: Pair
    split: Split
    group: str = ""
    fold: int | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
