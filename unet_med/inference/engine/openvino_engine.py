"""The network converted to OpenVINO, which on a CPU is up to four times as fast as torch.

A request's network is recorded once, written to a folder as OpenVINO's own files in float32 (its habit of storing
weights as float16 would cost three digits), and always run from there: what runs then shares no memory with torch
and holds no object of Python, whose lifetime OpenVINO's threads could misjudge. Input and output of a call are the
caller's own tensors, known to OpenVINO during that call alone.

OpenVINO's package would report its use over the network; it is imported in such a way that it cannot.
"""

from __future__ import annotations

import logging
import sys
import warnings
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from unet_med.errors import MachineError
from unet_med.inference.device import precision_name
from unet_med.inference.engine.request import EngineRequest
from unet_med.networks import Segmenter

MODEL = "model.xml"
WEIGHTS = "model.bin"

_TELEMETRY = "openvino_telemetry"

_log = logging.getLogger(__name__)


def openvino_version() -> str | None:
    """Returns the version of the installed OpenVINO, without importing it; ``None`` where there is none."""
    if find_spec("openvino") is None:
        return None
    try:
        return version("openvino")
    except PackageNotFoundError:
        return None


def convert(request: EngineRequest, folder: Path) -> None:
    """Writes the network of a request, for exactly its windows one at a time, as ``model.xml`` and ``model.bin``.

    Args:
        request: Its precision plays no part: the files are float32.
        folder: Exists.

    Raises:
        MachineError: when OpenVINO cannot represent the network or the files cannot be written.
    """
    try:
        openvino = _openvino()
        model = openvino.convert_model(recorded(request))
        model.reshape([1, request.channels, *request.entering])
        openvino.save_model(model, folder / MODEL, compress_to_fp16=False)
    except Exception as error:
        raise _failure("convert the network", error) from error


class OpenVinoEngine:
    """Runs what :func:`convert` wrote.

    Windows go through one at a time: on a CPU a batch is no faster, and an incomplete one costs nothing this way.

    Args:
        request: What to run; its precision is what convolutions compute in.
        folder: With the files of :func:`convert` for this request.
        why: One sentence for the report.

    Raises:
        MachineError: when the files cannot be read or OpenVINO does not run here.
    """

    name = "openvino"

    def __init__(self, request: EngineRequest, folder: Path, why: str) -> None:
        self.why = why
        self.precision = precision_name(request.precision)
        try:
            openvino = _openvino()
            model = openvino.Core().read_model(folder / MODEL)
            compiled = openvino.Core().compile_model(model, "CPU", _options(request))
            self._shape = tuple(compiled.output(0).shape)
            self._run: Any = compiled.create_infer_request()
        except Exception as error:
            raise _failure("load the network", error) from error
        self._tensor = openvino.Tensor

    def __call__(self, batch: Tensor) -> Tensor:
        """Maps (N, C, *window + 2 * context) float32 to (N, channels, *window) float32."""
        batch = batch.contiguous()
        out = torch.empty((len(batch), *self._shape[1:]))
        for number in range(len(batch)):
            # Both are held by name until the run is over: the request knows no more than their addresses.
            entering = self._tensor(batch[number : number + 1].numpy(), shared_memory=True)
            leaving = self._tensor(out[number : number + 1].numpy(), shared_memory=True)
            self._run.set_input_tensor(entering)
            self._run.set_output_tensor(leaving)
            self._run.infer()
        return out

    def close(self) -> None:
        """Gives the compiled network back."""
        self._run = None


def _openvino() -> ModuleType:
    """Imports OpenVINO with its telemetry package out of reach; it has a stand-in for that case."""
    if _TELEMETRY not in sys.modules:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    return import_module("openvino")


def _options(request: EngineRequest) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if request.precision == torch.bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }


class _Features(nn.Module):
    """A network whose output is what its head sees."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.network.features(x)  # type: ignore[operator]
        return features


def recorded(request: EngineRequest) -> Any:
    """Returns the network of a request as TorchScript.

    It is recorded on its smallest input, and what is recorded holds at every size.
    """
    network = request.network
    size = request.entering
    if isinstance(network, Segmenter):
        smallest = network.layout.admissible((1,) * len(size))
        size = tuple(n + 2 * border for n, border in zip(smallest, request.context, strict=True))
    module = _Features(network) if request.features else network
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.trace", category=DeprecationWarning)
        example = torch.zeros(1, request.channels, *size)
        return torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]


def _failure(what: str, error: Exception) -> MachineError:
    _log.debug("openvino cannot %s: %s", what, error)
    return MachineError(f"openvino cannot {what} ({type(error).__name__})", "engine", "set inference.engine to torch")
