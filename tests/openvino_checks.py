"""What is checked of OpenVINO, each function in a process of its own (see ``fresh_process``)."""

from __future__ import annotations

import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from unet_med.config import Network
from unet_med.inference.engine import EngineRequest, TorchEngine, open_engine
from unet_med.inference.engine.cache import EngineCache
from unet_med.inference.engine.openvino_engine import MODEL, OpenVinoEngine, convert
from unet_med.networks import admissible_patch, build_network, context_voxels

NETWORKS: tuple[dict[str, Any], ...] = (
    {},
    {"downsampling": "maxpool", "upsampling": "interpolate", "norm": "batch", "activation": "relu"},
    {"norm": "none", "deep_supervision": True},
    {"style": "classic"},
    {"kind": "residual", "blocks_per_level": (1, 2, 1), "attention": True, "bias": True},
    {"kind": "dilated"},
)
PATCH = (13, 9, 11)


def request(dims: int, changes: dict[str, Any] | None = None, **given: Any) -> EngineRequest:
    """A small anisotropic network with two channels and what is asked of it."""
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "features": (8, 12, 16),
        "strides": ((1,) * dims, (1, *(2,) * (dims - 1)), (2,) * dims),
        "kernels": ((1, *(3,) * (dims - 1)), (3,) * dims, (3,) * dims),
    }
    values |= changes or {}
    if values.get("kind") in ("dilated", "naive"):  # of one level
        values |= {name: values[name][:1] for name in ("features", "strides", "kernels")}
    config = Network(**values)
    network = build_network(config, dims, 2, 3).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    fields: dict[str, Any] = {
        "network": network.to(memory_format=torch.channels_last_3d if dims == 3 else torch.channels_last),
        "window": admissible_patch(config, dims, PATCH[:dims]),
        "context": context_voxels(config, dims),
        "channels": 2,
        "batch": 3,
        "features": False,
        "device": torch.device("cpu"),
        "precision": torch.float32,
        "sha256": "0" * 64,
    }
    return EngineRequest(**(fields | given))


def windows(request: EngineRequest, count: int = 1) -> torch.Tensor:
    """Noise as such a network sees it."""
    return torch.randn(count, request.channels, *request.entering)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative to the norm of the other."""
    return float((one - other).norm() / other.norm())


def new_folder() -> Path:
    """An empty folder in the working directory."""
    return Path(tempfile.mkdtemp(dir=Path.cwd()))


def converted(request: EngineRequest) -> OpenVinoEngine:
    """The engine without cache and choice."""
    folder = new_folder()
    convert(request, folder)
    return OpenVinoEngine(request, folder, "test")


def all_networks_equal_torch() -> None:
    for dims in (2, 3):
        for changes in NETWORKS:
            for features in (False, True):
                asked = request(dims, changes, features=features)
                engine = converted(asked)
                reference = TorchEngine(asked, "test")
                x = windows(asked, 2)
                found, expected = engine(x), reference(x)
                assert found.shape == expected.shape == (2, 8 if features else 3, *asked.window)
                assert found.dtype == torch.float32
                assert difference(found, expected) < 1e-5, (dims, changes, features)
                engine.close()


def calls_are_independent() -> None:
    asked = request(3)
    engine = converted(asked)
    reference = TorchEngine(asked, "test")
    x = windows(asked, 3)
    first = engine(x)
    kept = first.clone()
    assert torch.equal(engine(x[1:2]), first[1:2])
    layout = x.to(memory_format=torch.channels_last_3d)
    assert torch.equal(engine(layout), first)
    assert torch.equal(engine(x.flip(2)).flip(2), engine(x.flip(2).contiguous()).flip(2))
    with torch.inference_mode():
        engine(x * 2)
    assert torch.equal(first, kept), "a result changed after the next call"
    assert difference(first, reference(x)) < 1e-5


def bfloat16_is_close_and_is_said() -> None:
    asked = request(3, precision=torch.bfloat16)
    engine = converted(asked)
    assert engine.precision == "bf16"
    exact = TorchEngine(request(3), "test")
    x = windows(asked)
    assert difference(engine(x), exact(x)) < 0.1


def nothing_is_sent() -> None:
    folder = new_folder()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    socket.socket.__init__ = refuse  # type: ignore[assignment, method-assign]
    socket.create_connection = refuse  # type: ignore[assignment]
    asked = request(2)
    engine = open_engine(asked, "openvino", EngineCache(folder))
    engine(windows(asked))
    assert sys.modules["openvino_telemetry"] is None
    assert not [name for name in sys.modules if name.startswith("openvino_telemetry.")]
    assert "openvino" in sys.modules


def the_cache_serves_again() -> None:
    folder = new_folder()
    cache = EngineCache(folder)
    asked = request(2)
    x = windows(asked)
    expected = open_engine(asked, "openvino", cache)(x)
    (entry,) = folder.iterdir()
    made = (entry / MODEL).stat().st_mtime_ns
    assert torch.equal(open_engine(asked, "openvino", cache)(x), expected)
    assert (entry / MODEL).stat().st_mtime_ns == made, "a whole entry was made again"
    (entry / MODEL).write_text("<net/>")
    assert torch.equal(open_engine(asked, "openvino", cache)(x), expected)
    assert [path.name for path in folder.iterdir()] == [entry.name]


def an_unwritable_cache_does_no_harm() -> None:
    folder = new_folder()
    blocked = folder / "file"
    blocked.write_text("a file where a folder should be")
    asked = request(2)
    engine = open_engine(asked, "openvino", EngineCache(blocked / "engines"))
    x = windows(asked)
    assert difference(engine(x), TorchEngine(asked, "test")(x)) < 1e-5


def a_network_it_cannot_run_is_refused() -> None:
    folder = new_folder()
    from unet_med.errors import MachineError

    class Sorting(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x).real

    asked = request(2)
    square = EngineRequest(Sorting(), (8, 8), (0, 0), 2, 1, False, asked.device, asked.precision, asked.sha256)
    try:
        open_engine(square, "openvino", EngineCache(folder))
    except MachineError as error:
        assert "openvino cannot convert the network" in error.what
        assert "inference.engine" in error.remedy
    else:
        raise AssertionError("no error")
    assert not list(folder.iterdir()), "a half-made entry is left"


def the_choice_measures_and_remembers() -> None:
    folder = new_folder()
    from unet_med.inference.engine import choice

    choice._TRIED_AFTER_SECONDS = 0.0
    cache = EngineCache(folder)
    asked = request(3)
    x = windows(asked)
    engine = open_engine(asked, "auto", cache)
    assert (engine.name, engine.why) == ("torch", "too little to do for trying openvino")
    engine(x)
    assert "a window" in engine.why
    again = open_engine(asked, "auto", cache)
    assert again.name == engine.name
    assert again.why == f"{engine.why} (measured earlier)"
    assert difference(again(x), engine(x)) < 1e-5
