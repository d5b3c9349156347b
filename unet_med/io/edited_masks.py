"""Masks that somebody drew or corrected in a viewer, brought to the grid and the values of the image they belong to.

Every tool keeps a mask in its own way. 3D Slicer numbers segments anew whenever it saves, may cut the voxels down to
what is labelled, and puts segments that overlap into layers: its segments count by their names. QuPath and ImageJ save
outlines with classes. ITK-SNAP and napari save label images, whose values are what the mask said before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry, reorient
from unet_med.io.cases import Case
from unet_med.io.discover import open_source, restore_ref
from unet_med.io.label_images import SAME_PLACE_VOXELS, LabelArray
from unet_med.io.object_truth import ObjectTruth, object_ref
from unet_med.io.objects.reading import OutlineKind, outline_kind
from unet_med.io.reading import COPY_FILE_AGAIN, refusing
from unet_med.io.source import SourceRef

SEGMENTATION = "seg-nrrd"
"""Format of what 3D Slicer saves as a segmentation; others go by the kind of their source or outlines."""

_PLACED_KINDS = frozenset({"dicom", "nifti", "nrrd", "mha"})
"""Kinds whose files say where in space they lie; others have at most a pixel size, and fit by their shape."""

_SEGMENT = re.compile(r"Segment(\d+)_(Name|LabelValue|Layer)")
_BLANKS = re.compile(r"[\s_]+")


@dataclass(frozen=True, eq=False)
class EditedMask:
    """A mask as its image's label.

    Attributes:
        labels: (I, J[, K]) values of labels, or numbers of objects, on the grid of the image.
        classes: Number of an object -> its class, where the file says so; ``None``: it says nothing.
        format: What the file is, for example ``seg-nrrd``, ``nifti``, ``tiff`` or ``geojson``.
        notes: What of the file was left out.
    """

    labels: LabelArray
    classes: dict[int, int] | None
    format: str
    notes: tuple[str, ...] = ()


def read_edited(path: Path, case: Case, names: Mapping[str, int]) -> EditedMask:
    """Reads a mask for a case.

    Args:
        path: ``.seg.nrrd``, NIfTI, NRRD, MetaImage, TIFF or PNG; GeoJSON, ImageJ's outlines or COCO.
        case: The image; whether values are numbers of objects; the value of what nobody labelled.
        names: Name of each label -> its value, background included; several names may mean one value.

    Raises:
        InputRefusedError: The file is damaged, lies elsewhere than the image, or names or holds what is no label.
    """
    if case.sources[0].frames > 1:
        raise InputRefusedError(
            "the image has several pages", case.id, "correct the label image of the stack, and make the manifest again"
        )
    kind = outline_kind(path)
    if kind is not None:
        return _from_outlines(path, kind, case, names)
    ref = restore_ref({"id": case.id, "read": _axes(case)}, [path])
    if not ref.usable or ref.geometry is None:
        raise InputRefusedError("the mask cannot be used", case.id, ref.reason)
    segments = _segments(path, case.id) if ref.kind == "nrrd" else {}
    by_name = bool(segments) and not case.instances
    values = _by_name(ref, segments, names, case.id) if by_name else _by_value(ref, case.id)
    placed = {ref.kind, case.sources[0].kind} <= _PLACED_KINDS
    labels = on_grid(values, ref.geometry if placed else Geometry(values.shape), case.geometry, case.id)
    if not case.instances:
        _check_values(labels, {0, *names.values(), case.unlabelled}, case.id)
    return EditedMask(labels, None, SEGMENTATION if segments else ref.kind)


def _axes(case: Case) -> dict[str, str]:
    """The axes of a TIFF stack that does not declare them: those of its image, else slices."""
    return {"axes": str(case.sources[0].read_as.get("axes", "ZYX"))} if case.geometry.ndim == 3 else {}


def _by_value(ref: SourceRef, where: str) -> LabelArray:
    """Returns the values of a label image on its own grid."""
    if ref.frames > 1:
        raise InputRefusedError(f"the mask has {ref.frames} pages and its image one", where, "save one mask for it")
    return Case(where, (ref,), ref).read_label()


def _check_values(labels: LabelArray, known: set[int | None], where: str) -> None:
    unknown = [int(value) for value in np.unique(labels) if int(value) not in known]
    if unknown:
        raise InputRefusedError(
            f"the mask holds {unknown[:5]}, which {'is' if len(unknown) == 1 else 'are'} no label of the set",
            where,
            "draw with the values of the labels, or add the label to the set first",
        )


# ---- 3D Slicer ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Segment:
    """One segment of 3D Slicer."""

    name: str
    value: int
    layer: int


def _segments(path: Path, where: str) -> dict[tuple[int, int], _Segment]:
    """Returns the segments of a file by layer and value; none where it is a plain image."""
    with refusing("the header of the segmentation is damaged", where, COPY_FILE_AGAIN):
        reader = SimpleITK.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        found: dict[int, dict[str, str]] = {}
        for key in reader.GetMetaDataKeys():
            match = _SEGMENT.fullmatch(key)
            if match is not None:
                found.setdefault(int(match[1]), {})[match[2]] = reader.GetMetaData(key)
        segments = [
            _Segment(one.get("Name", ""), int(one.get("LabelValue", number + 1)), int(one.get("Layer", 0)))
            for number, one in sorted(found.items())
        ]
    return {(one.layer, one.value): one for one in segments}


def _by_name(
    ref: SourceRef, segments: Mapping[tuple[int, int], _Segment], names: Mapping[str, int], where: str
) -> LabelArray:
    """Returns segments as the labels of their names, (I, J, K) on the file's own grid."""
    layers = open_source(ref).read().array
    values = {_plain(name): value for name, value in names.items() if value}
    labels = np.zeros(layers.shape[1:], dtype=np.uint8 if max(names.values()) < 2**8 else np.uint16)
    twice = 0
    for number, layer in enumerate(layers):
        for stored in np.unique(layer[layer != 0]).tolist():
            segment = segments.get((number, int(stored)))
            value = None if segment is None else values.get(_plain(segment.name))
            if segment is None or value is None:
                what = "has no name" if segment is None else f"is called {segment.name!r}, which is no label of the set"
                raise InputRefusedError(
                    f"segment {int(stored)} {what}", where, f"name segments as the labels: {_listed(names)}"
                )
            inside = layer == stored
            twice += int(np.count_nonzero((labels[inside] != 0) & (labels[inside] != value)))
            labels[inside] = value
    if twice:
        raise InputRefusedError(
            f"segments of different labels overlap in {twice} voxels", where, "make them exclude each other, save again"
        )
    return labels


