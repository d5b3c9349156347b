"""What a person sees: lines, one line for each error, the log; and the exit code that says the same."""

import errno
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from unet_med.errors import ConfigError, MachineError, Terminated, UnetMedError, UsageError
from unet_med.redaction import PrivateFormatter, private_traceback, redacted

USAGE = UsageError.exit_code
MACHINE = MachineError.exit_code
BUG = 1
INTERRUPTED = 130
TERMINATED = 143
_DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}


def say(lines: Sequence[str]) -> None:
    """Prints to stdout; a reader that went away (``| head``) is no error."""
    try:
        for line in lines:
            typer.echo(line)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()


def _drop_stdout() -> None:
    """Points stdout to nowhere, so that the interpreter's last flush does not fail either."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def plain(value: Any) -> Any:
    """Returns ``value`` in JSON's own types; a number that does not exist (NaN, infinity) becomes null."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    if value is None or isinstance(value, (str, int)):
        return value
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return plain(value.tolist())
    return str(value)


def report(error: BaseException, debug: bool) -> int:
    """Prints one line about ``error`` on stderr and returns the exit code."""
    if debug:
        typer.echo(private_traceback(error), err=True)
    code, message, details = _explain(error)
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    for detail in details:
        typer.echo(f"  - {detail}", err=True)
    if isinstance(error, ConfigError) and error.example:
        typer.echo(f"\n{error.example}", err=True)
    return code


def _explain(error: BaseException) -> tuple[int, str, tuple[str, ...]]:
    """Returns exit code, one line and further lines; nothing of an unexpected error but its kind and its place."""
    if isinstance(error, UnetMedError):
        problems = error.problems if isinstance(error, ConfigError) and len(error.problems) > 1 else ()
        return error.exit_code, str(error), problems
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted: what was finished is kept, the same command goes on from there", ()
    if isinstance(error, Terminated):
        return TERMINATED, "terminated: what was finished is kept, the same command goes on from there", ()
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return MACHINE, "the disk is full: free some space, then run the same command again", ()
    if isinstance(error, OSError) and error.errno in _NOT_ALLOWED:
        return MACHINE, "no permission to read or write a file: check the rights of the input and output folders", ()
    if _is_out_of_memory(error):
        return MACHINE, "out of memory: close other programs, or give a smaller --memory-gb or patch", ()
    if hasattr(error, "format_message"):  # what the command-line parser says
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "unet-med"
        what = error.format_message().strip().rstrip(".")
        return USAGE, f"{what[:1].lower()}{what[1:]} ({command}): see `{command} --help`", ()
    return BUG, f"internal error {type(error).__name__} ({_place(error)}): run again with --debug and report it", ()


def _is_out_of_memory(error: BaseException) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from unet_med.inference.predictor import is_out_of_memory

    return is_out_of_memory(error)


def _place(error: BaseException) -> str:
    """Returns the line of this package where ``error`` came from, ``module:line``; a place in code is never private."""
    command_line = Path(__file__).parent
    package = command_line.parent
    place = "unknown place"
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename)
        if file.is_relative_to(package) and file.parent != command_line:
            place = f"{file.relative_to(package).as_posix()}:{frame.lineno}"
    return place


def configure_logging(verbose: int, debug: bool) -> None:
    """Shows this package's own log; libraries stay silent without ``--debug``, and with it their words are redacted."""
    logger = logging.getLogger("unet_med")
    root = logging.getLogger()
    for owner in (logger, root):
        for earlier in [earlier for earlier in owner.handlers if earlier.get_name() == "unet-med-cli"]:
            owner.removeHandler(earlier)
    handler = logging.StreamHandler()
    handler.set_name("unet-med-cli")
    handler.setFormatter(PrivateFormatter("%(levelname)s %(name)s: %(message)s"))
    logger.setLevel({0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG))
    if debug:
        root.addHandler(handler)
        warnings.showwarning = _show_warning
    else:
        logger.addHandler(handler)
        root.addHandler(logging.NullHandler())
        warnings.simplefilter("ignore")


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
) -> None:
    """Shows the warning of a library without what it quotes."""
    typer.echo(f"{category.__name__} {Path(filename).name}:{lineno}: {redacted(str(message))}", err=True)
