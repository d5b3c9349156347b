"""A network as ONNX or as OpenVINO's files, with a description of what goes in and comes out."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unet_med.errors import MachineError, ModelError, UsageError
from unet_med.exporting.exported import Exported, check_equal
from unet_med.inference.engine.openvino_engine import (
    MODEL,
    OpenVinoEngine,
    convert,
    openvino_version,
    recorded,
)
from unet_med.io.atomic import write_json

ONNX = "model.onnx"
DESCRIPTION = "model.json"
_OPSET = 17


def write_onnx(exported: Exported, folder: Path) -> float:
    """Writes ``model.onnx`` and ``model.json``; any number of windows may go in at once.

    Args:
        exported: The network.
        folder: Exists.

    Returns:
        How far ONNX Runtime is from the network; see :func:`check_equal`.

    Raises:
        UsageError: The packages for ONNX are not installed.
        ModelError: ONNX cannot represent the network, or says something else.
    """
    if find_spec("onnx") is None or find_spec("onnxruntime") is None:
        raise UsageError("ONNX is not installed", "--format onnx", "run `pip install 'unet-med[onnx]'`")
    request = exported.request
    path = folder / ONNX
    axes = {0: "windows"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch recommends its newer exporter, which needs onnxscript
            torch.onnx.export(
                recorded(request),
                (torch.zeros(1, request.channels, *request.entering),),
                str(path),
                input_names=["image"],
                output_names=["logits"],
                dynamic_axes={"image": axes, "logits": axes},
                opset_version=_OPSET,
                dynamo=False,
            )
            session = import_module("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except RuntimeError as error:
        raise ModelError(
            f"ONNX cannot represent the network ({type(error).__name__})",
            exported.info.folder.name,
            "export it in another format",
        ) from error

    def run(window: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"image": window.numpy()})[0])

    return _described(exported, folder, check_equal(exported, run, "ONNX"), "onnxruntime")


def write_openvino(exported: Exported, folder: Path) -> float:
    """Writes ``model.xml``, ``model.bin`` and ``model.json``, for one window at a time.

    Args and result as :func:`write_onnx`.

    Raises:
        UsageError: OpenVINO is not installed.
        ModelError: OpenVINO cannot represent the network, or says something else.
    """
    if openvino_version() is None:
        raise UsageError("OpenVINO is not installed", "--format openvino", "run `pip install openvino`")
    try:
        convert(exported.request, folder)
        engine = OpenVinoEngine(exported.request, folder, "")
    except MachineError as error:
        raise ModelError(error.what, MODEL, "export it in another format") from error
    try:
        worst = check_equal(exported, engine, "OpenVINO")
    finally:
        engine.close()
    return _described(exported, folder, worst, "openvino")


def _described(exported: Exported, folder: Path, worst: float, checked_with: str) -> float:
    check: dict[str, Any] = {"with": checked_with, "largest_relative_difference": worst}
    write_json(folder / DESCRIPTION, exported.described | {"check": check}, DESCRIPTION)
    return worst
