"""What other libraries say, made fit for a log: their texts quote headers, paths and values.

An error or a log line of this package is written so that it tells nothing private. Those of libraries are shown with
``--debug`` for finding faults, and there keep their words but lose whatever they quote.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator
from types import TracebackType

from unet_med.errors import UnetMedError

_HIDDEN = "..."
_QUOTED = re.compile(r"""(?<![A-Za-z0-9])b?(?P<mark>['"`]).*?(?P=mark)(?![A-Za-z0-9])""", re.DOTALL)
_PRIVATE = re.compile(
    r"""(?:[A-Za-z]:)?[/\\]\S+"""  # a path
    r"""|\S*\^\S*"""  # a name as DICOM writes it
    r"""|\b\d+(?:\.\d+){3,}\b"""  # a UID
    r"""|\b\d{6,}\b"""  # a date or a number of a patient
)

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def redacted(text: str) -> str:
    """Returns the text of a library without what it quotes, and without paths, names, UIDs and long numbers."""
    return _PRIVATE.sub(_HIDDEN, _QUOTED.sub(_HIDDEN, text))


def private_traceback(error: BaseException) -> str:
    """Returns the traceback of an error and of what led to it: all places in code, texts of libraries redacted."""
    return "\n".join(
        "Traceback (most recent call last):\n" + "".join(traceback.format_tb(one.__traceback__)) + _told(one)
        for one in reversed(list(_chain(error)))
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _told(error: BaseException) -> str:
    text = str(error) if isinstance(error, UnetMedError) else redacted(str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class PrivateFormatter(logging.Formatter):
    """Formats records of this package as they are, and redacts those of libraries and every traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line of a record."""
        if record.name.partition(".")[0] != "unet_med":
            record = logging.makeLogRecord({**record.__dict__, "msg": redacted(record.getMessage()), "args": None})
        record.exc_text = None  # another handler may have left a whole traceback here
        return super().format(record)

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802 - the name is logging's
        """Returns the redacted traceback."""
        return private_traceback(ei[1]) if ei[1] is not None else ""
