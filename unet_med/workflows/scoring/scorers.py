"""Labels and objects of masks beside the true ones, case by case."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from unet_med.errors import InputRefusedError, UsageError
from unet_med.labels import Label, LabelMap, label_colour
from unet_med.manifest.object_classes import ClassNames
from unet_med.metrics import (
    Overlap,
    case_metrics,
    dice_iou,
    match_classes,
    match_overlap,
    overlap_of_blocks,
    overlap_table,
    without_ignored,
)
from unet_med.metrics.voxels import Scores
from unet_med.workflows.progress import track
from unet_med.workflows.scoring.classes import classes_beside, listed_classes
from unet_med.workflows.scoring.pairs import Pair

SHOWN = 20
"""Lines of a kind that people are shown."""

_BINARY = {1, 255}
_MOST_LABELS = 1000


class Scorer(ABC):
    """Collects scored cases, and refusals with their reasons."""

    def __init__(self, tolerance_mm: float, ignored: int | None) -> None:
        self.tolerance_mm = tolerance_mm
        self.ignored = ignored
        self.cases: list[dict[str, Any]] = []
        self.refused: dict[str, str] = {}
        self.notes: list[str] = []

    def prepare(self, pairs: Sequence[Pair]) -> None:  # noqa: B027 - objects need no preparation
        """Looks at the references before anything is scored."""

    def score(self, pair: Pair) -> None:
        """Scores all frames of a pair, or notes why it is refused."""
        if pair.id in self.refused:
            return
        try:
            cases = [{"id": name} | self.compare(pair, frame) for name, frame in pair.frames()]
        except InputRefusedError as error:
            self.refuse(pair, error)
        else:
            self.cases += cases

    def refuse(self, pair: Pair, error: InputRefusedError) -> None:
        """Notes why a pair is not scored."""
        self.refused[pair.id] = error.reason

    @abstractmethod
    def compare(self, pair: Pair, frame: int) -> dict[str, Any]:
        """Returns what :func:`unet_med.metrics.summarise` takes of one frame."""


class SemanticScorer(Scorer):
    """Values are labels: those that any reference holds."""

    def __init__(self, tolerance_mm: float, ignored: int | None) -> None:
        super().__init__(tolerance_mm, ignored)
        self.labels = LabelMap(())

    def prepare(self, pairs: Sequence[Pair]) -> None:
        """Finds the values of all references and their names."""
        values: set[int] = set()
        names: dict[int, str] = {}
        for pair in track(pairs, "reading references"):
            try:
                for _, frame in pair.frames():
                    values |= {int(value) for value in np.unique(pair.read_truth(frame))} - {0, self.ignored}
            except InputRefusedError as error:
                self.refuse(pair, error)
            else:
                names |= pair.names()
        if len(values) > _MOST_LABELS:
            raise UsageError(
                f"the references hold {len(values)} different values", "--task", "score objects with --task instance"
            )
        self.labels = LabelMap(
            tuple(Label(value, names.get(value, f"label_{value}"), label_colour(value)) for value in sorted(values)),
            ignored=self.ignored,
        )

    def compare(self, pair: Pair, frame: int) -> dict[str, Any]:
        """Scores every label."""
        known = {label.index for label in self.labels.labels}
        mask, truth = without_ignored(pair.read_mask(frame), pair.read_truth(frame), self.labels)
        own = {int(value) for value in np.unique(mask)} - {0}
        if len(known) == len(own) == 1 and known | own == _BINARY:
            mask = np.where(mask != 0, known.pop(), 0)
        elif own - known:
            self.notes.append(f"{pair.id}: values that no reference has are not scored: {sorted(own - known)[:SHOWN]}")
        return {"labels": case_metrics(mask, truth, pair.spacing_mm(), self.labels, self.tolerance_mm)}


class ObjectScorer(Scorer):
    """Values are numbers of objects; the foreground as a whole is scored besides.

    Args:
        tolerance_mm: Of surfaces.
        ignored: Value in the true labels that is not scored.
        classes: Of the true objects; where nothing is listed a table beside the true labels counts.
    """

    labels = LabelMap.from_names({"object": 1})

    def __init__(self, tolerance_mm: float, ignored: int | None, classes: ClassNames | None = None) -> None:
        super().__init__(tolerance_mm, ignored)
        self._classes = classes or {}

    def compare(self, pair: Pair, frame: int) -> dict[str, Any]:
        """Matches objects, and compares what is object at all; of pictures read in blocks without its surface.

        Where the classes of both sides are known, the objects of each class are matched among themselves besides.
        """
        known = LabelMap((), ignored=self.ignored)
        if pair.in_blocks:
            table = overlap_of_blocks(without_ignored(*block, known) for block in pair.blocks(frame))
            return {"labels": {"object": _foreground(table)}, "instance": self._matched(table, pair, frame)}
        mask, truth = without_ignored(pair.read_mask(frame), pair.read_truth(frame), known)
        inside, true_inside = (mask != 0).astype(np.uint8), (truth != 0).astype(np.uint8)
        return {
            "labels": case_metrics(inside, true_inside, pair.spacing_mm(), self.labels, self.tolerance_mm),
            "instance": self._matched(overlap_table(mask, truth), pair, frame),
        }

    def _matched(self, table: Overlap, pair: Pair, frame: int) -> dict[str, Any]:
        ours = classes_beside(pair.masks[0], frame)
        listed = listed_classes(self._classes, pair.id, pair.frame_id(frame))
        theirs = listed or classes_beside(pair.truths[0], frame)
        if ours is not None and theirs is not None:
            return match_overlap(table) | {"classes": match_classes(table, ours, theirs)}
        if theirs is not None:
            self.notes.append(f"{pair.id}: no table says of what class the objects of the mask are")
        return match_overlap(table)


def _foreground(table: Overlap) -> Scores:
    """Returns what can be said of the objects as a whole without their surfaces."""
    ours, true, hits = (int(voxels.sum()) for voxels in (table.mask_voxels, table.label_voxels, table.shared))
    dice, iou = dice_iou({"object": (hits, ours - hits, true - hits)})["object"]
    unknown = dict.fromkeys(("hd95_mm", "nsd", "volume_error_ml"))
    return {"dice": dice, "iou": iou, **unknown, "mask_voxels": ours, "label_voxels": true}
