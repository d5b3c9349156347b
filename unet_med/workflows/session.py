"""What the folds of one training are given, share and leave behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unet_med.bundle import Bundle
from unet_med.manifest import ManifestCase
from unet_med.training.distributed import Team
from unet_med.workflows.teaching import Teacher

JOURNAL = "run.json"
"""Of a run folder: what is known of earlier starts."""


@dataclass(frozen=True)
class FoldCases:
    """Which cases a fold learns from and which it holds out."""

    name: str
    training: tuple[ManifestCase, ...]
    held_out: tuple[ManifestCase, ...]


@dataclass(frozen=True)
class FoldOutcome:
    """What one fold left behind; kept in the journal, so that a finished fold is not trained again.

    Attributes:
        metrics: Scores of the last model on the held-out cases (``metrics.json``).
        scored: The scores of each of these cases, for a summary over folds.
        refused: Number of cases left out.
        lines: For the terminal.
    """

    metrics: dict[str, Any]
    scored: list[dict[str, Any]]
    refused: int
    lines: list[str]


@dataclass(frozen=True)
class Session:
    """What all folds of one command share.

    Attributes:
        out: Receives the cache and the journal.
        journal: What is known of earlier starts.
        device: Where to compute.
        memory_gb: Memory that the plan may use.
        started: When the fold began, on the monotonic clock.
        parent_run: Id of the run above the folds; ``None``: there is none.
        team: The processes that train together.
        start: The model that training starts from; ``None``: fresh weights.
        masks: Where the masks of held-out cases are kept; only where folds become the members of an ensemble.
        teacher: The model that training learns from beside the truth; ``None``: there is none.
    """

    out: Path
    journal: dict[str, Any]
    device: torch.device
    memory_gb: float | None
    started: float
    parent_run: str | None = None
    team: Team = field(default_factory=Team)
    start: Bundle | None = None
    masks: Path | None = None
    teacher: Teacher | None = None
