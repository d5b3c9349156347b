"""What a comparison leaves behind: its page with pictures, its JSON, and its record in MLflow."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from unet_med.io.atomic import whole_file, write_json
from unet_med.manifest import load_manifest
from unet_med.overlays import Picture
from unet_med.review.comparison_page import Figure, page
from unet_med.workflows.compare import PAGE, RESULT
from unet_med.workflows.compare_pictures import CasePictures, draw_cases
from unet_med.workflows.compare_record import record_comparison

_LOSSES, _GAINS = 6, 3
"""Cases that are shown."""
_WIDTH = 1100
"""Of a picture of three planes; those of two-dimensional images are about half as wide and stand side by side."""


def write_comparison(
    out: Path, result: Mapping[str, Any], runs: tuple[Path, Path], data: Path | None, store: str | None, device: str
) -> list[str]:
    """Writes ``comparison.json`` and ``comparison.html``, and records both in MLflow.

    Args:
        out: Folder for them, made if needed.
        result: What :func:`unet_med.workflows.compare.compare` returns.
        runs: The two run folders.
        data: Manifest of the cases; ``None``: nothing is shown of them.
        store: The MLflow store; ``None``: that of the second run, where it was recorded.
        device: Computes masks that nobody kept.

    Returns:
        Lines for the terminal.

    Raises:
        UsageError: if the manifest cannot be read or ``store`` cannot be opened.
        MachineError: if a file cannot be written.
    """
    drawn = {} if data is None else draw_cases(load_manifest(data), runs, _changed_most(result), device)
    figures = {case: _figure(pictures) for case, pictures in drawn.items()}
    write_json(out / RESULT, result, RESULT)
    with whole_file(out / PAGE, PAGE) as part:
        part.write_text(page(result, figures), encoding="utf-8")
    return [f"{RESULT} and {PAGE}: {out}", *record_comparison(result, figures, runs, store)]


def _changed_most(result: Mapping[str, Any]) -> list[str]:
    losses = [one["id"] for one in result["changes"] if one["gain"] < 0][:_LOSSES]
    gains = [one["id"] for one in reversed(result["changes"]) if one["gain"] > 0][:_GAINS]
    return [*losses, *gains]


def _figure(drawn: CasePictures) -> Figure:
    if drawn.first is None or drawn.second is None:
        return Figure(reason=drawn.reason)
    return Figure((("A", png_text(drawn.first)), ("B", png_text(drawn.second))))


def png_text(picture: Picture, width: int = _WIDTH) -> str:
    """Returns a picture as a PNG file in base64, not wider than ``width`` pixels."""
    image = Image.fromarray(picture)
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.BOX)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
