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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from unet_med.errors import UnetMedError
from unet_med.inference.overlap import CaseLine, Tell
from unet_med.io.export.mask import ExportOptions
from unet_med.redaction import PrivateFormatter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from unet_med.bundle import Bundle
    from unet_med.config import PipelineConfig
    from unet_med.inference.predictor import Predictor
    from unet_med.io.cases import Case
    from unet_med.manifest import ManifestCase

_HEADER = struct.Struct(">Q")


@dataclass(frozen=True)
class Setup:
    """What a worker loads when it starts.

    Attributes:
        models: Bundle folders; an ensemble stands for its members.
        device: As given to ``--device``.
        mirror: Whether to average over flips; ``None``: as the pipeline says.
        memory_gb: Budget of prediction beyond the image, its labels and the models; then cases do not overlap, and an
            image that is larger is read region by region.
        log_level: Level of the parent's log.
        threads: Threads of torch; ``None`` for its own choice.
        probe: When given, what it found is the only record, and the process does no cases.
        overlap: Whether reading and writing go on beside the prediction of another case.
    """

    models: tuple[Path, ...]
    device: str = "auto"
    mirror: bool | None = None
    memory_gb: float | None = None
    log_level: int = logging.WARNING
    threads: int | None = None
    probe: Probe | None = None
    overlap: bool = True


@dataclass(frozen=True)
class Probe:
    """Asks what cases will cost, instead of doing any (:mod:`unet_med.inference.probe`).

    Attributes:
        case: A small one of them.
        windows: Of all of them together.
    """

    case: Case
    windows: int


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
        kept: Folder of what is done of a large image; it outlives an interruption. ``None``: the image is read whole.
    """

    case: Case
    name: str
    folder: Path
    provenance: Mapping[str, Any]
    masks: str = ""
    preview: bool = True
    truth: ManifestCase | None = None
    export: ExportOptions = field(default_factory=ExportOptions)
    kept: Path | None = None


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
    loaded = _start(setup, tell)
    if loaded is None:
        return
    predictor, bundles = loaded
    if setup.probe is None:
        _line(predictor, [bundle.config for bundle in bundles], setup, jobs, tell).run()
    else:
        _measure(predictor, bundles[0], setup.probe, tell)


def _listen(pipe: BinaryIO, jobs: queue.SimpleQueue[Any]) -> None:
    """Passes messages on, and ends the process, in the middle of a case if need be, when the parent is gone."""
    try:
        while True:
            jobs.put(receive(pipe))
    except (EOFError, OSError):
        os._exit(0)


def _start(setup: Setup, tell: Tell) -> tuple[Predictor, list[Bundle]] | None:
    if setup.log_level > logging.DEBUG:
        warnings.simplefilter("ignore")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrivateFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=setup.log_level, handlers=[handler])
    try:
        import torch

        from unet_med.bundle import load_bundles
        from unet_med.inference import casework  # noqa: F401 - imported before the first case is timed
        from unet_med.inference.predictor import Predictor

        if setup.threads is not None:
            torch.set_num_threads(setup.threads)
        bundles = [bundle for folder in setup.models for bundle in load_bundles(folder)]
        predictor = Predictor(bundles, setup.device, setup.mirror, setup.memory_gb)
    except UnetMedError as error:
        tell("refused", error)
        return None
    tell("ready", {"device": predictor.device.type, "precisions": predictor.precisions})
    return predictor, bundles


def _line(
    predictor: Predictor, configs: Sequence[PipelineConfig], setup: Setup, jobs: queue.SimpleQueue[Any], tell: Tell
) -> CaseLine:
    from unet_med.inference import casework
    from unet_med.inference.estimate import CaseSize, available_bytes, check_memory, overlap_bytes
    from unet_med.inference.peak import PeakMeter

    meter = PeakMeter()

    def fits(size: CaseSize) -> list[str]:
        if predictor.device.type != "cpu":
            return []  # a card says by itself what it cannot hold
        return check_memory(size, configs, setup.memory_gb, available_bytes())

    def is_large(size: CaseSize) -> bool:
        return predictor.reads_in_order and size.is_large(setup.memory_gb, available_bytes())

    def ask() -> casework.CaseWork:
        tell("next", None)
        return casework.CaseWork(jobs.get(), predictor, meter, fits, is_large)

    def budget() -> float:
        one_by_one = setup.memory_gb is not None or not setup.overlap
        return 0.0 if one_by_one else overlap_bytes(available_bytes())

    return CaseLine(ask, tell, budget)


def _measure(predictor: Predictor, bundle: Bundle, probe: Probe, tell: Tell) -> None:
    from unet_med.inference.probe import measure_rates

    try:
        tell("done", asdict(measure_rates(predictor, bundle, probe.case, probe.windows)))
    except UnetMedError as error:
        tell("refused", error)


if __name__ == "__main__":
    main()
