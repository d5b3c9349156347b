"""``unet-med retune``: other thresholds of objects, on maps that are kept; no network is run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from unet_med.bundle import BundleInfo, change_bundle, read_bundle_info
from unet_med.config import Instances
from unet_med.errors import ConfigError, NothingUsableError, UsageError
from unet_med.inference.objects import MAPS, MapArchive
from unet_med.instances.tuning import KEYS
from unet_med.io.atomic import write_json
from unet_med.metrics import summarise
from unet_med.workflows.journal import JOURNAL
from unet_med.workflows.objects import META_KEY, changes_of, object_table, scored_objects, tuned
from unet_med.workflows.outcome import Outcome
from unet_med.workflows.record import told_results
from unet_med.workflows.session import JOURNAL as RUN

_METRICS = "metrics.json"
_MODELS = ("model", "model_best")


@dataclass(frozen=True)
class _Fold:
    """The models of a fold and the maps of what they had not seen."""

    place: Path
    models: tuple[Path, ...]
    archive: MapArchive

    @classmethod
    def of(cls, folder: Path) -> _Fold | None:
        """Returns the fold that a folder holds; ``None``: no maps are kept in it."""
        archive = MapArchive(folder / MAPS)
        models = tuple(folder / name for name in _MODELS if (folder / name).is_dir())
        return cls(folder, models, archive) if models and archive.names() else None


def retune(folder: Path, overrides: Sequence[str] = (), data: Path | None = None) -> Outcome:
    """Chooses the thresholds of objects again, or takes given ones.

    Args:
        folder: Run folder of a model of objects: its models are changed, and the scores in ``metrics.json``. Or the
            output folder of a prediction or an evaluation: its masks are cut out anew, and scored again.
        overrides: ``instances.KEY=VALUE``; what is not given is kept. Nothing given for a run: everything is chosen
            anew on the held-out cases.
        data: Manifest of an evaluation.

    Raises:
        UsageError: when the folder is neither, or a key is none that is chosen after training.
        ConfigError: for a value that a key cannot have.
        NothingUsableError: when no maps are kept.
    """
    given = _given(overrides)
    if (folder / JOURNAL).is_file():
        from unet_med.workflows.retune_output import retune_output

        return retune_output(folder, given, data)
    if data is not None:
        raise UsageError("a run keeps the true objects of its held-out cases", "--data", "leave it out")
    return _retune_run(folder, given)


def _retune_run(run: Path, given: Mapping[str, Any]) -> Outcome:
    folds, ensemble = _folds(run), None
    scored: list[dict[str, Any]] = []
    per_fold: dict[str, Any] = {}
    if read_bundle_info(run).members:
        ensemble = read_bundle_info(run / "model")
    for name, fold in folds.items():
        info = read_bundle_info(fold.models[0])
        settings, told, reason = _settings([fold.archive], info, given)
        cases = scored_objects(fold.archive, settings, info.labels)
        metrics = _scores_of(fold.place / _METRICS, cases, told)
        for model in fold.models:
            _change(model, settings, told, reason, {"held_out": told_results(metrics)})
        write_json(fold.place / _METRICS, metrics, _METRICS)
        per_fold[name] = metrics["mean"]
        scored += cases
    if ensemble is not None:
        settings, told, reason = _settings([fold.archive for fold in folds.values()], ensemble, given)
        metrics = _scores_of(run / _METRICS, scored, told) | {"folds": per_fold}
        results = {"out_of_fold": told_results(metrics)}
        metrics["model_sha256"] = _change(run / "model", settings, told, reason, results)
        write_json(run / _METRICS, metrics, _METRICS)
    lines = [f"instances: {reason}", *object_table(metrics), f"{_METRICS} and model: {run}"]
    return Outcome({key: value for key, value in metrics.items() if key != "cases"}, lines)


def _settings(
    archives: Sequence[MapArchive], info: BundleInfo, given: Mapping[str, Any]
) -> tuple[Instances, dict[str, Any], str]:
    """Returns settings, what metrics and bundle keep of how they came about, and the same in words."""
    before = info.config.instances
    if not given:
        tuning = tuned(archives, before)
        return tuning.settings, tuning.as_dict(), tuning.reason
    settings = info.config.replacing({f"instances.{key}": value for key, value in given.items()}).instances
    chosen = {key: getattr(settings, key) for key in KEYS}
    return settings, {"chosen": chosen, "given": sorted(given)}, f"{_listed(chosen)}: {', '.join(sorted(given))} given"


def _listed(chosen: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in chosen.items())


def _change(model: Path, settings: Instances, told: Mapping[str, Any], reason: str, results: Mapping[str, Any]) -> str:
    """Changes a bundle and what it says of itself; returns its sha256."""
    reasons = {**read_bundle_info(model).meta.get("reasons", {}), "instances": reason}
    return change_bundle(model, changes_of(settings), {META_KEY: told, "reasons": reasons, "results": results})


def _scores_of(path: Path, scored: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of ``metrics.json`` with new scores; what else it says is kept."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    before.pop("model_sha256", None)
    return {**before, **summarise(scored), META_KEY: dict(told)}


def _folds(run: Path) -> dict[str, _Fold]:
    if not (run / RUN).is_file():
        raise UsageError(
            "the folder is no run and no output folder",
            run.name,
            "give what `unet-med train --out` or `unet-med predict` wrote",
        )
    info = read_bundle_info(run)
    if not info.labels.objects:
        raise UsageError("the model tells no objects apart", run.name, "train with task: instance")
    names = [run.name] if not info.members else sorted(path.name for path in run.glob("fold_*"))
    found = {name: _Fold.of(run / name if info.members else run) for name in names}
    folds = {name: fold for name, fold in found.items() if fold is not None}
    if not folds:
        raise NothingUsableError(
            "the run keeps no maps of held-out cases",
            run.name,
            "train with --fold N or --fold cv, which hold cases out",
        )
    return folds


def _given(overrides: Sequence[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for override in overrides:
        key, separator, value = override.partition("=")
        name = key.strip().removeprefix("instances.")
        if not separator or name not in KEYS:
            raise UsageError(
                f"--set {override!r} names nothing that is chosen after training",
                "--set",
                f"write instances.KEY=VALUE with KEY one of {', '.join(KEYS)}",
            )
        try:
            given[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override!r} has no value", "--set", "write instances.KEY=NUMBER") from error
    return given
