"""From DICOM headers to sources: what is an image, which files are one series, what is refused and why."""

from __future__ import annotations

import filecmp
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.identity import series_id
from unet_med.io.dicom import EXPORT_AGAIN
from unet_med.io.dicom.annotations import inspect_annotations, is_annotation
from unet_med.io.dicom.headers import STACK_ID, Damaged, Header, read_header
from unet_med.io.dicom.multiframe import frame_headers, frames_text
from unet_med.io.dicom.pixels import INVERTED_MODALITIES, missing_decoder, turned
from unet_med.io.dicom.slices import Regrid, SliceLayout, StoredSlice, Vector
from unet_med.io.dicom.stacks import Stack, cluster, lay_out, leave_out_scouts, slice_normal, split_repeats
from unet_med.io.pixel_size import calibrated
from unet_med.io.source import Discovery, IntakeOptions, Skipped, SourceRef

_DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
_MUST_HAVE_PLACE = frozenset({"CT", "MR", "PT"})
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_SECONDARY_CAPTURE = _STORAGE + "7"
_MODALITY_OF_CLASS = {
    _STORAGE + part: modality
    for modality, parts in (("CT", ("2", "2.1", "2.2")), ("MR", ("4", "4.1", "4.4")), ("PT", ("128", "128.1", "130")))
    for part in parts
}
_ENHANCED_CLASSES = frozenset(
    _STORAGE + part
    for part in (
        *("2.1", "2.2", "4.1", "4.3", "4.4", "128.1", "130", "12.1.1", "12.2.1", "13.1.1", "13.1.2", "13.1.3"),
        *("6.2", "30", "77.1.6"),
    )
)
_PARAMETRIC_MAP = _STORAGE + "30"
_NUCLEAR = _STORAGE + "20"
_SLIDE = _STORAGE + "77.1.6"
_OBJECTS = (
    ("1.2.840.10008.1.3.10", "DICOM directory (DICOMDIR)", "an index of other files; the files themselves were read"),
    (_STORAGE + "88.59", "DICOM key object selection", "holds references, no image"),
    (_STORAGE + "88.", "DICOM structured report", "holds text, no image"),
    (_STORAGE + "11.", "DICOM presentation state", "holds display settings, no image"),
    (_STORAGE + "104.", "DICOM encapsulated document", "holds a document, no image"),
    (_STORAGE + "66.5", "DICOM surface segmentation", "surfaces are not read by this version"),
    (_STORAGE + "66", "DICOM registration or raw data", "holds no image"),
    (_STORAGE + "481.2", "DICOM dose (RTDOSE)", "holds a dose distribution, no image"),
    (_STORAGE + "481.5", "DICOM radiotherapy plan", "holds no image"),
    (_STORAGE + "9.", "DICOM waveform", "holds no image"),
    (_STORAGE + "4.2", "DICOM spectroscopy", "holds no image"),
    (_STORAGE + "67", "DICOM value mapping", "holds no image"),
)
_OBJECT_MODALITIES = {
    "KO": _OBJECTS[1],
    "SR": _OBJECTS[2],
    "PR": _OBJECTS[3],
    "DOC": _OBJECTS[4],
    "REG": _OBJECTS[6],
    "RTDOSE": _OBJECTS[7],
    "RTPLAN": _OBJECTS[8],
}
_LARGEST_STORED = 16
_SEVERAL = 2
_TOLD = 3


def inspect_dicom(
    files: Sequence[Path],
    options: IntakeOptions = IntakeOptions(),  # noqa: B008
    frames: Mapping[Path, Container[int]] | None = None,
) -> Discovery:
    """Returns the series among ``files`` from their headers, in the order of series number and first position.

    Args:
        files: Any files; those that are no DICOM are counted in ``skipped``.
        options: ``pixel_size_mm`` serves pictures that declare no pixel size.
        frames: Of multi-frame files the frames to look at, from 0; all of files that are not named.
    """
    found = [look_at(path) for path in files]
    foreign = found.count(None)
    discovery = group_headers([one for one in found if one is not None], options, frames)
    if not foreign:
        return discovery
    skipped = (*discovery.skipped, Skipped("other files", foreign, "no DICOM"))
    return replace(discovery, skipped=skipped)


def look_at(path: Path) -> Header | Damaged | None:
    """Returns the header of a file; ``None`` when it is no DICOM, :class:`Damaged` for the stump of one."""
    header = read_header(path)
    return Damaged(path) if header is None and _is_stump(path) else header


