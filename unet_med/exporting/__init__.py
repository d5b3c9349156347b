"""Models in the formats of other tools: bundles of MONAI, ONNX, OpenVINO."""
