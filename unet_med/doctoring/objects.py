"""Label images of objects: one number for several, objects in pieces or with holes, overlapping, tiny and huge ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from unet_med.errors import InputRefusedError
from unet_med.io.cases import Case
from unet_med.io.object_truth import OBJECT_KINDS, ObjectTruth, SeenObjects
from unet_med.manifest import Finding, Manifest
from unet_med.volume import Region

if TYPE_CHECKING:
    from unet_med.doctoring.looking import Seen

ObjectArray = npt.NDArray[np.integer[Any]]

TINY = 0.02
"""An object is tiny when it has less than this share of the voxels of the median one."""

HUGE = 0.5
"""An object that fills this share of the image is looked at."""

FEWEST_MASKS = 3
"""In fewer label images of one and the same number there may be one object each."""

_WHOLE = 0.9
_LARGER = 10
_ALIKE = 0.25
_BEYOND_EDGE = 6.0
"""Parts that the edge of the image cuts may belong together beyond it, if they are no further apart, in radii."""

_SHOWN = 4
_DRAW = "draw it again, or leave the case out"


@dataclass(frozen=True, eq=False)
class ObjectMeasures:
    """The objects of one label image.

    Attributes:
        numbers: (n,) of the objects, ascending.
        voxels: (n,) of each.
        at_edge: (n,) whether the edge of the image may cut it.
        image_voxels: Of the whole image.
        repeated: Number -> how many objects, alike in size and far apart, bear it.
        pieces: Numbers of objects in pieces that no edge of the image parts.
        holes: Numbers of objects that enclose background.
        overlapping: Voxels that more than one drawn object claims.
        hidden: Drawn objects of which others leave nothing to be seen.
        left_out: What of a file of drawn objects is not used, and how often.
        unclassified: Numbers of objects without a class, where objects have classes.
    """

    numbers: npt.NDArray[np.int64]
    voxels: npt.NDArray[np.int64]
    at_edge: npt.NDArray[np.bool_]
    image_voxels: int
    repeated: dict[int, int]
    pieces: tuple[int, ...]
    holes: tuple[int, ...]
    overlapping: int = 0
    hidden: int = 0
    left_out: tuple[str, ...] = ()
    unclassified: tuple[int, ...] = ()


def measure_objects(case: Case, objects: ObjectArray) -> ObjectMeasures:
    """Measures the objects of a case.

    Args:
        case: The case.
        objects: (I, J[, K]) numbers of its objects, 0 elsewhere.
    """
    from skimage.measure import label

    parts = label(objects, background=0, connectivity=objects.ndim)
    count = int(parts.max(initial=0))
    number_of = np.zeros(count + 1, dtype=np.int64)
    number_of[parts.ravel()] = objects.ravel()
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    edge = np.zeros(count + 1, dtype=bool)
    edge[_at_faces(parts)] = True
    numbers, inverse = np.unique(number_of[1:], return_inverse=True)
    repeated, pieces = _parted(number_of, sizes, edge, ndimage.find_objects(parts))
    drawn = _drawn(case)
    known = case.classes
    return ObjectMeasures(
        numbers=numbers,
        voxels=np.bincount(inverse, weights=sizes[1:], minlength=len(numbers)).astype(np.int64),
        at_edge=np.bincount(inverse, weights=edge[1:], minlength=len(numbers)) > 0,
        image_voxels=objects.size,
        repeated=repeated,
        pieces=pieces,
        holes=_with_holes(objects),
        overlapping=0 if drawn is None else drawn.painted.overlapping,
        hidden=0 if drawn is None else len(drawn.painted.hidden),
        left_out=() if drawn is None else drawn.notes,
        unclassified=() if known is None else tuple(number for number in numbers.tolist() if number not in known),
    )


def _at_faces(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns the values on the faces of an array."""
    faces = [np.moveaxis(array, axis, 0)[end].ravel() for axis in range(array.ndim) for end in (0, -1)]
    return np.unique(np.concatenate(faces))