def _is_stump(path: Path) -> bool:
    """Whether a file is what is left of DICOM: named so and too short; or of no format's name, and empty or zeros.

    Names of DICOM files often have no suffix, or end with the last number of a UID.
    """
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        start = file.read(132)
    if suffix in _DICOM_SUFFIXES:
        return len(start) < 132 or not any(start)
    return (not suffix or suffix[1:].isdecimal()) and not any(start)


def group_headers(
    found: Iterable[Header | Damaged],
    options: IntakeOptions,
    frames: Mapping[Path, Container[int]] | None = None,
) -> Discovery:
    """Returns the sources that the headers make up; see :func:`inspect_dicom`."""
    skipped: Counter[tuple[str, str]] = Counter()
    series: dict[tuple[str, ...], list[Header]] = defaultdict(list)
    damaged: dict[Path, list[Path]] = defaultdict(list)
    annotations: list[Header] = []
    for one in found:
        if isinstance(one, Damaged):
            damaged[one.path.parent].append(one.path)
        elif is_annotation(one):
            annotations.append(one)
        elif (what := _no_image(one)) is not None:
            skipped[what] += 1
        elif not (one.series_uid or one.rows or one.has_pixels):
            damaged[one.path.parent].append(one.path)
        else:
            series[_series_key(one)].append(one)
    blamed = _blame(damaged, series)
    groups = []
    for key, headers in series.items():
        refs, scouts = _Series(headers, options, blamed.get(key, ()), frames or {}).sources()
        groups.append((_series_order(headers), refs))
        if scouts:
            skipped["localizer images", "scouts show where a series lies and are no volume"] += scouts
    if rest := sum(map(len, damaged.values())) - sum(map(len, blamed.values())):
        skipped["damaged DICOM files", "cannot be read, not even which series they belong to"] += rest
    sources = [ref for _, refs in sorted(groups, key=lambda group: group[0]) for ref in refs]
    return Discovery(
        tuple(sources),
        tuple(Skipped(what, n, why) for (what, why), n in sorted(skipped.items())),
        tuple(inspect_annotations(annotations)),
    )


def _no_image(header: Header) -> tuple[str, str] | None:
    """Returns what a DICOM object without an image is, and why it is skipped."""
    for prefix, what, why in _OBJECTS:
        if header.sop_class == prefix or header.sop_class.startswith(prefix if prefix[-1] == "." else prefix + "."):
            return what, why
    if header.rows and header.columns:
        return None
    if header.modality in _OBJECT_MODALITIES:
        return _OBJECT_MODALITIES[header.modality][1:]
    return None if header.sop_class.startswith(_STORAGE) else ("other DICOM objects", "hold no image")


def _series_key(header: Header) -> tuple[str, ...]:
    if header.series_uid:
        return header.study_uid, header.series_uid
    return header.study_uid, "", str(header.path.parent), str(header.series_number), header.modality


def _series_order(headers: Sequence[Header]) -> tuple[Any, ...]:
    number = headers[0].series_number
    return number is None, number or 0, min(header.series_uid or header.sop_uid for header in headers)


def _blame(
    damaged: Mapping[Path, Sequence[Path]], series: Mapping[tuple[str, ...], Sequence[Header]]
) -> dict[tuple[str, ...], list[Path]]:
    """Returns for each series the unreadable files that must be its own, because their folder holds no other series."""
    homes: dict[Path, set[tuple[str, ...]]] = defaultdict(set)
    for key, headers in series.items():
        for header in headers:
            homes[header.path.parent].add(key)
    blamed: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for folder, files in damaged.items():
        if len(homes[folder]) == 1:
            blamed[next(iter(homes[folder]))] += files
    return blamed


