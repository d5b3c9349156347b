"""Commands that make masks, and those that score or rework masks that exist."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unet_med.cli.options import (
    AxesOption,
    DataOption,
    DeidentifyOption,
    DeviceOption,
    FormatOption,
    LabelsOption,
    MemoryOption,
    ModelArgument,
    OutOption,
    OverwriteOption,
    PixelSizeOption,
    SegTypeOption,
    SeriesOption,
    SetOption,
    intake_options,
)
from unet_med.errors import UsageError
from unet_med.workflows.outcome import Outcome

if TYPE_CHECKING:
    from unet_med.io.source import IntakeOptions


def evaluate(
    model: ModelArgument,
    data: DataOption,
    out: OutOption,
    fold: Annotated[int | None, typer.Option("--fold", metavar="N", min=0, help="Score the cases of fold N.")] = None,
    split: Annotated[Literal["test"] | None, typer.Option("--split", help="Score the test cases.")] = None,
    allow_training_cases: Annotated[
        bool, typer.Option("--allow-training-cases", help="Score cases that the model was trained on, too.")
    ] = False,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> Outcome:
    """Predict held-out cases of a manifest and score them."""
    if fold is not None and split is not None:
        raise UsageError("--fold and --split exclude each other", "evaluate", "give one of them")
    from unet_med.workflows.evaluate import evaluate as workflow

    return workflow(
        model,
        data,
        fold=fold,
        split=split,
        out=out,
        allow_training_cases=allow_training_cases,
        device=device,
        overwrite=overwrite,
    )


def predict(
    model: ModelArgument,
    input_: Annotated[Path, typer.Argument(metavar="INPUT", exists=True, help="Folder of images, or one file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder.")],
    also: Annotated[
        list[str], typer.Option("--also", metavar="MODEL2", help="Average with this model (repeatable).")
    ] = [],
    formats: FormatOption = [],
    seg_type: SegTypeOption = "binary",
    labels: LabelsOption = None,
    deidentify: DeidentifyOption = False,
    tta: Annotated[bool, typer.Option("--tta", help="Average over mirrored copies: slower, a little better.")] = False,
    device: DeviceOption = "auto",
    memory_gb: MemoryOption = None,
    part: Annotated[
        str | None, typer.Option("--part", metavar="I/N", help="Do the I-th of N shares of the folder.")
    ] = None,
    pages: Annotated[bool, typer.Option("--pages", help="Make pages of the masks, too (see `page`).")] = False,
    overwrite: OverwriteOption = False,
    *,
    intake: "IntakeOptions",
) -> Outcome:
    """Segment every image of a folder, each on its own grid."""
    from unet_med.workflows.predict import predict as workflow

    outcome = workflow(
        model,
        input_,
        out,
        also=also,
        formats=formats,
        seg_type=seg_type,
        labels=labels,
        deidentify=deidentify,
        tta=tta,
        device=device,
        memory_gb=memory_gb,
        part=part,
        intake=intake,
        overwrite=overwrite,
    )
    if not pages:
        return outcome
    from unet_med.workflows.page import with_pages

    return with_pages(outcome, out)


def score(
    predictions: Annotated[Path, typer.Argument(metavar="PRED_DIR", exists=True, help="Masks to score.")],
    references: Annotated[Path, typer.Argument(metavar="REF_DIR", exists=True, help="True labels.")],
    task: Annotated[
        Literal["semantic", "instance", "tracking", "membrane"] | None,
        typer.Option(
            "--task",
            help="What label values mean: kinds of things (default), single objects, objects followed through time "
            "(folders of the Cell Tracking Challenge), or membranes between cells.",
        ),
    ] = None,
    tolerance_mm: Annotated[
        float, typer.Option("--tolerance-mm", metavar="MM", min=0.0, help="Tolerance of the surface Dice (NSD).")
    ] = 1.0,
    ignore_label: Annotated[
        int | None,
        typer.Option("--ignore-label", metavar="VALUE", min=1, help="Value in the true labels that is not scored."),
    ] = None,
    axes: AxesOption = None,
    membrane: Annotated[
        int | None,
        typer.Option("--membrane", metavar="VALUE", min=0, help="Value of membranes; default: by its name, else 0."),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            "--classes",
            metavar="CSV",
            exists=True,
            dir_okay=False,
            help="Class of each true object: id, object, class; of masks the tables in objects/ say it.",
        ),
    ] = None,
) -> Outcome:
    """Score masks made by anything against true labels."""
    from unet_med.workflows.score import score as workflow

    return workflow(
        predictions,
        references,
        task=task,
        tolerance_mm=tolerance_mm,
        ignore_label=ignore_label,
        axes=axes,
        membrane=membrane,
        classes=classes,
    )


def track(
    masks: Annotated[Path, typer.Argument(metavar="MASKS", exists=True, help="Label images of objects, in time.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder.")],
    images: Annotated[
        Path | None, typer.Option("--images", metavar="INPUT", exists=True, help="Draw the tracks on these images.")
    ] = None,
    max_move: Annotated[
        float, typer.Option("--max-move", metavar="D", min=0.01, help="Largest move to the next frame, in diameters.")
    ] = 1.0,
    max_gap: Annotated[
        int, typer.Option("--max-gap", metavar="N", min=0, help="Most frames in which an object may be missing.")
    ] = 2,
    no_divisions: Annotated[bool, typer.Option("--no-divisions", help="Objects do not divide.")] = False,
    series: SeriesOption = [],
    axes: AxesOption = None,
    pixel_size: PixelSizeOption = None,
    overwrite: OverwriteOption = False,
) -> Outcome:
    """Follow objects through time: divisions, gaps, entering, leaving."""
    intake = intake_options(series, axes, pixel_size, [], False, False, False)
    from unet_med.instances.linking import LinkSettings
    from unet_med.workflows.track import track as workflow

    settings = LinkSettings(max_move=max_move, max_gap=max_gap, divisions=not no_divisions)
    return workflow(masks, out, images, settings, intake, overwrite)


def retune(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|OUT", exists=True, file_okay=False, help="A run, or what `predict` or `evaluate` wrote."
        ),
    ],
    set_: SetOption = [],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="M.json", exists=True, dir_okay=False, help="Manifest of what was evaluated."),
    ] = None,
) -> Outcome:
    """Cut objects out with other thresholds: seconds, no network is run."""
    from unet_med.workflows.retune import retune as workflow

    return workflow(folder, set_, data)
