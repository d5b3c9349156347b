"""One case, looked at once: its own faults, and what is needed to compare it with the others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.doctoring.findings import Interpolated
from unet_med.doctoring.labelling import LabelArray, LabelMeasures, measure_label
from unet_med.doctoring.likeness import Likeness, likeness
from unet_med.doctoring.objects import ObjectMeasures, measure_objects
from unet_med.doctoring.place import Placement, place
from unet_med.doctoring.stored import is_interpolated, is_nearly_whole, label_source, stored_values
from unet_med.doctoring.tiles import Edges, edges
from unet_med.errors import InputRefusedError
from unet_med.io.cases import Case, OpenCase
from unet_med.manifest import Finding, LabelScan, ManifestCase, distinct_values, refusal
from unet_med.manifest.values import FIX
from unet_med.volume import Volume


@dataclass(frozen=True, eq=False)
class Seen:
    """What was seen of one case.

    Attributes:
        case: The case.
        findings: Its own faults.
        scan: The values of its label; ``None`` without a label.
        image: Hash of the voxels; empty when they cannot be read. The rest is missing then, too.
        label: Measures of its label, of the first frame where it has several.
        placement: How the label lies on the image; ``None`` for an empty label or a faulty image.
        likeness: For the comparison with other images.
        edges: Those of a picture.
        objects: Those of its label, of the first frame, where label values are numbers of objects.
    """

    case: ManifestCase
    findings: tuple[Finding, ...]
    scan: LabelScan | None = None
    image: str = ""
    label: LabelMeasures | None = None
    placement: Placement | None = None
    likeness: Likeness | None = None
    edges: Edges | None = None
    objects: ObjectMeasures | None = None


def look(case: ManifestCase, cells: Mapping[int, Sequence[int]], ignore: int | None) -> Seen:
    """Reads image and label of a case once.

    Args:
        case: The case.
        cells: See :func:`unet_med.doctoring.likeness.cell_size`.
        ignore: Value of voxels that nobody labelled.
    """
    opened = Case(case.id, case.case.sources, case.case.label, case.case.frame).open()
    scan, label = _read_label(opened)
    told = () if scan is None or scan.finding is None else (scan.finding,)
    try:
        image, volume, faults = _read_image(opened)
    except InputRefusedError as error:
        return Seen(case, (refusal(case.id, error), *told), scan)
    grey = grey_of(volume.array)
    if label is None:
        return Seen(case, (*faults, *told), scan, image, likeness=likeness(grey, cells[grey.ndim]), edges=edges(grey))
    if not faults and any(np.array_equal(channel, label) for channel in volume.array):
        what = "the label is the image itself"
        faults = [Finding(case.id, "error", what, "give the label that was drawn on it", "label_is_image")]
    stored, meant = labels_of(case.case, label, ignore)
    labelled = np.asarray(meant > 0)
    return Seen(
        case,
        (*faults, *told),
        scan,
        image,
        measure_label(stored, meant, volume.geometry, case.case.instances),
        place(grey, labelled) if labelled.any() and not faults else None,
        likeness(grey, cells[grey.ndim]),
        edges(grey),
        measure_objects(case.case, meant) if case.case.instances else None,
    )


def grey_of(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Returns one grey value (I, J[, K]) for each voxel of an image: the mean of a colour picture, else channel 0."""
    if array.ndim == 3 and array.shape[0] == 3:
        return np.asarray(array.mean(axis=0, dtype=np.float32))
    return np.asarray(array[0], dtype=np.float32)


def labels_of(case: Case, stored: LabelArray, ignore: int | None) -> tuple[LabelArray, LabelArray]:
    """Returns a label as it is stored and as the manifest reads it; 0 where nobody labelled the image.

    Args:
        case: Values that its ``label_values`` do not list mean themselves.
        stored: (I, J[, K]).
        ignore: Value of voxels that nobody labelled, as the manifest reads it.
    """
    meant = stored
    if case.label_values:
        present, inverse = np.unique(stored, return_inverse=True)
        table = np.array([case.label_values.get(int(value), int(value)) for value in present], dtype=np.int64)
        meant = table[inverse].reshape(stored.shape)
    if ignore is None:
        return stored, meant
    labelled = meant != ignore
    return np.where(labelled, stored, 0), np.where(labelled, meant, 0)


def _read_label(opened: OpenCase) -> tuple[LabelScan | None, LabelArray | None]:
    """Returns the values of all frames of a label and its first frame; no frame of a label that is refused."""
    if opened.case.label is None:
        return None, None
    values: set[int] = set()
    first: LabelArray | None = None
    for frame in opened.case.frames:
        try:
            label = opened.read_label(frame)
        except InputRefusedError as error:
            found = refusal(opened.id, error)
            told = _about_floats(opened.case, frame, found) if found.kind == "label_floats" else found
            return LabelScan(opened.id, (), told), None
        values.update(distinct_values(label))
        first = label if first is None else first
    return LabelScan(opened.id, tuple(sorted(values))), first


def _read_image(opened: OpenCase) -> tuple[str, Volume, list[Finding]]:
    """Returns the hash of all frames of an image, the first of them, and what is wrong with them."""
    digest = hashlib.blake2b(digest_size=16)
    first: Volume | None = None
    faults: list[Finding] = []
    for frame in opened.case.frames:
        volume = opened.read(frame=frame)
        digest.update(repr(volume.array.shape).encode())
        digest.update(np.ascontiguousarray(volume.array, dtype=np.float32).tobytes())
        faults += [one for one in _constant_channels(opened.id, volume.array) if one not in faults]
        first = first or volume
    if first is None:
        raise InputRefusedError("the image has no frame", opened.id, "give an image with voxels")
    return digest.hexdigest(), first, faults


def _constant_channels(case_id: str, array: npt.NDArray[Any]) -> list[Finding]:
    remedy = "leave the case out, or give its real image"
    what = "the image holds the same value everywhere"
    return [
        Finding(case_id, "error", what + (f" (channel {number})" if len(array) > 1 else ""), remedy, "constant")
        for number, channel in enumerate(array)
        if channel.min() == channel.max()
    ]


def _about_floats(case: Case, frame: int, found: Finding) -> Finding:
    """Says whether values that are no whole numbers can be corrected."""
    values = stored_values(label_source(case), frame)
    if is_nearly_whole(values):
        return replace(found, remedy=FIX)
    if is_interpolated(values):
        what = "the label was interpolated: it holds values between whole numbers, at borders only"
        return Interpolated(case.id, "error", what, FIX, "resampled_edges")
    return found
