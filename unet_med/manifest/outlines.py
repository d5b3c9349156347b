"""Truth in outlines: which file of ImageJ, QuPath or COCO belongs to which picture."""

from __future__ import annotations

import fnmatch
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from unet_med.errors import InputRefusedError
from unet_med.identity import safe_name, stem_of
from unet_med.io.object_truth import MASK_FILES, coco_file, object_ref
from unet_med.io.objects import OUTLINE_ENDINGS
from unet_med.io.objects.coco import CocoFile
from unet_med.io.objects.reading import outline_kind
from unet_med.io.source import SourceRef
from unet_med.manifest.pairing import Pair, Pairing

_SUFFIX = re.compile(r"(?:^|[_.-])(?:rois?|roiset|outlines?|objects?|cells?|nuclei|masks?|labels?|seg)$", re.I)
_PREFIX = re.compile(r"^(?:roiset|rois?)[_.-]", re.I)
_SKIPPED_FOLDERS = ("__macosx", "$recycle.bin")


@dataclass(frozen=True)
class _Outlines:
    """A file of outlines: its path below the folder that was searched, and its kind."""

    path: Path
    relative: str
    kind: str


def pair_outlines(root: Path, pairing: Pairing, labels: str | None) -> Pairing:
    """Gives pictures without a label the outlines of their name, and those that a COCO file lists.

    Args:
        root: The folder that was searched.
        pairing: What was paired so far; a label that was found stays.
        labels: ``--labels``: pattern of the label files; chooses among outlines, too.
    """
    places = [place for place, pair in enumerate(pairing.pairs) if _may_have_outlines(pair)]
    outlines = _below(root, labels) if places else []
    claims: dict[int, list[_Outlines]] = defaultdict(list)
    left: list[tuple[str, str]] = []
    for one in outlines:
        found, why = (_listed if one.kind == "coco" else _named)(one, pairing.pairs, places)
        left += [(safe_name(stem_of(one.path)), why)] if why else []
        for place in found:
            claims[place].append(one)
    pairs = list(pairing.pairs)
    for place, several in claims.items():
        if len(several) == 1:
            pairs[place] = replace(pairs[place], label=object_ref(several[0].kind, several[0].path))
        else:
            why = f"{len(several)} files of outlines are of this picture: choose one with --labels GLOB"
            left.append((pairs[place].images[0].id, why))
    return Pairing(tuple(pairs), (*pairing.left_over, *left), (*pairing.notes, *_notes(pairs)))


def pictures_of(outlines: SourceRef, images: Iterable[SourceRef]) -> list[SourceRef]:
    """Returns the pictures that a file of outlines is about, as far as the names of files tell.

    Args:
        outlines: As discovered.
        images: Pictures that may be meant; series of DICOM never are.
    """
    path, pictures = outlines.files[0], [image for image in images if image.kind != "dicom"]
    if outlines.kind == "coco":
        try:
            file = coco_file(path)
        except InputRefusedError:
            return []
        return [image for image in pictures if _lists(file, image)]
    found = ([image for image in pictures if _stem(image) == name] for name in _names(path))
    return next(filter(None, found), [])


def _may_have_outlines(pair: Pair) -> bool:
    return pair.label is None and len(pair.images) == 1 and pair.images[0].kind != "dicom"


def _notes(pairs: Sequence[Pair]) -> list[str]:
    counts = Counter(pair.label.kind for pair in pairs if pair.label is not None)
    told = {
        MASK_FILES: "pictures with one mask file for each object",
        "imagej-roi": "pictures with outlines of ImageJ",
        "geojson": "pictures with outlines in GeoJSON",
        "coco": "pictures with objects in COCO",
    }
    return [f"{what}: {counts[kind]}" for kind, what in told.items() if counts[kind]]


# ---- which picture --------------------------------------------------------------------------------------------------


def _named(one: _Outlines, pairs: Sequence[Pair], places: Sequence[int]) -> tuple[list[int], str]:
    """Returns the picture of the name of a file of outlines, and why there is none."""
    for name in _names(one.path):
        found = _nearest([place for place in places if _stem(pairs[place].images[0]) == name], one, pairs)
        if len(found) > 1:
            return [], f"{len(found)} pictures have the name of these outlines"
        if found:
            return found, ""
    return [], "outlines without a picture of the same name, or one that has a label"


def _names(path: Path) -> list[str]:
    """Returns the names, without ending, of the pictures that a file of outlines may be of, the likeliest first."""
    stem = stem_of(path)
    return list(dict.fromkeys((stem, stem_of(Path(stem)), _PREFIX.sub("", _SUFFIX.sub("", stem)))))


def _nearest(found: Sequence[int], one: _Outlines, pairs: Sequence[Pair]) -> list[int]:
    """Returns those of several pictures of one name that share most folders with a file."""
    shared = {place: _shared(pairs[place].relative, one.relative) for place in found}
    return [place for place in found if shared[place] == max(shared.values())]


def _shared(path: str, other: str) -> int:
    parts = zip(PurePosixPath(path).parent.parts, PurePosixPath(other).parent.parts, strict=False)
    return next((n for n, (a, b) in enumerate(parts) if a != b), 2**16)


def _listed(one: _Outlines, pairs: Sequence[Pair], places: Sequence[int]) -> tuple[list[int], str]:
    """Returns the pictures that a COCO file lists, and why there is none."""
    try:
        file = coco_file(one.path)
    except InputRefusedError as error:
        return [], str(error)
    found = [place for place in places if _lists(file, pairs[place].images[0])]
    return found, "" if found else "the COCO file lists none of the pictures that have no label"


def _lists(file: CocoFile, image: SourceRef) -> bool:
    with suppress(InputRefusedError):
        file.picture(image.files[0].name)
        return True
    return False


def _stem(image: SourceRef) -> str:
    return stem_of(image.files[0])


# ---- the files ------------------------------------------------------------------------------------------------------


def _below(root: Path, labels: str | None) -> list[_Outlines]:
    """Returns the files of outlines below a folder, by path."""
    top = root.parent if root.is_file() else root
    found = []
    for path in sorted(_files(top)):
        relative = path.relative_to(top).as_posix()
        chosen = labels is None or any(
            fnmatch.fnmatchcase(relative, one) for one in (labels, labels.rstrip("/") + "/*")
        )
        kind = outline_kind(path) if chosen else None
        if kind is not None:
            found.append(_Outlines(path, relative, kind))
    return found


def _files(top: Path) -> Iterator[Path]:
    """Yields the files that may hold outlines; hidden folders are left alone, and no folder is entered twice."""
    seen: set[tuple[int, int]] = set()
    for folder, inner, files in os.walk(top, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inner[:] = [name for name in inner if not name.startswith(".") and name.lower() not in _SKIPPED_FOLDERS]
        for name in files:
            if name.lower().endswith(OUTLINE_ENDINGS) and not name.startswith("."):
                yield Path(folder, name)
