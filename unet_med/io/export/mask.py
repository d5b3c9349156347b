"""What every writer of masks is given, and what its file says when it is read back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from unet_med.geometry import Geometry
from unet_med.io.dicom.slices import SliceLayout
from unet_med.io.export.measure import LabelMeasure, measure_labels
from unet_med.io.objects.drawn import DrawnObject
from unet_med.io.objects.table import ObjectTable
from unet_med.io.reading import FileSource
from unet_med.io.source import SourceRef
from unet_med.labels import LabelMap
from unet_med.volume import ImageSource, Region, slabs

SegType = Literal["binary", "labelmap", "fractional"]


@dataclass(frozen=True)
class ExportOptions:
    """How masks are written.

    Attributes:
        formats: Out of :data:`unet_med.io.export.formats.FORMATS`, in canonical spelling.
        seg_type: Kind of DICOM SEG.
        deidentify: Whether DICOM outputs carry no patient (PS3.15), with UIDs remapped by a keyed hash.
        labels: Labels that replace those of the model (colours, codes); same names and values.
    """

    formats: tuple[str, ...] = ("nifti",)
    seg_type: SegType = "binary"
    deidentify: bool = False
    labels: LabelMap | None = None


@dataclass(frozen=True, eq=False)
class MaskExport:
    """A finished mask on its way into files.

    Attributes:
        source: The image it was made of; its geometry is the mask's.
        labels: (I, J[, K]) unsigned integers on the grid of ``source``.
        label_map: Names, colours and codes.
        provenance: JSON-able; tool version, model and input hashes, ...; no patient data.
        options: As given by the user.
        probabilities: (labels, I, J[, K]) float32 from 0 to 1, one for each label of ``label_map``; only where a
            format needs them.
        objects: One row for each object, where the labels are numbers of objects; ``None``: they are classes.
        movie: (frames, I, J[, K]) the labels of all frames, ``labels`` being the first; ``None``: there is only one.
        overlapping: Masks of the objects, where a label image cannot hold them all; formats that list objects write
            these instead of what the label image shows.
    """

    source: ImageSource
    labels: npt.NDArray[np.unsignedinteger[Any]]
    label_map: LabelMap
    provenance: Mapping[str, Any] = field(default_factory=dict)
    options: ExportOptions = ExportOptions()
    probabilities: npt.NDArray[np.float32] | None = None
    objects: ObjectTable | None = None
    movie: npt.NDArray[np.unsignedinteger[Any]] | None = None
    overlapping: Sequence[DrawnObject] = ()

    @property
    def geometry(self) -> Geometry:
        """The grid of the mask, that of its source."""
        return self.source.geometry

    @cached_property
    def measures(self) -> dict[int, LabelMeasure]:
        """Size and centre of each label that occurs, measured once for all formats."""
        return measure_labels(self.labels, self.geometry)

    @property
    def dicom(self) -> SourceRef | None:
        """The DICOM series that the mask belongs to, with its slice layout; ``None`` for all other sources."""
        ref = source_ref(self.source)
        return ref if ref is not None and ref.kind == "dicom" and isinstance(ref.layout, SliceLayout) else None


class FileVoxels(Protocol):
    """The voxels of a file, read part by part.

    Attributes:
        shape: (I, J, K).
    """

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    def parts(self) -> Iterator[tuple[Region, npt.NDArray[Any]]]:
        """Yields regions that cover the file, in its order, and their voxels."""
        ...


@dataclass(frozen=True, eq=False)
class ReadBack:
    """What another library finds in a written file.

    Attributes:
        reader: The library.
        labels: (I, J, K) integers in the file's own axis order, or the file, where it can be read part by part.
        geometry: The grid they lie on, RAS+ mm.
        exact: Whether the format stores voxels, so that every voxel must be the same (contours do not).
    """

    reader: str
    labels: npt.NDArray[np.integer[Any]] | FileVoxels
    geometry: Geometry
    exact: bool = True


def parts_of(voxels: npt.NDArray[Any] | FileVoxels) -> Iterator[tuple[Region, npt.NDArray[Any]]]:
    """Yields regions and their voxels, together all of an array or a file."""
    if isinstance(voxels, np.ndarray):
        yield from ((region, voxels[region]) for region in slabs(voxels))
    else:
        yield from voxels.parts()


def source_ref(source: ImageSource) -> SourceRef | None:
    """Returns what discovery said of a source, also where it is one frame of another; ``None`` for arrays."""
    inner: Any = source
    while not isinstance(inner, FileSource):
        inner = getattr(inner, "source", None)
        if inner is None:
            return None
    return inner.ref
