"""What lies beside masks: the JSON of each case, and the label tables of ITK-SNAP and 3D Slicer for a whole folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet_med.geometry import Geometry
from unet_med.io.atomic import whole_file
from unet_med.labels import Code, LabelMap
from unet_med.version import __version__

RESEARCH_ONLY = "Research use only"
ITKSNAP_LABELS = "labels.itksnap.txt"
SLICER_COLOURS = "labels.ctbl"

_ITKSNAP_HEADER = """\
################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
# Fields:
#    IDX:   Zero-based index
#    -R-:   Red color component (0..255)
#    -G-:   Green color component (0..255)
#    -B-:   Blue color component (0..255)
#    -A-:   Label transparency (0.00 .. 1.00)
#    VIS:   Label visibility (0 or 1)
#    IDX:   Label mesh visibility (0 or 1)
#  LABEL:   Label description
################################################
    0     0    0    0        0  0  0    "Clear Label"
"""


def sidecar_content(
    name: str,
    kind: str,
    geometry: Geometry,
    files: list[Path],
    provenance: Mapping[str, Any] | None,
    checks: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the content of the JSON that lies beside a mask or an image."""
    spacing = geometry.spacing_mm
    return {
        "id": name,
        "kind": kind,
        "use": RESEARCH_ONLY,
        "tool": "unet-med",
        "version": __version__,
        "files": [file.name for file in files],
        "shape": list(geometry.shape),
        "spacing_mm": None if spacing is None else list(spacing),
        "affine": None if geometry.affine_4x4 is None else geometry.affine_4x4.tolist(),
        "provenance": dict(provenance or {}),
        "checks": dict(checks),
    }


def label_entries(labels: LabelMap) -> list[dict[str, Any]]:
    """Returns the labels as JSON-able entries: value, name, colour and, where known, codes."""
    entries: list[dict[str, Any]] = []
    for label in labels.labels:
        entry: dict[str, Any] = {"value": label.index, "name": label.name, "colour": list(label.colour)}
        if label.code is not None:
            entry |= {"category": _triple(label.code.category), "type": _triple(label.code.type)}
            entry |= {} if label.code.modifier is None else {"modifier": _triple(label.code.modifier)}
        entries.append(entry)
    return entries


def itksnap_labels(labels: LabelMap) -> str:
    """Returns the label descriptions that ITK-SNAP loads (Segmentation > Import Label Descriptions)."""
    lines = []
    for label in labels.labels:
        red, green, blue = label.colour
        name = label.name.replace('"', "'")
        lines.append(f'{label.index:5d}   {red:3d}  {green:3d}  {blue:3d}        1  1  1    "{name}"\n')
    return _ITKSNAP_HEADER + "".join(lines)


def slicer_colours(labels: LabelMap) -> str:
    """Returns the colour table that 3D Slicer loads; a name has no spaces there."""
    lines = [f"# Color table file {SLICER_COLOURS}", f"# {len(labels.labels) + 1} values", "0 Background 0 0 0 0"]
    for label in labels.labels:
        name = re.sub(r"\s+", "_", label.name.strip()) or f"label_{label.index}"
        lines.append(f"{label.index} {name} {' '.join(map(str, label.colour))} 255")
    return "\n".join(lines) + "\n"


def write_label_tables(folder: Path, labels: LabelMap) -> list[Path]:
    """Writes both tables into a folder of masks, each whole or not at all; leaves tables that say the same."""
    contents = {ITKSNAP_LABELS: itksnap_labels(labels), SLICER_COLOURS: slicer_colours(labels)}
    for name, text in contents.items():
        path = folder / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        with whole_file(path, name) as part:
            part.write_text(text, encoding="utf-8")
    return [folder / name for name in contents]


def _triple(code: Code) -> list[str]:
    return [code.scheme, code.value, code.meaning]
