"""The first stage of a cascade: models at low resolution, and masks by models that had not seen the case.

The training cases are parted into two halves, no patient in both, and a model is trained on each. The second stage
learns from the masks of the model that was trained on the other half, which are as good, and as bad, as those it will
see later; of new images it sees what both models say together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unet_med.bundle import BundleInfo, labels_of, load_bundle, read_bundle_info
from unet_med.config import PipelineConfig
from unet_med.data import CachedCase, PreparedCases, Progress
from unet_med.errors import ConfigError
from unet_med.inference.predictor import Predictor
from unet_med.io.atomic import whole_file
from unet_med.manifest import ManifestCase
from unet_med.manifest.folds import assign_folds
from unet_med.metrics import confusion_counts, dice_iou
from unet_med.training.distributed import Team
from unet_med.transforms.preprocess import Preprocessor
from unet_med.workflows.opinions import Opinions, unaware_of

FOLDER = "cascade"
"""Of a fold, for the training of its models at low resolution."""
LOW_SHARE = 1 / 3
"""Of the minutes or epochs of a fold, what both models at low resolution take together."""

Halves = tuple[tuple[ManifestCase, ...], tuple[ManifestCase, ...]]
TrainLow = Callable[[PipelineConfig, str, tuple[ManifestCase, ...], Path], None]
"""Trains a model on cases into a folder, whose ``model`` is the bundle; it is given a name."""


@dataclass(frozen=True)
class FirstStage:
    """The models at low resolution.

    Attributes:
        models: Their bundles.
    """

    models: tuple[BundleInfo, ...]

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where they lie."""
        return tuple(model.folder for model in self.models)

    def unaware_of(self, case: ManifestCase) -> tuple[BundleInfo, ...]:
        """Returns the models that were not trained on a case: one for a training case, both for a held-out one."""
        return unaware_of(case, self.models)

    @property
    def notes(self) -> list[str]:
        """What a user should know of their training."""
        return [f"first stage: {note}" for model in self.models for note in model.meta["training"]["notes"]]

    @property
    def case_sha256(self) -> list[str]:
        """Hashes of the images that they were trained on."""
        return [image for model in self.models for image in model.meta["training"]["case_sha256"]]


def train_first_stage(
    config: PipelineConfig, resolved: PipelineConfig, halves: Halves, folder: Path, train: TrainLow
) -> FirstStage:
    """Trains the two models of a first stage.

    Args:
        config: The pipeline as it was given: each model has a plan of its own.
        resolved: The same pipeline, planned for the second stage.
        halves: What each is trained on.
        folder: Receives the training of each model.
        train: Trains one; it knows whether that is done already.
    """
    low = low_config(config, resolved)
    places = (folder / "low_0", folder / "low_1")
    for place, half in zip(places, halves, strict=True):
        train(low, place.name, half, place)
    return FirstStage(tuple(read_bundle_info(place / "model") for place in places))


def honest_halves(cases: Sequence[ManifestCase], usable: Sequence[ManifestCase], seed: int) -> Halves:
    """Parts cases into two halves, no group in both; it depends neither on their order nor on what is usable.

    Args:
        cases: The training cases of a fold.
        usable: Those of them that are returned.
        seed: Changes who goes where.

    Raises:
        ConfigError: if all that are usable are in one half.
    """
    half_of = assign_folds({case.id: case.group for case in cases}, 2, seed)
    first, second = (tuple(case for case in usable if half_of.get(case.id) == half) for half in (0, 1))
    if not first or not second:
        raise ConfigError(
            "a cascade learns from what its first stage says of patients that it has not seen: it needs two at least",
            "cascade.spacing_mm",
            "set it to null, or train on more patients",
        )
    return first, second


def low_config(config: PipelineConfig, resolved: PipelineConfig) -> PipelineConfig:
    """Returns the pipeline of a model at low resolution."""
    return config.replacing(
        {
            "dims": 3,
            "preprocess.spacing_mm": resolved.cascade.spacing_mm,
            "cascade.spacing_mm": None,
            "tracking.register_model": False,
            **_budget(config, LOW_SHARE / 2),
        }
    )


def second_stage(config: PipelineConfig) -> PipelineConfig:
    """Returns a resolved pipeline with the share of the budget that is left to a cascade's second stage."""
    return config.replacing(_budget(config, 1 - LOW_SHARE)) if config.prior_channels else config


def _budget(config: PipelineConfig, share: float) -> dict[str, Any]:
    minutes, epochs = config.training.max_minutes, config.training.epochs
    return {
        "training.max_minutes": None if minutes is None else minutes * share,
        "training.epochs": max(1, round(epochs * share)),
    }


# ---- masks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Priors:
    """Masks that a first stage makes of prepared cases.

    Attributes:
        stage: The models at low resolution.
        config: The resolved pipeline of the second stage, on whose grid the masks are.
        folder: Receives them.
        device: Where to predict.
        team: Each process does its share.
        progress: Wraps the cases to show how far it is.
    """

    stage: FirstStage
    config: PipelineConfig
    folder: Path
    device: str
    team: Team
    progress: Progress

    def of(self, prepared: PreparedCases, cases: Sequence[ManifestCase]) -> PreparedCases:
        """Gives each prepared case its mask; what is there already is used again.

        Args:
            prepared: Cases on the grid of the second stage.
            cases: The same in the manifest.

        Returns:
            The cases with their masks; those that the first stage cannot take are among the refused.

        Raises:
            MachineError: if memory or disk is full.
        """
        files, bad = Opinions(self.folder, self.team, self.progress).of(
            prepared,
            cases,
            self.stage.unaware_of,
            lambda models: _Writer(models, self.config, self.device).write,
            "labelling at low resolution",
        )
        return PreparedCases(
            tuple(replace(case, prior_file=files[case.id]) for case in prepared.cases if case.id not in bad),
            (*prepared.refused, *bad.items()),
        )


def first_stage_dice(cases: Iterable[CachedCase], config: PipelineConfig) -> float | None:
    """Returns the mean Dice over labels and cases of what the first stage found, on the grid of the second."""
    labels = labels_of(config)
    scores = [
        dice
        for case in cases
        if (prior := case.prior()) is not None
        for dice, _ in dice_iou(confusion_counts(np.asarray(prior), np.asarray(case.label()), labels)).values()
        if dice is not None
    ]
    return float(np.mean(scores)) if scores else None


class _Writer:
    """Predicts with some models at low resolution, and writes what they find on the grid of the second stage."""

    def __init__(self, models: Sequence[BundleInfo], config: PipelineConfig, device: str) -> None:
        self._predictor = Predictor([load_bundle(model.folder) for model in models], device)
        self._preprocessor = Preprocessor(config)

    def write(self, case: ManifestCase, file: Path) -> None:
        volume = case.case.read()
        found = self._predictor.predict(volume).labels
        mask = self._preprocessor.prepare_label(found, self._preprocessor.prepare(volume))
        with whole_file(file, "the masks at low resolution") as part, part.open("wb") as opened:
            np.save(opened, mask.astype(self._predictor.labels.dtype))