def _parted(
    number_of: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.integer[Any]],
    edge: npt.NDArray[np.bool_],
    boxes: Sequence[Region],
) -> tuple[dict[int, int], tuple[int, ...]]:
    """Returns the numbers that several objects bear, and those of objects in pieces.

    Args:
        number_of: Of each connected part, the number that it bears; part 0 is background.
        sizes: Voxels of each part.
        edge: Whether a part touches the edge of the image.
        boxes: Of the parts 1, 2, ...
    """
    members: dict[int, list[int]] = defaultdict(list)
    for part in range(1, len(number_of)):
        members[int(number_of[part])].append(part)
    repeated: dict[int, int] = {}
    pieces: list[int] = []
    for number, parts in members.items():
        if len(parts) == 1:
            continue
        parts.sort(key=lambda part: -int(sizes[part]))
        largest = parts[0]
        radius = 0.5 * float(sizes[largest]) ** (1.0 / len(boxes[0]))
        reach = [radius * (_BEYOND_EDGE if edge[part] and edge[largest] else 1.0) for part in parts[1:]]
        others = [
            part
            for part, far in zip(parts[1:], reach, strict=True)
            if sizes[part] >= _ALIKE * sizes[largest] and _gap(boxes[part - 1], boxes[largest - 1]) > far
        ]
        if others:
            repeated[number] = 1 + len(others)
        elif not all(edge[part] for part in parts):
            pieces.append(number)
    return repeated, tuple(pieces)


def _gap(one: Region, other: Region) -> int:
    """Returns how many voxels lie between two boxes."""
    return int(max(max(a.start - b.stop, b.start - a.stop, 0) for a, b in zip(one, other, strict=True)))


def _with_holes(objects: ObjectArray) -> tuple[int, ...]:
    """Returns the numbers of objects around background from which no way leads out, to others or the image's edge."""
    free, count = ndimage.label(objects == 0)
    outside = np.zeros(count + 1, dtype=bool)
    outside[_at_faces(free)] = True
    low = np.full(count + 1, np.iinfo(np.int64).max)
    high = np.zeros(count + 1, dtype=np.int64)
    for space, beside in _neighbours(free, objects):
        np.minimum.at(low, space, beside)
        np.maximum.at(high, space, beside)
    enclosed = ~outside & (low == high)
    enclosed[0] = False
    return tuple(np.unique(high[enclosed]).tolist())


def _neighbours(
    free: npt.NDArray[np.integer[Any]], objects: ObjectArray
) -> Iterator[tuple[npt.NDArray[np.integer[Any]], ObjectArray]]:
    """Yields background components with the objects that share a face with them."""
    for axis in range(free.ndim):
        space, other = np.moveaxis(free, axis, 0), np.moveaxis(objects, axis, 0)
        for a, b in ((space[:-1], other[1:]), (space[1:], other[:-1])):
            met = (a > 0) & (b > 0)
            yield a[met], b[met]


def _drawn(case: Case) -> SeenObjects | None:
    """Returns what drawn objects are like; ``None`` of a label image."""
    if case.label is None or case.label.kind not in OBJECT_KINDS:
        return None
    try:
        return ObjectTruth(case.label, case.sources[0]).look(case.frames[0])
    except InputRefusedError:
        return None  # reading the label says why


# ---- what is told ---------------------------------------------------------------------------------------------------


def object_findings(manifest: Manifest, seen: Sequence[Seen]) -> list[Finding]:
    """Finds what is odd in the label images of a set of objects; nothing in other sets."""
    known = [(one.case.id, one.objects) for one in seen if one.objects is not None]
    areas = np.concatenate([np.zeros(0), *[measured.voxels for _, measured in known]])
    median = float(np.median(areas)) if areas.size else 0.0
    findings: list[Finding] = []
    masks = _are_masks([measured for _, measured in known])
    for case, measured in known:
        mask = masks or (len(measured.numbers) == 1 and bool(measured.repeated))
        findings += [] if masks else _of_numbers(case, measured)
        findings += [] if mask else _of_shapes(case, measured, median)
        findings += _of_drawing(case, measured)
        if measured.unclassified:
            what = f"{_some(measured.unclassified, 'object')} without a class"
            remedy = "name the class of every object in the table (--classes), or in the tool that drew them"
            findings.append(Finding(case, "error", what, remedy, "class_missing"))
    if len(manifest.labels) > 2:
        unknown = [one.case.id for one in seen if one.objects is not None and one.case.case.classes is None]
        remedy = "make the manifest again with --classes CSV (columns id, object, class)"
        what = "the set has several classes, and nobody said which of them the objects are"
        findings += [Finding(case, "error", what, remedy, "classes_unknown") for case in unknown]
    return findings


