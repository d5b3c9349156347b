"""The folds of a cross-validation at the same time, one on each card of the machine."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from unet_med.bundle import load_bundle
from unet_med.config import PipelineConfig
from unet_med.manifest import Manifest
from unet_med.training.distributed import available_cores
from unet_med.training.processes import in_processes
from unet_med.workflows.fold import train_fold
from unet_med.workflows.session import JOURNAL, FoldCases, Session


@dataclass(frozen=True)
class _FoldJob:
    """What the process of a fold is given; the fields are those of :func:`train_fold` and :class:`Session`."""

    config: PipelineConfig
    manifest: Manifest
    cases: FoldCases
    folder: Path
    device: str
    memory_gb: float | None
    parent_run: str | None
    start_from: str | None
    masks: Path | None
    threads: int


def cards_for(device: torch.device, folds: int) -> int:
    """Returns how many folds can be trained at the same time: one on each card; on a CPU they share its cores."""
    return min(torch.cuda.device_count(), folds) if device.type == "cuda" and device.index is None else 1


def train_on_cards(
    config: PipelineConfig,
    manifest: Manifest,
    folds: Sequence[FoldCases],
    session: Session,
    start_from: str | None,
    cards: int,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Trains folds, ``cards`` at a time; yields the name of each when it is finished, and what the journal keeps of it.

    Each fold keeps its cache and its journal in a folder of its own until it is finished. ``session.journal`` learns
    of their runs.

    Raises:
        UnetMedError: what training a fold raised; the others have stopped at a checkpoint then.
        MachineError: when a process dies.
    """
    jobs = [
        _FoldJob(
            config,
            manifest,
            cases,
            session.out / cases.name,
            session.device.type,
            session.memory_gb,
            session.parent_run,
            start_from,
            session.masks,
            max(1, available_cores() // cards),
        )
        for cases in folds
    ]
    for number, (outcome, runs) in in_processes(_train, jobs, cards):
        session.journal["mlflow_runs"].update(runs)
        yield folds[number].name, outcome


def _train(job: _FoldJob, card: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trains a fold in this process; returns its outcome and the ids of its runs."""
    torch.set_num_threads(job.threads)
    device = torch.device(job.device, card) if job.device == "cuda" else torch.device(job.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    journal: dict[str, Any] = {"mlflow_runs": {}}
    if (job.folder / JOURNAL).exists():
        journal = json.loads((job.folder / JOURNAL).read_text(encoding="utf-8"))
    session = Session(
        job.folder,
        journal,
        device,
        job.memory_gb,
        time.monotonic(),
        job.parent_run,
        start=None if job.start_from is None else load_bundle(job.start_from),
        masks=job.masks,
    )
    outcome = train_fold(job.config, job.manifest, job.cases, job.folder, session)
    shutil.rmtree(job.folder / "cache", ignore_errors=True)
    return asdict(outcome), journal["mlflow_runs"]
