"""Image and mask of a case of an output folder, found again and reduced to what a page shows."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, nan, prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.inference.large import PREVIEW_SIDE, thinned
from unet_med.inference.object_files import TABLES
from unet_med.io.cases import LARGE_BYTES, Case
from unet_med.io.discover import restore_ref
from unet_med.io.source import SourceRef
from unet_med.review.view import View, view_of
from unet_med.volume import LazyArray
from unet_med.workflows.dispatch import files_of
from unet_med.workflows.journal import same_input
from unet_med.workflows.thumbnail import may_carry_a_name

_MASKS = (".nii.gz", ".tif", ".ome.zarr", ".seg.nrrd", ".seg.dcm")
"""Endings of masks that can be shown, those that are read fastest first."""
_TEXT_COLUMNS = frozenset({"class"})


@dataclass(frozen=True)
class Truth:
    """The true labels of a case.

    Attributes:
        case: Of a manifest.
        ignored: Value of voxels that nobody labelled; ``None``: there are none.
    """

    case: Case
    ignored: int | None

    def labels(self, frame: int) -> npt.NDArray[Any]:
        """Returns the labels of a frame, background where nobody labelled."""
        stored = self.case.read_label(frame if frame in self.case.frames else None)
        return stored if self.ignored is None else np.where(stored == self.ignored, 0, stored)


@dataclass(frozen=True)
class Seen:
    """The voxels of a case.

    Attributes:
        view: ``None`` where they cannot be shown.
        missing: Why they, or those of the image, are not shown; empty where all are.
        private: Whether no picture of the image may be shown.
    """

    view: View | None
    missing: str = ""
    private: bool = False


def seen_of(
    out: Path,
    record: Mapping[str, Any],
    sidecar: Mapping[str, Any],
    files: Mapping[str, Sequence[str]],
    truth: Truth | None = None,
) -> Seen:
    """Reads the image and the mask of a case that is done.

    Args:
        out: Its output folder.
        record: Of the case.
        sidecar: The JSON beside its mask.
        files: Of each source or case, as the private table of the folder has them.
        truth: Its true labels, to be shown, too.

    Raises:
        InputRefusedError: when the mask or the true labels cannot be read.
        MachineError: when memory does not suffice.
    """
    mask = _mask(out, record)
    sources = _sources(record, sidecar, files)
    private = any(map(may_carry_a_name, sources)) if sources else holds_dicom(sidecar)
    missing = _missing(record, sources, private)
    frame = (sidecar.get("provenance") or {}).get("frame")
    if missing:
        own = Case(str(record["id"]), (mask,), mask)
        return Seen(_view(own, None, _number(own, record), truth), missing, private)
    case = Case(str(record["id"]), tuple(sources), mask, frame)
    return Seen(_view(case, case, _number(case, record), truth))


def holds_dicom(sidecar: Mapping[str, Any]) -> bool:
    """Whether an image of the case is DICOM: where nothing else is known of it, text in it may tell a name."""
    return any(entry["kind"] == "dicom" for entry in (sidecar.get("provenance") or {}).get("sources") or ())


def object_columns(out: Path, outputs: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Returns the measures of objects by column, (objects); empty columns where no table was written."""
    name = next((one for one in outputs if one.startswith(f"{TABLES}/") and one.endswith(".csv")), None)
    rows: list[dict[str, str]] = []
    if name is not None and (out / name).is_file():
        with (out / name).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    names = list(rows[0]) if rows else ["label", "class", "confidence"]
    return {
        column: np.array(
            [row[column] if column in _TEXT_COLUMNS else float(row[column] or nan) for row in rows],
            dtype=object if column in _TEXT_COLUMNS else np.float64,
        )
        for column in names
    }


# ---- what lies where ------------------------------------------------------------------------------------------------


def _mask(out: Path, record: Mapping[str, Any]) -> SourceRef:
    names = [str(name) for name in record["outputs"]]
    for ending in _MASKS:
        for name in names:
            if name.endswith(ending) and (out / name).exists():
                return restore_ref({"id": record["id"]}, [out / name])
    raise InputRefusedError(
        "no mask is in a format that can be shown", str(record["id"]), "predict with --format nifti"
    )


