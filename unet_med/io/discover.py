"""Everything below a folder: images of every format, DICOM series across subfolders, and what was left out and why.

Formats are told by the file's suffix; every other file is looked at for DICOM, which needs no suffix. A file that
cannot be read becomes a refused source or is counted as skipped: one bad file never ends a scan.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unet_med.errors import InputRefusedError, MachineError, NothingUsableError, UsageError
from unet_med.identity import unique_ids
from unet_med.io.channels import stored_channels
from unet_med.io.objects import OUTLINE_ENDINGS
from unet_med.io.ome_zarr.metadata import METADATA_NAMES, is_image
from unet_med.io.reading import COPY_FILE_AGAIN, refused_ref, refusing
from unet_med.io.source import Discovery, IntakeOptions, Skipped, SourceRef
from unet_med.volume import ImageSource

Progress = Callable[[Iterable[Any], str], Iterable[Any]]

_KINDS = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".mha": "mha",
    ".mhd": "mha",
    **dict.fromkeys(
        (".tif", ".tiff", ".btf", ".tf2", ".tf8", ".lsm", ".svs", ".ndpi", ".scn", ".bif", ".qptiff"), "tiff"
    ),
    ".czi": "czi",
    ".nd2": "nd2",
    ".lif": "lif",
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
}
_COMPANION = ".companion.ome"
_NO_IMAGES = frozenset(
    {
        *(".bib", ".bval", ".bvec", ".cfg", ".css", ".csv", ".db", ".doc", ".docx", ".exe", ".html", ".ini", ".ipynb"),
        *(".js", ".json", ".jsonl", ".lock", ".log", ".md", ".npy", ".npz", ".onnx", ".pdf", ".pptx", ".pt", ".pth"),
        *(".py", ".pyc", ".rst", ".safetensors", ".sh", ".sqlite", ".toml", ".tsv", ".txt", ".xls", ".xlsx", ".xml"),
        *(".yaml", ".yml"),
    }
)
"""Suffixes that are told in the list of skipped files and not looked into."""

_ARCHIVES = frozenset({".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip"})
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_JUNK = frozenset({"thumbs.db", "desktop.ini", "__macosx", "$recycle.bin"})
_JOURNAL, _MAPS = "journal.json", "maps"


def discover(
    root: Path,
    options: IntakeOptions = IntakeOptions(),  # noqa: B008
    progress: Progress | None = None,
) -> Discovery:
    """Returns every image below a folder, and what was skipped.

    Args:
        root: A folder, searched with all its subfolders (links are followed, loops are not), or one file.
        options: What the files do not settle; ``series`` keeps the sources whose id begins so.
        progress: Wraps the loop over the files, for example :func:`unet_med.workflows.progress.track`.

    Returns:
        DICOM sources by series number, then the others by path; annotations and outlines apart. Ids are unique.

    Raises:
        UsageError: There is no such folder, or ``options.series`` matches nothing.
        NothingUsableError: The folder is empty.
    """
    if not root.exists():
        raise UsageError("there is no such file or folder", remedy="check the path")
    search = _Search(options)
    files = [root] if root.is_file() else sorted(search.walk(root), key=lambda path: path.parts)
    if not files and not search.skipped:
        raise NothingUsableError("the folder is empty", remedy="give a folder with images, or one image")
    for path in progress(files, "reading headers") if progress is not None else files:
        search.look(path)
    return _chosen(search.finish(), options)


def open_source(ref: SourceRef) -> ImageSource:
    """Returns the reader of a source.

    Raises:
        InputRefusedError: The source is not usable; the reason says why.
    """
    if ref.kind == "dicom":
        from unet_med.io.dicom.source import DicomSource

        return DicomSource(ref)
    if ref.kind in ("dicom-seg", "rtstruct"):
        from unet_med.io.dicom.annotations import AnnotationSource

        return AnnotationSource(ref)
    if ref.kind == "nifti":
        from unet_med.io.nifti import NiftiSource

        return NiftiSource(ref)
    if ref.kind in ("nrrd", "mha"):
        from unet_med.io.itk import ItkSource

        return ItkSource(ref)
    if ref.kind == "tiff":
        from unet_med.io.tiff import TiffSource

        return TiffSource(ref)
    if ref.kind == "zarr":
        from unet_med.io.ome_zarr import ZarrSource

        return ZarrSource(ref)
    if ref.kind in ("czi", "nd2", "lif"):
        from unet_med.io.microscopes import MicroscopeSource

        return MicroscopeSource(ref)
    if ref.kind in ("png", "jpeg"):
        from unet_med.io.picture import PictureSource

        return PictureSource(ref)
    raise InputRefusedError(f"images of kind {ref.kind} are not read", ref.id, "convert it to NIfTI or TIFF")


def restore_ref(entry: Mapping[str, Any], files: Sequence[Path]) -> SourceRef:
    """Looks at known files again, as a manifest names them.

    Args:
        entry: ``id``, and under ``read`` (or ``read_as``) the switches that were stored with the source.
        files: The files of one source; for DICOM all slices, in any order, or their folder.

    Returns:
        What :func:`discover` gives for these files, under the stored id; not usable when they have changed.

    Raises:
        UsageError: No files were given.
    """
    if not files:
        raise UsageError("a source without files", str(entry.get("id", "")), "make the manifest again")
    stored = entry.get("read", entry.get("read_as", {}))
    options = IntakeOptions(
        axes=stored.get("axes"),
        pixel_size_mm=tuple(stored["pixel_size_mm"]) if stored.get("pixel_size_mm") else None,
        channels=stored_channels(stored),
        untilt=bool(stored.get("untilt")),
        resample_slices=bool(stored.get("resample_slices")),
        allow_gaps=bool(stored.get("allow_gaps")),
    )
    kind = _kind_of(files[0])
    if kind is None:
        from unet_med.io.dicom.source import inspect_dicom

        every = files if files[0].is_file() else [path for path in sorted(files[0].rglob("*")) if path.is_file()]
        looked = inspect_dicom(every, options, _stored_frames(stored, files))
        found = _parts([*looked.sources, *looked.annotations], stored)
    else:
        found = [ref for ref in _inspect(files[0], kind, options) if _same_part(ref, stored)]
    name = str(entry.get("id") or (found[0].id if found else "source"))
    if len(found) == 1:
        return replace(found[0], id=name, read_as={**found[0].read_as, **stored})
    what = "no image is in the files any more" if not found else f"the files hold {len(found)} images, not one"
    error = InputRefusedError(what, remedy="scan the folder and make the manifest again")
    return replace(refused_ref(files[0], kind or "dicom", error), id=name, files=tuple(files))


def _stored_frames(stored: Mapping[str, Any], files: Sequence[Path]) -> dict[Path, Container[int]]:
    """Returns the frames that a stored source takes of each of its multi-frame files.

    Raises:
        UsageError: The record is damaged.
    """
    from unet_med.io.dicom.multiframe import frames_in

    texts = stored.get("frames", ())
    try:
        return {path: frames_in(text) for path, text in zip(files, texts, strict=bool(texts))}
    except (TypeError, ValueError, AttributeError):
        raise UsageError("the frames of a source are not readable", "", "make the manifest again") from None


def _parts(found: Sequence[SourceRef], stored: Mapping[str, Any]) -> list[SourceRef]:
    """Returns the sources that are the stored part of their series; all when there is no such part.

    Of a series that was cut into parts only the files of one are stored, and these make one source without a name of
    its part. So the name decides only where files still hold several.
    """
    same = [ref for ref in found if ref.read_as.get("part") == stored.get("part")]
    return same if same and len(found) > 1 else list(found)


def _same_part(ref: SourceRef, stored: Mapping[str, Any]) -> bool:
    """Whether a source is the stored part of its file (a file may hold several)."""
    return bool(ref.read_as.get("series", 0) == stored.get("series", 0))


# ---- the search -----------------------------------------------------------------------------------------------------


class _Search:
    """Collects what files are, one after the other."""

    def __init__(self, options: IntakeOptions) -> None:
        self.options = options
        self.skipped: Counter[tuple[str, str]] = Counter()
        self._dicom: list[Any] = []
        self._images: list[SourceRef] = []
        self._outlines: list[SourceRef] = []
        self._unknown: list[Path] = []
        self._folders: set[tuple[int, int]] = set()

    def walk(self, folder: Path) -> Iterator[Path]:
        """Yields the regular files below a folder, and the Zarr folders that are images, each folder once."""
        pending = [folder]
        while pending:
            here = pending.pop()
            try:
                status = here.stat()
                entries = list(os.scandir(here))
            except OSError:
                self.skipped["folders", "cannot be opened"] += 1
                continue
            if (status.st_dev, status.st_ino) in self._folders:
                self.skipped["links to folders", "lead to a folder that was seen already"] += 1
                continue
            self._folders.add((status.st_dev, status.st_ino))
            names = {entry.name for entry in entries}
            zarr = not METADATA_NAMES.isdisjoint(names)
            if zarr and is_image(here):
                yield here
                continue
            for entry in entries:
                if zarr and entry.name in METADATA_NAMES:
                    continue
                if _is_hidden(entry.name):
                    self.skipped["hidden files and folders", "are left alone"] += 1
                elif entry.name == _MAPS and _JOURNAL in names:
                    self.skipped["maps of objects", "are kept for `unet-med retune`"] += 1
                elif entry.is_dir():
                    pending.append(Path(entry.path))
                elif entry.is_file():
                    yield Path(entry.path)
                else:
                    self.skipped["special files and broken links", "are no images"] += 1

    def look(self, path: Path) -> None:
        """Finds out what a file is; only headers are read."""
        kind = _kind_of(path)
        if kind is not None:
            found = _inspect(path, kind, self.options)
            self._images += found
            if not found:
                self.skipped["parts of an image of several files", "are read with its first file"] += 1
            return
        outlines = _outlines(path)
        if outlines is not None:
            self._outlines.append(outlines)
            return
        suffix = path.suffix.lower()
        why = "are no images" if suffix in _NO_IMAGES else "are archives: unpack them" if suffix in _ARCHIVES else ""
        if why and not _is_dicom(path):
            self.skipped[f"{suffix} files", why] += 1
            return
        from unet_med.io.dicom.series import look_at

        header = look_at(path)
        if header is None:
            self._unknown.append(path)
        else:
            self._dicom.append(header)

    def finish(self) -> Discovery:
        """Returns what was found, with unique ids."""
        sources: list[SourceRef] = []
        annotations: list[SourceRef] = []
        skipped = self.skipped.copy()
        if self._dicom:
            from unet_med.io.dicom.series import group_headers

            series = group_headers(self._dicom, self.options)
            sources += series.sources
            annotations += series.annotations
            skipped.update({(one.what, one.reason): one.count for one in series.skipped})
        sources += self._images
        parts = {file for source in self._images for file in source.files[1:]}
        for path in self._unknown:
            if path in parts:
                skipped["data files", "are read with their header file"] += 1
            else:
                skipped["other files", "are in no format that is read"] += 1
        every = [*sources, *annotations, *self._outlines]
        named = [
            replace(source, id=name)
            for source, name in zip(every, unique_ids([source.id for source in every]), strict=True)
        ]
        drawn = len(sources) + len(annotations)
        return Discovery(
            tuple(named[: len(sources)]),
            tuple(Skipped(what, count, reason) for (what, reason), count in sorted(skipped.items())),
            tuple(named[len(sources) : drawn]),
            tuple(named[drawn:]),
        )


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "~$")) or name.lower() in _JUNK


def _kind_of(path: Path) -> str | None:
    """Returns the format that the suffix stands for; ``None`` for DICOM, whatever its suffix, and unknown files."""
    name = path.name.lower()
    if path.is_dir():
        return "zarr" if any((path / one).is_file() for one in METADATA_NAMES) else None
    if name.endswith(_COMPANION):
        return "tiff"
    kind = _KINDS.get(".nii.gz") if name.endswith(".nii.gz") else _KINDS.get(path.suffix.lower())
    return None if kind is not None and _is_dicom(path) else kind


def _is_dicom(path: Path) -> bool:
    """Whether a file is DICOM in spite of its suffix; one that is TIFF as well is read as TIFF."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    return start[128:] == b"DICM" and not start.startswith(_TIFF_STARTS)


