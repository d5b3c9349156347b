"""The command line: parse, call one workflow, map errors to exit codes.

Every import of a workflow stands inside its command, so that ``--help`` answers at once. This is the one package that
configures logging, installs signal handlers and decides what a person sees of an error.
"""

import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from unet_med.cli import data, explaining, models, pacs, pages, prediction, review, training
from unet_med.cli.command import with_common_options
from unet_med.cli.reporting import report, say
from unet_med.errors import Terminated
from unet_med.version import __version__

COMMANDS = (
    data.scan,
    data.convert,
    data.manifest,
    data.check,
    data.correct,
    training.plan,
    training.plan_diff,
    training.train,
    prediction.evaluate,
    prediction.predict,
    pages.page,
    prediction.score,
    prediction.track,
    training.run,
    training.demo,
    models.doctor,
    models.info,
    models.import_nnunet,
    models.export,
    review.compare,
    training.match,
    prediction.retune,
    training.learning_curve,
    explaining.explain,
    explaining.rank,
    review.ui,
    pacs.send,
    pacs.receive,
)
"""In the order of ``--help``."""

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="A folder of scans in, masks that open in a viewer out, every experiment reviewable. Research use only.",
)
for _function in COMMANDS:
    app.command()(with_common_options(_function))


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        say([f"unet-med {__version__}"])
    elif context.invoked_subcommand is None:
        say([context.get_help()])
    else:
        return
    raise typer.Exit


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Within, SIGTERM raises :class:`Terminated`, so that ``finally`` blocks run; forked workers just end."""
    owner = os.getpid()

    def on_sigterm(_number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, on_sigterm)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        arguments: Words after the program's name; those of the process when left out.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that lacks a letter is no reason to fail
    with _sigterm_raises():
        try:
            return int(app(args=words, prog_name="unet-med", standalone_mode=False) or 0)
        except (Exception, KeyboardInterrupt, Terminated) as error:  # noqa: BLE001 - errors before a command began
            return report(error, "--debug" in words)
