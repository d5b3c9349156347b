"""Logits of models on the rows of the image's grid, as they become final."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from unet_med.errors import ModelError
from unet_med.inference.loaded import LoadedModel, Setting
from unet_med.inference.quality.evidence import CaseEvidence
from unet_med.inference.stream import Compare, Run, WindowStream, mirrored
from unet_med.transforms.preprocess import Prepared
from unet_med.transforms.resample import spline_rows, spline_support

CHUNK_VALUES = 2**22
"""Numbers that the logits of one chunk of rows hold, where a row is smaller."""
OUTSIDE_LOGIT = 30.0
"""Certainty given to background where an image was cropped away or nothing was computed."""


class PrecisionError(Exception):
    """Half precision was not enough for a model."""


class ModelRows:
    """The logits of one model on the rows of the turned reference grid, from one end of an axis to the other."""

    def __init__(
        self,
        model: LoadedModel,
        prepared: Prepared,
        setting: Setting,
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
        run = mirrored(self.engine, model.mirror_axes, None if model.blends_features else compare)
        self._stream = WindowStream(
            prepared,
            model.axes(self._grid, setting.tiles),
            along,
            _less_the_first(run) if model.blends_differences else run,
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

        Those of a softmax are relative to the first output, which is then 0.

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
        logits = self._logits_of(values)
        self._check(logits)
        if gaps is not None and bool(gaps.any()):
            logits = torch.where(gaps, self._outside(logits.ndim, logits.device), logits)
        return logits

    def _logits_of(self, blended: Tensor) -> Tensor:
        if self._model.blends_features:
            return self._from_features(blended)
        if self._model.blends_differences:
            return torch.cat([blended.new_zeros((1, *blended.shape[1:])), blended])
        return blended

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
            raise PrecisionError
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


def _less_the_first(run: Run) -> Run:
    """Returns what a network puts out less its first output, without that one, which would be 0."""

    def differences(batch: Tensor) -> Tensor:
        outputs = run(batch)
        return outputs[:, 1:] - outputs[:, :1]

    return differences


def averaged(
    streams: Sequence[ModelRows], outputs: int, evidence: CaseEvidence | None, first: int = 0
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
