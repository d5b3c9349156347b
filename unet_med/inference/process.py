"""The parent's end of the process that predicts; imports no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from unet_med.errors import MachineError
from unet_med.inference.worker import CaseJob, Setup, receive, send

COMMAND = (sys.executable, "-P", "-c", "from unet_med.inference.worker import main; main()")
_STARTS = 3


class WorkerDiedError(Exception):
    """The worker is gone; ``why`` says what is known.

    Attributes:
        why: For example ``signal 9``.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Worker:
    """A process that predicts case by case, and reads and writes others meanwhile; a new one is started when it died.

    Args:
        setup: What it loads.
        command: How to start it.
    """

    def __init__(self, setup: Setup, command: tuple[str, ...] | None = None) -> None:
        self._setup = setup
        self._command = command or COMMAND
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False

    def start(self) -> None:
        """Starts the process; the model is loaded while the caller does something else."""
        paths = [path for path in sys.path if path]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self._ready = False
        try:
            send(self._pipe("stdin"), self._setup)
        except OSError:
            return  # noticed by the next read

    def wait_ready(self) -> None:
        """Waits until the model is loaded.

        Raises:
            UnetMedError: what loading the model raised.
            MachineError: when the process dies again and again while it loads.
        """
        if self._ready:
            return
        why = ""
        for _ in range(_STARTS):
            if self._process is None:
                self.start()
            try:
                self._receive()
            except WorkerDiedError as error:
                why = error.why
                continue
            self._ready = True
            return
        raise MachineError(
            f"the process that predicts dies while it loads the model ({why})",
            remedy="free some memory, then start the same command again; --debug shows more",
        )

    def submit(self, job: CaseJob) -> None:
        """Hands a case over; it is done when those before it are.

        Raises:
            WorkerDiedError: when the process is dead.
            UnetMedError: what loading the model raised, if the process had to be started.
        """
        self.wait_ready()
        try:
            send(self._pipe("stdin"), job)
        except OSError:
            raise self._died() from None

    def collect(self) -> dict[str, Any] | None:
        """Waits for a case that is finished, or for room for another.

        Returns:
            What :func:`unet_med.inference.casework.do_case` returns; ``None`` when another case may be handed over.

        Raises:
            WorkerDiedError: when the process dies; what it was given is lost, the next call starts another.
            UnetMedError: when outputs cannot be written; finished cases came before.
        """
        self.wait_ready()
        record = self._receive()
        return None if record is None else dict(record)

    def stop(self) -> None:
        """Ends the process at once; safe to call again."""
        process, self._process = self._process, None
        self._ready = False
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue

    def _receive(self) -> Any:
        try:
            kind, content = receive(self._pipe("stdout"))
        except (EOFError, OSError):
            raise self._died() from None
        if kind == "refused":
            raise content
        return content

    def _pipe(self, name: str) -> Any:
        pipe = getattr(self._process, name, None)
        if pipe is None:
            raise OSError("the worker was not started")
        return pipe

    def _died(self) -> WorkerDiedError:
        process = self._process
        code = None
        if process is not None:
            try:
                code = process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                code = None
        self.stop()
        if code is None:
            return WorkerDiedError("no answer")
        return WorkerDiedError(f"signal {-code}" if code < 0 else f"exit code {code}")