def _are_masks(measured: Sequence[ObjectMeasures]) -> bool:
    """Whether all labels of a set hold one and the same number: that is told once, of the set."""
    numbers = {tuple(one.numbers.tolist()) for one in measured}
    return len(measured) >= FEWEST_MASKS and len(numbers) == 1 and len(next(iter(numbers))) == 1


def _of_numbers(case: str, measured: ObjectMeasures) -> list[Finding]:
    """One number for several objects: all of them, as in a mask, or some."""
    if not measured.repeated:
        return []
    if len(measured.numbers) == 1:
        what = (
            f"the label is a mask: its one number stands for {next(iter(measured.repeated.values()))} objects or more"
        )
        remedy = "number the objects, or make the manifest with --task semantic"
        return [Finding(case, "warning", what, remedy, "mask_not_objects")]
    what = f"{_some(tuple(measured.repeated), 'number')} given to several objects far apart"
    return [Finding(case, "warning", what, "give each object a number of its own", "repeated_number")]


def _of_shapes(case: str, measured: ObjectMeasures, median: float) -> list[Finding]:
    findings = []
    if measured.pieces:
        what = f"{_some(measured.pieces, 'object')} in several pieces"
        remedy = "remove stray voxels, or give the pieces numbers of their own"
        findings.append(Finding(case, "warning", what, remedy, "object_pieces"))
    if measured.holes:
        what = f"{_some(measured.holes, 'object')} with holes"
        findings.append(Finding(case, "warning", what, "fill them unless they are meant", "object_holes"))
    tiny = measured.numbers[(measured.voxels < TINY * median) & ~measured.at_edge].tolist()
    if tiny:
        what = f"{_some(tuple(tiny), 'tiny object')}: less than {TINY:.0%} of the {median:.0f} voxels of the median one"
        findings.append(Finding(case, "warning", what, "remove what is no object", "tiny_objects"))
    share = measured.voxels / measured.image_voxels
    huge = measured.numbers[(share >= HUGE) & ((share >= _WHOLE) | (measured.voxels > _LARGER * median))].tolist()
    if huge:
        largest = float(share.max())
        what = f"object {huge[0]} fills {largest:.0%} of the image"
        remedy = f"background is 0: if it was given a number, set it to 0; else {_DRAW}"
        findings.append(Finding(case, "warning", what, remedy, "huge_object"))
    return findings


def _of_drawing(case: str, measured: ObjectMeasures) -> list[Finding]:
    findings = []
    if measured.overlapping:
        what = f"drawn objects overlap: {measured.overlapping} voxels are claimed twice, the smaller object gets them"
        remedy = "nothing, where objects lie on top of each other; else remove objects that were drawn twice"
        findings.append(Finding(case, "warning", what, remedy, "objects_overlap"))
    if measured.hidden:
        what = f"{measured.hidden} drawn objects are hidden by others"
        findings.append(Finding(case, "warning", what, "remove objects that were drawn twice", "objects_hidden"))
    if measured.left_out:
        what = f"not all that is drawn is used: {'; '.join(measured.left_out)}"
        remedy = "make sure that the outlines were drawn on this image, at its full resolution"
        findings.append(Finding(case, "warning", what, remedy, "objects_left_out"))
    return findings


def _some(numbers: Sequence[int], what: str) -> str:
    """``3 objects (4, 7, 9)``."""
    shown = ", ".join(map(str, numbers[:_SHOWN])) + (", ..." if len(numbers) > _SHOWN else "")
    return f"{len(numbers)} {what}{'' if len(numbers) == 1 else 's'} ({shown})"
