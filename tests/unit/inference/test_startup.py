"""What the process that predicts need not wait for."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import torch
from unet_med.config import Network
from unet_med.inference import casework, predictor, worker
from unet_med.networks import build_network
with torch.device("meta"):
    build_network(Network(features=(2, 2), strides=((1, 1), (2, 2)), kernels=((3, 3), (3, 3))), 2, 1, 2)
for name in ("torch._dynamo", "sympy", "monai", "mlflow", "openvino", "skimage", "matplotlib"):
    assert name not in sys.modules, name
"""


def test_no_library_is_imported_before_it_is_needed() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