def _sources(
    record: Mapping[str, Any], sidecar: Mapping[str, Any], files: Mapping[str, Sequence[str]]
) -> list[SourceRef]:
    """Returns the images of a case; none where their files are not known or not there."""
    entries = (sidecar.get("provenance") or {}).get("sources") or ()
    known = [files.get(entry["id"]) for entry in entries]
    together = files.get(str(record["id"])) or ()
    if not all(known):
        known = [together] if len(entries) == 1 else [[one] for one in together]
    paths = [[Path(one) for one in own or ()] for own in known]
    if len(paths) != len(entries) or not all(own and all(one.exists() for one in own) for own in paths):
        return []
    found = [restore_ref(entry, own) for entry, own in zip(entries, paths, strict=True)]
    return found if all(source.usable for source in found) else []


def _missing(record: Mapping[str, Any], sources: Sequence[SourceRef], private: bool) -> str:
    if not sources:
        return "The image is not shown: it does not lie where it did when it was predicted."
    if private:
        return "The image is not shown: text in its pixels may tell a name."
    state = record.get("input")
    if state is not None and not same_input(state, files_of(Case(str(record["id"]), tuple(sources)))):
        return "The image is not shown: its file was changed since."
    return ""


# ---- voxels ---------------------------------------------------------------------------------------------------------


def _number(case: Case, record: Mapping[str, Any]) -> int | None:
    """Returns the frame that is shown of volumes in time, that with the most labelled; ``None``: all of them."""
    if case.geometry.ndim == 2 and len(case.frames) > 1:
        return None
    sizes: dict[int, int] = {}
    for row in record.get("volumes") or ():
        frame = row.get("frame")
        sizes[0 if frame is None else frame] = sizes.get(0 if frame is None else frame, 0) + row["voxels"]
    best = max(sizes, key=lambda frame: sizes[frame], default=case.frames[0])
    return best if best in case.frames else case.frames[0]


def _view(case: Case, image: Case | None, frame: int | None, truth: Truth | None) -> View:
    """Returns the view of a frame of a case, of all frames for ``None``.

    Args:
        case: With its mask.
        image: Where voxels are read; ``None`` where they are not shown.
        frame: Of the case.
        truth: Its true labels; those of a movie and of what is not in memory are not shown.
    """
    first = case.sources[0]
    names = [name for source in case.sources for name in source.channel_names or ("",)]
    told = tuple(names) if len(names) == case.channels and all(names) else ()
    if frame is None:
        labels = np.stack([_labels(case, number) for number in case.frames], axis=-1)
        voxels = None if image is None else np.stack([image.read(number).array for number in case.frames], axis=-1)
        return view_of(voxels, labels, case.geometry, names=told, modality=first.modality)
    array = None if image is None else image.look(frame).array
    shape = case.geometry.shape
    if not _is_large(array, shape):
        known = None if truth is None else truth.labels(frame)
        return view_of(array, _labels(case, frame), case.geometry, known, told, first.modality)
    mask = Case(case.id, (_mask_of(case),)).look(_mask_frame(case, frame))
    few = thinned(mask.array, shape)[0].astype(np.int64)
    shown = None if array is None else thinned(array, shape)
    step = ceil(max(shape) / PREVIEW_SIDE)
    return view_of(shown, few, case.geometry, names=told, modality=first.modality, thin=step)


def _is_large(array: object, shape: Sequence[int]) -> bool:
    """Whether an image is not in memory, or, where none is shown, whether its mask had better not be."""
    return isinstance(array, LazyArray) if array is not None else prod(shape) > LARGE_BYTES


def _labels(case: Case, frame: int) -> npt.NDArray[Any]:
    """Returns the labels of a frame; the mask of a case that is one frame of several holds that one alone."""
    mask = _mask_of(case)
    if mask.frames == case.sources[0].frames:
        return case.read_label(frame)
    return Case(case.id, (mask,), mask).read_label(_mask_frame(case, frame))


def _mask_of(case: Case) -> SourceRef:
    return case.label or case.sources[0]


def _mask_frame(case: Case, frame: int) -> int:
    return frame if _mask_of(case).frames == case.sources[0].frames else 0
