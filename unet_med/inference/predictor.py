"""From a volume to labels on the volume's own grid, by one model or several, slab by slab.

Nothing that is as large as the volume is made but its labels: the image is prepared, windows are blended, logits are
brought to the volume's grid and turned into labels row by row along one axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from unet_med.bundle import Bundle
from unet_med.config import Instances
from unet_med.errors import ConfigError, InputRefusedError, MachineError, ModelError
from unet_med.geometry import reorient, undo_reorient
from unet_med.inference.chances import label_chances
from unet_med.inference.device import choose_device, choose_precision, free_memory, precision_name
from unet_med.inference.emptiness import EmptinessRule, stored_rule
from unet_med.inference.engine import Engine, EngineRequest, open_engine
from unet_med.inference.maps_store import MapStore
from unet_med.inference.quality.assessment import Assessor
from unet_med.inference.quality.evidence import CaseEvidence
from unet_med.inference.stream import Compare, WindowStream, mirrored, rolling_values
from unet_med.inference.tiling import WindowAxis, window_axes
from unet_med.instances.maps import ObjectMaps
from unet_med.labels import LabelMap
from unet_med.networks import admissible_patch, context_voxels, head_channels, input_channels
from unet_med.transforms.postprocess import postprocess_labels
from unet_med.transforms.preprocess import Prepared, Preprocessor
from unet_med.transforms.prior import Prior
from unet_med.transforms.resample import spline_rows, spline_support
from unet_med.volume import Region, Volume

CHUNK_VALUES = 2**24
"""Numbers that the logits of one chunk of rows hold, where a row is smaller."""
_MAPS_IN_MEMORY = 6
"""Feature maps of the finest level that a forward pass holds at once, in multiples of its channels."""
CPU_BATCH = {2: 4, 3: 1}
"""Windows in one forward pass on a CPU, by the axes of the network."""
_LARGEST_BATCH = 16
"""Windows in one forward pass of a card, where they fit."""
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "failed to allocate")
OUTSIDE_LOGIT = 30.0
"""Certainty given to background where an image was cropped away or nothing was computed."""
_CARD_SHARE = 0.5
"""Share of a card's free memory that blended windows may take; more is blended in the main memory."""
_HELD_BYTES = 2**31
"""What blended windows may take along the axis in which an image that is not in memory is read."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of a volume.

    Attributes:
        labels: (I, J[, K]) uint8 or uint16 on the volume's grid.
        notes: What was not as planned (a smaller window, ...); empty mostly.
        probabilities: (labels, I, J[, K]) float32 from 0 to 1, one for each label; only where asked for.
        engine: What computed, for example ``openvino bf16``; several models are separated by commas.
        engine_why: One sentence: why that.
        windows: Windows of all models.
        windows_skipped: How many of them were not computed because they can hold nothing.
    """

    labels: npt.NDArray[np.uint8 | np.uint16]
    notes: list[str]
    probabilities: npt.NDArray[np.float32] | None = None
    engine: str = ""
    engine_why: str = ""
    windows: int = 0
    windows_skipped: int = 0


@dataclass
class RowProgress:
    """How far a prediction has come: rows are final one after the other, along an axis that the image decides.

    Attributes:
        done: Rows whose labels (and maps) are final; a prediction that was interrupted goes on with the next one.
        tell: Is called whenever there are more.
    """

    done: int = 0
    tell: Callable[[int], None] = lambda done: None


@dataclass(frozen=True)
class Tiles:
    """How windows are run: both numbers shrink when memory runs out.

    Attributes:
        window: Voxels of a window along each axis of the network.
        batch: Windows in one forward pass.
    """

    window: tuple[int, ...]
    batch: int


