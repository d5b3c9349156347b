"""One case, looked at once: its own faults, and what is needed to compare it with the others.

Of a large image, whose values are all looked at, every n-th voxel is measured, see
:mod:`unet_med.doctoring.thinning`; what neighbours tell is not asked of it, but of the objects in its middle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.doctoring.findings import Interpolated
from unet_med.doctoring.labelling import LabelArray, LabelMeasures, measure_label
from unet_med.doctoring.likeness import Likeness, likeness
from unet_med.doctoring.objects import ObjectMeasures, measure_objects
from unet_med.doctoring.place import Placement, place
from unet_med.doctoring.stored import is_interpolated, is_nearly_whole, label_source, stored_values
from unet_med.doctoring.thinning import middle, parts, step_of, thinned
from unet_med.doctoring.tiles import Edges, edges
from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
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
    step = step_of(opened.case)
    scan, label = _read_label(opened, step)
    told = () if scan is None or scan.finding is None else (scan.finding,)
    try:
        image, volume, faults = _read_image(opened, step)
    except InputRefusedError as error:
        return Seen(case, (refusal(case.id, error), *told), scan)
    grey = grey_of(volume.array)
    alike = _likeness(grey, cells[grey.ndim], step, opened.geometry.shape)
    rim = edges(grey) if step == 1 else None
    if label is None:
        return Seen(case, (*faults, *told), scan, image, likeness=alike, edges=rim)
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
        _measures(stored, meant, volume.geometry, case.case.instances, step),
        place(grey, labelled) if labelled.any() and not faults else None,
        alike,
        rim,
        _objects(case.case, opened, meant, step, ignore) if case.case.instances else None,
    )


def _likeness(grey: npt.NDArray[np.float32], cell: Sequence[int], step: int, shape: tuple[int, ...]) -> Likeness | None:
    """Returns what is kept of an image of which every ``step``-th voxel is looked at."""
    smaller = [size // step for size in cell]
    found = likeness(grey, smaller) if all(smaller) else None
    return None if found is None else replace(found, shape=shape)


def _measures(stored: LabelArray, meant: LabelArray, geometry: Geometry, instances: bool, step: int) -> LabelMeasures:
    found = measure_label(stored, meant, geometry, instances)
    return found if step == 1 else replace(found, between={}, rare=(), direct=None, ramps=0.0)


def _objects(case: Case, opened: OpenCase, meant: LabelArray, step: int, ignore: int | None) -> ObjectMeasures:
    """Measures the objects of the first frame; of a large image those in its middle, at full resolution."""
    if step == 1:
        return measure_objects(case, meant)
    label = opened.look_label(opened.case.frames[0])
    stored = np.asarray(label.array[(slice(None), *middle(label.geometry))])[0]
    found = measure_objects(case, labels_of(case, stored, ignore)[1])
    return replace(found, image_voxels=prod(label.geometry.shape))


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


def _read_label(opened: OpenCase, step: int) -> tuple[LabelScan | None, LabelArray | None]:
    """Returns the values of all frames of a label and its first frame, thinned; no frame of one that is refused."""
    if opened.case.label is None:
        return None, None
    values: set[int] = set()
    first: LabelArray | None = None
    for frame in opened.case.frames:
        try:
            label = opened.look_label(frame)
            values.update(distinct_values(label.array))
            first = thinned(label, step).array[0] if first is None else first
        except InputRefusedError as error:
            found = refusal(opened.id, error)
            told = _about_floats(opened.case, frame, found) if found.kind == "label_floats" else found
            return LabelScan(opened.id, (), told), None
    return LabelScan(opened.id, tuple(sorted(values))), first


def _read_image(opened: OpenCase, step: int) -> tuple[str, Volume, list[Finding]]:
    """Returns the hash of all frames of an image, the first of them, thinned, and what is wrong with them."""
    digest = hashlib.blake2b(digest_size=16)
    first: Volume | None = None
    faults: list[Finding] = []
    for frame in opened.case.frames:
        volume = opened.look(frame)
        digest.update(repr(volume.array.shape).encode())
        ranges = []
        for part in parts(volume.array):
            digest.update(np.ascontiguousarray(part.T, dtype=np.float32).ravel().data)  # the same however it is parted
            ranges.append([(channel.min(), channel.max()) for channel in part])
        faults += [one for one in _constant_channels(opened.id, np.array(ranges)) if one not in faults]
        first = first or thinned(volume, step)
    if first is None:
        raise InputRefusedError("the image has no frame", opened.id, "give an image with voxels")
    return digest.hexdigest(), first, faults


def _constant_channels(case_id: str, ranges: npt.NDArray[Any]) -> list[Finding]:
    """Finds channels without contrast; ``ranges`` (parts, C, 2) are the lowest and highest values."""
    remedy = "leave the case out, or give its real image"
    what = "the image holds the same value everywhere"
    return [
        Finding(case_id, "error", what + (f" (channel {number})" if ranges.shape[1] > 1 else ""), remedy, "constant")
        for number in range(ranges.shape[1])
        if ranges[:, number, 0].min() == ranges[:, number, 1].max()
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
