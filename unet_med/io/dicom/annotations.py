"""Truth in DICOM: which files are SEG or RTSTRUCT, which series they belong to, and their labels on an image's grid.

An annotation is told from its header like an image, but it is no image: it refers to one. :func:`open_label` is the
one way from a label to voxels, whatever its format.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.identity import keyed_hash, series_id
from unet_med.io.dicom.headers import Header
from unet_med.io.dicom.slices import Annotation, LabelArray, Segment, SliceLayout
from unet_med.io.reading import FileSource, check_frame, whole
from unet_med.io.source import SourceRef
from unet_med.volume import ImageSource, Region, Volume

_STORAGE = "1.2.840.10008.5.1.4.1.1."
SEG_CLASSES = frozenset({_STORAGE + "66.4", _STORAGE + "66.7"})
RTSTRUCT_CLASS = _STORAGE + "481.3"
ANNOTATION_KINDS = frozenset({"dicom-seg", "rtstruct"})
_GIVE_SERIES = "give the folder of the DICOM series that it was drawn on"


def is_annotation(header: Header) -> bool:
    """Whether a DICOM file holds segments or contours rather than an image."""
    if header.sop_class:
        return header.sop_class in SEG_CLASSES or header.sop_class == RTSTRUCT_CLASS
    return header.modality in ("SEG", "RTSTRUCT")


def inspect_annotations(headers: Iterable[Header]) -> list[SourceRef]:
    """Returns the annotations in these files, in the order of series number; files of the same bytes once."""
    kept: list[tuple[Header, int]] = []
    for header in sorted(headers, key=_order):
        twin = next((n for n, (one, _) in enumerate(kept) if _same_file(one, header)), None)
        if twin is None:
            kept.append((header, 0))
        else:
            kept[twin] = (kept[twin][0], kept[twin][1] + 1)
    refs = []
    for header, copies in kept:
        ref = inspect_annotation(header)
        note = f"{copies} duplicate file{'s' if copies > 1 else ''} dropped"
        refs.append(replace(ref, notes=(*ref.notes, note)) if copies else ref)
    return refs


def _order(header: Header) -> tuple[bool, int, str, str, str]:
    number = header.series_number
    return number is None, number or 0, header.series_uid, header.sop_uid, str(header.path)


def _same_file(one: Header, other: Header) -> bool:
    same = one.sop_uid == other.sop_uid and one.size == other.size
    return same and one.path.read_bytes() == other.path.read_bytes()


def inspect_annotation(header: Header) -> SourceRef:
    """Returns what a SEG or RTSTRUCT holds and refers to; not usable where it cannot be read exactly.

    Args:
        header: Of its file.

    Returns:
        Kind ``dicom-seg`` or ``rtstruct`` with an :class:`Annotation` as layout. A SEG has the grid of its own
        frames where they make one; contours have none.
    """
    contours = header.sop_class == RTSTRUCT_CLASS or (not header.sop_class and header.modality == "RTSTRUCT")
    ref = SourceRef(
        id=series_id(header.series_number, header.series_uid or header.sop_uid),
        kind="rtstruct" if contours else "dicom-seg",
        files=(header.path,),
        axes="",
        shape=(),
        geometry=None,
        dtype="uint8",
        modality="RTSTRUCT" if contours else "SEG",
        layout=Annotation((), study_uid=header.study_uid, frame_uid=header.frame_uid),
    )
    from unet_med.io.dicom.items import COPY_AGAIN, read_dataset, reading

    if header.fault and not (contours and header.fault == "without pixels"):
        return replace(ref, usable=False, reason=str(InputRefusedError(f"the file is {header.fault}", "", COPY_AGAIN)))
    try:
        with reading("the file cannot be read"):
            dataset = read_dataset(header.path)
            if contours:
                from unet_med.io.dicom.rtstruct import describe_rtstruct

                return describe_rtstruct(dataset, ref)
            from unet_med.io.dicom.seg import describe_seg

            return describe_seg(dataset, ref, header.syntax)
    except InputRefusedError as error:
        return replace(ref, usable=False, reason=str(error))


# ---- which image an annotation belongs to ---------------------------------------------------------------------------


def belongs_to(annotation: SourceRef, image: SourceRef) -> bool:
    """Whether an annotation names the series of an image, or one of its slices."""
    refers, layout = annotation.layout, image.layout
    if not isinstance(refers, Annotation) or not isinstance(layout, SliceLayout):
        return False
    return (layout.series_uid != "" and layout.series_uid in refers.series_uids) or names_slices(annotation, image) > 0


def names_slices(annotation: SourceRef, image: SourceRef) -> int:
    """Returns how many files of an image an annotation names."""
    refers, layout = annotation.layout, image.layout
    if not isinstance(refers, Annotation) or not isinstance(layout, SliceLayout):
        return 0
    return len({one.sop_uid for one in layout.slices} & refers.sop_uids)


def image_of(
    annotation: SourceRef, images: Sequence[SourceRef], everything: Sequence[SourceRef]
) -> tuple[SourceRef | None, str]:
    """Finds the image that an annotation refers to.

    That is the series that it names; of several images of this series the one whose files it names most. Where no
    image of the folder is of that series, used or not, one image of the same study and frame of reference stands in.

    Args:
        annotation: A usable SEG or RTSTRUCT.
        images: The usable images to choose from.
        everything: All sources of the folder.

    Returns:
        The image and what is unusual about it (mostly nothing), or ``None`` and why there is none.
    """
    refers = annotation.layout
    if not isinstance(refers, Annotation):
        return None, "holds no references"
    named = [image for image in images if belongs_to(annotation, image)]
    if len(named) > 1:
        counts = [names_slices(annotation, image) for image in named]
        most = [image for image, count in zip(named, counts, strict=True) if count == max(counts)]
        if len(most) > 1 or not max(counts):
            return None, f"refers to {len(named)} images alike: choose one with --series"
        return most[0], ""
    if named:
        return named[0], ""
    if any(_is_of(source, uid) for uid in refers.series_uids for source in everything):
        return None, "refers to a series that is not used"
    near = [
        image
        for image in images
        if isinstance(image.layout, SliceLayout)
        and refers.frame_uid != ""
        and (image.layout.frame_uid, image.layout.study_uid) == (refers.frame_uid, refers.study_uid)
    ]
    if len(near) == 1:
        return near[0], "it names no series of the folder: placed by the frame of reference"
    if near:
        return None, f"names no series of the folder, and {len(near)} share its frame of reference"
    return None, "refers to no series of the folder"


def _is_of(source: SourceRef, series_uid: str) -> bool:
    """Whether a source, usable or not, is made of a series; its id says so."""
    return source.kind == "dicom" and keyed_hash(series_uid) in source.id.split("-")


def place_notes(annotation: SourceRef, image: SourceRef) -> tuple[str, ...]:
    """Checks that an annotation lies in the space of an image, and returns what is unusual about it.

    Raises:
        InputRefusedError: It has another frame of reference, or nothing says that the two belong together.
    """
    refers, layout = annotation.layout, image.layout
    if not isinstance(refers, Annotation) or not isinstance(layout, SliceLayout):
        raise InputRefusedError("the image does not say where its slices lie", annotation.id, _GIVE_SERIES)
    if refers.frame_uid and layout.frame_uid and refers.frame_uid != layout.frame_uid:
        raise InputRefusedError(
            "the annotation lies in another frame of reference than the image", annotation.id, _GIVE_SERIES
        )
    known = belongs_to(annotation, image)
    if not known and not (refers.frame_uid and layout.frame_uid):
        raise InputRefusedError(
            "the annotation names neither the series nor the frame of reference of the image",
            annotation.id,
            _GIVE_SERIES,
        )
    if not known:
        return ("it names another series: placed by the frame of reference",)
    if refers.sop_uids and not names_slices(annotation, image):
        return ("the images that it names are not in the series: placed by the frame of reference",)
    return ()


# ---- labels ---------------------------------------------------------------------------------------------------------


def open_label(label: SourceRef, image: SourceRef) -> ImageSource:
    """Returns the source of a label: annotations and drawn objects on the grid of their image, a label file on its own.

    A SEG beside an image of another format keeps its own grid, too.

    Raises:
        InputRefusedError: The label is not usable, or does not lie in the space of the image.
    """
    if label.kind == "rtstruct" or (label.kind == "dicom-seg" and image.kind == "dicom"):
        return AnnotationSource(label, image)
    from unet_med.io.object_truth import OBJECT_KINDS, ObjectTruth

    if label.kind in OBJECT_KINDS:
        return ObjectTruth(label, image)
    from unet_med.io.discover import open_source

    return open_source(label)


def values_of(annotation: SourceRef) -> dict[int, int]:
    """Returns the label value of each segment: as the manifest says, else a SEG's own numbers, a region's place."""
    segments = annotation.layout.segments if isinstance(annotation.layout, Annotation) else ()
    told = annotation.read_as.get("segments")
    if told is not None:
        return {int(number): int(value) for number, value in told.items()}
    if annotation.kind == "dicom-seg":
        return {segment.number: segment.number for segment in segments}
    return {segment.number: place for place, segment in enumerate(segments, start=1)}


@dataclass(frozen=True)
class AnnotationSource(FileSource):
    """The labels of a SEG or RTSTRUCT on the grid of an image; without one, of a SEG on its own grid.

    Attributes:
        image: The DICOM series that it belongs to.
    """

    image: SourceRef | None = None
    _notes: list[str] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.ref.usable:
            raise InputRefusedError(f"the annotation cannot be used: {self.ref.reason}", self.ref.id)
        if self.image is None and self.ref.kind == "rtstruct":
            raise InputRefusedError("contours have no voxels of their own", self.ref.id, _GIVE_SERIES)
        if self.image is not None:
            self._notes.extend(place_notes(self.ref, self.image))
        if self.geometry.ndim != 3 and self.image is None:
            raise InputRefusedError("the segmentation has no volume", self.ref.id, _GIVE_SERIES)

    @property
    def geometry(self) -> Geometry:
        """The grid of the image, or of the SEG alone."""
        geometry = self.ref.geometry if self.image is None else self.image.geometry
        if geometry is None:
            raise InputRefusedError(
                "the annotation or its image has no grid", self.ref.id, "`unet-med scan` says what is wrong with them"
            )
        return geometry

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of the header, about its place, and (once it is read) about its voxels."""
        return (*self.ref.notes, *self._notes)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What is in it."""
        return self.ref.layout.segments if isinstance(self.ref.layout, Annotation) else ()

    def read(self, region: Region | None = None, frame: int = 0) -> Volume:
        """Returns label values (1, I, J[, K]), uint8 or uint16; the whole file is read.

        Raises:
            InputRefusedError: It is damaged, lies elsewhere than the image, or two segments claim one voxel.
        """
        check_frame(frame, 1, self.id)
        layout = self.image.layout if self.image is not None and isinstance(self.image.layout, SliceLayout) else None
        stored, notes = self._stored(layout)
        self._notes.extend(note for note in notes if note not in self._notes)
        labels = stored if layout is None else layout.labels_on_grid(stored)
        if self.geometry.ndim == 2:
            labels = labels[..., 0]
        if labels.shape != self.geometry.shape:
            raise InputRefusedError("the annotation has changed since the scan", self.id, "scan the folder again")
        bounds = whole(region, self.geometry)
        return Volume(labels[bounds][np.newaxis], self.geometry.crop(bounds))

    def _stored(self, layout: SliceLayout | None) -> tuple[LabelArray, list[str]]:
        """Returns the labels on the stored slices (columns, rows, slices) and notes."""
        path, values = self.ref.files[0], values_of(self.ref)
        if self.ref.kind == "rtstruct" and layout is not None:
            from unet_med.io.dicom.rtstruct import read_rtstruct

            return read_rtstruct(path, layout, values, self.id)
        from unet_med.io.dicom.seg import read_seg

        return read_seg(path, layout, values, self.id), []
