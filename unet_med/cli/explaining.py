"""Commands that look into a model: why it says what it says, and what it should learn next."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unet_med.cli.options import DeviceOption, FolderArgument, ModelArgument, OverwriteOption
from unet_med.workflows.outcome import Outcome

if TYPE_CHECKING:
    from unet_med.io.source import IntakeOptions

_AlsoOption = Annotated[list[str], typer.Option("--also", metavar="MODEL2", help="One more model (repeatable).")]
_OutArgument = Annotated[Path, typer.Argument(metavar="OUT", help="Output folder.")]


def explain(
    model: ModelArgument,
    case: Annotated[Path, typer.Argument(metavar="CASE", exists=True, help="File, or folder of one case.")],
    out: _OutArgument,
    also: _AlsoOption = [],
    label: Annotated[
        list[str], typer.Option("--label", metavar="NAME", help="Explain this label only (repeatable).")
    ] = [],
    block_mm: Annotated[
        float | None,
        typer.Option("--block-mm", metavar="MM", min=0.0001, help="Edge of the blocks that are hidden, in mm."),
    ] = None,
    dropout_samples: Annotated[
        int, typer.Option("--dropout-samples", metavar="N", min=2, help="Predictions with dropout left on.")
    ] = 10,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    *,
    intake: "IntakeOptions",
) -> Outcome:
    """Show where a model takes the labels of a case from, with evidence, and where it is unsure."""
    from unet_med.workflows.explain import explain as workflow

    return workflow(model, case, out, also, label, block_mm, dropout_samples, device, intake, overwrite)


def rank(
    model: ModelArgument,
    folder: FolderArgument,
    out: _OutArgument,
    also: _AlsoOption = [],
    labelled: Annotated[
        Path | None,
        typer.Option(
            "--labelled", metavar="M.json", exists=True, dir_okay=False, help="Manifest of what is labelled already."
        ),
    ] = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    *,
    intake: "IntakeOptions",
) -> Outcome:
    """Say which images of a folder to label next: those a model is unsure of, and unlike each other."""
    from unet_med.workflows.rank import rank as workflow

    return workflow(model, folder, out, also, labelled, device, intake, overwrite)
