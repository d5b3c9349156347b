"""DICOM objects in files: what sending and receiving need to know of them, under ids that are safe to print."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from unet_med.errors import InputRefusedError
from unet_med.identity import keyed_hash, series_id

_DIRECTORY = "1.2.840.10008.1.3.10"  # DICOMDIR: a table of contents, not an object
_WANTED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber")
_LARGEST_HEADER_VALUE = 1024


@dataclass(frozen=True)
class DicomObject:
    """One object.

    Attributes:
        id: Series number, keyed hash of the series, keyed hash of the object.
        sop_class: UID of its kind.
        syntax: UID of its transfer syntax.
        sop_uid, study_uid, series_uid: What DICOM calls it; in memory only.
        path: Its file, if it has one; never printed.
    """

    id: str
    sop_class: str
    syntax: str
    sop_uid: str = field(repr=False)
    study_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    path: Path | None = field(default=None, repr=False)

    def read(self) -> Any:
        """Returns the whole data set; raises whatever pydicom raises on a damaged file."""
        import pydicom

        if self.path is None:
            raise InputRefusedError("the object is in no file", self.id, "store it before it is sent")
        return pydicom.dcmread(self.path)


@dataclass(frozen=True)
class Unsendable:
    """A file that was given by name and is no object that can be sent.

    Attributes:
        id: ``file-N`` by its place among the arguments.
        reason: What is wrong and what to do.
    """

    id: str
    reason: str


@dataclass(frozen=True)
class Found:
    """What is to be sent.

    Attributes:
        objects: Each file once.
        refused: Files given by name that are no objects.
        skipped: How many files of folders are no objects.
    """

    objects: tuple[DicomObject, ...]
    refused: tuple[Unsendable, ...]
    skipped: int


Progress = Callable[[Iterable[Any], str], Iterable[Any]]


def find_objects(paths: Sequence[Path], progress: Progress | None = None) -> Found:
    """Looks at files, and at all files below folders; hidden ones and DICOMDIR are left alone.

    Args:
        paths: Files and folders.
        progress: Wraps the loop over the files, for example :func:`unet_med.workflows.progress.track`.
    """
    objects: dict[Path, DicomObject] = {}
    refused: list[Unsendable] = []
    skipped = 0
    every = [(number, given, path) for number, given in enumerate(paths, start=1) for path in _files(given)]
    for number, given, path in every if progress is None else progress(every, "reading headers"):
        known = path.resolve()
        if known in objects:
            continue
        one = look(path)
        if one is not None:
            objects[known] = one
        elif given.is_dir():
            skipped += 1
        else:
            reason = "this is no DICOM object (Part 10 file with SOP class and transfer syntax): leave it out"
            refused.append(Unsendable(f"file-{number}", reason))
    return Found(tuple(objects.values()), tuple(refused), skipped)


def look(path: Path) -> DicomObject | None:
    """Returns what the header of a file says; ``None`` when it is no object that can be sent."""
    try:
        with path.open("rb") as file:
            return _read(file, path)
    except OSError:
        return None


def look_at_bytes(content: bytes) -> DicomObject | None:
    """Returns what the header of an object in memory says; ``None`` when it is none."""
    return _read(BytesIO(content), None)


def _read(stream: BinaryIO, path: Path | None) -> DicomObject | None:
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's texts may quote values of the header
            data = pydicom.dcmread(
                stream, stop_before_pixels=True, specific_tags=list(_WANTED), defer_size=_LARGEST_HEADER_VALUE
            )
            syntax = str(data.file_meta.get("TransferSyntaxUID", ""))
            values = {keyword: str(data.get(keyword, "") or "") for keyword in _WANTED}
            number = _whole(values["SeriesNumber"])
    except Exception:  # noqa: BLE001 - malformed headers make pydicom raise nearly anything
        return None
    sop_class, sop_uid = values["SOPClassUID"], values["SOPInstanceUID"]
    if not syntax or not sop_class or not sop_uid or sop_class == _DIRECTORY:
        return None
    series_uid = values["SeriesInstanceUID"]
    name = f"{series_id(number, series_uid)}-{keyed_hash(sop_uid)}"
    return DicomObject(name, sop_class, syntax, sop_uid, values["StudyInstanceUID"], series_uid, path)


def _whole(text: Any) -> int | None:
    try:
        return abs(int(text))
    except ValueError:
        return None


def _files(given: Path) -> Iterator[Path]:
    if not given.is_dir():
        yield given
        return
    for path in sorted(given.rglob("*")):
        parts = path.relative_to(given).parts
        if path.is_file() and not any(part.startswith(".") for part in parts):
            yield path
