"""What every command has: options for machines and for those who look for faults, an outcome, an exit code."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unet_med.cli.options import DebugOption, JsonOption, VerboseOption
from unet_med.cli.reporting import configure_logging, plain, report, say
from unet_med.errors import Terminated
from unet_med.io.atomic import disk_errors, write_json
from unet_med.workflows.outcome import Outcome

_COMMON = (
    inspect.Parameter("json_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=JsonOption),
    inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=0, annotation=VerboseOption),
    inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=DebugOption),
)


def with_common_options(function: Callable[..., Outcome]) -> Callable[..., int]:
    """Returns the command of ``function``: with the options that all have; it prints and returns the exit code."""

    @functools.wraps(function)
    def run(**values: Any) -> int:
        json_file, verbose, debug = (values.pop(parameter.name) for parameter in _COMMON)
        try:
            configure_logging(verbose, debug)
            outcome = function(**values)
            if json_file is not None:
                write_json(json_file, plain(outcome.result), json_file.name)
                _write_private(json_file, outcome)
            say(outcome.lines)
        except (Exception, KeyboardInterrupt, Terminated) as error:  # noqa: BLE001 - the one place where all errors end
            return report(error, debug)
        return outcome.exit_code

    signature = inspect.signature(function)
    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in signature.parameters.values()]
    run.__signature__ = inspect.Signature([*own, *_COMMON])  # type: ignore[attr-defined]
    return run


def _write_private(json_file: Path, outcome: Outcome) -> None:
    """Writes the table from ids to files beside the result, where a command has one; only this user can read it."""
    if outcome.private is None:
        return
    from unet_med.identity import write_private_table

    table = json_file.with_name(json_file.name + ".sources.json")
    with disk_errors(table.name):
        write_private_table(table, outcome.private())
