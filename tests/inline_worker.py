"""Does a worker's work in this process: most tests are not about processes, and starting one takes seconds."""

from __future__ import annotations

from collections import deque
from typing import Any

from unet_med.bundle import load_bundles
from unet_med.inference.casework import do_case
from unet_med.inference.predictor import Predictor
from unet_med.inference.worker import CaseJob, Setup


class InlineWorker:
    """Stands in for :class:`unet_med.inference.process.Worker`."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._predictor: Predictor | None = None
        self._jobs: deque[CaseJob] = deque()

    def start(self) -> None:
        """Nothing to start."""

    def wait_ready(self) -> None:
        setup = self._setup
        bundles = [bundle for folder in setup.models for bundle in load_bundles(folder)]
        self._predictor = Predictor(bundles, setup.device, setup.mirror, setup.memory_gb)

    def submit(self, job: CaseJob) -> None:
        self._jobs.append(job)

    def collect(self) -> dict[str, Any] | None:
        assert self._predictor is not None
        return do_case(self._predictor, self._jobs.popleft()) if self._jobs else None

    def stop(self) -> None:
        """Nothing to stop."""