class _Series:
    """The files of one series, on the way to sources."""

    def __init__(
        self,
        headers: Sequence[Header],
        options: IntakeOptions,
        damaged: Sequence[Path],
        frames: Mapping[Path, Container[int]],
    ) -> None:
        self.headers = sorted(headers, key=_by_instance)
        self.frames = frames
        self.options = options
        self.damaged = damaged
        self.notes: list[str] = []
        first = self.headers[0]
        self.number = first.series_number
        self.uid = first.series_uid or "|".join(
            (first.study_uid, str(first.series_number), min(header.sop_uid for header in headers))
        )
        self.modality = first.modality or _MODALITY_OF_CLASS.get(first.sop_class, "")
        self.body_part = first.body_part or None

    def sources(self) -> tuple[list[SourceRef], int]:
        """Returns the sources of the series, and how many localizer images were left out."""
        everything = self.headers
        refs: list[SourceRef] = []
        scouts = 0
        try:
            headers = self._without_duplicates(self.headers)
            several = [header for header in headers if _is_multi_frame(header)]
            headers = [header for header in headers if not _is_multi_frame(header)]
            if several:
                frames, unplaced = self._expanded(several)
                refs += [self._unplaced(header, f"file{n}") for n, header in enumerate(unplaced, start=1)]
                headers += frames
            images = [header for header in headers if "LOCALIZER" not in header.image_type]
            scouts = len(headers) - len(images)
            if not images:
                return refs, scouts
            if scouts:
                self.notes.append(f"{scouts} localizer image{'s' if scouts > 1 else ''} left out")
            everything = images
            self._check_files(images)
            pictures = [header for header in images if self._is_picture(header)]
            refs += self._pictures(pictures)
            slices = [header for header in images if not self._is_picture(header)]
            if slices:
                refs += self._volumes(slices)
        except InputRefusedError as error:
            refs.append(self._refused(everything, error))
        return refs, scouts

    # ---- checks on files --------------------------------------------------------------------------------------------

    def _without_duplicates(self, headers: Sequence[Header]) -> list[Header]:
        """Drops files that are byte for byte the same image; refuses one image with two contents."""
        kept: dict[str, Header] = {}
        unnamed = []
        dropped = 0
        for header in headers:
            if not header.sop_uid:
                unnamed.append(header)
            elif header.sop_uid not in kept:
                kept[header.sop_uid] = header
            elif _same_bytes(header, kept[header.sop_uid]):
                dropped += 1
            else:
                raise InputRefusedError(
                    "two files claim to be the same image but differ", _place(header), "remove the wrong one"
                )
        if dropped:
            self.notes.append(f"{dropped} duplicate file{'s' if dropped > 1 else ''} dropped")
        return [*kept.values(), *unnamed]

    def _check_files(self, headers: Sequence[Header]) -> None:
        """Refuses a series that holds a file which cannot be decoded exactly."""
        if self.damaged:
            raise InputRefusedError(
                f"{len(self.damaged)} file{'s' if len(self.damaged) > 1 else ''} in its folder cannot be read: a slice "
                "may be missing",
                remedy="copy the series again from its origin, or remove the damaged file if it is none of its slices",
            )
        self._check_whole([header for header in headers if header.fault or not (header.rows and header.columns)])
        for header in headers:
            self._check_pixels(header)
        missing = sorted({name for header in headers if (name := missing_decoder(header.syntax, header.bits_stored))})
        if missing:
            raise InputRefusedError(
                f"no decoder is installed for {' and '.join(missing)}", remedy='pip install "unet-med[dicom]"'
            )

    def _check_whole(self, faulty: Sequence[Header]) -> None:
        """Refuses a series that holds these files."""
        if not faulty:
            return
        faults = " or ".join(sorted({header.fault or "without a size" for header in faulty}))
        places = ", ".join(map(_place, faulty[:_TOLD]))
        more = f" and {len(faulty) - _TOLD} more" if len(faulty) > _TOLD else ""
        what = f"a file is {faults}" if len(faulty) == 1 else f"{len(faulty)} files are {faults}"
        raise InputRefusedError(what, places + more, "copy the series again from its origin")

    def _check_pixels(self, header: Header) -> None:
        if header.sop_class == _SECONDARY_CAPTURE or header.sop_class.startswith(_SECONDARY_CAPTURE + "."):
            raise InputRefusedError(
                "a secondary capture: a picture of a screen or a film, whose pixels are no measurement and may carry a "
                "name",
                remedy="give the original series",
            )
        if header.mosaic:
            raise InputRefusedError(
                "a mosaic: one picture of many small slices side by side, whose places the header does not tell",
                remedy="export it from the scanner as single slices or as enhanced multi-frame DICOM, or convert it to "
                "NIfTI with other software (for example dcm2niix)",
            )
        if header.sop_class == _PARAMETRIC_MAP and header.bits_allocated <= _LARGEST_STORED:
            raise InputRefusedError(
                "a parametric map of stored whole numbers, which mean nothing without their real-world map",
                remedy="give it with floating point pixels",
            )
        if header.samples != 1 or header.photometric not in ("MONOCHROME1", "MONOCHROME2", ""):
            raise InputRefusedError(
                "a colour image, whose pixels may carry a name", remedy="give the original grey series"
            )
        if header.bits_allocated not in (8, 16, 32, 64) or header.bits_stored > header.bits_allocated:
            raise InputRefusedError(
                f"pixels of {header.bits_allocated} bits ({header.bits_stored} stored) cannot be read",
                _place(header),
                EXPORT_AGAIN,
            )
        if header.slope is not None and not abs(header.slope) > 0:
            raise InputRefusedError("the rescale slope is 0 or no number", _place(header), EXPORT_AGAIN)
        if header.burned_in and self.modality in _MUST_HAVE_PLACE:
            raise InputRefusedError(
                "text is burnt into the pixels, which may carry a name", _place(header), "give the original series"
            )

    def _is_picture(self, header: Header) -> bool:
        """Whether a file is a picture by itself rather than a slice.

        Raises:
            InputRefusedError: It must be a slice, but has no place.
        """
        if header.grouped:
            return False
        if self.modality in INVERTED_MODALITIES:
            return True
        if not header.has_place and self.modality in _MUST_HAVE_PLACE:
            lacks = [
                name
                for name, value in (
                    ("position", header.position),
                    ("orientation", header.orientation),
                    ("pixel spacing", header.pixel_spacing),
                )
                if value is None
            ]
            raise InputRefusedError(
                f"a slice has no {' and no '.join(lacks)}", _place(header), EXPORT_AGAIN + ", with its geometry"
            )
        return not header.has_place

    # ---- sources ----------------------------------------------------------------------------------------------------

    def _volumes(self, headers: Sequence[Header]) -> list[SourceRef]:
        groups, left_out = leave_out_scouts(cluster(headers))
        if left_out:
            self.notes.append(f"{left_out} slice{'s' if left_out > 1 else ''} of another orientation or size left out")
        refs = []
        for number, group in enumerate(groups, start=1):
            name = f"stack{number}" if len(groups) > 1 else ""
            refs += self._slabs(group, name) or self._stacks(group, name)
        return refs

    def _slabs(self, group: Sequence[Header], name: str) -> list[SourceRef]:
        """Returns one volume for each stack that the scanner itself names; none where they are one volume or none."""
        slabs: dict[Any, list[Header]] = defaultdict(list)
        for header in group:
            slabs[header.split.get(STACK_ID)].append(header)
        if len(slabs) < _SEVERAL or min(map(len, slabs.values())) < _SEVERAL:
            return []
        if all(ref.usable for ref in self._stacks(group, name)):
            return []
        refs: list[SourceRef] = []
        for number, slab in enumerate(sorted(slabs, key=str), start=1):
            refs += self._stacks(slabs[slab], "-".join(part for part in (name, f"slab{number}") if part))
        return refs if all(ref.usable for ref in refs) else []

    def _stacks(self, group: Sequence[Header], name: str) -> list[SourceRef]:
        """Returns the volumes of slices of one orientation and size."""
        try:
            stacks = split_repeats(group)
        except InputRefusedError as error:
            return [self._refused(group, error, name)]
        return [
            self._volume(replace(stack, suffix="-".join(part for part in (name, stack.suffix) if part)))
            for stack in stacks
        ]

    def _volume(self, stack: Stack) -> SourceRef:
        try:
            stack, geometry, regrid, used = lay_out(stack, self.options)
        except InputRefusedError as error:
            return self._refused(stack.headers, error, stack.suffix)
        files = _files(stack.headers)
        return SourceRef(
            id=series_id(self.number, self.uid, stack.suffix),
            kind="dicom",
            files=files,
            axes="IJK",
            shape=geometry.shape,
            geometry=geometry,
            notes=(*self.notes, *stack.notes, *_remarks(stack.headers)),
            modality=self.modality or None,
            body_part=self.body_part,
            read_as={**_part(stack.suffix), **_frames_used(stack.headers, files), **used},
            layout=_layout(stack.headers, files, geometry, regrid),
        )

    def _pictures(self, headers: Sequence[Header]) -> list[SourceRef]:
        return [
            self._picture(header, f"image{number}" if len(headers) > 1 else "")
            for number, header in enumerate(headers, start=1)
        ]

    def _picture(self, header: Header, suffix: str) -> SourceRef:
        spacing = header.pixel_spacing or header.detector_spacing
        own = None if spacing is None else (spacing[1], spacing[0])
        try:
            geometry, read_as, notes = calibrated((header.columns, header.rows), own, self.options)
        except InputRefusedError as error:
            return self._refused([header], error, suffix, picture=True)
        if header.pixel_spacing is None and own is not None:
            notes.append("pixel size at the detector, not corrected for magnification")
        if turned(self.modality, header.photometric):
            notes.append("MONOCHROME1: turned, so that more signal is brighter")
        if header.burned_in:
            notes.append("text is burnt into the pixels, which may carry a name")
        return SourceRef(
            id=series_id(self.number, self.uid, suffix),
            kind="dicom",
            files=(header.path,),
            axes="IJ",
            shape=geometry.shape,
            geometry=geometry,
            notes=(*self.notes, *notes, *_remarks([header])),
            modality=self.modality or None,
            body_part=self.body_part,
            read_as={**_part(suffix), **read_as},
            layout=_picture_layout(header, spacing),
        )

    def _unplaced(self, header: Header, suffix: str) -> SourceRef:
        """Returns the refusal of a multi-frame file whose frames are no slices in space."""
        what = f"a multi-frame DICOM object ({header.frames} frames) whose frames have no position in space"
        remedy = "give single-frame slices or an enhanced multi-frame object with positions; cine loops are no volume"
        if header.sop_class == _NUCLEAR or self.modality == "NM":
            remedy = "give the reconstruction as single-frame slices with positions, or as NIfTI"
        elif header.sop_class == _SLIDE or self.modality == "SM":
            what = "a whole-slide image"
            remedy = "export the region of interest as TIFF with its pixel size"
        elif header.sop_class == _SECONDARY_CAPTURE or header.sop_class.startswith(_SECONDARY_CAPTURE + "."):
            what = (
                f"a secondary capture of {header.frames} frames, whose pixels are no measurement and may carry a name"
            )
            remedy = "give the original series"
        elif self.modality in _MUST_HAVE_PLACE:
            remedy = EXPORT_AGAIN + ", with its geometry"
        ref = self._refused([header], InputRefusedError(what, remedy=remedy), suffix if len(self.headers) > 1 else "")
        return replace(ref, shape=(header.columns, header.rows, header.frames))

    def _expanded(self, files: Sequence[Header]) -> tuple[list[Header], list[Header]]:
        """Returns the frames of multi-frame files as slices, and the files whose frames have no place in space.

        Raises:
            InputRefusedError: The functional groups of a file are damaged or tell the place of some frames only.
        """
        slices: list[Header] = []
        unplaced = []
        count = 1
        for number, header in enumerate(files, start=1):
            if not header.grouped or header.sop_class == _SLIDE:
                unplaced.append(header)
                continue
            self._check_files([header])
            frames = frame_headers(header, number, count)
            count += len(frames)
            if not frames[0].has_place:
                unplaced.append(header)
                continue
            wanted = self.frames.get(header.path)
            slices += frames if wanted is None else [one for one in frames if one.frame in wanted]
        return slices, unplaced

    def _refused(
        self, headers: Sequence[Header], error: InputRefusedError, suffix: str = "", *, picture: bool = False
    ) -> SourceRef:
        sizes = Counter((header.columns, header.rows) for header in headers)
        size = sizes.most_common(1)[0][0]
        return SourceRef(
            id=series_id(self.number, self.uid, suffix),
            kind="dicom",
            files=(*_files(headers), *self.damaged),
            axes="IJ" if picture else "IJK",
            shape=size if picture else (*size, len(headers)),
            geometry=None,
            usable=False,
            reason=str(error),
            notes=tuple(self.notes),
            modality=self.modality or None,
            body_part=self.body_part,
            read_as=_part(suffix),
        )


