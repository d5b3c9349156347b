"""Commands on models, and on the machine they run on."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from unet_med.cli.options import ModelArgument, OverwriteOption
from unet_med.workflows.outcome import Outcome


def doctor(
    target: Annotated[
        str | None, typer.Argument(metavar="[MODEL|PIPELINE]", help="Estimate time and memory of this one.")
    ] = None,
    input_: Annotated[
        Path | None, typer.Argument(metavar="[INPUT]", exists=True, help="... on these images.", show_default=False)
    ] = None,
) -> Outcome:
    """Look at the machine, or estimate a prediction."""
    from unet_med.workflows.doctor import doctor as workflow

    return workflow(target, input_)


def info(model: ModelArgument) -> Outcome:
    """Say what a model knows: labels, data, results, limits."""
    from unet_med.workflows.info import info as workflow

    return workflow(model)


def import_nnunet(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", exists=True, file_okay=False, help="Of a trainer: plans.json, fold_*."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the model to write.")],
    fold: Annotated[
        list[str], typer.Option("--fold", metavar="N|all", help="Only this fold (repeatable); default: all together.")
    ] = [],
    checkpoint: Annotated[
        Literal["final", "best"], typer.Option("--checkpoint", help="Of the last epoch, or the one thought best.")
    ] = "final",
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Name of the model.")] = None,
    orientation: Annotated[
        str | None,
        typer.Option(
            "--orientation",
            metavar="LPS",
            help="How the training images were stored; default: as each file is.",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
) -> Outcome:
    """Turn a model that nnU-Net v2 trained into one of ours."""
    from unet_med.workflows.import_nnunet import import_nnunet as workflow

    return workflow(folder, out, folds=fold, which=checkpoint, name=name, orientation=orientation, overwrite=overwrite)


def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    kind: Annotated[
        Literal["monai-bundle", "onnx", "openvino"],
        typer.Option("--format", help="From image to mask for MONAI, or the network alone."),
    ],
    overwrite: OverwriteOption = False,
) -> Outcome:
    """Write a model for other tools, and prove that it says the same."""
    from unet_med.workflows.export import export as workflow

    return workflow(model, out, kind, overwrite)
