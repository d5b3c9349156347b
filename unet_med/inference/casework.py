"""One case from its files to its mask, its volumes, its preview and its scores, in three stages.

Reading, predicting and writing may run in three threads, each with another case; whatever goes wrong in a stage stays
with its case.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
from PIL import Image

from unet_med.config import Instances
from unet_med.errors import InputRefusedError, MachineError, ModelError, UnetMedError
from unet_med.inference.case_scores import frame_scores, label_volumes, true_labels
from unet_med.inference.estimate import CaseSize
from unet_med.inference.large import KeptWork, predict_objects, thinned
from unet_med.inference.object_files import picture_of, table_of, table_of_frames, write_tables
from unet_med.inference.objects import MAPS, MapArchive, Truth, class_map, compare_objects, predict_maps
from unet_med.inference.peak import PeakMeter
from unet_med.inference.predictor import Prediction, Predictor, is_out_of_memory
from unet_med.inference.quality.assessment import Assessment
from unet_med.inference.quality.evidence import CaseEvidence
from unet_med.inference.worker import CaseJob
from unet_med.instances.decode import Objects, objects_of
from unet_med.instances.measure import count_objects
from unet_med.io.atomic import whole_file
from unet_med.io.cases import OpenCase
from unet_med.io.export.formats import FORMATS
from unet_med.io.export.measure import count_labels
from unet_med.io.objects.table import ObjectTable
from unet_med.io.sinks import TiffMaskSink, VolumeMaskSink, check_formats, open_mask_sink
from unet_med.labels import LabelMap
from unet_med.overlays import outline_preview
from unet_med.volume import MaskSink, Volume, lazily

logger = logging.getLogger(__name__)

MemoryCheck = Callable[[CaseSize], list[str]]
"""Given the size of a case whose image is in memory, raises MachineError when it cannot fit; returns notes."""

IsLarge = Callable[[CaseSize], bool]
"""Given the size of a case, says whether it is to be read region by region."""


class OutputError(MachineError):
    """The outputs cannot be written: going on with the next case makes no sense."""


@dataclass
class _Frame:
    """A frame on its way; the image is forgotten when nothing needs it any more."""

    number: int
    volume: Volume | None
    truth: npt.NDArray[Any] | None
    true_objects: Truth | None = None
    labels: npt.NDArray[Any] | None = None
    objects: Objects | None = None
    table: ObjectTable | None = None
    voxels: int = 0


class CaseWork:
    """One case that is worked on.

    Args:
        job: What is asked.
        predictor: Predicts it, in :meth:`compute` alone.
        meter: Measures its memory.
        check_memory: Is asked before it is predicted.
        is_large: Is asked before it is read; a case that is large is neither read nor labelled in memory, and what is
            done of it is kept when it is interrupted.

    Attributes:
        job: What is asked.
    """

    def __init__(
        self,
        job: CaseJob,
        predictor: Predictor,
        meter: PeakMeter | None = None,
        check_memory: MemoryCheck | None = None,
        is_large: IsLarge | None = None,
    ) -> None:
        self.job = job
        self._predictor = predictor
        self._meter = meter or PeakMeter()
        self._check_memory = check_memory
        self._size = CaseSize.of(job.case, objects=predictor.objects is not None)
        if is_large is not None and job.kept is not None and job.case.reads_regions and is_large(self._size):
            self._size = replace(self._size, on_disk=True)
        self._kept: KeptWork | None = None
        self._span = 0
        self._status = "done"
        self._reason: str | None = None
        self._starved = False
        self._output_error: OutputError | None = None
        self._seconds = 0.0
        self._notes: list[str] = []
        self._provenance: dict[str, Any] = {}
        self._opened: OpenCase | None = None
        self._first: _Frame | None = None
        self._frames: list[_Frame] = []
        self._shown: _Frame | None = None
        self._sink: MaskSink | None = None
        self._computed: dict[str, Any] = {}
        self._assessment: Assessment | None = None
        self._doubts: list[str] = []
        self._made: dict[str, Any] = {}
        self._maps: list[Path] = []
        self._kept_maps: list[tuple[Path, Path]] = []

    @property
    def image_bytes(self) -> int:
        """Memory of one frame of the image and its labels."""
        return self._size.image_bytes

    # ---- the three stages -------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Reads the first frame and its truth; the frames of a movie that follow are read when their turn comes."""
        self._span = self._meter.begin()
        self._guarded(self._read, time.thread_time)

    def compute(self) -> None:
        """Predicts all frames."""
        self._guarded(self._compute, time.perf_counter)

    def write(self) -> None:
        """Writes and checks the mask, counts labels, scores and draws."""
        self._guarded(self._write, time.thread_time)
        self._forget()

    def result(self) -> dict[str, Any]:
        """Returns the record of the case; see :func:`do_case`.

        Raises:
            OutputError: when the outputs cannot be written (disk full).
        """
        peak = self._meter.end(self._span)
        if self._output_error is not None:
            raise self._output_error
        return {
            "id": self.job.case.id,
            "status": self._status,
            "reason": self._reason,
            "outputs": [],
            "seconds": round(self._seconds, 3),
            "peak_memory_mb": peak,
            "checks": {},
            "volumes": [],
            "notes": self._notes,
            "device": self._predictor.device.type,
            "precision": ", ".join(dict.fromkeys(self._predictor.precisions)),
            "out_of_memory": self._starved,
            **self._computed,
            **self._assessed(),
            **(self._made if self._status == "done" else {}),
        }

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _guarded(self, stage: Callable[[], None], clock: Callable[[], float]) -> None:
        """Times a stage and keeps what goes wrong in it; nothing more is done with a case that failed."""
        if self._status != "done":
            return
        started = clock()
        try:
            stage()
        except OutputError as error:
            self._output_error = error
            self._end("failed", error.what)
        except (InputRefusedError, ModelError) as error:
            self._end("refused", error.reason)
        except UnetMedError as error:
            self._end("failed", error.reason, isinstance(error, MachineError))
        except Exception as error:  # one broken case must not stop the others
            logger.debug("a case failed", exc_info=True)
            starved = is_out_of_memory(error)
            unexpected = f"an unexpected {type(error).__name__}; please report it"
            self._end("failed", "out of memory" if starved else unexpected, starved)
        finally:
            self._seconds += clock() - started

    def _end(self, status: str, reason: str, starved: bool = False) -> None:
        self._status, self._reason, self._starved = status, reason, starved
        if self._sink is not None:
            self._sink.abort()
        self._forget()

    def _forget(self) -> None:
        self._opened = self._first = self._shown = self._sink = None
        self._frames = []

    def _note(self, notes: Sequence[str]) -> None:
        self._notes += [note for note in notes if note not in self._notes]

    def _read(self) -> None:
        case = self.job.case
        self._doubts = self._predictor.assessor.doubts(case)
        check_formats(case.reference_source(), self.job.export)
        self._opened = case.open()
        self._first = self._frame(self._opened, case.frames[0])

    def _frame(self, opened: OpenCase, number: int) -> _Frame:
        truth = objects = None
        if self.job.truth is not None:
            if self._predictor.labels.objects:
                objects = Truth.of(self.job.truth, self._predictor.labels, number)
                truth = objects.classes
            else:
                truth = true_labels(self.job.truth, self._predictor.labels, number)
        volume = lazily(opened, number) if self._size.on_disk else opened.read(frame=number)
        return _Frame(number, volume, truth, objects)

    def _compute(self) -> None:
        case = self.job.case
        if self._opened is None or self._first is None:
            raise InputRefusedError("the case has no frame", case.id, "check the file")
        if self._check_memory is not None:
            self._note(self._check_memory(self._size))
        if self._size.on_disk and self.job.kept is not None:
            self._kept = KeptWork(self.job.kept, str(self.job.provenance.get("input_sha256")))
        self._sink = self._open_sink()
        frame = self._first
        self._first = None
        for position, number in enumerate(case.frames):
            if position:
                frame = self._frame(self._opened, number)
            self._predict(frame, position, self._sink)

    def _predict(self, frame: _Frame, position: int, sink: MaskSink) -> None:
        unsure = any(FORMATS[name].needs_probabilities(self.job.export) for name in self.job.export.formats)
        volume = frame.volume
        if volume is None:
            return
        if self._predictor.objects is not None:
            self._predict_objects(frame, volume, position, sink, self._predictor.objects)
            return
        labels = sink.labels_of(position)
        progress = None if self._kept is None else self._kept.progress(position, labels)
        begun = progress is not None and progress.done > 0
        self._note(["went on where an earlier start was interrupted"] if begun else [])
        evidence = None
        if self._predictor.assessor.knows_anything and not begun:
            evidence = CaseEvidence(self._predictor.labels)
        prediction = self._predictor.predict(volume, unsure, labels, evidence, progress=progress)
        if prediction.probabilities is not None and isinstance(sink, VolumeMaskSink):
            sink.write_probabilities(prediction.probabilities)
        frame.labels = prediction.labels
        self._frames.append(frame)
        self._account(prediction)
        if evidence is not None:
            self._assess(evidence)
        self._show(frame, prediction.labels)

    def _predict_objects(
        self, frame: _Frame, volume: Volume, position: int, sink: MaskSink, settings: Instances
    ) -> None:
        """Keeps the maps of a frame beside its mask, and cuts objects out of them."""
        path = MapArchive(self.job.folder / MAPS).store(_frame_name(self.job, frame.number))
        self._maps.append(path)
        if self._kept is not None:
            large = predict_objects(self._predictor, volume, self._kept, position, sink, settings)
            prediction, frame.objects, maps = large
            self._kept_maps.append((maps.path, path))
            frame.labels = prediction.labels
        else:
            prediction, maps = predict_maps(self._predictor, volume, path)
            frame.objects = objects_of(maps, settings)
            sink.write(None, frame.objects.labels, position)
            frame.labels = class_map(frame.objects, self._predictor.labels)
        frame.table = table_of(frame.objects, volume, self._predictor.channels, self._predictor.labels)
        self._frames.append(frame)
        self._account(prediction)
        self._show(frame, frame.labels)

    def _account(self, prediction: Prediction) -> None:
        self._note(prediction.notes)
        self._computed = {
            "engine": prediction.engine,
            "engine_why": prediction.engine_why,
            "windows": self._computed.get("windows", 0) + prediction.windows,
            "windows_skipped": self._computed.get("windows_skipped", 0) + prediction.windows_skipped,
        }
        self._provenance["engine"] = prediction.engine

    def _assessed(self) -> dict[str, Any]:
        """Returns what is said of a case that has no truth: by its files, and by its mask where there is one."""
        found: dict[str, Any] = {} if self._assessment is None else self._assessment.to_json()
        if self._doubts:
            for key in ("unusual", "look_at"):
                found[key] = list(dict.fromkeys([*self._doubts, *found.get(key, ())]))
        return found

    def _assess(self, evidence: CaseEvidence) -> None:
        found = self._predictor.assessor.assess(evidence)
        self._assessment = found if self._assessment is None else self._assessment.joined(found)

    def _show(self, frame: _Frame, labels: npt.NDArray[Any]) -> None:
        """Keeps image and objects of the frame with the most labelled voxels, for the preview, and no others."""
        frame.voxels = int(count_labels(labels)[1:].sum())
        loser: _Frame | None = frame
        if self.job.preview and (self._shown is None or frame.voxels > self._shown.voxels):
            loser, self._shown = self._shown, frame
        if loser is not None:
            loser.volume = None
            if loser.true_objects is None:
                loser.objects = None

    def _open_sink(self) -> MaskSink:
        job = self.job
        target = job.folder / job.masks / job.name
        self._provenance = {
            **job.provenance,
            "device": self._predictor.device.type,
            "precision": list(self._predictor.precisions),
            "notes": self._notes,
        }
        return open_mask_sink(
            job.case.reference_source(),
            target,
            self._predictor.labels,
            self._provenance,
            job.export,
            None if self._kept is None else self._kept.folder,
        )

    def _write(self) -> None:
        labels, geometry = self._predictor.labels, self.job.case.geometry
        tables = self._write_tables()
        files = [*([] if self._sink is None else _close(self._sink)), *tables]
        checks = dict(getattr(self._sink, "checks", {}))
        volumes: list[dict[str, Any]] = []
        pairs: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
        for frame in self._frames:
            if frame.labels is None:
                continue
            volumes += label_volumes(frame.labels, geometry, labels, frame.number if len(self._frames) > 1 else None)
            if frame.truth is not None:
                pairs.append((frame.labels, frame.truth))
        self._made = {"checks": checks, "volumes": volumes}
        if pairs:
            self._made["labels"] = self._with_prediction(frame_scores(pairs, geometry, labels))
        if self._predictor.objects is not None:
            self._made |= self._counted()
        if self.job.preview:
            files.append(_write_preview(self.job, self._shown, self.job.export.labels or labels))
        for here, there in self._kept_maps:  # last of all: who is interrupted before need not predict them again
            there.parent.mkdir(parents=True, exist_ok=True)
            here.replace(there)
        self._made["outputs"] = [path.relative_to(self.job.folder).as_posix() for path in (*files, *self._maps)]

    def _write_tables(self) -> list[Path]:
        """Writes the tables of objects, and tells the sink what its numbers stand for."""
        tables = [frame.table for frame in self._frames if frame.table is not None]
        if not tables:
            return []
        table = table_of_frames(tables)
        if isinstance(self._sink, TiffMaskSink | VolumeMaskSink):
            self._sink.describe(table)
        try:
            return write_tables(table, self.job.folder, self.job.name)
        except MachineError as error:
            raise OutputError(error.what, error.where, error.remedy) from error

    def _counted(self) -> dict[str, Any]:
        """Counts the objects of each class in each frame; matches them with the true ones."""
        found: dict[str, Any] = {"objects": []}
        for frame in self._frames:
            if frame.table is None:
                continue
            rows = count_objects(frame.table, self.job.case.geometry, self._predictor.labels.names)
            number = frame.number if len(self._frames) > 1 else None
            found["objects"] += [{"frame": number, **row} for row in rows]
            if frame.objects is not None and frame.true_objects is not None:
                found["instance"] = compare_objects(frame.objects, frame.true_objects, self._predictor.labels)
        return found

    def _with_prediction(self, scores: dict[str, Any]) -> dict[str, Any]:
        """Puts the predicted Dice of each structure beside its true one."""
        predicted = {} if self._assessment is None else self._assessment.predicted_dice
        return {
            name: {**own, "predicted_dice": predicted[name].value} if name in predicted else own
            for name, own in scores.items()
        }


