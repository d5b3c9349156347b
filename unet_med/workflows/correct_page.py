"""The page of corrected masks as a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet_med.io.atomic import whole_file
from unet_med.review.changes_page import page
from unet_med.review.comparison_page import Figure
from unet_med.workflows.compare_page import png_text
from unet_med.workflows.correct import ShownChange


def write_changes(path: Path, name: str, result: Mapping[str, Any], shown: Mapping[str, ShownChange]) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: The file.
        name: Of the data set.
        result: What :func:`unet_med.workflows.correct.correct` returns.
        shown: Case id -> what became of its mask.

    Raises:
        MachineError: The disk is full or the folder cannot be written.
    """
    figures = {case: _figure(one) for case, one in shown.items()}
    with whole_file(path, path.name) as part:
        part.write_text(page(name, result, figures), encoding="utf-8")


def _figure(one: ShownChange) -> Figure:
    return Figure(reason=one.reason) if one.picture is None else Figure((("what changed", png_text(one.picture)),))
