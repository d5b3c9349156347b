"""What is checked of exports in a process of its own, because OpenVINO stays out of the tests' process."""

from __future__ import annotations

import json
from pathlib import Path


def exports_for_openvino() -> None:
    """Exports the bundle ``model`` and runs the files by OpenVINO alone."""
    import numpy as np
    import torch

    from unet_med.bundle import load_bundle
    from unet_med.inference.engine.openvino_engine import _openvino
    from unet_med.workflows.export import export

    outcome = export("model", Path("out"), "openvino")
    assert outcome.result["files"] == ["model.bin", "model.json", "model.xml"]
    shape = json.loads(Path("out/model.json").read_text())["input"]["shape"]
    window = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    core = _openvino().Core()
    compiled = core.compile_model(core.read_model("out/model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        wanted = load_bundle("model").network()(torch.from_numpy(window)).numpy()
    np.testing.assert_allclose(compiled(window)[0], wanted, rtol=1e-3, atol=1e-3)