def _is_multi_frame(header: Header) -> bool:
    return header.frames > 1 or header.grouped or header.sop_class in _ENHANCED_CLASSES


def _frames_used(headers: Sequence[Header], files: Sequence[Path]) -> dict[str, Any]:
    """Returns, where a volume does not take all frames of its files, those that it takes of each file."""
    used: dict[Path, list[int]] = {path: [] for path in files}
    for header in headers:
        used[header.path].append(header.frame)
    if all(len(used[header.path]) == header.frames for header in headers if header.grouped):
        return {}
    return {"frames": [frames_text(used[path]) for path in files]}


def _part(suffix: str) -> dict[str, Any]:
    """Returns what is stored of a source that is one of several in its series."""
    return {"part": suffix} if suffix else {}


def _files(headers: Iterable[Header]) -> tuple[Path, ...]:
    """Returns the files of slices in their order, each once."""
    return tuple(dict.fromkeys(header.path for header in headers))


def _layout(headers: Sequence[Header], files: Sequence[Path], geometry: Geometry, regrid: Regrid | None) -> SliceLayout:
    """Returns where the slices of a volume are stored and lie; ``headers`` are in the order of the grid's K."""
    affine = geometry.to_lps()
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    first = headers[0]
    return SliceLayout(
        slices=_stored(headers, files),
        size=(first.columns, first.rows),
        row=_vector(affine[:3, 0] / steps[0]),
        column=_vector(affine[:3, 1] / steps[1]),
        spacing_mm=(float(steps[0]), float(steps[1])),
        step_mm=float(steps[2]),
        study_uid=first.study_uid,
        series_uid=first.series_uid,
        frame_uid=first.frame_uid,
        regrid=regrid,
    )