def _outlines(path: Path) -> SourceRef | None:
    """Returns the label that a file of outlines is; ``None`` for all other files, and damaged ones."""
    if not path.name.lower().endswith(OUTLINE_ENDINGS) or _is_dicom(path):
        return None
    from unet_med.io.object_truth import object_ref
    from unet_med.io.objects.reading import outline_kind

    try:
        kind = outline_kind(path)
    except MachineError:  # larger than memory
        return None
    return None if kind is None else object_ref(kind, path)


def _inspect(path: Path, kind: str, options: IntakeOptions) -> list[SourceRef]:
    """Returns the sources of one file; a refused one when it cannot be read."""
    try:
        with refusing("the file cannot be read", "", COPY_FILE_AGAIN):
            return _inspector(kind)(path, options)
    except (InputRefusedError, MachineError) as error:
        refusal = InputRefusedError(error.what, error.where, error.remedy)
        return [refused_ref(path, kind, refusal)]


def _inspector(kind: str) -> Callable[[Path, IntakeOptions], list[SourceRef]]:
    """Returns the function that reads headers of a format; its library is imported only now."""
    if kind == "nifti":
        from unet_med.io.nifti import inspect_nifti

        return inspect_nifti
    if kind in ("nrrd", "mha"):
        from unet_med.io.itk import inspect_itk

        return inspect_itk
    if kind == "tiff":
        from unet_med.io.tiff import inspect_tiff

        return inspect_tiff
    if kind == "zarr":
        from unet_med.io.ome_zarr import inspect_zarr

        return inspect_zarr
    if kind in ("czi", "nd2", "lif"):
        from unet_med.io.microscopes import inspect_microscope

        return inspect_microscope
    from unet_med.io.picture import inspect_picture

    return inspect_picture


def _chosen(found: Discovery, options: IntakeOptions) -> Discovery:
    """Keeps the sources that ``--series`` names, and the annotations that belong to them (or the other way round)."""
    if not options.series:
        return found
    from unet_med.io.dicom.annotations import belongs_to

    kept = tuple(source for source in found.sources if source.id.startswith(options.series))
    truth = tuple(one for one in found.annotations if one.id.startswith(options.series))
    if truth and not kept:
        kept = tuple(source for source in found.sources if any(belongs_to(one, source) for one in truth))
    elif kept and not truth:
        truth = tuple(one for one in found.annotations if any(belongs_to(one, source) for source in kept))
    if not kept and not truth:
        raise UsageError(
            f"none of the {len(found.sources)} sources has an id that begins so",
            "--series",
            "`unet-med scan FOLDER` lists the ids",
        )
    left = len(found.sources) - len(kept) + len(found.annotations) - len(truth)
    skipped = (Skipped("other sources", left, "not chosen by --series"),) if left else ()
    outlines = tuple(one for one in found.outlines if one.id.startswith(options.series))
    return Discovery(kept, (*found.skipped, *skipped), truth, outlines)
