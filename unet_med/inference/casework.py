"""One case from its files to its mask, its volumes, its preview and its scores."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unet_med.errors import InputRefusedError, MachineError, ModelError, UnetMedError
from unet_med.geometry import Geometry
from unet_med.inference.peak import peak_mb, reset_peak
from unet_med.inference.predictor import Predictor, is_out_of_memory
from unet_med.inference.worker import CaseJob
from unet_med.io.atomic import whole_file
from unet_med.io.export.formats import FORMATS
from unet_med.io.sinks import VolumeMaskSink, check_formats, open_mask_sink
from unet_med.labels import LabelMap
from unet_med.manifest import ManifestCase
from unet_med.metrics import case_metrics
from unet_med.overlays import outline_preview
from unet_med.volume import MaskSink, Volume

logger = logging.getLogger(__name__)


class OutputError(MachineError):
    """The outputs cannot be written: going on with the next case makes no sense."""


@dataclass
class _Shown:
    """The frame with the most labelled voxels, for the preview."""

    volume: Volume | None = None
    labels: npt.NDArray[Any] | None = None
    truth: npt.NDArray[Any] | None = None
    voxels: int = -1

    def offer(self, volume: Volume, labels: npt.NDArray[Any], truth: npt.NDArray[Any] | None) -> None:
        voxels = int(np.count_nonzero(labels))
        if voxels > self.voxels:
            self.volume, self.labels, self.truth, self.voxels = volume, labels, truth, voxels


@dataclass
class _Work:
    """What a case leaves behind while it is worked on."""

    notes: list[str] = field(default_factory=list)
    volumes: list[dict[str, Any]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    checks: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] | None = None


def do_case(predictor: Predictor, job: CaseJob) -> dict[str, Any]:
    """Does one case; whatever goes wrong with the case alone is in the result.

    Returns:
        JSON-able: ``id``, ``status`` (``done``, ``refused`` or ``failed``), ``reason``, ``outputs`` (relative to the
        folder), ``seconds``, ``peak_memory_mb``, ``checks``, ``volumes``, ``notes``, ``device``, ``precision``,
        ``out_of_memory`` and, for cases with truth, ``labels`` (scores).

    Raises:
        OutputError: when the outputs cannot be written (disk full).
    """
    started = time.perf_counter()
    reset_peak()
    work = _Work()
    status, reason, starved = "done", None, False
    try:
        _do(predictor, job, work)
    except OutputError:
        raise
    except (InputRefusedError, ModelError) as error:
        status, reason = "refused", _reason(error)
    except UnetMedError as error:
        status, reason, starved = "failed", _reason(error), isinstance(error, MachineError)
    except Exception as error:  # one broken case must not stop the others
        logger.debug("a case failed", exc_info=True)
        starved = is_out_of_memory(error)
        status = "failed"
        reason = "out of memory" if starved else f"an unexpected {type(error).__name__}; please report it"
    if status != "done":
        work = _Work(notes=work.notes)
    return {
        "id": job.case.id,
        "status": status,
        "reason": reason,
        "outputs": [path.relative_to(job.folder).as_posix() for path in work.files],
        "seconds": round(time.perf_counter() - started, 3),
        "peak_memory_mb": peak_mb(),
        "checks": work.checks,
        "volumes": work.volumes,
        "notes": work.notes,
        "device": predictor.device.type,
        "precision": ", ".join(dict.fromkeys(predictor.precisions)),
        "out_of_memory": starved,
    } | ({} if work.scores is None else {"labels": work.scores})


def score_case(predictor: Predictor, truth: ManifestCase) -> tuple[dict[str, Any], list[str]]:
    """Predicts a case of a manifest and scores it on its own grid; nothing is written.

    Returns:
        What :func:`unet_med.metrics.case_metrics` returns, and notes.
    """
    work = _Work()
    pairs: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
    for frame in truth.case.frames:
        prediction = predictor.predict(truth.case.read(frame))
        work.notes += [note for note in prediction.notes if note not in work.notes]
        pairs.append((prediction.labels, _truth(truth, predictor.labels, frame)))
    return _scores(pairs, truth.case.geometry, predictor.labels), work.notes


def _do(predictor: Predictor, job: CaseJob, work: _Work) -> None:
    case = job.case
    check_formats(case.reference_source(), job.export)
    unsure = any(FORMATS[name].needs_probabilities(job.export) for name in job.export.formats)
    opened = case.open()
    shown = _Shown()
    pairs: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
    sink: MaskSink | None = None
    provenance = {
        **job.provenance,
        "device": predictor.device.type,
        "precision": list(predictor.precisions),
        "notes": work.notes,
    }
    try:
        for position, frame in enumerate(case.frames):
            volume = opened.read(frame=frame)
            truth = None if job.truth is None else _truth(job.truth, predictor.labels, frame)
            prediction = predictor.predict(volume, probabilities=unsure)
            work.notes += [note for note in prediction.notes if note not in work.notes]
            if sink is None:
                sink = _open_sink(job, predictor.labels, provenance)
            sink.write(None, prediction.labels, position)
            if prediction.probabilities is not None and isinstance(sink, VolumeMaskSink):
                sink.write_probabilities(prediction.probabilities)
            number = frame if len(case.frames) > 1 else None
            work.volumes += label_volumes(prediction.labels, volume.geometry, predictor.labels, number)
            if truth is not None:
                pairs.append((prediction.labels, truth))
            if job.preview:
                shown.offer(volume, prediction.labels, truth)
        if sink is not None:
            work.files += _close(sink)
            work.checks = dict(getattr(sink, "checks", {}))
        if pairs:
            work.scores = _scores(pairs, case.geometry, predictor.labels)
        if job.preview:
            work.files.append(_write_preview(job, shown, job.export.labels or predictor.labels))
    except BaseException:
        if sink is not None:
            sink.abort()
        raise


def _open_sink(job: CaseJob, labels: LabelMap, provenance: Mapping[str, Any]) -> MaskSink:
    target = job.folder / job.masks / job.name
    return open_mask_sink(job.case.reference_source(), target, labels, provenance, job.export)


def _close(sink: MaskSink) -> list[Path]:
    try:
        return sink.close()
    except MachineError as error:
        raise OutputError(error.what, error.where, error.remedy) from error


def label_volumes(
    labels: npt.NDArray[np.integer[Any]], geometry: Geometry, label_map: LabelMap, frame: int | None = None
) -> list[dict[str, Any]]:
    """Returns the size of every label: ml for volumes, mm2 for pictures, px or voxels when uncalibrated."""
    counts = np.bincount(labels.ravel(), minlength=len(label_map.labels) + 1)
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


def _truth(truth: ManifestCase, labels: LabelMap, frame: int) -> npt.NDArray[Any]:
    from unet_med.data import read_target  # with MONAI, which prediction alone does not need: 3 s

    return read_target(truth, labels, truth.case.read_label(frame))


def _scores(
    pairs: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]], geometry: Geometry, labels: LabelMap
) -> dict[str, Any]:
    """Scores of a case of one frame; manifests list frames as cases of their own."""
    if len(pairs) == 1:
        return dict(case_metrics(pairs[0][0], pairs[0][1], geometry.spacing_mm, labels))
    raise InputRefusedError(
        f"a case of {len(pairs)} frames is scored frame by frame",
        remedy="make the manifest again with `unet-med manifest`: it lists every frame",
    )


def _write_preview(job: CaseJob, shown: _Shown, labels: LabelMap) -> Path:
    path = job.folder / "previews" / f"{job.name}.png"
    if shown.volume is None or shown.labels is None:
        raise InputRefusedError("the case has no frame", job.case.id, "check the file")
    geometry = shown.volume.geometry
    picture = outline_preview(
        shown.volume.array, shown.labels, geometry.spacing_mm, labels, shown.truth, geometry.orientation
    )
    try:
        with whole_file(path, job.case.id) as part:
            Image.fromarray(picture).save(part, format="PNG")
    except MachineError as error:
        raise OutputError(error.what, error.where, error.remedy) from error
    return path


def _reason(error: UnetMedError) -> str:
    return f"{error.what}: {error.remedy}" if error.remedy else error.what
