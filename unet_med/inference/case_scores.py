"""How large the labels of a case are, and how good they are where truth is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.data import read_target
from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.inference.predictor import Predictor
from unet_med.inference.quality.evidence import CaseEvidence
from unet_med.io.export.measure import count_labels
from unet_med.labels import LabelMap
from unet_med.manifest import ManifestCase
from unet_med.metrics import case_metrics


def score_case(
    predictor: Predictor, truth: ManifestCase, see: Callable[[npt.NDArray[Any], npt.NDArray[Any]], None] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Predicts a case of a manifest and scores it on its own grid; nothing is written.

    Args:
        predictor: Predicts it.
        truth: The case.
        see: Is shown its mask and its true labels.

    Returns:
        What :func:`unet_med.metrics.case_metrics` returns, and of each structure the features by which Dice is
        predicted (:mod:`unet_med.inference.quality.evidence`); notes.
    """
    notes: list[str] = []
    pairs: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
    evidence = CaseEvidence(predictor.labels)
    for frame in truth.case.frames:
        prediction = predictor.predict(truth.case.read(frame), evidence=evidence)
        notes += [note for note in prediction.notes if note not in notes]
        target = true_labels(truth, predictor.labels, frame)
        if see is not None:
            see(prediction.labels, target)
        pairs.append((prediction.labels, target))
    scores = frame_scores(pairs, truth.case.geometry, predictor.labels)
    return {name: own | evidence.features()[0][name] for name, own in scores.items()}, notes


def label_volumes(
    labels: npt.NDArray[np.integer[Any]], geometry: Geometry, label_map: LabelMap, frame: int | None = None
) -> list[dict[str, Any]]:
    """Returns the size of every label: ml for volumes, mm2 for pictures, px or voxels when uncalibrated."""
    counts = count_labels(labels, highest=len(label_map.labels))
    rows: list[dict[str, Any]] = []
    for label in label_map.labels:
        voxels = int(counts[label.index])
        if geometry.voxel_ml is not None:
            value, unit = voxels * geometry.voxel_ml, "ml"
        elif geometry.affine is not None:
            value, unit = voxels * float(abs(np.linalg.det(geometry.affine[:2, :2]))), "mm2"
        else:
            value, unit = float(voxels), "px" if geometry.ndim == 2 else "voxels"
        rows.append(
            {"frame": frame, "label": label.name, "voxels": voxels, "value": float(f"{value:.9g}"), "unit": unit}
        )
    return rows


def true_labels(truth: ManifestCase, labels: LabelMap, frame: int) -> npt.NDArray[Any]:
    """Returns the true labels of a frame, (I, J[, K])."""
    return read_target(truth, labels, truth.case.read_label(frame))


def frame_scores(
    pairs: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]], geometry: Geometry, labels: LabelMap
) -> dict[str, Any]:
    """Scores of a case of one frame; manifests list frames as cases of their own."""
    if len(pairs) == 1:
        return dict(case_metrics(pairs[0][0], pairs[0][1], geometry.spacing_mm, labels))
    raise InputRefusedError(
        f"a case of {len(pairs)} frames is scored frame by frame",
        remedy="make the manifest again with `unet-med manifest`: it lists every frame",
    )
