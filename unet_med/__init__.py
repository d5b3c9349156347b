"""unet-med: a folder of scans in, masks out, every experiment reviewable.

The documented Python API. Importing it is instant; libraries are loaded by the call that needs them.

Example:
    >>> import unet_med
    >>> model = unet_med.load_model("RUN")                          # doctest: +SKIP
    >>> mask = model.predict(array, spacing_mm=(0.8, 0.8, 2.5))     # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet_med.errors import InputRefusedError, NothingUsableError, UsageError
from unet_med.version import __version__

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from unet_med.inference.predictor import Predictor
    from unet_med.volume import Volume

__all__ = ["Model", "__version__", "load_model", "read", "scan", "score"]


class Model:
    """A loaded model; :func:`load_model` makes it.

    Attributes:
        labels: Name of each label and its value in masks.
        channels: Names of the channels an image must have, in this order.
        dims: 2 for pictures, 3 for volumes.
    """

    def __init__(self, predictor: Predictor, labels: dict[str, int], channels: tuple[str, ...], dims: int) -> None:
        self._predictor = predictor
        self.labels = labels
        self.channels = channels
        self.dims = dims

    def predict(
        self,
        array: npt.ArrayLike,
        spacing_mm: Sequence[float] | None = None,
        affine: npt.ArrayLike | None = None,
    ) -> npt.NDArray[np.integer[Any]]:
        """Segments one image.

        Args:
            array: A volume (I, J, K) or (channels, I, J, K) in the order of the affine's columns, as nibabel gives
                it. A picture (rows, cols) or (rows, cols, channels), as scikit-image gives it.
            spacing_mm: Distance of neighbouring voxels along each axis of ``array`` in mm; left out: uncalibrated.
            affine: 4x4, voxel index to RAS+ mm, for volumes; replaces ``spacing_mm``. Without it a volume is taken to
                run to the right, to the front and upwards.

        Returns:
            Labels, uint8 or uint16, (I, J, K) for a volume, (rows, cols) for a picture; of a model of objects their
            numbers, uint32.

        Raises:
            InputRefusedError: for an array that cannot be segmented (shape, NaN, constant).
            ModelError: for another number of channels than the model's.
        """
        import numpy as np

        from unet_med.geometry import Geometry
        from unet_med.volume import Volume

        image = np.asarray(array)
        if not (np.issubdtype(image.dtype, np.number) or image.dtype == bool) or np.iscomplexobj(image):
            raise InputRefusedError(f"an array of {image.dtype} is no image", "array", "give real numbers")
        image = image.astype(np.float32, copy=False)
        if not np.isfinite(image).all():
            raise InputRefusedError("the image holds NaN or infinite values", "array", "replace them, then run again")
        channels = len(self.channels)
        picture = self._is_picture(image.shape, channels)
        if picture:
            image = image[np.newaxis] if image.ndim == 2 else np.moveaxis(image, -1, 0)
            image = image.swapaxes(1, 2)  # rows, cols -> X, Y
        elif image.ndim == 3:
            image = image[np.newaxis]
        shape = image.shape[1:]
        if affine is not None:
            if picture:
                raise UsageError(
                    "a picture has no 4x4 affine", "affine", "give spacing_mm=(between rows, between cols)"
                )
            geometry = Geometry(shape, np.asarray(affine, dtype=np.float64))
        else:
            geometry = Geometry.from_spacing(shape, _spacing(spacing_mm, len(shape), picture))
        volume = Volume(image, geometry)
        labels: npt.NDArray[Any]
        if self._predictor.objects is None:
            labels = self._predictor.predict(volume).labels
        else:
            from unet_med.inference.objects import find_objects

            labels = find_objects(self._predictor, volume).labels
        return np.ascontiguousarray(labels.T) if picture else labels

    def _is_picture(self, shape: tuple[int, ...], channels: int) -> bool:
        """Says whether an array of this shape is a picture; (.., .., 3) is one for a 2-D model of three channels."""
        if len(shape) == 2 or (len(shape) == 3 and self.dims == 2 and shape[-1] == channels):
            return True
        if len(shape) == 3 and (channels == 1 or self.dims == 3):
            return False
        if len(shape) == 4:
            return False
        raise InputRefusedError(
            f"an array of shape {shape} does not fit a {self.dims}-D model of {channels} channels",
            "array",
            "give a volume as ([channels,] I, J, K) or a picture as (rows, cols[, channels])",
        )


def _spacing(spacing_mm: Sequence[float] | None, axes: int, picture: bool) -> tuple[float, ...] | None:
    if spacing_mm is None:
        return None
    values = tuple(float(value) for value in spacing_mm)
    if len(values) != axes or not all(0 < value < float("inf") for value in values):
        raise UsageError(f"{len(values)} values for {axes} axes, or not positive", "spacing_mm", "give mm per axis")
    return values[::-1] if picture else values


def load_model(path: str | Path, device: str = "auto") -> Model:
    """Loads a model.

    Args:
        path: Bundle folder, run folder, or a ``models:/...`` or ``runs:/...`` address.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ModelError: when it is damaged or of a newer version.
    """
    from unet_med.bundle import load_bundles
    from unet_med.inference.predictor import Predictor

    bundles = load_bundles(path)
    first = bundles[0]
    labels = {"background": 0} | {label.name: label.index for label in first.labels.labels}
    return Model(Predictor(bundles, device=device), labels, first.channels, first.dims)


def read(path: str | Path) -> Volume:
    """Reads one image, the one DICOM series of a folder, or the labels of one DICOM SEG, with its place.

    Returns:
        The voxels (C, I, J[, K]) and their grid in RAS+ mm.

    Raises:
        InputRefusedError: when it would be read wrong, with the reason.
        NothingUsableError: when there is none.
        UsageError: when there are several images, or no such file.
    """
    from unet_med.io.discover import discover, open_source

    root = Path(path)
    found = discover(root)
    sources = found.sources or found.annotations
    if len(sources) > 1:
        names = ", ".join(source.id for source in sources[:5])
        raise UsageError(f"{len(sources)} images, not one ({names}, ...)", root.name, "give the path of one image")
    if not sources:
        raise NothingUsableError("no image was found", remedy="`unet-med scan` says what was skipped and why")
    source = sources[0]
    if not source.usable:
        raise InputRefusedError(source.reason, source.id, "`unet-med scan` says more")
    return open_source(source).read()


def scan(folder: str | Path) -> dict[str, Any]:
    """Returns what ``unet-med scan FOLDER --json`` writes."""
    from unet_med.io.source import IntakeOptions
    from unet_med.workflows.scan import scan as workflow

    return workflow(Path(folder), IntakeOptions()).result


def score(
    mask: npt.ArrayLike, truth: npt.ArrayLike, spacing_mm: Sequence[float] | None = None, tolerance_mm: float = 1.0
) -> dict[str, dict[str, float | int | None]]:
    """Scores a mask against the truth.

    Args:
        mask: Integer labels.
        truth: Integer labels of the same shape.
        spacing_mm: Distance of neighbouring voxels along each axis in mm; left out: distances are in pixels.
        tolerance_mm: Tolerance of the surface Dice (NSD).

    Returns:
        For each label value (as text): ``dice``, ``iou``, ``hd95_mm``, ``nsd``, ... ; ``None`` where it does not exist.
    """
    import numpy as np

    from unet_med.labels import Label, LabelMap, label_colour
    from unet_med.metrics import case_metrics

    masks = [np.asarray(mask), np.asarray(truth)]
    if not all(np.issubdtype(one.dtype, np.integer) or one.dtype == bool for one in masks):
        raise InputRefusedError("labels must be integers", "mask, truth", "convert them with .astype(int)")
    found, true = (one.astype(np.int64) for one in masks)
    present = sorted({int(value) for one in (found, true) for value in np.unique(one)} - {0})
    labels = LabelMap(tuple(Label(value, str(value), label_colour(value)) for value in present))
    return dict(case_metrics(found, true, _spacing(spacing_mm, true.ndim, picture=False), labels, tolerance_mm))
