"""Charts of a data set and of the scores of a model, as pictures for the record of an experiment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from unet_med.geometry import Geometry
from unet_med.overlays import Picture
from unet_med.review.reliability import Reliability

_DOTS_PER_INCH = 110
_MOST_NAMES = 12
"""More labels than this are drawn without numbers and names of their own."""
_COLOURS = ("#0072b2", "#d55e00")
_NAME = 18


def fingerprint_chart(
    training: Sequence[Geometry], held_out: Sequence[Geometry], fingerprint: Mapping[str, Any], labels: Sequence[str]
) -> Picture:
    """Draws what a data set is like: sizes, voxel sizes, intensities, how many voxels each label has.

    Args:
        training: Grids of the cases that are learnt from.
        held_out: Of the cases that are not.
        fingerprint: Of the plan: ``channels`` and ``label_voxels``, perhaps ``objects``.
        labels: Names, background first.
    """
    figure = _figure(12, 3.2)
    sizes, voxels, values, shares = figure.subplots(1, 4)
    groups = {"training": training, "held out": held_out}
    calibrated = all(grid.spacing_mm is not None for grid in (*training, *held_out))
    names = "RAS" if calibrated and all(grid.ndim == 3 for grid in (*training, *held_out)) else "IJK"
    _strips(sizes, {name: [_extent(grid) for grid in grids] for name, grids in groups.items()}, names)
    sizes.set_title("size of the image (mm)" if calibrated else "size of the image (voxels)")
    _strips(voxels, {name: [_turned(grid).spacing_mm or () for grid in grids] for name, grids in groups.items()}, names)
    voxels.set_title("size of a voxel (mm)")
    _intensities(values, fingerprint.get("channels") or [])
    _shares(shares, fingerprint.get("label_voxels") or [], labels)
    objects = fingerprint.get("objects")
    if objects:
        figure.suptitle(
            f"{objects['count']} objects, {objects['diameter_50']:.3g} voxels across "
            f"({objects['diameter_5']:.3g} to {objects['diameter_95']:.3g})"
        )
    return _picture(figure)


def confusion_chart(table: npt.NDArray[np.integer[Any]], names: Sequence[str]) -> Picture:
    """Draws what voxels of each label were taken for, in per cent of the label.

    Args:
        table: Voxels by true and by predicted label.
        names: Of both.
    """
    shares = 100.0 * table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    side = 2.4 + 0.55 * min(len(names), _MOST_NAMES)
    figure = _figure(side + 1.2, side)
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=100, cmap="cividis")
    figure.colorbar(image, ax=axes, label="% of the true label", fraction=0.046)
    axes.set(xlabel="predicted", ylabel="true", title="confusion, voxels of all held-out cases")
    if len(names) <= _MOST_NAMES:
        places = range(len(names))
        axes.set_xticks(places, [_short(name) for name in names], rotation=45, ha="right")
        axes.set_yticks(places, [_short(name) for name in names])
        for row in places:
            for column in places:
                ink = "black" if shares[row, column] > 60 else "white"
                axes.text(column, row, f"{shares[row, column]:.1f}", ha="center", va="center", color=ink, fontsize=8)
    return _picture(figure)


def size_chart(cases: Iterable[Mapping[str, Any]]) -> Picture | None:
    """Draws how Dice depends on how large a structure is; ``None`` where no case has any.

    Args:
        cases: ``cases`` of ``metrics.json``.
    """
    points: dict[str, list[tuple[int, float]]] = {}
    for case in cases:
        for name, dice in (case.get("dice") or {}).items():
            size = (case.get("label_voxels") or {}).get(name)
            if dice is not None and size:
                points.setdefault(name, []).append((size, dice))
    if not points:
        return None
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    for name, pairs in points.items():
        axes.plot(*zip(*pairs, strict=True), "o", alpha=0.6, markersize=5, label=_short(name))
    axes.set(xscale="log", xlabel="voxels of the true structure", ylabel="Dice", ylim=(-0.02, 1.02))
    axes.set_title("size and Dice, one point for each held-out case")
    _legend(axes, len(points))
    return _picture(figure)


def calibration_chart(reliability: Reliability) -> Picture:
    """Draws how often what was said with a probability was true; on the diagonal it is as often as said."""
    figure = _figure(5.4, 5.0)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
    errors = reliability.errors()
    for number, name in enumerate(reliability.names):
        there = reliability.voxels[number] > 0
        if there.any():
            counts = reliability.voxels[number][there]
            said, true = reliability.said[number][there] / counts, reliability.true[number][there] / counts
            axes.plot(said, true, "o-", markersize=4, label=f"{_short(name)}: error {errors[name]:.3f}")
    axes.set(xlabel="probability that was said", ylabel="share that is true", xlim=(0, 1), ylim=(0, 1))
    axes.set_title("calibration, voxels of all held-out cases")
    _legend(axes, len(reliability.names))
    return _picture(figure)


# ---- parts ----------------------------------------------------------------------------------------------------------


def _turned(grid: Geometry) -> Geometry:
    return grid.reoriented(*grid.canonical_axes())


def _extent(grid: Geometry) -> tuple[float, ...]:
    turned = _turned(grid)
    spacing = turned.spacing_mm or (1.0,) * turned.ndim
    return tuple(size * step for size, step in zip(turned.shape, spacing, strict=True))


def _strips(axes: Axes, groups: Mapping[str, Sequence[Sequence[float]]], names: str) -> None:
    """Draws a point for each case and axis, beside each other by a little, so that equal ones are seen."""
    random = np.random.default_rng(0)
    shown = False
    count = 0
    for colour, (name, rows) in zip(_COLOURS, groups.items(), strict=True):
        points = [(axis, value) for row in rows for axis, value in enumerate(row)]
        if points:
            across, values = np.array(points, dtype=np.float64).T
            across += random.uniform(-0.2, 0.2, len(across))
            axes.plot(across, values, "o", color=colour, alpha=0.5, markersize=3, label=name)
            shown, count = True, max(count, *(len(row) for row in rows))
    if shown:
        axes.set_xticks(range(count), list(names[:count]))
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7)
    else:
        _nothing(axes, "uncalibrated")


def _intensities(axes: Axes, channels: Sequence[Mapping[str, Any]]) -> None:
    axes.set_title("intensity of labelled voxels")
    if not channels:
        _nothing(axes, "not measured")
    for number, channel in enumerate(channels):
        low, high = channel["percentile_00_5"], channel["percentile_99_5"]
        axes.plot([number, number], [low, high], color=_COLOURS[0], linewidth=6, alpha=0.4, solid_capstyle="butt")
        axes.errorbar(number, channel["mean"], channel["sd"], fmt="o", color=_COLOURS[1], capsize=4)
    axes.set_xticks(range(len(channels)), [f"channel {number}" for number in range(len(channels))])
    axes.margins(x=0.5)


def _shares(axes: Axes, voxels: Sequence[int], labels: Sequence[str]) -> None:
    axes.set_title("share of the voxels (%)")
    if not voxels or sum(voxels) <= 0:
        _nothing(axes, "not counted")
        return
    shares = 100.0 * np.asarray(voxels, dtype=np.float64) / sum(voxels)
    axes.barh(range(len(shares)), np.maximum(shares, 1e-4), color=_COLOURS[0])
    axes.set_xscale("log")
    axes.invert_yaxis()
    if len(voxels) == len(labels) and len(labels) <= _MOST_NAMES:
        axes.set_yticks(range(len(labels)), [_short(name) for name in labels])


def _nothing(axes: Axes, why: str) -> None:
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, color="grey")
    axes.set_xticks([])
    axes.set_yticks([])


def _legend(axes: Axes, entries: int) -> None:
    if entries <= _MOST_NAMES and axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def _short(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _figure(width: float, height: float) -> Figure:
    """Returns an empty figure of so many inches, whose parts make room for each other."""
    return Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, layout="constrained")


def _picture(figure: Figure) -> Picture:
    """Returns a figure as pixels, (rows, columns, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