def _picture_layout(header: Header, spacing: tuple[float, ...] | None) -> SliceLayout | None:
    """Returns where a picture lies; ``None`` when it does not tell.

    Args:
        header: Of the picture.
        spacing: Millimetres between rows and between columns.
    """
    if header.position is None or header.orientation is None or spacing is None:
        return None
    try:
        normal = slice_normal(header)
    except InputRefusedError:
        return None
    row = np.array(header.orientation[:3]) / np.linalg.norm(header.orientation[:3])
    return SliceLayout(
        slices=_stored([header], [header.path]),
        size=(header.columns, header.rows),
        row=_vector(row),
        column=_vector(np.cross(normal, row)),
        spacing_mm=(spacing[1], spacing[0]),
        step_mm=header.thickness or 1.0,
        study_uid=header.study_uid,
        series_uid=header.series_uid,
        frame_uid=header.frame_uid,
    )


def _stored(headers: Iterable[Header], files: Sequence[Path]) -> tuple[StoredSlice, ...]:
    place = {path: number for number, path in enumerate(files)}
    return tuple(
        StoredSlice(place[header.path], header.frame, _vector(header.position or ()), header.sop_uid)
        for header in headers
    )


def _vector(values: Iterable[float]) -> Vector:
    x, y, z = map(float, values)
    return x, y, z