@dataclass(eq=False)
class _Model:
    bundle: Bundle
    network: nn.Module
    preprocessor: Preprocessor
    device: torch.device
    precision: torch.dtype
    context: tuple[int, ...]
    mirror_axes: tuple[int, ...]
    tiles: Tiles
    blends_features: bool
    skips: bool
    low: Predictor | None = None
    engines: dict[tuple[Tiles, torch.dtype], Engine] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Channels that are blended: the features of the finest level where they are fewer than the outputs."""
        return head_channels(self.bundle.config.network) if self.blends_features else self.bundle.labels.outputs

    def with_prior(self, image: Prepared, labels: npt.NDArray[Any]) -> Prepared:
        """Returns the image with a copy of what a cascade's first stage found in it, on the network's grid."""
        mask = self.preprocessor.prepare_label(labels, image)
        if np.may_share_memory(mask, labels):
            mask = mask.copy()
        return replace(image, prior=Prior(mask, self.bundle.config.prior_channels))

    @property
    def sees_volumes(self) -> bool:
        """Whether a picture is not enough for it."""
        return self.bundle.dims == 3 or self.bundle.config.network.slices > 1

    def engine(self, tiles: Tiles, precision: torch.dtype) -> Engine:
        """Returns what runs windows of this size; the one of the last case where that fits."""
        key = (tiles, precision)
        if key not in self.engines:
            for engine in self.engines.values():
                engine.close()
            self.engines.clear()
            request = EngineRequest(
                network=self.network,
                window=tiles.window,
                context=self.context,
                channels=input_channels(
                    self.bundle.config.network, self.bundle.channels, self.bundle.config.prior_channels
                ),
                batch=tiles.batch,
                features=self.blends_features,
                device=self.device,
                precision=precision,
                sha256=self.bundle.sha256,
            )
            self.engines[key] = open_engine(request, self.bundle.config.inference.engine)
        return self.engines[key]

    def skip(self, tiles: Tiles) -> EmptinessRule | None:
        """Returns the rule by which windows of this size are left out, if the model has one."""
        if not self.skips:
            return None
        return stored_rule(self.bundle.meta, tiles.window, len(self.bundle.channels))

    def axes(self, size: Sequence[int], tiles: Tiles) -> tuple[WindowAxis, ...]:
        """Lays windows over an image of the network's grid."""
        settings = self.bundle.config.inference
        slices = self.bundle.config.network.slices
        sigma, centre = settings.gaussian_sigma, settings.gaussian_centre
        return window_axes(size, tiles.window, settings.overlap, sigma, self.context, slices, centre)


@dataclass(frozen=True)
class _Setting:
    """How one model does one case; replaced by a smaller or more exact one when it fails."""

    tiles: Tiles
    precision: torch.dtype
    blends_on_card: bool


class _OverflowError(Exception):
    """Half precision was not enough; the number of the model."""


