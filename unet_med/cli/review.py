"""Commands that review experiments."""

from pathlib import Path
from typing import Annotated

import typer

from unet_med.cli.options import DeviceOption
from unet_med.workflows.outcome import Outcome


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", exists=True, help="Run, evaluation, or metrics.json.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", exists=True, help="The other one, on the same cases.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write a page and JSON here, and record them in MLflow.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="M.json", exists=True, dir_okay=False, help="Manifest: show cases that changed most."
        ),
    ] = None,
    store: Annotated[
        str | None, typer.Option("--store", metavar="URI", help="MLflow store; default: that of RUN_B.")
    ] = None,
    device: DeviceOption = "auto",
) -> Outcome:
    """Say whether one run is better than another, case by case."""
    from unet_med.workflows.compare import compare as workflow

    return workflow(run_a, run_b, out=out, data=data, store=store, device=device)


def ui(
    store: Annotated[
        str | None, typer.Option("--store", metavar="URI", help="MLflow store; default: sqlite:///mlflow.db here.")
    ] = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of the pages.")] = 5000,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open a browser.")] = False,
) -> Outcome:
    """Open the review of all experiments (`mlflow ui`)."""
    from unet_med.workflows.ui import ui as workflow

    return workflow(store, port, open_browser=not no_browser)
