"""Files of masks and of true labels that belong together: those of the same stem."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.identity import safe_name, stem_of
from unet_med.io.cases import Case
from unet_med.io.discover import discover, open_source
from unet_med.io.source import IntakeOptions, SourceRef
from unet_med.workflows.progress import track

Array = npt.NDArray[Any]

_PICTURES = ("png", "jpeg")
_READ_IN_BLOCKS = ("tiff", "zarr")
_WHOLE_VOXELS = 2**27
"""Pictures of more are not read as a whole."""

_BLOCK_VOXELS = 2**24


def by_stem(root: Path, options: IntakeOptions) -> dict[str, list[SourceRef]]:
    """Returns the images below a folder by the stem of their file; pictures count only where nothing else has it.

    Pictures (PNG, JPEG) beside a mask of the same stem are previews.
    """
    found: dict[str, list[SourceRef]] = {}
    for ref in discover(root, options, progress=track).sources:
        name = ref.id if ref.kind == "dicom" else safe_name(stem_of(ref.files[0]))
        found.setdefault(name, []).append(ref)
    return {name: [ref for ref in refs if ref.kind not in _PICTURES] or refs for name, refs in found.items()}


@dataclass(frozen=True)
class Pair:
    """The masks and the truths of one stem; there should be one of each."""

    id: str
    masks: Sequence[SourceRef]
    truths: Sequence[SourceRef]

    def frames(self) -> list[tuple[str, int]]:
        """Returns the id and number of every frame; the pages of a stack are cases of their own.

        Raises:
            InputRefusedError: if the files cannot be compared.
        """
        for what, refs in (("mask", self.masks), ("reference", self.truths)):
            if len(refs) > 1:
                raise InputRefusedError(
                    f"{len(refs)} files have this name, and which is the {what} is unknown",
                    self.id,
                    f"give a folder with one {what} for each case",
                )
            if not refs[0].usable:
                raise InputRefusedError(f"the {what} cannot be used: {refs[0].reason}", self.id)
        mask, truth = self.masks[0], self.truths[0]
        if mask.frames != truth.frames:
            raise InputRefusedError(
                f"the mask has {mask.frames} frames and the reference {truth.frames}",
                self.id,
                "give both with the same pages",
            )
        return [(self.frame_id(number), number) for number in range(truth.frames)]

    def frame_id(self, frame: int) -> str:
        """Returns the id of a frame."""
        return self.id if self.truths[0].frames == 1 else f"{self.id}-f{frame:03d}"

    def read_truth(self, frame: int) -> Array:
        """Returns the true labels (I, J[, K])."""
        return Case(self.id, (self.truths[0],), self.truths[0]).read_label(frame)

    def read_mask(self, frame: int) -> Array:
        """Returns the mask (I, J[, K]) on the grid of the truth, turned where it lies there in another axis order.

        Raises:
            InputRefusedError: if it lies elsewhere.
        """
        return Case(self.id, (self.truths[0],), self.masks[0]).read_label(frame)

    def spacing_mm(self) -> tuple[float, ...] | None:
        """Returns the voxel size of the truth, else of the mask (pictures often carry none)."""
        grids = [ref.geometry for ref in (self.truths[0], self.masks[0]) if ref.geometry is not None]
        return next((grid.spacing_mm for grid in grids if grid.is_calibrated), None)

    def read_map(self, frame: int) -> npt.NDArray[np.floating[Any]] | None:
        """Returns what lies in place of a mask (I, J[, K]) if that is a map of probabilities, else ``None``.

        Raises:
            InputRefusedError: if it holds fractions beyond 0 and 1.
        """
        values = open_source(self.masks[0]).read(frame=frame).array[0]
        if values.dtype.kind != "f" or (values == np.rint(values)).all():
            return None
        if not 0 <= values.min() <= values.max() <= 1:
            raise InputRefusedError(
                f"the mask holds fractions from {values.min():g} to {values.max():g}",
                self.id,
                "give probabilities from 0 to 1, or whole numbers",
            )
        return np.asarray(values)

    @property
    def in_blocks(self) -> bool:
        """Whether both can be read block by block: large label images that are stored on one grid."""
        both = (self.masks[0], self.truths[0])
        grids = [ref.geometry.shape for ref in both if ref.geometry is not None]
        simple = all(
            ref.kind in _READ_IN_BLOCKS and ref.channels == 1 and np.dtype(ref.dtype).kind in "ui" for ref in both
        )
        return simple and len(grids) == len(both) and grids[0] == grids[1] and math.prod(grids[0]) > _WHOLE_VOXELS

    def blocks(self, frame: int) -> Iterator[tuple[Array, Array]]:
        """Yields mask and truth of regions that cover each voxel once."""
        mask, truth = open_source(self.masks[0]), open_source(self.truths[0])
        *across, along = truth.geometry.shape
        step = max(1, _BLOCK_VOXELS // math.prod(across))
        for start in range(0, along, step):
            region = (*(slice(0, side) for side in across), slice(start, min(start + step, along)))
            yield mask.read(region, frame).array[0], truth.read(region, frame).array[0]

    def names(self) -> dict[int, str]:
        """Returns the names of label values from the sidecar JSON of the truth or the mask."""
        return {value: name for ref in (*self.masks, *self.truths) for value, name in sidecar_names(ref).items()}


def sidecar_names(ref: SourceRef) -> dict[int, str]:
    """Returns the names of label values from the JSON beside a file; none where it says nothing of them."""
    image = ref.files[0]
    try:
        content = json.loads(image.with_name(f"{stem_of(image)}.json").read_text(encoding="utf-8"))
        return {int(entry["value"]): str(entry["name"]) for entry in content["labels"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
