"""Commands that plan and train networks."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from unet_med.cli.options import (
    DataOption,
    DeviceOption,
    FolderArgument,
    FoldOption,
    FormatOption,
    MinutesOption,
    OutOption,
    OverwriteOption,
    PipelineArgument,
    PlanMemoryOption,
    SetOption,
)
from unet_med.workflows.outcome import Outcome

if TYPE_CHECKING:
    from unet_med.io.source import IntakeOptions


def plan(
    pipeline: PipelineArgument,
    data: DataOption,
    memory_gb: PlanMemoryOption = None,
    device: DeviceOption = "auto",
    explain: Annotated[bool, typer.Option("--explain", help="Give the reason for each value.")] = False,
    set_: SetOption = [],
) -> Outcome:
    """Resolve every `auto` of a pipeline from the data."""
    from unet_med.workflows.plan import plan as workflow

    return workflow(pipeline, data, memory_gb=memory_gb, explain=explain, overrides=set_, device=device)


def plan_diff(
    plan_a: Annotated[str, typer.Argument(metavar="A", help="Pipeline file, JSON of a plan, run, or model.")],
    plan_b: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
) -> Outcome:
    """Say in what two plans differ, and why."""
    from unet_med.workflows.plan_diff import plan_diff as workflow

    return workflow(plan_a, plan_b)


def train(
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder of the run.")],
    pipeline: Annotated[
        Path | None,
        typer.Argument(metavar="[PIPELINE.yaml]", exists=True, dir_okay=False, help="Pipeline file."),
    ] = None,
    from_run: Annotated[
        str | None,
        typer.Option("--from-run", metavar="RUN_ID", help="Train again what this run of MLflow recorded."),
    ] = None,
    fold: FoldOption = None,
    max_minutes: MinutesOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on exactly where the run was stopped.")] = False,
    start_from: Annotated[
        str | None,
        typer.Option("--start-from", metavar="MODEL", help="Begin with the weights of this model and keep its plan."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", metavar="MODEL", help="Learn from this model or ensemble, too; measure the cost."),
    ] = None,
    device: DeviceOption = "auto",
    memory_gb: PlanMemoryOption = None,
    set_: SetOption = [],
    overwrite: OverwriteOption = False,
) -> Outcome:
    """Train a network; RUN/model is the result."""
    from unet_med.workflows.train import train as workflow

    return workflow(
        pipeline,
        data,
        out,
        fold=fold,
        max_minutes=max_minutes,
        resume=resume,
        device=device,
        overrides=set_,
        overwrite=overwrite,
        start_from=start_from,
        from_run=from_run,
        teacher=teacher,
        memory_gb=memory_gb,
    )


def run(
    pipeline: PipelineArgument,
    folder: FolderArgument,
    out: OutOption,
    max_minutes: MinutesOption = None,
    device: DeviceOption = "auto",
    set_: SetOption = [],
    formats: FormatOption = [],
    overwrite: OverwriteOption = False,
    *,
    intake: "IntakeOptions",
) -> Outcome:
    """Go the whole way on a folder, from scan to masks."""
    from unet_med.workflows.run import run as workflow

    return workflow(
        pipeline,
        folder,
        out,
        max_minutes=max_minutes,
        device=device,
        overrides=set_,
        intake=intake,
        overwrite=overwrite,
        formats=formats,
    )


def demo(
    kind: Annotated[
        Literal["3d", "2d", "cells"],
        typer.Argument(metavar="[3d|2d|cells]", help="Organs in CT, nuclei, or movies of cells that divide."),
    ] = "3d",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Output folder; default: demo_3d, demo_2d, demo_cells.")
    ] = None,
    max_minutes: MinutesOption = None,
    overwrite: OverwriteOption = False,
) -> Outcome:
    """Go the whole way on a phantom data set, in minutes."""
    from unet_med.workflows.demo import demo as workflow

    return workflow(kind, out or Path(f"demo_{kind}"), max_minutes=max_minutes, overwrite=overwrite)


def match(
    pipeline: PipelineArgument,
    data: DataOption,
    out: OutOption,
    kinds: Annotated[
        str, typer.Option("--kinds", metavar="NAME,...", help="Kinds of networks; the first is planned as it is.")
    ] = "unet,dilated,naive",
    fold: FoldOption = None,
    max_minutes: MinutesOption = None,
    device: DeviceOption = "auto",
    set_: SetOption = [],
) -> Outcome:
    """Train networks of other kinds with as many parameters and minutes, and compare them."""
    from unet_med.workflows.match import match as workflow

    return workflow(
        pipeline,
        data,
        out,
        tuple(kinds.split(",")),
        fold=fold,
        max_minutes=max_minutes,
        device=device,
        overrides=set_,
    )


def _whole_numbers(text: str | None) -> tuple[int, ...]:
    parts = text.split(",") if text else []
    if not all(part.strip().isdecimal() for part in parts):
        raise typer.BadParameter("give whole numbers, for example 12,36,96")
    return tuple(int(part) for part in parts)


def learning_curve(
    pipeline: PipelineArgument,
    data: DataOption,
    out: OutOption,
    sizes: Annotated[
        Any,
        typer.Option(
            "--sizes",
            metavar="N,...",
            parser=_whole_numbers,
            help="Numbers of training images; default: 1/8, 1/4, 1/2 and all.",
        ),
    ] = (),
    fold: Annotated[int, typer.Option("--fold", min=0, metavar="N", help="The fold held out.")] = 0,
    max_minutes: MinutesOption = None,
    device: DeviceOption = "auto",
    set_: SetOption = [],
) -> Outcome:
    """Train on more and more of the images, and say whether more would help."""
    from unet_med.workflows.learning_curve import learning_curve as workflow

    return workflow(
        pipeline,
        data,
        out,
        sizes,
        fold=fold,
        max_minutes=max_minutes,
        device=device,
        overrides=set_,
    )
