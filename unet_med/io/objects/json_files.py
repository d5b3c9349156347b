"""JSON files that hold objects: read whole, with what is damaged refused and odd values passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unet_med.errors import InputRefusedError
from unet_med.io.reading import COPY_FILE_AGAIN, refusing

_MOST_BYTES = 2**31


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
        InputRefusedError: It is damaged, or too large to be held.
    """
    with refusing("the JSON file is damaged or truncated", "", COPY_FILE_AGAIN):
        if path.stat().st_size > _MOST_BYTES:
            raise InputRefusedError("the JSON file is larger than 2 GB", remedy="export each picture into its own file")
        return json.loads(path.read_text(encoding="utf-8-sig"))


def whole_number(value: Any) -> int | None:
    """Returns a whole number from 0 up; ``None`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or value < 0:
        return None
    return int(value)


def confidence_in(value: Any) -> float | None:
    """Returns a number from 0 to 1; ``None`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        return None
    return float(value)
