"""What discovery says of one image or series, before any voxel is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unet_med.geometry import Geometry
from unet_med.io.dicom.slices import Annotation, SliceLayout

DICOM_KINDS = frozenset({"dicom", "dicom-seg", "rtstruct"})
"""Kinds whose file names may be a patient's: they stay in private tables."""


@dataclass(frozen=True)
class IntakeOptions:
    """Choices about reading that the files do not settle; recorded per source in the manifest.

    Attributes:
        series: Ids (or beginnings of ids) of the sources to use; empty for all.
        axes: Meaning of the stored axes of stacks that do not declare them, for example ``ZYX``, ``TYX`` or ``IYX`` (I:
            independent pictures, P: positions).
        pixel_size_mm: Spacing along X, Y (and Z) of images that do not declare it, or declare one that is doubtful.
        channels: Names or numbers of the channels to use, in this order; empty for all.
        untilt: Regrid a DICOM stack whose slices move sideways (gantry tilt) onto a rectangular grid.
        resample_slices: Interpolate a DICOM stack of uneven steps onto even ones.
        allow_gaps: Fill missing slices of a DICOM stack by interpolating between their neighbours.
    """

    series: tuple[str, ...] = ()
    axes: str | None = None
    pixel_size_mm: tuple[float, ...] | None = None
    channels: tuple[str, ...] = ()
    untilt: bool = False
    resample_slices: bool = False
    allow_gaps: bool = False


@dataclass(frozen=True)
class SourceRef:
    """One image or series found in a folder.

    Attributes:
        id: Safe name, unique in its discovery.
        kind: ``dicom``, ``nifti``, ``nrrd``, ``mha``, ``tiff``, ``zarr``, ``czi``, ``nd2``, ``lif``, ``png`` or
            ``jpeg``; truth in DICOM: ``dicom-seg`` or ``rtstruct``.
        files: The files it is made of; for DICOM in slice order, for OME-Zarr its folder. Never printed.
        axes: Stored axes, slowest first for microscopes' formats ("TCZYX"), "IJK" order for volumes ("IJK", "CIJK").
        shape: Stored shape in the order of ``axes``.
        geometry: Grid of one frame; ``None`` when unusable.
        channels: Number of channels.
        channel_names: What the file calls them, in this order; a number for one without a name. Empty where it says
            nothing.
        frames: Independent pictures, positions or time points of the same grid.
        seconds_per_frame: Between two time points, where the file says so.
        levels: Stored shapes of smaller copies of the image (a pyramid), the finest first; see
            :func:`unet_med.io.levels.smaller`.
        dtype: numpy name of the values that ``read`` returns.
        usable: Whether it can be loaded exactly.
        reason: Why not, and what to do; empty when usable.
        notes: What was noticed while reading headers (duplicates dropped, MONOCHROME1 inverted, ...).
        modality: DICOM modality (CT, MR, PT, ...), if known.
        body_part: What DICOM calls the part of the body that was examined (ABDOMEN, BRAIN, ...), if known.
        read_as: JSON-able record of the switches that decided how it is read; stored in the manifest.
        layout: For DICOM: how the stored slices make the grid, or what an annotation refers to. Holds UIDs: in memory
            only, never printed or stored.
    """

    id: str
    kind: str
    files: tuple[Path, ...]
    axes: str
    shape: tuple[int, ...]
    geometry: Geometry | None
    channels: int = 1
    channel_names: tuple[str, ...] = ()
    frames: int = 1
    seconds_per_frame: float | None = None
    levels: tuple[tuple[int, ...], ...] = ()
    dtype: str = "float32"
    usable: bool = True
    reason: str = ""
    notes: tuple[str, ...] = ()
    modality: str | None = None
    body_part: str | None = None
    read_as: Mapping[str, Any] = field(default_factory=dict)
    layout: SliceLayout | Annotation | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Skipped:
    """Something in the folder that is no image: how many, and why it was left out."""

    what: str
    count: int
    reason: str


@dataclass(frozen=True)
class Discovery:
    """Everything found below a folder.

    Attributes:
        sources: The images.
        skipped: What is neither image nor label.
        annotations: Truth in DICOM (SEG, RTSTRUCT), which refers to images; each :class:`SourceRef` has an
            :class:`~unet_med.io.dicom.slices.Annotation` as its layout.
        outlines: Files of objects that somebody drew on pictures (ImageJ, QuPath, COCO); see
            :mod:`unet_med.io.object_truth`.
    """

    sources: tuple[SourceRef, ...]
    skipped: tuple[Skipped, ...] = ()
    annotations: tuple[SourceRef, ...] = ()
    outlines: tuple[SourceRef, ...] = ()

    @property
    def usable(self) -> tuple[SourceRef, ...]:
        """The sources that can be loaded."""
        return tuple(source for source in self.sources if source.usable)
