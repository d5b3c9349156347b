"""DICOM in: volumes of single-frame or multi-frame files, and pictures of CR, DX, MG and the like.

Headers are grouped by series over the whole tree, checked, and only then pixels are read. A series that cannot be
loaded exactly is refused with what, where and a remedy; the others go on. Nothing here prints a patient's data, a UID
or a path: a series is named by its number and a keyed hash.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.io.dicom import COPY_AGAIN, EXPORT_AGAIN
from unet_med.io.dicom.pixels import Slice, read_slices
from unet_med.io.dicom.series import inspect_dicom
from unet_med.io.dicom.slices import Regrid, SliceLayout
from unet_med.io.reading import FileSource, check_frame, refusing, whole
from unet_med.volume import Region, Volume

__all__ = ["DicomSource", "inspect_dicom"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class DicomSource(FileSource):
    """A DICOM series, or one DICOM picture; one channel, one frame.

    Only the slices that a region needs are decoded. Where slices hold padding (PixelPaddingValue), or a tilted stack
    leaves corners of its grid empty, these become the lowest real value of the whole series, so that the first such
    region decodes every slice once more.
    """

    _lowest: dict[str, float] = field(default_factory=dict, repr=False, compare=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of the headers, and the share of padding once it is known."""
        if not self._lowest.get("share"):
            return self.ref.notes
        return (
            *self.ref.notes,
            f"{100 * self._lowest['share']:.1f} % of the voxels are padding, set to {self._lowest['value']:g}",
        )

    def read(self, region: Region | None = None, frame: int = 0) -> Volume:
        """Returns (1, I, J[, K]) real values, float32.

        Raises:
            InputRefusedError: A slice cannot be decoded, has changed, or the series holds nothing but padding.
        """
        check_frame(frame, 1, self.id)
        bounds = whole(region, self.geometry)
        planes = range(bounds[2].start, bounds[2].stop) if self.geometry.ndim == 3 else range(1)
        inside = (bounds[1], bounds[0])
        height, width = (part.stop - part.start for part in inside)
        values = np.empty((len(planes), height, width), dtype=np.float32)
        layout = self._layout
        if layout is not None and layout.regrid is not None:
            self._regridded(layout.regrid, planes, inside, values)
        else:
            self._stored(planes, inside, values)
        array = values.transpose(2, 1, 0)
        return Volume((array if self.geometry.ndim == 3 else array[..., 0])[np.newaxis], self.geometry.crop(bounds))

    def _stored(self, planes: range, inside: tuple[slice, slice], values: FloatArray) -> None:
        """Fills ``values`` (K, rows, columns) from slices that are planes of the grid."""
        holes: dict[int, npt.NDArray[np.bool_]] = {}
        for place, one in enumerate(self._slices(planes)):
            values[place] = one.values[inside]
            if one.padding is not None and one.padding[inside].any():
                holes[place] = one.padding[inside]
        if not holes:
            return
        if not self._lowest and values.size == math.prod(self.geometry.shape):
            for place, hole in holes.items():
                values[place][hole] = np.inf
            self._remember(float(values.min()), sum(int(hole.sum()) for hole in holes.values()), values.size)
        fill = self._fill()
        for place, hole in holes.items():
            values[place][hole] = fill

    def _regridded(self, regrid: Regrid, planes: range, inside: tuple[slice, slice], values: FloatArray) -> None:
        """Fills ``values`` (K, rows, columns) by interpolating between the two slices next to each plane."""
        shares = []
        for plane in planes:
            below, above, weight = regrid.neighbours(plane)
            shares.append([(n, w) for n, w in ((below, 1.0 - weight), (above, weight)) if w > 0])
        numbers = sorted({number for share in shares for number, _ in share})
        size = self._size
        everywhere = all(tuple(origin[:2]) == (0.0, 0.0) for origin in regrid.origins) and regrid.shape[:2] == size
        fill = 0.0 if everywhere else self._fill()
        with closing(self._slices(numbers)) as slices:
            coming = zip(numbers, slices, strict=True)
            placed: dict[int, FloatArray] = {}
            for place, share in enumerate(shares):
                for number in [number for number in placed if number < share[0][0]]:
                    del placed[number]
                while share[-1][0] not in placed:
                    number, one = next(coming)
                    picture = one.values
                    if one.padding is not None:
                        picture = np.where(one.padding, self._fill(), picture)
                    placed[number] = regrid.place(picture.T, number, float(fill)).T[inside]
                values[place] = sum(np.float32(weight) * placed[number] for number, weight in share)

    @property
    def _layout(self) -> SliceLayout | None:
        return self.ref.layout if isinstance(self.ref.layout, SliceLayout) else None

    @property
    def _places(self) -> Sequence[tuple[Path, int]]:
        """File and frame of each slice; without a layout, each file is a slice."""
        if self._layout is None:
            return [(path, 0) for path in self.ref.files]
        return [(self.ref.files[one.file], one.frame) for one in self._layout.slices]

    @property
    def _size(self) -> tuple[int, int]:
        """Stored columns and rows."""
        return (self.geometry.shape[0], self.geometry.shape[1]) if self._layout is None else self._layout.size

    def _slices(self, numbers: Iterable[int]) -> Generator[Slice, None, None]:
        """Yields stored slices.

        Raises:
            InputRefusedError: One cannot be decoded, or has changed.
        """
        places, size = self._places, self._size
        numbers = list(numbers)
        with closing(read_slices([places[number] for number in numbers])) as slices:
            for number in numbers:
                where = f"{self.id}, slice {number + 1} of {len(places)}"
                try:
                    with refusing("the pixels cannot be decoded", where, COPY_AGAIN):
                        one = next(slices)
                except InputRefusedError as error:
                    if error.where:
                        raise
                    raise InputRefusedError(error.what, where, error.remedy) from error
                if one.values.shape != size[::-1]:
                    raise InputRefusedError(
                        "a slice has changed its size since the scan", where, "scan the folder again"
                    )
                yield one

    def _fill(self) -> float:
        """Returns the lowest real value of the series; decodes all of it the first time."""
        if not self._lowest:
            lowest, padded, total = np.float32(np.inf), 0, 0
            for one in self._slices(range(len(self._places))):
                total += one.values.size
                real = one.values if one.padding is None else one.values[~one.padding]
                padded += one.values.size - real.size
                if real.size:
                    lowest = min(lowest, real.min())
            self._remember(float(lowest), padded, total)
        return self._lowest["value"]

    def _remember(self, lowest: float, padded: int, total: int) -> None:
        if not np.isfinite(lowest):
            raise InputRefusedError("the series holds nothing but padding", self.id, EXPORT_AGAIN)
        self._lowest.update(value=lowest, share=padded / total)
