"""Every error a user can meet: what happened, where, and what to do about it.

UnetMedError
├── UsageError            2   wrong arguments, or an output folder that belongs to another job
│   └── ConfigError       2   a pipeline file with unknown keys or wrong values
├── InputRefusedError     3   one source, label or case that is not loaded, because it would be loaded wrong
├── NothingUsableError    4   nothing in the input could be used
├── ModelError            2   a bundle that is damaged, too new, or does not fit its input
├── MachineError          5   disk full, out of memory
└── TrainingError         1   training cannot go on (a non-finite loss)

Terminated is no error: the process was asked to stop (SIGTERM); it ends with 143.
"""

from __future__ import annotations


class UnetMedError(Exception):
    """An error that is meant to be read by a user.

    Args:
        what: What happened, a short phrase without a full stop.
        where: The safe id of the source and the position in it; never a patient's data, never a path
            below an input folder.
        remedy: What the user can do.
    """

    exit_code = 1

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where, remedy)
        self.what = what
        self.where = where
        self.remedy = remedy

    @property
    def reason(self) -> str:
        """What happened and what to do; not where, for reports that name the case anyway."""
        return f"{self.what}: {self.remedy}" if self.remedy else self.what

    def __str__(self) -> str:
        text = f"{self.what} ({self.where})" if self.where else self.what
        return f"{text}: {self.remedy}" if self.remedy else text


class UsageError(UnetMedError):
    """The command was called in a way that cannot work."""

    exit_code = 2


class ConfigError(UsageError):
    """A pipeline file does not describe a pipeline; ``problems`` lists every fault found.

    ``example`` is text to copy into a file, as it is.
    """

    def __init__(
        self, what: str, where: str = "", remedy: str = "", problems: tuple[str, ...] = (), example: str = ""
    ) -> None:
        super().__init__(what, where, remedy)
        self.problems = problems
        self.example = example


class InputRefusedError(UnetMedError):
    """A source or case is refused, because loading it would be guessing."""

    exit_code = 3


class NothingUsableError(UnetMedError):
    """No usable input was found."""

    exit_code = 4


class ModelError(UnetMedError):
    """A model bundle cannot be used: damaged, of a newer schema, or made for other input."""

    exit_code = 2


class MachineError(UnetMedError):
    """The machine gave up: disk full or out of memory. What was finished is kept."""

    exit_code = 5


class TrainingError(UnetMedError):
    """Training had to stop; the weights before the fault are kept."""

    exit_code = 1


class Terminated(BaseException):
    """The process was asked to stop (SIGTERM); raised so that every ``finally`` runs and what is finished is kept."""
