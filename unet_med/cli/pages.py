"""Commands that make pages of what other commands wrote."""

from pathlib import Path
from typing import Annotated

import typer

from unet_med.workflows.outcome import Outcome


def page(
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", exists=True, file_okay=False, help="What `predict` or `evaluate` wrote."),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="The model, for its card; only for folders of older versions."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="M.json", exists=True, dir_okay=False, help="Manifest: draw the true labels, too."
        ),
    ] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="Write each case as a PDF, too.")] = False,
) -> Outcome:
    """Make pages of masks: to look through, accept and reject."""
    from unet_med.workflows.page import page as workflow

    return workflow(out, model, data, pdf)