def _listed(names: Mapping[str, int]) -> str:
    return ", ".join(name for name, value in names.items() if value)


def _plain(name: str) -> str:
    """A name without regard to case, blanks and underscores: colour tables have no blanks."""
    return _BLANKS.sub(" ", name.replace("\\", "/")).strip().casefold()


# ---- outlines -------------------------------------------------------------------------------------------------------


def _from_outlines(path: Path, kind: OutlineKind, case: Case, names: Mapping[str, int]) -> EditedMask:
    """Paints outlines: as objects with their classes, or as the labels that their classes name."""
    truth = ObjectTruth(object_ref(kind, path, case.unlabelled if case.instances else None), case.sources[0])
    seen = truth.look()
    notes = [*seen.notes]
    if seen.painted.overlapping:
        notes.append(f"outlines overlap in {seen.painted.overlapping} voxels: the smaller one is seen")
    known = {_plain(name): value for name, value in names.items() if value}
    kinds = {number: name for number, name in seen.painted.kinds.items() if number not in seen.painted.hidden}
    if case.instances:
        named = any(kinds.values())
        classes = {number: _value(name, known, names, case.id) for number, name in kinds.items()} if named else None
        return EditedMask(truth.read().array[0], classes, kind, tuple(notes))
    only = next(iter(known.values())) if len(set(known.values())) == 1 else None
    table = np.zeros(int(seen.painted.labels.max(initial=0)) + 1, dtype=np.uint16)
    for number, name in kinds.items():
        table[number] = only if only is not None and not name else _value(name, known, names, case.id)
    return EditedMask(table[seen.painted.labels], None, kind, tuple(notes))


def _value(name: str, known: Mapping[str, int], names: Mapping[str, int], where: str) -> int:
    value = known.get(_plain(name))
    if value is None:
        raise InputRefusedError(
            f"an outline has the class {name!r}, which is no label of the set" if name else "an outline has no class",
            where,
            f"give every outline one of these classes: {_listed(names)}",
        )
    return value


# ---- place ----------------------------------------------------------------------------------------------------------


def on_grid(values: LabelArray, own: Geometry, reference: Geometry, where: str) -> LabelArray:
    """Returns a mask on the grid of its image: turned, and put back to its place, where that is exact.

    Args:
        values: (I, J[, K]) on ``own``.
        own: The mask's grid; it may be a part of the image's, or reach beyond it where nothing is labelled.
        reference: The image's grid.
        where: Safe id for the error.

    Raises:
        InputRefusedError: The grids differ by more than a shift by whole voxels, or labels lie outside of the image.
    """
    if own.affine is None or reference.affine is None or own.ndim != reference.ndim:
        if values.shape != reference.shape:
            raise _elsewhere(f"has the shape {values.shape}, its image {reference.shape}", where)
        return values
    inverse = np.linalg.inv(reference.affine)
    steps = inverse[:-1, :-1] @ own.affine[:-1, :-1]
    order = tuple(int(axis) for axis in np.abs(steps).argmax(axis=1))
    if sorted(order) != list(range(own.ndim)):
        raise _elsewhere("lies askew to its image", where)
    flips = tuple(bool(steps[row, axis] < 0) for row, axis in enumerate(order))
    turned, values = own.reoriented(order, flips), reorient(values, order, flips)
    corners = turned.corners() @ inverse[:-1, :-1].T + inverse[:-1, -1]
    first = np.rint(corners[0])
    if np.abs(corners - first - Geometry(turned.shape).corners()).max() > SAME_PLACE_VOXELS:
        raise _elsewhere("lies between the voxels of its image", where)
    return _placed(values, first.astype(int), reference.shape, where)


def _placed(values: LabelArray, first: npt.NDArray[np.int_], shape: tuple[int, ...], where: str) -> LabelArray:
    """Returns ``values`` in an array of ``shape``, beginning at voxel ``first``, which may lie outside."""
    low, high = np.maximum(first, 0), np.minimum(first + values.shape, shape)
    inside: tuple[Any, ...] = tuple(slice(a, max(a, b)) for a, b in zip(low - first, high - first, strict=True))
    lost = int(np.count_nonzero(values)) - int(np.count_nonzero(values[inside]))
    if lost:
        raise _elsewhere(f"has {lost} labelled voxels outside of its image", where)
    placed = np.zeros(shape, dtype=values.dtype)
    if (high > low).all():
        placed[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = values[inside]
    return placed


def _elsewhere(how: str, where: str) -> InputRefusedError:
    return InputRefusedError(
        f"the mask {how}", where, "save it on the grid of its image (3D Slicer: export with the image as reference)"
    )
