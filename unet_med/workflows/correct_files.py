"""Which file of a folder of corrected masks belongs to which image."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from unet_med.errors import InputRefusedError, UsageError
from unet_med.identity import safe_name, stem_of
from unet_med.io.cases import Case
from unet_med.io.discover import discover
from unet_med.io.grouping import group_cases
from unet_med.io.objects import OUTLINE_ENDINGS
from unet_med.io.objects.reading import outline_kind
from unet_med.io.source import IntakeOptions
from unet_med.manifest import Manifest, ManifestCase, content_sha256
from unet_med.manifest.groups import group_alone
from unet_med.workflows.casefolder import output_name
from unet_med.workflows.progress import track

_PICTURES = frozenset({"png", "jpeg"})
_ENDING = re.compile(
    r"[_.\- ]+(?:mask|masks|label|labels|labelmap|seg|segmentation|edited|corrected|cp_masks)$", re.IGNORECASE
)


def known_cases(manifest: Manifest, images: Path | None) -> dict[str, ManifestCase]:
    """Returns cases by the names that their masks have.

    Args:
        manifest: Its cases, and how images and labels of it are read.
        images: Folder of further images; one with the contents of a case of the manifest is that case.

    Raises:
        UsageError: An image of ``images`` is called as another one of the manifest.
    """
    known = {case.id: case for case in (*manifest.training, *manifest.test)}
    contents = {case.sha256["image"]: case for case in known.values()} if images is not None else {}
    twice = []
    for case in _cases_of(manifest, images) if images is not None else ():
        sha256 = content_sha256(case.sources, case.frame)
        if sha256 in contents:
            known[case.id] = contents[sha256]
        elif case.id in known:
            twice.append(case.id)
        else:
            group = group_alone(case.id, case.sources[0])
            known[case.id] = ManifestCase(case.id, case, None, group, {"image": sha256})
    if twice:
        raise UsageError(
            f"{len(twice)} images of --images are called as other images of the manifest",
            twice[0],
            "rename them, and predict and correct them under their new names",
        )
    return {name: case for case_id, case in known.items() for name in (case_id, output_name(case_id))}


def _cases_of(manifest: Manifest, images: Path) -> list[Case]:
    """Returns the images of a folder as cases that are read as those of the manifest."""
    like = next(iter((*manifest.training, *manifest.test))).case
    cases = group_cases(discover(images, IntakeOptions(), track).usable, manifest.channels)
    read = [
        replace(
            case,
            label_values=manifest.label_values,
            instances=like.instances,
            unlabelled=manifest.ignore_label,
            colour=like.colour,
        )
        for case in cases
        if not case.missing
    ]
    return [case for case in read if case.channels == like.channels]


def mask_files(folder: Path, names: Collection[str]) -> dict[str, list[Path]]:
    """Returns the files of masks by the names of their cases; pictures count only where nothing else has the name.

    Args:
        folder: A folder, searched with its subfolders, or one file.
        names: Of known cases.
    """
    masks: dict[str, list[Path]] = {}
    previews: dict[str, list[Path]] = {}
    for ref in discover(folder, IntakeOptions(), track).sources:
        if ref.kind != "dicom":
            found = previews if ref.kind in _PICTURES else masks
            found.setdefault(_name(ref.files[0], names), []).append(ref.files[0])
    for path in _outlines(folder):
        masks.setdefault(_name(path, names), []).append(path)
    return {**previews, **masks}


def _outlines(folder: Path) -> Iterator[Path]:
    for path in [folder] if folder.is_file() else sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        may_be = path.name.lower().endswith(OUTLINE_ENDINGS) and not hidden and path.is_file()
        if may_be and outline_kind(path) is not None:
            yield path


def _name(path: Path, names: Collection[str]) -> str:
    """Returns the name of the case that a file is of: ``ID``, and where there is none so called ``ID_label``, too."""
    name = safe_name(stem_of(path))
    return name if name in names else safe_name(_ENDING.sub("", stem_of(path)))


def the_one(name: str, paths: Sequence[Path], case: ManifestCase | None) -> tuple[ManifestCase, Path]:
    """Returns a case and its only mask.

    Raises:
        InputRefusedError: There is no such case, or there are several masks.
    """
    if case is None:
        raise InputRefusedError(
            "no image has this name", name, "call the file by the id of its case, or give --images FOLDER"
        )
    if len(paths) > 1:
        raise InputRefusedError(
            f"{len(paths)} masks have this name", case.id, "leave only the one that was corrected in the folder"
        )
    return case, paths[0]
