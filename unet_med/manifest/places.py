"""What the path of a file says: image or label, of which set, and under which name it is paired."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unet_med.identity import stem_of
from unet_med.io.source import SourceRef

_IMAGE_FOLDERS = {"images", "image", "imagestr", "imgs", "img", "raw", "scans", "volumes"}
_TEST_FOLDERS = {"imagests", "imagestest", "test_images"}
_LABEL_FOLDERS = {
    *("labels", "label", "labelstr", "masks", "mask", "segmentations", "segmentation", "seg", "segs"),
    *("annotations", "gt", "ground_truth", "groundtruth", "truth"),
}
_ANNOTATED_FOLDERS = {"annotated", "annotated_regions"}
_TEST_LABEL_FOLDERS = {"labelsts", "labelstest", "test_labels"}
_LABEL_SUFFIX = re.compile(
    r"(?:^|[_.-])(?:mask|masks|label|labels|seg|segmentation|gt|groundtruth)(?:[_-]manual)?$", re.I
)
IMAGE_SUFFIX = re.compile(r"(?:^|[_.-])(?:image|img|volume|raw)$", re.I)
CHANNEL = re.compile(r"^(?P<stem>.+)_(?P<channel>\d{4})$")

Role = Literal["image", "label", "annotated"]


@dataclass(frozen=True)
class Item:
    """A source and what its path says of it."""

    ref: SourceRef
    parts: tuple[str, ...]
    """Names of the folders below the root."""
    stem: str
    """Name that pairs: of the file, or of the folder of a DICOM series."""
    aliases: tuple[str, ...]
    """Other names it may go by: of the folders above a DICOM series."""
    base: str
    """Folder of its set: what lies above ``images`` or ``labels``; its own folder without these."""
    below: str
    """Folders between ``images`` (``labels``) and the file."""
    role: Role | None
    test: bool

    @property
    def relative(self) -> str:
        """Path below the folder that was searched."""
        return "/".join((*self.parts, self.ref.files[0].name if self.ref.kind != "dicom" else self.stem))


def item_of(root: Path, ref: SourceRef) -> Item:
    """Returns what the path of a source below ``root`` says."""
    file = ref.files[0]
    top = root.parent if root.is_file() else root
    try:
        parts = list(file.relative_to(top).parts[:-1])
    except ValueError:
        parts = list(file.resolve().relative_to(top.resolve()).parts[:-1])
    stem = stem_of(file)
    if ref.kind == "dicom" and parts:
        stem = parts.pop()
    for depth in range(len(parts) - 1, -1, -1):
        name = parts[depth].lower()
        role, test = _role_of_folder(name)
        if role is not None:
            base, below = "/".join(parts[:depth]), "/".join(parts[depth + 1 :])
            aliases = tuple(parts[depth + 1 :]) if ref.kind == "dicom" else ()
            return Item(ref, tuple(parts), stem, aliases, base, below, role, test)
    role = "label" if _LABEL_SUFFIX.search(stem) and ref.kind != "dicom" else None
    return Item(ref, tuple(parts), stem, (), "/".join(parts), "", role, False)


def _role_of_folder(name: str) -> tuple[Role | None, bool]:
    if name in _LABEL_FOLDERS or name in _TEST_LABEL_FOLDERS:
        return "label", name in _TEST_LABEL_FOLDERS
    if name in _ANNOTATED_FOLDERS:
        return "annotated", False
    if name in _IMAGE_FOLDERS or name in _TEST_FOLDERS:
        return "image", name in _TEST_FOLDERS
    return None, False


def label_stem(item: Item) -> str:
    """Returns the name of the image that a label of this name belongs to: ``NAME_mask`` gives ``NAME``."""
    return _LABEL_SUFFIX.sub("", item.stem)
