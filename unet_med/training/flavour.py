"""A model as MLflow's own tools know it: a recorded network with its signature and an example, beside the bundle.

``mlflow.pytorch.load_model("models:/NAME@candidate")`` then returns the network without a line of this package: the
graph is what ``torch.export`` recorded of it, not pickled code, so that MLflow loads it with pickles forbidden, too. It
maps normalised patches to logits; what comes before and after is the bundle's.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from unet_med.bundle import Bundle, load_bundles
from unet_med.errors import ModelError
from unet_med.model_address import COPY_AGAIN
from unet_med.networks import admissible_patch, context_voxels, input_channels

logger = logging.getLogger(__name__)

_DATA = "data"
_NETWORK = "model.pt2"  # the name under which mlflow.pytorch looks for it
_EXAMPLE = "input_example.json"
_CONDA, _PYTHON = "conda.yaml", "python_env.yaml"
_NODE_MEMORY = ("stack_trace", "custom")
"""What a recorded step remembers of the source code: paths on this machine, which nobody else should see."""


def write_flavour(model: Path, folder: Path) -> bool:
    """Writes what makes a bundle's folder a model of MLflow.

    Args:
        model: Folder of the bundle.
        folder: Receives ``MLmodel`` and what belongs to it, to be put beside the bundle's files.

    Returns:
        Whether it could: the members of an ensemble may be made for patches of different sizes, and not every network
        can be recorded. The reason is logged.

    Raises:
        ModelError: when the bundle is damaged.
    """
    bundles = load_bundles(model)
    shapes = {_input_shape(bundle) for bundle in bundles}
    if len(shapes) > 1:
        logger.info("MLflow gets the bundle alone: its members take patches of different sizes")
        return False
    (shape,) = shapes
    network = bundles[0].network() if len(bundles) == 1 else _Mean([bundle.network() for bundle in bundles])
    try:
        program = _recorded(network.eval(), shape)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        logger.warning("MLflow gets the bundle alone: the network cannot be recorded (%s)", type(error).__name__)
        return False
    (folder / _DATA).mkdir(parents=True, exist_ok=True)
    torch.export.save(program, folder / _DATA / _NETWORK)
    outputs = (1, bundles[0].labels.outputs, *_window(bundles[0]))
    _write_description(folder, shape, outputs)
    return True


def _window(bundle: Bundle) -> tuple[int, ...]:
    """Returns the size of the logits, in voxels."""
    patch = bundle.config.sampling.patch_voxels
    if patch == "auto":
        raise ModelError("the bundle leaves the size of its patches open", "sampling.patch_voxels", COPY_AGAIN)
    return admissible_patch(bundle.config.network, bundle.dims, patch)


def _input_shape(bundle: Bundle) -> tuple[int, ...]:
    """(1, C, *patch + 2 * context): one sample, as recorded graphs have the sizes that they were recorded with."""
    network = bundle.config.network
    channels = input_channels(network, bundle.channels, bundle.config.prior_channels)
    around = context_voxels(network, bundle.dims)
    return 1, channels, *(n + 2 * c for n, c in zip(_window(bundle), around, strict=True))


class _Mean(nn.Module):
    """An ensemble: the mean of the logits of its members."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, image: Tensor) -> Tensor:
        """Maps (N, C, *window) to logits (N, outputs, *patch)."""
        return torch.stack([member(image) for member in self.members]).mean(0)


def _recorded(network: nn.Module, shape: Sequence[int]) -> torch.export.ExportedProgram:
    with torch.no_grad():
        program = torch.export.export(network, (torch.zeros(*shape),))
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            for name in _NODE_MEMORY:
                node.meta.pop(name, None)
    return program


def _write_description(folder: Path, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    number = np.dtype(np.float32)
    signature = ModelSignature(Schema([TensorSpec(number, inputs)]), Schema([TensorSpec(number, outputs)]))
    model = Model(signature=signature, saved_input_example_info={"artifact_path": _EXAMPLE, "type": "ndarray"})
    model.add_flavor("pytorch", model_data=_DATA, pytorch_version=str(torch.__version__), code=None)
    model.add_flavor(
        "python_function",
        loader_module="mlflow.pytorch",
        python_version=platform.python_version(),
        data=_DATA,
        env={"conda": _CONDA, "virtualenv": _PYTHON},
        model_config={"device": None},
    )
    model.save(str(folder / "MLmodel"))
    example = np.random.default_rng(0).normal(size=inputs).round().astype(int)  # normalised noise, of nobody
    text = json.dumps(example.tolist(), separators=(",", ":"))
    (folder / _EXAMPLE).write_text(text, encoding="utf-8")
    _write_environment(folder)


def _write_environment(folder: Path) -> None:
    import mlflow

    needed = [f"mlflow=={mlflow.__version__}", f"torch=={torch.__version__.partition('+')[0]}", "numpy"]
    (folder / "requirements.txt").write_text("\n".join(needed) + "\n", encoding="utf-8")
    python = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    (folder / _PYTHON).write_text(yaml.safe_dump(python), encoding="utf-8")
    conda: dict[str, Any] = {
        "name": "unet-med",
        "channels": ["conda-forge"],
        "dependencies": [f"python={platform.python_version()}", "pip", {"pip": needed}],
    }
    (folder / _CONDA).write_text(yaml.safe_dump(conda), encoding="utf-8")
