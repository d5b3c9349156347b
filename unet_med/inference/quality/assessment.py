"""What a bundle knows of its own failures, and what that says of a case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_med.inference.quality import intended, outliers
from unet_med.inference.quality.calibration import FEATURES, MINIMUM_CASES, DiceModel, Estimate, calibrated
from unet_med.inference.quality.intended import Intended
from unet_med.inference.quality.outliers import Typical

if TYPE_CHECKING:
    from unet_med.inference.quality.evidence import CaseEvidence, Features
    from unet_med.io.cases import Case

SCHEMA = 1
META_KEY = "quality"
"""Where a bundle's ``meta`` keeps how Dice is predicted."""


def quality_meta(scored: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what a bundle's ``meta`` keeps under :data:`META_KEY`.

    Args:
        scored: Held-out cases as :func:`unet_med.workflows.evaluate.score_cases` returns them: ``labels`` holds the
            scores of each structure and the features of its mask. Cases of all folds calibrate an ensemble.
    """
    names = dict.fromkeys(name for case in scored for name in case["labels"])
    return {"schema": SCHEMA, "cases": len(scored), "labels": {name: _learnt(scored, name).to_json() for name in names}}


def _learnt(scored: Sequence[Mapping[str, Any]], name: str) -> DiceModel:
    rows = [case["labels"][name] for case in scored if name in case["labels"]]
    always = len(rows) >= MINIMUM_CASES and all(row["label_voxels"] for row in rows)
    compared = [{key: row.get(key) for key in ("dice", *FEATURES)} for row in rows if row["dice"] is not None]
    return calibrated(compared, always)


def quality_lines(meta: Mapping[str, Any]) -> list[str]:
    """Returns in words what a bundle with this ``meta`` knows of its own failures; older ones know nothing."""
    lines = [f"Dice of {name}: {model.sentence}" for name, model in _dice_models(meta).items()]
    typical = Typical.from_json(meta.get(outliers.META_KEY))
    if typical is not None and typical.limit is None:
        lines.append(f"unusual images are not recognised: {typical.cases} cases of training say too little")
    elif typical is not None:
        lines.append(f"unusual images are recognised by {len(typical.traits)} traits of {typical.cases} cases")
    return lines


@dataclass(frozen=True)
class Assessment:
    """What is said of a case that has no truth.

    Attributes:
        predicted_dice: Of each structure that was labelled, where it can be predicted.
        agreement: Mean Dice between each of several models and all of them together.
        unusual: In which ways the image is unlike those of training.
        look_at: Why somebody should look at the case; empty mostly.
    """

    predicted_dice: dict[str, Estimate] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)
    unusual: list[str] = field(default_factory=list)
    look_at: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON values, numbers with four digits."""
        dice = {name: _rounded(asdict(one)) for name, one in self.predicted_dice.items()}
        found = {"predicted_dice": dice, "unusual": list(self.unusual), "look_at": list(self.look_at)}
        return found | ({"agreement": _rounded(self.agreement)} if self.agreement else {})

    def joined(self, other: Assessment) -> Assessment:
        """Returns what is said of two frames together: the lower Dice, and every sentence once."""
        dice = dict(self.predicted_dice)
        for name, one in other.predicted_dice.items():
            dice[name] = min(one, dice.get(name, one), key=lambda estimate: estimate.value)
        agreement = {
            name: min(part[name] for part in (self.agreement, other.agreement) if name in part)
            for name in {**self.agreement, **other.agreement}
        }
        unusual = list(dict.fromkeys([*self.unusual, *other.unusual]))
        return Assessment(dice, agreement, unusual, list(dict.fromkeys([*self.look_at, *other.look_at])))


class Assessor:
    """Assesses predictions by what their bundles learnt from held-out cases.

    Args:
        metas: ``meta`` of the bundles that predict, in their order.
    """

    def __init__(self, metas: Sequence[Mapping[str, Any]]) -> None:
        self._models = [_dice_models(meta) for meta in metas]
        self._typical = Typical.from_json(metas[0].get(outliers.META_KEY)) if metas else None
        self._intended = Intended.from_json(metas[0].get(intended.META_KEY)) if metas else Intended()

    @property
    def knows_anything(self) -> bool:
        """Whether it is worth gathering evidence."""
        return any(self._models) or self._typical is not None

    def doubts(self, case: Case) -> list[str]:
        """Says before it is predicted what speaks against a case: another part of the body, far larger voxels.

        Raises:
            InputRefusedError: Its modality is not that of the model.
        """
        return self._intended.doubts(case)

    def assess(self, evidence: CaseEvidence) -> Assessment:
        """Says what is to be said of a case that was predicted."""
        features = evidence.features()
        unusual = [] if self._typical is None else self._typical.unusual(evidence.traits)
        dice: dict[str, Estimate] = {}
        reasons: list[str] = []
        for name in features[0] if features else ():
            pairs = [(models.get(name), own[name]) for models, own in zip(self._models, features, strict=True)]
            models = [model for model, _ in pairs if model is not None]
            if all(own[FEATURES[0]] is None for _, own in pairs):
                if models and all(model.always_there for model in models):
                    dice[name] = Estimate(0.0, 0.0, 0.0)
                    reasons.append(f"no voxel is {name}, which every held-out case has")
                continue
            found = _estimate(pairs)
            if found is not None:
                dice[name] = found
                reasons += _doubt(name, models, found)
        return Assessment(dice, evidence.agreement(), unusual, [*reasons, *unusual])


def _estimate(pairs: Sequence[tuple[DiceModel | None, Features]]) -> Estimate | None:
    """Returns the mean of what the calibration of each model says of its own mask."""
    found = [model.predict(own) for model, own in pairs if model is not None and own[FEATURES[0]] is not None]
    known = [estimate for estimate in found if estimate is not None]
    if not known:
        return None
    return Estimate(*(float(np.mean([getattr(one, part) for one in known])) for part in ("value", "low", "high")))


def _doubt(name: str, models: Sequence[DiceModel], found: Estimate) -> list[str]:
    alarm = float(np.mean([model.alarm for model in models]))
    if not any(model.knows for model in models) or found.value >= alarm:
        return []
    interval = f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"
    return [f"predicted Dice of {name} {interval}; nine of ten held-out cases reach {alarm:.2f}"]


def _dice_models(meta: Mapping[str, Any]) -> dict[str, DiceModel]:
    entry = meta.get(META_KEY)
    if not isinstance(entry, Mapping) or entry.get("schema") != SCHEMA or not isinstance(entry.get("labels"), Mapping):
        return {}
    read = {str(name): DiceModel.from_json(data) for name, data in entry["labels"].items()}
    return {name: model for name, model in read.items() if model is not None}


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}
