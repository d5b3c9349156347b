"""``unet-med run``: the whole way on one folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from unet_med import __version__
from unet_med.bundle import labels_of, read_bundle_info
from unet_med.config import load_config, parse_config
from unet_med.errors import UsageError
from unet_med.inference.device import choose_device
from unet_med.io.atomic import write_json
from unet_med.io.export.choices import export_options
from unet_med.io.export.formats import parse_formats
from unet_med.io.source import IntakeOptions
from unet_med.manifest import load_manifest
from unet_med.training.distributed import launched_processes
from unet_med.workflows.check import check
from unet_med.workflows.evaluate import evaluate
from unet_med.workflows.manifest import make_manifest
from unet_med.workflows.outcome import DONE, SOME_REFUSED, Outcome
from unet_med.workflows.plan import plan
from unet_med.workflows.predict import predict_cases
from unet_med.workflows.scan import scan
from unet_med.workflows.train import train

logger = logging.getLogger(__name__)


def run(
    pipeline: Path,
    folder: Path,
    out: Path,
    max_minutes: float | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
    intake: IntakeOptions = IntakeOptions(),  # noqa: B008
    overwrite: bool = False,
    formats: Sequence[str] = (),
) -> Outcome:
    """Scans a folder, pairs images and labels, trains, scores, and predicts what has no label.

    A second start of the same command goes on where the first stopped.

    Args:
        pipeline: Pipeline YAML.
        folder: Images and labels; never written to.
        out: Receives ``manifest.json``, ``model/`` (the run), ``evaluation/``, ``masks/`` and ``report.json``.
        max_minutes: Wall-clock budget of the training.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        overrides: ``a.b=c`` changes of the pipeline.
        intake: How the folder is read.
        overwrite: Replace what an earlier run left in ``out``.
        formats: Formats of the masks, as for ``predict``.

    Raises:
        UsageError: if ``out`` lies inside ``folder``, there is no such format, or ``torchrun`` started it.
        ConfigError: if a format needs codes of labels that nobody gave.
    """
    if launched_processes() > 1:
        raise UsageError(
            "only training is done by several processes",
            "torchrun",
            "make a manifest, then `torchrun -m unet_med train`",
        )
    if out.resolve().is_relative_to(folder.resolve()):
        raise UsageError("the output folder lies inside the input folder", "--out", "choose a folder beside it")
    parse_formats(formats)
    steps: dict[str, Outcome] = {}
    manifest = out / "manifest.json"
    steps["scan"] = scan(folder, intake)
    if overwrite or not manifest.exists():
        out.mkdir(parents=True, exist_ok=True)
        counted: Literal["instance"] | None = (
            "instance" if load_config(pipeline, overrides).task == "instance" else None
        )
        steps["manifest"] = make_manifest(folder, manifest, task=counted, intake=intake)
    steps["check"] = check(manifest, None)
    steps["plan"] = plan(pipeline, manifest, overrides=overrides, device=choose_device(device).type)
    planned = parse_config(steps["plan"].result["config"], "the plan")
    export_options(labels_of(planned), formats)  # codes that a format misses are told before hours of training
    steps["train"] = train(
        pipeline,
        manifest,
        out / "run",
        max_minutes=max_minutes,
        resume=not overwrite,
        device=device,
        overrides=overrides,
        overwrite=overwrite,
    )
    model = out / "run" / "model"
    if read_bundle_info(model).meta["training"]["held_out"]:
        steps["evaluate"] = evaluate(str(model), manifest, out=out / "evaluation", device=device, overwrite=overwrite)
    unlabelled = [case for case in load_manifest(manifest).test if case.case.label is None]
    if unlabelled:
        steps["predict"] = predict_cases(
            [str(model)],
            [case.case for case in unlabelled],
            out / "masks",
            device=device,
            overwrite=overwrite,
            formats=formats,
        )
    return _report(steps, out)


def _report(steps: dict[str, Outcome], out: Path) -> Outcome:
    """One report of all steps; refusals of any step show in the exit code."""
    predicted: dict[str, Any] = steps["predict"].result if "predict" in steps else {}
    code = SOME_REFUSED if any(step.exit_code == SOME_REFUSED for step in steps.values()) else DONE
    report = {
        "tool": "unet-med",
        "version": __version__,
        "model_sha256": predicted.get("model_sha256") or read_bundle_info(out / "run" / "model").sha256,
        "cases": predicted.get("cases", []),
        "totals": predicted.get("totals", {}),
        "steps": {name: {"exit_code": step.exit_code} for name, step in steps.items()},
        "metrics": {
            key: value for key, value in steps.get("evaluate", steps["train"]).result.items() if key != "cases"
        },
    }
    write_json(out / "report.json", report, "report.json")
    lines: list[str] = []
    for name, step in steps.items():
        if step.lines:
            lines += [f"[{name}]", *step.lines, ""]
    lines.append(f"report: {out / 'report.json'}")
    return Outcome(report, lines, code)
