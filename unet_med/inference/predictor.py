"""From a volume to labels on the volume's own grid, by one model or several, slab by slab.

Nothing that is as large as the volume is made but its labels: the image is prepared, windows are blended, logits are
brought to the volume's grid and turned into labels row by row along one axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unet_med.bundle import Bundle
from unet_med.config import Instances
from unet_med.errors import InputRefusedError, MachineError, ModelError
from unet_med.inference.device import choose_device, choose_precision, free_memory, precision_name
from unet_med.inference.loaded import (
    LoadedModel,
    Setting,
    Tiles,
    forward_bytes,
    needed_bytes,
    smaller_setting,
    smaller_window,
)
from unet_med.inference.maps_store import MapStore
from unet_med.inference.outputs import Outputs, RowProgress
from unet_med.inference.quality.assessment import Assessor
from unet_med.inference.quality.evidence import CaseEvidence
from unet_med.inference.rows import ModelRows, PrecisionError, averaged
from unet_med.inference.stream import rolling_values
from unet_med.labels import LabelMap
from unet_med.networks import admissible_patch, context_voxels, head_channels
from unet_med.transforms.postprocess import postprocess_labels
from unet_med.transforms.preprocess import Prepared, Preprocessor
from unet_med.volume import Volume

CPU_BATCH = {2: 4, 3: 1}
"""Windows in one forward pass on a CPU, by the axes of the network."""
_LARGEST_BATCH = 16
"""Windows in one forward pass of a card, where they fit."""
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "failed to allocate")
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
    def channels(self) -> tuple[str, ...]:
        """Names of the channels that an image has."""
        return self._models[0].bundle.channels

    @property
    def models(self) -> tuple[LoadedModel, ...]:
        """The models, ready to compute."""
        return tuple(self._models)

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
        streams = self._fill(prepared, Outputs(out, likely, evidence, maps, progress), notes)
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

    def _set_up(self, bundle: Bundle, mirror: bool | None, memory_gb: float | None, skips: bool) -> LoadedModel:
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
        model = LoadedModel(
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
                _CARD_SHARE * (free_memory(self.device) or 0) / forward_bytes(model, Tiles(model.tiles.window, 1))
            )
            model.tiles = Tiles(model.tiles.window, min(max(room, 1), _LARGEST_BATCH))
        return model

    # ---- one case ---------------------------------------------------------------------------------------------------

    def _fill(self, prepared: Sequence[Prepared], outputs: Outputs, notes: list[str]) -> list[ModelRows]:
        """Writes labels (and probabilities); begins again with smaller windows or in fp32 where that is needed."""
        settings = [
            Setting(self._within_budget(model, one, notes), model.precision, self.device.type == "cuda")
            for model, one in zip(self._models, prepared, strict=True)
        ]
        while True:
            try:
                return self._attempt(prepared, settings, outputs)
            except PrecisionError:
                settings = [self._in_full_precision(setting, notes) for setting in settings]
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                smaller = [smaller_setting(m, s) for m, s in zip(self._models, settings, strict=True)]
                if not any(smaller):
                    raise _no_memory() from error
                settings = [new or old for new, old in zip(smaller, settings, strict=True)]
                _note_smaller(self._models, settings, notes)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _attempt(self, prepared: Sequence[Prepared], settings: Sequence[Setting], outputs: Outputs) -> list[ModelRows]:
        evidence = outputs.evidence
        begun = outputs.progress if evidence is None else None
        along = self._direction(prepared, settings) if begun is None or begun.along is None else begun.along
        if evidence is not None:
            evidence.begin(along, len(self._models))
        streams = [
            ModelRows(
                model,
                one,
                setting,
                along,
                self._blending_device(model, one, setting, along),
                None if evidence is None else evidence.mirrored(number),
            )
            for number, (model, one, setting) in enumerate(zip(self._models, prepared, settings, strict=True))
        ]
        first = 0 if begun is None else begun.done
        for start, stop, logits in averaged(streams, self.labels.outputs, evidence, first):
            outputs.take(logits, self.labels, prepared[0], along, start, stop)
        return streams

    def _direction(self, prepared: Sequence[Prepared], settings: Sequence[Setting]) -> int:
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

    def _within_budget(self, model: LoadedModel, prepared: Prepared, notes: list[str]) -> Tiles:
        """Shrinks batches, then windows, until prediction is expected to fit ``memory_gb``."""
        tiles = model.tiles
        while self._memory_bytes is not None and needed_bytes(model, prepared, tiles) > self._memory_bytes:
            window = tiles.window if tiles.batch > 1 else smaller_window(model, tiles.window)
            if window is None:
                break
            tiles = Tiles(window, max(1, tiles.batch // 2))
        if tiles.window != model.tiles.window:
            notes.append(f"windows of {_times(tiles.window)} instead of {_times(model.tiles.window)}: --memory-gb")
        return tiles

    def _blending_device(self, model: LoadedModel, prepared: Prepared, setting: Setting, along: int) -> torch.device:
        if not setting.blends_on_card:
            return torch.device("cpu")
        axes = model.axes(prepared.geometry.shape, setting.tiles)
        wanted = 4 * rolling_values(axes, along, model.channels, setting.tiles.batch)
        return self.device if wanted < _CARD_SHARE * (free_memory(self.device) or 0) else torch.device("cpu")

    def _in_full_precision(self, setting: Setting, notes: list[str]) -> Setting:
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


def _note_smaller(models: Sequence[LoadedModel], settings: Sequence[Setting], notes: list[str]) -> None:
    """Says how windows are run now; one note for each case."""
    notes[:] = [note for note in notes if not note.startswith("out of memory")]
    for model, setting in zip(models, settings, strict=True):
        if setting.tiles != model.tiles:
            notes.append(
                f"out of memory: windows of {_times(setting.tiles.window)}, {setting.tiles.batch} at a time, "
                f"instead of {_times(model.tiles.window)}, {model.tiles.batch} at a time"
            )
            return


def _times(size: Sequence[int]) -> str:
    return "x".join(str(n) for n in size)