class Predictor:
    """One model, or several whose logits are averaged.

    A cascade first labels the volume at low resolution, then once more with these labels as channels.

    Args:
        bundles: Models with the same labels and the same number of channels.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        mirror: Average over the flips that training used; ``None``: as the pipeline says.
        memory_gb: Memory that prediction may use beyond the image, its labels and the loaded model; ``None``: try,
            and take smaller windows when it fails.

    Attributes:
        labels: What the values of its masks mean.
        device: Where it computes.
        precisions: ``fp32``, ``bf16`` or ``fp16``, one for each model.
        assessor: Says of a case how good its mask probably is, and whether its image is unusual.
        notes: What holds for every case.

    Raises:
        ModelError: when the models do not belong together or a bundle's weights do not fit.
        UsageError: when the device does not exist.
    """

    def __init__(
        self,
        bundles: Sequence[Bundle],
        device: str = "auto",
        mirror: bool | None = None,
        memory_gb: float | None = None,
    ) -> None:
        if not bundles:
            raise ModelError("no model was given", remedy="give at least one bundle")
        _check_together(bundles)
        self.labels: LabelMap = bundles[0].labels
        self.device = choose_device(device)
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # all windows have one size
            torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32; half precision is the fast way
        self._memory_bytes = None if memory_gb is None else memory_gb * 1e9
        self.notes: list[str] = []
        # a rule was proven for its model alone; among others it would outvote them
        self._models = [self._set_up(bundle, mirror, memory_gb, skips=len(bundles) == 1) for bundle in bundles]
        self.precisions = tuple(precision_name(model.precision) for model in self._models)
        self.assessor = Assessor([bundle.meta for bundle in bundles])
        if mirror and not all(model.mirror_axes for model in self._models):
            self.notes.append("mirroring has no effect on a model whose training mirrored no axis")

    @property
    def objects(self) -> Instances | None:
        """How objects are cut out of its maps; ``None``: its labels are no classes of objects."""
        return self._models[0].bundle.config.instances if self.labels.objects else None

    @property
    def reads_in_order(self) -> bool:
        """Whether an image need not be in memory: no first stage labels it, no holes of it are filled."""
        settings = [model.bundle.config.preprocess.normalisation for model in self._models]
        fills = any(one.inside == "filled" for some in settings if some != "auto" for one in some)
        return not fills and not self.first_stages

    @property
    def first_stages(self) -> tuple[Predictor, ...]:
        """What labels the volume at low resolution, one for each model that is a cascade."""
        return tuple(model.low for model in self._models if model.low is not None)

    def predict(
        self,
        volume: Volume,
        probabilities: bool = False,
        out: npt.NDArray[np.uint8 | np.uint16] | None = None,
        evidence: CaseEvidence | None = None,
        maps: MapStore | None = None,
        progress: RowProgress | None = None,
    ) -> Prediction:
        """Labels a volume.

        Args:
            volume: (C, I, J[, K]); a 2-D model labels a volume slice by slice. It need not be in memory
                (:func:`unet_med.volume.lazily`): it is then read in the order of its file.
            probabilities: Also return how likely each label is; 4 bytes for each label and voxel.
            out: (I, J[, K]) uint8 or uint16 that receives the labels; ``None``: a new array. It may be mapped from a
                file.
            evidence: Is shown the image and its logits as they become final; :attr:`assessor` judges by it.
            maps: Receives what objects are cut out of, on the volume's grid; for models of objects.
            progress: Where to go on, and whom to tell of rows that are final; with ``evidence``, which needs all rows,
                it begins at the first one.

        Raises:
            ModelError: when the number of channels is not the models' own.
            InputRefusedError: when the image cannot be prepared (constant, no pixel size, a picture for a 3-D model).
            MachineError: when memory does not suffice for the smallest window.
        """
        self._check(volume)
        if out is None:
            out = np.zeros(volume.geometry.shape, dtype=self.labels.dtype)
        likely = None
        if probabilities:
            likely = np.zeros((len(self.labels.labels), *volume.geometry.shape), dtype=np.float32)
        prepared = [model.preprocessor.prepare(volume) for model in self._models]
        if evidence is not None:
            evidence.look(prepared[0])
        notes = list(self.notes)
        first = self._first_stages(volume, prepared, out, notes)
        streams = self._fill(prepared, _Outputs(out, likely, evidence, maps, progress), notes)
        self._clean(out, likely)
        engines = [(f"{stream.engine.name} {stream.engine.precision}", stream.engine.why) for stream in streams]
        engines = [*((stage.engine, stage.engine_why) for stage in first), *engines]
        return Prediction(
            out,
            notes,
            likely,
            engine=", ".join(dict.fromkeys(engine for engine, _ in engines)),
            engine_why="; ".join(dict.fromkeys(why for _, why in engines)),
            windows=sum(stage.windows for stage in streams) + sum(stage.windows for stage in first),
            windows_skipped=sum(stage.skipped for stage in streams) + sum(stage.windows_skipped for stage in first),
        )

    def _first_stages(
        self, volume: Volume, prepared: list[Prepared], out: npt.NDArray[Any], notes: list[str]
    ) -> list[Prediction]:
        """Runs the first stages of cascades and gives what they find to ``prepared``; ``out`` holds it for a while."""
        found: list[Prediction] = []
        for number, model in enumerate(self._models):
            if model.low is not None:
                stage = model.low.predict(volume, out=out)
                prepared[number] = model.with_prior(prepared[number], out)
                notes += [f"low resolution: {note}" for note in stage.notes]
                found.append(stage)
        return found

    def _check(self, volume: Volume) -> None:
        names = self._models[0].bundle.channels
        channels = len(names)
        if volume.channels != channels:
            raise ModelError(
                f"made for {channels} {'channel' if channels == 1 else 'channels'}, the image has {volume.channels}",
                remedy=f"it needs {', '.join(names)}: choose them with --channel, or use a model made for such images",
            )
        if volume.geometry.ndim == 2 and any(model.sees_volumes for model in self._models):
            raise InputRefusedError(
                "the model is made for volumes, the image is a picture",
                remedy="use a 2-D model, or say with --axes which axis of the stack is depth",
            )

    def _set_up(self, bundle: Bundle, mirror: bool | None, memory_gb: float | None, skips: bool) -> _Model:
        config = bundle.config
        axes = config.augment.mirror_axes
        wanted = config.inference.mirror if mirror is None else mirror
        mirror_axes = tuple(axis for axis in axes if axis < bundle.dims) if wanted and axes != "auto" else ()
        network = bundle.network()
        layout = torch.channels_last_3d if bundle.dims == 3 else torch.channels_last
        network = network.to(device=self.device, memory_format=layout)  # type: ignore[call-overload]
        window = config.sampling.patch_voxels
        if window == "auto":
            raise ModelError("the pipeline names no patch", "sampling.patch_voxels", "train the model again")
        model = _Model(
            bundle,
            network,
            Preprocessor(config),
            self.device,
            choose_precision(config.training.precision, self.device),
            context_voxels(config.network, bundle.dims),
            mirror_axes,
            Tiles(admissible_patch(config.network, bundle.dims, window), CPU_BATCH[bundle.dims]),
            blends_features=bundle.labels.outputs > head_channels(config.network),
            skips=skips and config.inference.skip_empty,
            low=Predictor(bundle.low, str(self.device), mirror, memory_gb) if bundle.low else None,
        )
        if self.device.type == "cuda":
            room = int(
                _CARD_SHARE * (free_memory(self.device) or 0) / _forward_bytes(model, Tiles(model.tiles.window, 1))
            )
            model.tiles = Tiles(model.tiles.window, min(max(room, 1), _LARGEST_BATCH))
        return model

    # ---- one case ---------------------------------------------------------------------------------------------------

    def _fill(self, prepared: Sequence[Prepared], outputs: _Outputs, notes: list[str]) -> list[_ModelRows]:
        """Writes labels (and probabilities); begins again with smaller windows or in fp32 where that is needed."""
        settings = [
            _Setting(self._within_budget(model, one, notes), model.precision, self.device.type == "cuda")
            for model, one in zip(self._models, prepared, strict=True)
        ]
        while True:
            try:
                return self._attempt(prepared, settings, outputs)
            except _OverflowError:
                settings = [self._in_full_precision(setting, notes) for setting in settings]
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                smaller = [_smaller(m, s) for m, s in zip(self._models, settings, strict=True)]
                if not any(smaller):
                    raise _no_memory() from error
                settings = [new or old for new, old in zip(smaller, settings, strict=True)]
                _note_smaller(self._models, settings, notes)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _attempt(
        self, prepared: Sequence[Prepared], settings: Sequence[_Setting], outputs: _Outputs
    ) -> list[_ModelRows]:
        along = self._direction(prepared, settings)
        evidence = outputs.evidence
        if evidence is not None:
            evidence.begin(along, len(self._models))
        streams = [
            _ModelRows(
                model,
                one,
                setting,
                along,
                self._blending_device(model, one, setting, along),
                None if evidence is None else evidence.mirrored(number),
            )
            for number, (model, one, setting) in enumerate(zip(self._models, prepared, settings, strict=True))
        ]
        first = outputs.progress.done if outputs.progress is not None and evidence is None else 0
        for start, stop, logits in _averaged(streams, self.labels.outputs, evidence, first):
            outputs.take(logits, self.labels, prepared[0], along, start, stop)
        return streams

    def _direction(self, prepared: Sequence[Prepared], settings: Sequence[_Setting]) -> int:
        """The axis of the turned image along which the least has to be held."""

        def held(along: int) -> int:
            return sum(
                rolling_values(
                    model.axes(one.geometry.shape, setting.tiles), along, model.channels, setting.tiles.batch
                )
                for model, one, setting in zip(self._models, prepared, settings, strict=True)
            )

        slowest = prepared[0].slowest
        if slowest is not None and 4 * held(slowest) <= (self._memory_bytes or _HELD_BYTES):
            return slowest
        return min(range(prepared[0].geometry.ndim), key=held)

    def _within_budget(self, model: _Model, prepared: Prepared, notes: list[str]) -> Tiles:
        """Shrinks batches, then windows, until prediction is expected to fit ``memory_gb``."""
        tiles = model.tiles
        while self._memory_bytes is not None and _needed_bytes(model, prepared, tiles) > self._memory_bytes:
            window = tiles.window if tiles.batch > 1 else _smaller_window(model, tiles.window)
            if window is None:
                break
            tiles = Tiles(window, max(1, tiles.batch // 2))
        if tiles.window != model.tiles.window:
            notes.append(f"windows of {_times(tiles.window)} instead of {_times(model.tiles.window)}: --memory-gb")
        return tiles

    def _blending_device(self, model: _Model, prepared: Prepared, setting: _Setting, along: int) -> torch.device:
        if not setting.blends_on_card:
            return torch.device("cpu")
        axes = model.axes(prepared.geometry.shape, setting.tiles)
        wanted = 4 * rolling_values(axes, along, model.channels, setting.tiles.batch)
        return self.device if wanted < _CARD_SHARE * (free_memory(self.device) or 0) else torch.device("cpu")

    def _in_full_precision(self, setting: _Setting, notes: list[str]) -> _Setting:
        if setting.precision != torch.float32:
            notes.append(f"{precision_name(setting.precision)} overflowed: computed in fp32")
        return replace(setting, precision=torch.float32)

    def _clean(self, labels: npt.NDArray[Any], likely: npt.NDArray[np.float32] | None) -> None:
        """Post-processes labels in place; what is removed is no longer likely, what is filled is certain."""
        settings = self._models[0].bundle.config.postprocess
        before = labels.copy() if likely is not None else None
        postprocess_labels(labels, settings, self.labels, out=labels)
        if likely is None or before is None:
            return
        for place, label in enumerate(self.labels.labels):
            likely[place][(before == label.index) & (labels != label.index)] = 0.0
            likely[place][(before != label.index) & (labels == label.index)] = 1.0


@dataclass(frozen=True, eq=False)
class _Outputs:
    """What becomes of the logits of rows as they are final; see :meth:`Predictor.predict`."""

    labels: npt.NDArray[Any]
    likely: npt.NDArray[np.float32] | None
    evidence: CaseEvidence | None
    maps: MapStore | None
    progress: RowProgress | None

    def take(self, logits: Tensor, label_map: LabelMap, image: Prepared, along: int, start: int, stop: int) -> None:
        """Takes the logits (outputs, *s) of the rows of the turned image from ``start`` to ``stop``."""
        rows = (slice(None),) * along + (slice(start, stop),)
        labels = reorient(self.labels, image.order, image.flips)[rows]
        label_map.from_outputs(logits, out=labels)
        if self.evidence is not None:
            self.evidence.join(labels)
        if self.likely is not None:
            reorient(self.likely, image.order, image.flips)[(slice(None), *rows)] = label_chances(logits, label_map)
        if self.maps is not None:
            found = ObjectMaps.from_logits(logits)
            turned = (undo_reorient(one, image.order, image.flips) for one in (found.border, found.distance))
            classes = undo_reorient(found.classes, image.order, image.flips)
            self.maps.write(_own_rows(image, along, start, stop), ObjectMaps(classes, *turned))
        if self.progress is not None:
            self.progress.done = stop
            self.progress.tell(stop)


def _own_rows(image: Prepared, along: int, start: int, stop: int) -> Region:
    """Returns the region of the image as it came that rows of the turned one are."""
    region = [slice(0, n) for n in image.reference.shape]
    size = region[image.order[along]].stop
    region[image.order[along]] = slice(size - stop, size - start) if image.flips[along] else slice(start, stop)
    return tuple(region)


class _ModelRows:
    """The logits of one model on the rows of the turned reference grid, from one end of an axis to the other."""

    def __init__(
        self,
        model: _Model,
        prepared: Prepared,
        setting: _Setting,
        along: int,
        blending: torch.device,
        compare: Compare | None = None,
    ) -> None:
        self.engine = model.engine(setting.tiles, setting.precision)
        self._model = model
        self._along = along
        self._exact = setting.precision == torch.float32
        self._grid = prepared.geometry.shape
        self._box = prepared.box
        self._orders = prepared.back
        self._shape = tuple(prepared.reference.shape[axis] for axis in prepared.order)
        rule = model.skip(setting.tiles)
        self._stream = WindowStream(
            prepared,
            model.axes(self._grid, setting.tiles),
            along,
            mirrored(self.engine, model.mirror_axes, None if model.blends_features else compare),
            model.channels,
            model.bundle.dims,
            setting.tiles.batch,
            model.device,
            blending,
            None if rule is None else rule.which,
        )

    @property
    def size(self) -> int:
        """Rows of the reference grid, along the axis in which it goes."""
        return self._shape[self._along]

    @property
    def row_voxels(self) -> int:
        """Voxels of one of them."""
        return prod(self._shape) // max(1, self.size)

    @property
    def windows(self) -> int:
        """Windows that were visited."""
        return self._stream.windows

    @property
    def skipped(self) -> int:
        """Windows that were not computed."""
        return self._stream.skipped

    @property
    def ready(self) -> int:
        """Rows of the reference grid, from the first one on, whose logits can be had."""
        box, size = self._box[self._along], self._grid[self._along]
        if self._stream.is_finished:
            return self._shape[self._along]
        order = self._orders[self._along]
        low, high = 0, box.stop - box.start
        while low < high:  # the last row that needs nothing beyond what is final
            middle = (low + high + 1) // 2
            _, needed = spline_support(order, box.stop - box.start, size, middle - 1, middle)
            low, high = (middle, high) if needed <= self._stream.ready else (low, middle - 1)
        return int(box.start) + low

    def begin_at(self, row: int) -> None:
        """Leaves out what only rows before ``row`` need."""
        is_inside = row < self._box[self._along].stop
        self._stream.begin_at(self._first_needed(row) if is_inside else self._grid[self._along])

    def advance(self) -> None:
        """Runs the next windows; rows before :attr:`ready` are forgotten."""
        self._stream.advance(self._first_needed(self.ready))

    def _first_needed(self, row: int) -> int:
        """The first row of the network's grid on which a row of the reference grid depends."""
        box, size = self._box[self._along], self._grid[self._along]
        row = min(max(row - box.start, 0), box.stop - box.start - 1)
        return spline_support(self._orders[self._along], box.stop - box.start, size, row, row + 1)[0]

    def logits(self, start: int, stop: int) -> Tensor:
        """Returns (outputs, *s) float32 for the rows from ``start`` to ``stop``, which must be ready.

        Raises:
            ModelError: when they are not finite in float32.
        """
        box = self._box[self._along]
        first, last = max(start, box.start), min(stop, box.stop)
        rows = tuple(
            slice(first - start, last - start) if axis == self._along else part for axis, part in enumerate(self._box)
        )
        size = [stop - start if axis == self._along else n for axis, n in enumerate(self._shape)]
        if first >= last:
            return self._background(size, torch.device("cpu"))
        inside = self._inside(first - box.start, last - box.start)
        if list(inside.shape[1:]) == size:
            return inside
        logits = self._background(size, inside.device)
        logits[(slice(None), *rows)] = inside
        return logits

    def _inside(self, start: int, stop: int) -> Tensor:
        """Logits of rows that are counted from the beginning of the box."""
        box = [part.stop - part.start for part in self._box]
        order = self._orders[self._along]
        low, high = spline_support(order, box[self._along], self._grid[self._along], start, stop)
        sizes = self._grid[self._along], box[self._along]
        values = spline_rows(self._stream.rows(low, high), self._along + 1, order, low, *sizes, start, stop)
        for axis, (size, wanted) in enumerate(zip(self._grid, box, strict=True)):
            if axis != self._along:
                values = spline_rows(values, axis + 1, self._orders[axis], 0, size, wanted, 0, wanted)
        gaps = None
        if self._stream.holds_gaps:
            values, gaps = values[:-1], values[-1] > 0.5
        logits = self._from_features(values) if self._model.blends_features else values
        self._check(logits)
        if gaps is not None and bool(gaps.any()):
            logits = torch.where(gaps, self._outside(logits.ndim, logits.device), logits)
        return logits

    def _from_features(self, features: Tensor) -> Tensor:
        """The head is a 1x1 convolution: a matrix product over the channels."""
        head = self._model.network.head
        weight, bias = head.weight.detach().flatten(1), head.bias.detach()  # type: ignore[union-attr, operator]
        weight, bias = weight.to(features.device, torch.float32), bias.to(features.device, torch.float32)
        return torch.addmm(bias[:, None], weight, features.flatten(1)).view(-1, *features.shape[1:])

    def _check(self, logits: Tensor) -> None:
        if bool(torch.isfinite(logits.sum())):
            return
        if not self._exact:
            raise _OverflowError
        raise ModelError("the network's output is not finite", "model.safetensors", "train again; the weights diverged")

    def _background(self, size: Sequence[int], device: torch.device) -> Tensor:
        return self._outside(len(size) + 1, device).expand(-1, *size).clone()

    def _outside(self, ndim: int, device: torch.device) -> Tensor:
        """Logits of certain background: output 0, no region at all; (outputs, 1, ...)."""
        labels = self._model.bundle.labels
        values = torch.full((labels.outputs,), -OUTSIDE_LOGIT, device=device)
        if not labels.regions:
            values[0] = OUTSIDE_LOGIT
        return values.view(-1, *[1] * (ndim - 1))


def _averaged(
    streams: Sequence[_ModelRows], outputs: int, evidence: CaseEvidence | None, first: int = 0
) -> Iterator[tuple[int, int, Tensor]]:
    """Yields start, stop and the averaged logits of the next rows, until all rows are done; ``first`` is the first."""
    done, size = first, streams[0].size
    if done:
        for stream in streams:
            stream.begin_at(done)
    while done < size:
        ready = min(stream.ready for stream in streams)
        if ready <= done:
            for stream in streams:
                if stream.ready <= done:
                    stream.advance()
            continue
        step = max(1, CHUNK_VALUES // max(1, streams[0].row_voxels * len(streams) * outputs))
        while done < ready:
            stop = min(done + step, ready)
            total: Tensor | None = None
            for number, stream in enumerate(streams):
                logits = stream.logits(done, stop)
                if evidence is not None:
                    evidence.add(number, logits)
                total = logits if total is None else total + logits.to(total.device)
            if total is not None:
                yield done, stop, total / len(streams) if len(streams) > 1 else total
            done = stop


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the CPU or on a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)


def _no_memory() -> MachineError:
    return MachineError(
        "out of memory, even with the smallest window",
        remedy="close other programs, use a machine with more memory, or choose --device cpu",
    )


def _check_together(bundles: Sequence[Bundle]) -> None:
    first = bundles[0]
    for other in bundles[1:]:
        if (other.labels.names, other.labels.regions) != (first.labels.names, first.labels.regions):
            raise ModelError(
                f"the models have different labels: {', '.join(first.labels.names)} and "
                f"{', '.join(other.labels.names)}",
                "--also",
                "average models of one task only",
            )
        if len(other.channels) != len(first.channels):
            raise ModelError(
                f"the models need {len(first.channels)} and {len(other.channels)} channels",
                "--also",
                "average models of one task only",
            )
        if _axes(other) != _axes(first):
            raise ModelError(
                "the models see the axes of an image in different orders",
                "--also",
                "average models that were made in one way: trained here, or imported from one nnU-Net configuration",
            )


def _axes(bundle: Bundle) -> tuple[str, tuple[int, ...] | None]:
    settings = bundle.config.preprocess
    return settings.orientation, settings.axes


def _smaller(model: _Model, setting: _Setting) -> _Setting | None:
    """Half the batch, then blending in the main memory, then half the window; ``None`` at the end."""
    tiles = setting.tiles
    if tiles.batch > 1:
        return replace(setting, tiles=Tiles(tiles.window, tiles.batch // 2))
    if setting.blends_on_card:
        return replace(setting, blends_on_card=False)
    window = _smaller_window(model, tiles.window)
    return None if window is None else replace(setting, tiles=Tiles(window, 1))


def _smaller_window(model: _Model, window: tuple[int, ...]) -> tuple[int, ...] | None:
    """Half the window as far as the network's strides allow; ``None`` where that is no less."""
    try:
        half = admissible_patch(model.bundle.config.network, model.bundle.dims, [-(-size // 2) for size in window])
    except ConfigError:
        return None
    smaller = tuple(min(new, old) for new, old in zip(half, window, strict=True))
    return smaller if smaller != window else None


def _note_smaller(models: Sequence[_Model], settings: Sequence[_Setting], notes: list[str]) -> None:
    """Says how windows are run now; one note for each case."""
    notes[:] = [note for note in notes if not note.startswith("out of memory")]
    for model, setting in zip(models, settings, strict=True):
        if setting.tiles != model.tiles:
            notes.append(
                f"out of memory: windows of {_times(setting.tiles.window)}, {setting.tiles.batch} at a time, "
                f"instead of {_times(model.tiles.window)}, {model.tiles.batch} at a time"
            )
            return


def _needed_bytes(model: _Model, prepared: Prepared, tiles: Tiles) -> float:
    """Memory of a forward pass and of the windows that are blended."""
    axes = model.axes(prepared.geometry.shape, tiles)
    held = min(rolling_values(axes, along, model.channels, tiles.batch) for along in range(prepared.geometry.ndim))
    return 4.0 * held + _forward_bytes(model, tiles)


def _forward_bytes(model: _Model, tiles: Tiles) -> float:
    voxels = prod(size + 2 * border for size, border in zip(tiles.window, model.context, strict=True))
    size = 4 if model.precision == torch.float32 else 2
    return float(tiles.batch * voxels * head_channels(model.bundle.config.network) * size * _MAPS_IN_MEMORY)


def _times(size: Sequence[int]) -> str:
    return "x".join(str(n) for n in size)