def _by_instance(header: Header) -> tuple[Any, ...]:
    return header.instance is None, header.instance or 0, header.sop_uid, str(header.path)


def _same_bytes(a: Header, b: Header) -> bool:
    return a.size == b.size and filecmp.cmp(a.path, b.path, shallow=False)


def _place(header: Header) -> str:
    """Says where a slice lies, for messages: its position along the slice normal, else its instance number."""
    if header.position is not None and header.orientation is not None:
        try:
            return f"slice at {float(np.asarray(header.position) @ slice_normal(header)):.2f} mm along the slice normal"
        except InputRefusedError:
            pass
    return "a slice of unknown position" if header.instance is None else f"instance {header.instance}"


def _remarks(headers: Sequence[Header]) -> list[str]:
    """Returns what is unusual about slices that are loaded none the less; ``headers`` are in slice order."""
    notes = []
    numbers = [header.instance for header in headers]
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers):
        notes.append("instance numbers are missing: sorted by position")
    elif headers[0].grouped and known not in (sorted(known), sorted(known, reverse=True)):
        notes.append("frames are not stored in spatial order: sorted by position")
    elif len(headers) > 1 and known not in (sorted(known), sorted(known, reverse=True)):
        notes.append("instance numbers are not in spatial order: sorted by position")
    if any(not header.series_uid for header in headers):
        notes.append("no series UID: grouped by folder and series number")
    if any(not header.frame_uid and header.position is not None for header in headers):
        notes.append("no frame of reference")
    if any(header.has_padding for header in headers):
        notes.append("padding is declared: set to the lowest real value on reading")
    if any(header.photometric == "MONOCHROME1" for header in headers) and len(headers) > 1:
        notes.append("MONOCHROME1: kept as stored, values are measurements")
    return notes