def do_case(predictor: Predictor, job: CaseJob) -> dict[str, Any]:
    """Does one case, one stage after the other; whatever goes wrong with the case alone is in the result.

    Returns:
        JSON-able: ``id``, ``status`` (``done``, ``refused`` or ``failed``), ``reason``, ``outputs`` (relative to the
        folder), ``seconds`` (the time of its prediction, and of the processor for reading and writing),
        ``peak_memory_mb`` (the most that the process held from its reading to its writing, with what it held of other
        cases), ``checks``, ``volumes``, ``notes``, ``device``, ``precision``, ``out_of_memory``; when it was predicted
        ``engine``, ``engine_why``, ``windows``, ``windows_skipped``, where the models know of their failures
        ``predicted_dice``, ``unusual``, ``look_at`` and of several models ``agreement``; for cases with truth the
        scores of its ``labels``.

    Raises:
        OutputError: when the outputs cannot be written (disk full).
    """
    work = CaseWork(job, predictor)
    for stage in (work.read, work.compute, work.write):
        stage()
    return work.result()


def _frame_name(job: CaseJob, frame: int) -> str:
    return job.name if len(job.case.frames) == 1 else f"{job.name}_t{frame:03d}"


def _close(sink: MaskSink) -> list[Path]:
    try:
        return sink.close()
    except MachineError as error:
        raise OutputError(error.what, error.where, error.remedy) from error


def _write_preview(job: CaseJob, shown: _Frame | None, labels: LabelMap) -> Path:
    path = job.folder / "previews" / f"{job.name}.png"
    if shown is None or shown.volume is None or shown.labels is None:
        raise InputRefusedError("the case has no frame", job.case.id, "check the file")
    geometry = shown.volume.geometry
    if shown.objects is None:
        image, found = thinned(shown.volume.array, geometry.shape), thinned(shown.labels, geometry.shape)
        truth = None if shown.truth is None else thinned(shown.truth, geometry.shape)
        picture = outline_preview(image, found, geometry.spacing_mm, labels, truth, geometry.orientation)
    else:
        picture = picture_of(shown.objects, shown.volume, labels, shown.true_objects)
    try:
        with whole_file(path, job.case.id) as part:
            Image.fromarray(picture).save(part, format="PNG")
    except MachineError as error:
        raise OutputError(error.what, error.where, error.remedy) from error
    return path
