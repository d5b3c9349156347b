"""What commands have in common that do the cases of a folder one by one: a case that fails stops no other."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unet_med.errors import MachineError, UnetMedError, UsageError
from unet_med.identity import case_tag
from unet_med.workflows.outcome import DONE, NOTHING_USABLE, SOME_REFUSED

logger = logging.getLogger(__name__)

_FAULTS = (OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, AttributeError)


@contextmanager
def attempted(case_id: str, what: str) -> Iterator[dict[str, Any]]:
    """Lends the record of a case to the work on it, and puts in what becomes of the case.

    Args:
        case_id: Id of the case.
        what: What could not be done when it fails, for the log: ``converted``.

    Yields:
        ``id``, ``status`` (``done``), ``reason``, ``outputs`` and ``checks``, for the work to fill. When it ends,
        ``status`` is ``refused`` or ``failed`` with a ``reason`` where the case alone is at fault, without outputs;
        ``seconds`` are those of the work.

    Raises:
        MachineError: The disk is full or memory ran out; that is not for the case to say.
    """
    started = time.perf_counter()
    record: dict[str, Any] = {"id": case_id, "status": "done", "reason": None, "outputs": [], "checks": {}}
    try:
        yield record
    except MachineError:
        raise
    except MemoryError as error:
        raise MachineError(
            "out of memory", case_id, "use a machine with more memory; what was finished is kept"
        ) from error
    except UnetMedError as error:
        record |= {"status": "refused", "reason": error.reason, "outputs": []}
    except _FAULTS as error:
        logger.warning("%s could not be %s (%s)", case_tag(case_id), what, type(error).__name__)
        reason = f"an unexpected {type(error).__name__}; please report it"
        record |= {"status": "failed", "reason": reason, "outputs": []}
    record["seconds"] = round(time.perf_counter() - started, 3)


def exit_code(states: Collection[str]) -> int:
    """Returns the exit code of a command by the ``status`` of its cases."""
    if all(state == "done" for state in states):
        return DONE
    return SOME_REFUSED if "done" in states else NOTHING_USABLE


def check_places(source: Path, name: str, out: Path) -> None:
    """Refuses an input that is not there, and an output folder in it.

    Args:
        source: The folder or file that is read.
        name: Its name on the command line.
        out: The folder that is written.

    Raises:
        UsageError: ``source`` does not exist, or ``out`` is ``source`` or lies in it.
    """
    if not source.exists():
        raise UsageError("the input does not exist", name, "give a folder or a file")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UsageError(
            "the output folder is the input folder or lies in it", "OUT", "give an output folder outside of the input"
        )
