"""What a person reads about a run: its description, its parameters, why the plan is as it is, a sheet of pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from unet_med.config import PipelineConfig

if TYPE_CHECKING:
    import numpy as np

ALIAS: Final = "candidate"
_MAIN_CHOICES: Final = ("dims", "loss.kind", "network.style", "network.norm", "training.optimizer", "training.epochs")
_LEFT_OUT: Final = (
    *("schema_version", "name", "labels.", "regions", "channels", "tracking."),
    *("network.strides", "network.kernels"),
    *("training.workers", "training.checkpoint_minutes", "training.overlay_cases", "training.validation_every_epochs"),
)
_WIDEST: Final = 8
MODEL_NOTE: Final = (
    "Segmentation models trained by unet-med. Each version is a bundle: weights, labels, preprocessing and pipeline. "
    f"Use: `unet-med predict models:/NAME@{ALIAS} FOLDER OUT`."
)


def experiment_tags() -> dict[str, str]:
    """Returns the description of a new experiment."""
    return {
        "mlflow.note.content": "Segmentation training by unet-med, one run for each model. `val/dice/...` is measured "
        "on held-out cases after each epoch, `final/...` on the finished model.",
        "mlflow.experimentKind": "custom_model_development",
    }


@dataclass
class Facts:
    """What the description of a run is written from."""

    params: dict[str, str] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    results: dict[str, float] = field(default_factory=dict)
    model_uri: str | None = None


def plan_page(reasons: Mapping[str, str], params: Mapping[str, str]) -> str:
    """Returns the planner's choices as a Markdown table: key, value, reason."""
    lines = ["# Why these values", "", "| value | chosen | because |", "|---|---|---|"]
    for key, reason in reasons.items():
        sentence = " ".join(str(reason).split()).replace("|", "\\|")
        lines.append(f"| {key} | {params.get(key, '').replace('|', chr(92) + '|')} | {sentence} |")
    return "\n".join(lines) + "\n"


def describe(facts: Facts) -> str:
    """Returns the description of a run in Markdown; MLflow shows its first three lines, the rest on a click."""
    params, tags = facts.params, facts.tags
    labels = ", ".join(label_names(params)) or "the labels"
    kind = f"{params['dims']}-D" if params.get("dims", "auto") != "auto" else ""
    words = [(tags.get("task") or params.get("task", "")).capitalize(), "segmentation of", labels]
    sentence = " ".join(word for word in words if word)
    seen = ", ".join(part for part in (kind, *_list(params.get("channels"))) if part)
    sentence += f" ({seen})" if seen else ""
    lines = [*_result_lines(facts.results), f"**{sentence}**, trained by unet-med.", ""]
    if facts.model_uri:
        name = facts.model_uri.removeprefix("models:/").rpartition("/")[0]
        lines += [
            f"Use it: `unet-med predict {facts.model_uri} FOLDER OUT`; `models:/{name}@{ALIAS}` is the newest.",
            "",
        ]
    about = {
        **{key.replace("_", " "): short(value) for key, value in facts.dataset.items() if key != "digest"},
        "held out": tags.get("fold"),
        "patch (voxels)": params.get("sampling.patch_voxels"),
        "spacing (mm)": params.get("preprocess.spacing_mm"),
        "loss": params.get("loss.kind"),
        "seed": tags.get("seed"),
    }
    lines += [f"- {key}: {value}" for key, value in about.items() if value is not None]
    return "\n".join([*lines, "", *_LEGEND])


_LEGEND: Final = (
    "Where to look: *Model metrics* has the course of `train/...` and `val/...` and the overlays of the same cases "
    "over the epochs (scroll in the tile below the parameters, move the slider, click the picture). *Artifacts* has "
    "`overlays.png` (the last overlays), `worst_cases.png`, `cases.json` (scores of each case), `scores` (confusion, "
    "calibration, size and Dice), `data` (what the data set is like, and what the network sees of it), `pipeline.yaml` "
    "(the whole configuration), `plan.md` (why each value was chosen) and `model` (the bundle with its model card). "
    "*System metrics* says how busy the machine was.",
)


def _result_lines(results: Mapping[str, float]) -> list[str]:
    score = headline(results)
    if score is None:
        return []
    others = {key.removeprefix("dice/"): value for key, value in results.items() if key.startswith("dice/")}
    each = ", ".join(f"{name} {value:.3f}" for name, value in others.items() if name != "mean")
    return [f"**Dice {score:.3f}** on held-out cases{f' ({each})' if each else ''}.", ""]


def label_names(params: Mapping[str, str]) -> list[str]:
    """Returns the labels of a flat pipeline without the background."""
    return [key.removeprefix("labels.") for key, value in params.items() if key.startswith("labels.") and value != "0"]


def _list(text: str | None) -> list[str]:
    """Reads a parameter that was a list of names."""
    if not text or not text.startswith("["):
        return []
    return [str(one) for one in json.loads(text)]


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of a nested mapping with dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def short(value: object) -> str:
    """Returns a value as one line; empty keys of nested entries are left out."""
    if isinstance(value, (list, tuple)):
        value = [{k: v for k, v in one.items() if v is not None} if isinstance(one, dict) else one for one in value]
    return value if isinstance(value, str) else json.dumps(value, default=str)


def main_choices(flat: Mapping[str, str]) -> dict[str, str]:
    """Returns the parameters worth a line: the main choices and every value that differs from the default.

    A resolved pipeline has about 80 values; MLflow prints all parameters above each picture of its charts page. The
    whole pipeline is in ``pipeline.yaml``.
    """
    defaults = {key: short(value) for key, value in flatten(PipelineConfig(name="defaults").model_dump(mode="json"))}
    return {
        key: value
        for key, value in flat.items()
        if not key.startswith(_LEFT_OUT) and (key in _MAIN_CHOICES or defaults.get(key) != value)
    }


def headline(results: Mapping[str, float]) -> float | None:
    """Returns the mean Dice among final scores."""
    return next((value for key, value in results.items() if "dice" in key and "mean" in key), None)


def framed(picture: np.ndarray) -> np.ndarray:
    """Returns a picture, (rows, columns, 3) uint8, that is at most 8 times as long as wide, by adding black.

    MLflow makes a small copy, which for a strip has no rows left.
    """
    import numpy as np

    rows, columns = picture.shape[:2]
    wanted = (max(rows, math.ceil(columns / _WIDEST)), max(columns, math.ceil(rows / _WIDEST)))
    return np.pad(picture, ((0, wanted[0] - rows), (0, wanted[1] - columns), (0, 0)))


def stacked(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Returns RGB pictures one below the other on black, (rows, columns, 3) uint8."""
    import numpy as np

    width, gap = max(picture.shape[1] for picture in pictures), 8
    sheet = np.zeros((sum(picture.shape[0] + gap for picture in pictures) - gap, width, 3), np.uint8)
    row = 0
    for picture in pictures:
        sheet[row : row + picture.shape[0], : picture.shape[1]] = picture
        row += picture.shape[0] + gap
    return sheet
