"""The process that predicts: it may die on one case without taking the others with it.

It is started as a fresh interpreter and spoken to through two pipes, its standard input and output; everything that
libraries print goes to standard error. It ends by itself when its parent is gone. Both ends are this package, so the
messages are pickles; no file is ever read that way.

It says ``ready`` when the models are loaded, ``next`` when it has room for another case, ``done`` with the record of a
case, and ``refused`` with the error when the job cannot go on.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import signal
import struct
import sys
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from unet_med.errors import UnetMedError
from unet_med.inference.overlap import CaseLine, Tell
from unet_med.io.export.mask import ExportOptions
from unet_med.redaction import PrivateFormatter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from unet_med.inference.predictor import Predictor
    from unet_med.io.cases import Case
    from unet_med.manifest import ManifestCase

_HEADER = struct.Struct(">Q")
_SHARE_OF_MEMORY = 0.25
"""Of the free memory, what the images of several cases in work may take; larger ones are done one after the other."""


@dataclass(frozen=True)
class Setup:
    """What a worker loads when it starts.

    Attributes:
        models: Bundle folders.
        device: As given to ``--device``.
        mirror: Whether to average over flips; ``None``: as the pipeline says.
        memory_gb: Budget of prediction beyond the image, its labels and the models; then cases do not overlap.
        log_level: Level of the parent's log.
        threads: Threads of torch; ``None`` for its own choice.
    """

    models: tuple[Path, ...]
    device: str = "auto"
    mirror: bool | None = None
    memory_gb: float | None = None
    log_level: int = logging.WARNING
    threads: int | None = None


@dataclass(frozen=True)
class CaseJob:
    """What is asked of one case.

    Attributes:
        case: Its files.
        name: Stem of its outputs.
        folder: Where they go; the mask lies in ``folder / masks``.
        provenance: Goes into the mask's sidecar.
        masks: Folder of the masks below ``folder``; empty for ``folder`` itself.
        preview: Whether to draw one, to ``folder / previews``.
        truth: The case of a manifest to score against; ``None`` for no scores.
        export: How the mask is written.
    """

    case: Case
    name: str
    folder: Path
    provenance: Mapping[str, Any]
    masks: str = ""
    preview: bool = True
    truth: ManifestCase | None = None
    export: ExportOptions = field(default_factory=ExportOptions)


def send(pipe: BinaryIO, message: object) -> None:
    """Writes one message."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(_HEADER.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def receive(pipe: BinaryIO) -> Any:
    """Reads one message.

    Raises:
        EOFError: when the other end is closed.
    """
    header = pipe.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise EOFError
    (size,) = _HEADER.unpack(header)
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return pickle.loads(data)


def main() -> None:
    """Runs the worker: reads a :class:`Setup`, then jobs, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, jobs), daemon=True).start()
    lock = threading.Lock()

    def tell(kind: str, content: object) -> None:
        with lock:
            send(answers, (kind, content))

    setup = jobs.get()
    predictor = _start(setup, tell)
    if predictor is not None:
        _line(predictor, setup, jobs, tell).run()


def _listen(pipe: BinaryIO, jobs: queue.SimpleQueue[Any]) -> None:
    """Passes messages on, and ends the process, in the middle of a case if need be, when the parent is gone."""
    try:
        while True:
            jobs.put(receive(pipe))
    except (EOFError, OSError):
        os._exit(0)


def _start(setup: Setup, tell: Tell) -> Predictor | None:
    if setup.log_level > logging.DEBUG:
        warnings.simplefilter("ignore")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrivateFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=setup.log_level, handlers=[handler])
    try:
        import torch

        from unet_med.bundle import load_bundle
        from unet_med.inference import casework  # noqa: F401 - imported before the first case is timed
        from unet_med.inference.predictor import Predictor

        if setup.threads is not None:
            torch.set_num_threads(setup.threads)
        bundles = [load_bundle(folder) for folder in setup.models]
        predictor = Predictor(bundles, setup.device, setup.mirror, setup.memory_gb)
    except UnetMedError as error:
        tell("refused", error)
        return None
    tell("ready", {"device": predictor.device.type, "precisions": predictor.precisions})
    return predictor


def _line(predictor: Predictor, setup: Setup, jobs: queue.SimpleQueue[Any], tell: Tell) -> CaseLine:
    from unet_med.inference import casework
    from unet_med.inference.estimate import available_bytes
    from unet_med.inference.peak import PeakMeter

    meter = PeakMeter()

    def ask() -> casework.CaseWork:
        tell("next", None)
        return casework.CaseWork(jobs.get(), predictor, meter)

    def budget() -> float:
        return 0.0 if setup.memory_gb is not None else _SHARE_OF_MEMORY * available_bytes()

    return CaseLine(ask, tell, budget)


if __name__ == "__main__":
    main()
