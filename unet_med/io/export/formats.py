"""The formats of masks: their names, what they need, and where they are written and checked.

Importing this module imports none of them: each is a module of its own with ``write(export, path)``, which writes
under a temporary name, and ``check(path, export)``, which opens the file by another library and stamps it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unet_med.errors import UsageError
from unet_med.io.export.mask import ExportOptions, MaskExport


@dataclass(frozen=True)
class Format:
    """One format of masks.

    Attributes:
        name: Canonical name.
        ending: What follows the id of a case in the file's name.
        module: Where it is written and checked, below :mod:`unet_med.io.export`.
        aliases: Other names that users type.
        folder: Whether a case becomes a folder of files.
        needs_volume: Whether it takes only volumes with a place in space.
        needs_dicom: Whether it refers to the slices of a DICOM series.
        needs_codes: Whether it cannot be written without a code for each label.
    """

    name: str
    ending: str
    module: str
    aliases: tuple[str, ...] = ()
    folder: bool = False
    needs_volume: bool = True
    needs_dicom: bool = False
    needs_codes: bool = False

    def needs_probabilities(self, options: ExportOptions) -> bool:
        """Whether it stores how sure the model is: fractional DICOM SEG."""
        return self.name == "dicom-seg" and options.seg_type == "fractional"

    def write(self, export: MaskExport, path: Path) -> None:
        """Writes a mask under a temporary name; for a folder ``path`` does not exist yet."""
        self._module().write(export, path)

    def check(self, path: Path, export: MaskExport) -> dict[str, Any]:
        """Opens what was written by another library and compares; returns the JSON-able record of it.

        Raises:
            InputRefusedError: when it does not say what was meant.
        """
        return dict(self._module().check(path, export))

    def _module(self) -> Any:
        return importlib.import_module(f"unet_med.io.export.{self.module}")


FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        Format("nifti", ".nii.gz", "nifti", ("nii", "nii.gz", "nifti1"), needs_volume=False),
        Format("label-tiff", ".tif", "label_tiff", ("tiff", "tif", "imagej"), needs_volume=False),
        Format("ome-zarr", ".ome.zarr", "ome_zarr", ("zarr", "omezarr"), folder=True, needs_volume=False),
        Format("geojson", ".geojson", "geojson", ("qupath",), needs_volume=False),
        Format("imagej-roi", ".roi.zip", "imagej_roi", ("roi", "rois", "roi-zip"), needs_volume=False),
        Format("coco", ".coco.json", "coco", ("coco-json",), needs_volume=False),
        Format("seg-nrrd", ".seg.nrrd", "seg_nrrd", ("seg.nrrd", "nrrd", "segnrrd", "slicer")),
        Format("dicom-seg", ".seg.dcm", "dicom_seg", ("seg", "dicomseg"), needs_dicom=True, needs_codes=True),
        Format("rtstruct", ".rtstruct.dcm", "rtstruct", ("dicom-rtstruct", "rtss", "rt"), needs_dicom=True),
        Format("dicom-sr", ".sr.dcm", "dicom_sr", ("sr", "tid1500"), needs_dicom=True, needs_codes=True),
        Format("dicom-sc", ".sc", "dicom_sc", ("sc", "secondary-capture"), folder=True, needs_dicom=True),
    )
}
"""Every format by its canonical name; ``nifti`` is ``label-tiff`` where an image has no place in space."""

_BY_ANY_NAME = {name: one.name for one in FORMATS.values() for name in (one.name, *one.aliases)}


def parse_formats(names: Iterable[str]) -> tuple[str, ...]:
    """Returns canonical names, each once, in the order of :data:`FORMATS`; ``nifti`` for none.

    Args:
        names: As typed; an entry may hold several, separated by commas.

    Raises:
        UsageError: when there is no such format.
    """
    wanted = set()
    for name in (part.strip().lower().replace("_", "-") for entry in names for part in entry.split(",")):
        if not name:
            continue
        if name not in _BY_ANY_NAME:
            raise UsageError(f"unknown format {name!r}", "--format", f"use one of: {', '.join(FORMATS)}")
        wanted.add(_BY_ANY_NAME[name])
    return tuple(name for name in FORMATS if name in wanted) or ("nifti",)
