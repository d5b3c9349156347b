"""What every command has: options for machines and for those who look for faults, an outcome, an exit code."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unet_med.cli.options import (
    AxesOption,
    ChannelOption,
    DebugOption,
    GapsOption,
    JsonOption,
    PixelSizeOption,
    ResampleOption,
    SeriesOption,
    UntiltOption,
    VerboseOption,
    intake_options,
)
from unet_med.cli.reporting import configure_logging, plain, report, say
from unet_med.errors import Terminated
from unet_med.io.atomic import disk_errors, write_json
from unet_med.workflows.outcome import Outcome


def _option(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_COMMON = (
    _option("json_file", None, JsonOption),
    _option("verbose", 0, VerboseOption),
    _option("debug", False, DebugOption),
)
_INTAKE = (
    _option("series", [], SeriesOption),
    _option("axes", None, AxesOption),
    _option("pixel_size", None, PixelSizeOption),
    _option("channel", [], ChannelOption),
    _option("untilt", False, UntiltOption),
    _option("resample_slices", False, ResampleOption),
    _option("allow_gaps", False, GapsOption),
)
"""By which images are read: of every command that has a parameter ``intake``."""


def with_common_options(function: Callable[..., Outcome]) -> Callable[..., int]:
    """Returns the command of ``function``: with the options that all have; it prints and returns the exit code.

    A parameter ``intake`` of ``function`` stands for the options by which images are read.
    """
    own = dict(inspect.signature(function).parameters)
    reads = own.pop("intake", None) is not None
    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own.values()]
    parameters += [*(_INTAKE if reads else ()), *_COMMON]

    @functools.wraps(function)
    def run(**values: Any) -> int:
        json_file, verbose, debug = (values.pop(parameter.name) for parameter in _COMMON)
        try:
            configure_logging(verbose, debug)
            if reads:
                values["intake"] = intake_options(**{one.name: values.pop(one.name) for one in _INTAKE})
            outcome = function(**values)
            if json_file is not None:
                write_json(json_file, plain(outcome.result), json_file.name)
                _write_private(json_file, outcome)
            say(outcome.lines)
        except (Exception, KeyboardInterrupt, Terminated) as error:  # noqa: BLE001 - the one place where all errors end
            return report(error, debug)
        return outcome.exit_code

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _write_private(json_file: Path, outcome: Outcome) -> None:
    """Writes the table from ids to files beside the result, where a command has one; only this user can read it."""
    if outcome.private is None:
        return
    from unet_med.identity import write_private_table

    table = json_file.with_name(json_file.name + ".sources.json")
    with disk_errors(table.name):
        write_private_table(table, outcome.private())
