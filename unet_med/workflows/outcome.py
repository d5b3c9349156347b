"""What every command returns: lines for a person, a result for machines, an exit code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

DONE = 0
SOME_REFUSED = 3
NOTHING_USABLE = 4
MACHINE = 5


@dataclass(frozen=True)
class Outcome:
    """The result of a workflow.

    Attributes:
        result: JSON-serialisable; what ``--json FILE`` writes.
        lines: Plain text for the terminal.
        exit_code: 0 all done, 3 some inputs refused or findings, 4 nothing usable, 5 the machine.
        private: Makes the table from ids to files, which ``--json FILE`` writes beside it for this user alone.
    """

    result: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    exit_code: int = DONE
    private: Callable[[], Mapping[str, Any]] | None = None
