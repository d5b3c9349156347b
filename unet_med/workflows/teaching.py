"""One model that learns from others: what they say of each case that it is trained on.

A case is put to the members of an ensemble that were not trained on it, where there are some: what a model says of its
own training cases is more certain than what it says of others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unet_med.bundle import BundleInfo, labels_of, load_bundle, read_bundle_info
from unet_med.config import PipelineConfig
from unet_med.data import TEACHER_STEPS, PreparedCases
from unet_med.errors import ConfigError, ModelError
from unet_med.inference.predictor import Predictor
from unet_med.io.atomic import whole_file
from unet_med.manifest import ManifestCase
from unet_med.transforms.preprocess import Preprocessor
from unet_med.workflows.opinions import Models, Opinions, unaware_of

_WEIGHT = 0.5
_WEIGHT_KEY = "loss.teacher_weight"


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained model, or an ensemble, that another one learns from.

    Attributes:
        info: The model.
    """

    info: BundleInfo

    @classmethod
    def of(cls, model: str) -> Teacher:
        """Opens a model by what ``predict`` takes for one.

        Raises:
            ModelError: when nothing is there, it is damaged, or it tells objects apart.
        """
        info = read_bundle_info(model)
        if info.labels.objects:
            raise ModelError("the teacher tells objects apart", "--teacher", "give a model of a semantic task")
        return cls(info)

    @property
    def members(self) -> Models:
        """Its networks."""
        return self.info.members or (self.info,)

    @property
    def case_sha256(self) -> tuple[str, ...]:
        """Hashes of the images that it was trained on."""
        return tuple((self.info.meta.get("training") or {}).get("case_sha256") or ())

    def origin(self) -> dict[str, Any]:
        """Returns what a bundle notes of its teacher."""
        return {"sha256": self.info.sha256, "name": self.info.config.name, "members": len(self.members)}

    def asked_about(self, case: ManifestCase) -> Models:
        """Returns the members that speak of a case: those that were not trained on it, or else all."""
        return unaware_of(case, self.members) or self.members

    def taught(
        self,
        prepared: PreparedCases,
        cases: Sequence[ManifestCase],
        config: PipelineConfig,
        opinions: Opinions,
        device: str,
    ) -> PreparedCases:
        """Gives each prepared case what the teacher says of it; what is there already is used again.

        Args:
            prepared: The training cases.
            cases: The same in the manifest.
            config: The resolved pipeline of the student.
            opinions: Where the files are kept.
            device: Where to predict.

        Raises:
            ModelError: if the teacher has other labels or channels than the student.
            MachineError: if memory or disk is full.
        """
        labels = labels_of(config)
        own = self.info.labels.names, self.info.labels.regions, self.info.channels
        if own != (labels.names, labels.regions, config.channels):
            raise ModelError(
                "the teacher's labels or channels are not those that are learnt",
                "--teacher",
                "give a model of the same task",
            )
        files, bad = opinions.of(
            prepared, cases, self.asked_about, lambda models: _Speaker(models, config, device).write, "asking"
        )
        return PreparedCases(
            tuple(replace(case, teacher_file=files[case.id]) for case in prepared.cases if case.id not in bad),
            (*prepared.refused, *bad.items()),
        )


def with_teacher(config: PipelineConfig, teacher: Teacher | None) -> PipelineConfig:
    """Returns the pipeline of a student; where it says nothing of the teacher's share, that is a half.

    Raises:
        ConfigError: if the pipeline needs a teacher and there is none, or if no teacher is for it.
    """
    if teacher is None:
        if config.loss.teacher_weight:
            raise ConfigError("there is no teacher", _WEIGHT_KEY, "give one with --teacher, or set it to 0")
        return config
    if config.task == "instance" or config.cascade.spacing_mm is not None:
        raise ConfigError(
            "a student is one network that labels voxels",
            "--teacher",
            "use a pipeline with task: semantic and cascade.spacing_mm: null",
        )
    return config if config.loss.teacher_weight else config.replacing({_WEIGHT_KEY: _WEIGHT})


class _Speaker:
    """Predicts with some models, and writes how likely each label is on the grid of the student."""

    def __init__(self, models: Models, config: PipelineConfig, device: str) -> None:
        self._predictor = Predictor([load_bundle(model.folder) for model in models], device)
        self._preprocessor = Preprocessor(config)

    def write(self, case: ManifestCase, file: Path) -> None:
        volume = case.case.read()
        chances = self._predictor.predict(volume, probabilities=True).probabilities
        said = self._preprocessor.prepare_chances(np.asarray(chances), self._preprocessor.prepare(volume))
        with whole_file(file, "what the teacher says") as part, part.open("wb") as opened:
            np.save(opened, np.rint(said * TEACHER_STEPS).astype(np.uint8))
