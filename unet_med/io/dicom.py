"""DICOM in: classic single-frame series, and pictures of CR, DX, MG and the like.

Headers are grouped by series over the whole tree, checked, and only then pixels are read. A series that cannot be
loaded exactly is refused with what, where and a remedy; the others go on. Nothing here prints a patient's data, a UID
or a path: a series is named by its number and a keyed hash.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.io.dicom_pixels import Slice, read_slice
from unet_med.io.dicom_series import inspect_dicom
from unet_med.io.reading import FileSource, check_frame, refusing, whole
from unet_med.volume import Region, Volume

__all__ = ["DicomSource", "inspect_dicom"]

_EXPORT_AGAIN = "export the series again from the archive or the scanner"


@dataclass(frozen=True)
class DicomSource(FileSource):
    """A DICOM series, or one DICOM picture; one channel, one frame.

    Only the slices that a region needs are decoded. Where slices hold padding (PixelPaddingValue), it becomes the
    lowest real value of the whole series, so that the first such region decodes every slice once.
    """

    _lowest: dict[str, float] = field(default_factory=dict, repr=False, compare=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of the headers, and the share of padding once it is known."""
        if "share" not in self._lowest:
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
        wanted = range(bounds[2].start, bounds[2].stop) if self.geometry.ndim == 3 else range(1)
        inside = (bounds[1], bounds[0])
        height, width = (part.stop - part.start for part in inside)
        values = np.empty((len(wanted), height, width), dtype=np.float32)
        holes: dict[int, npt.NDArray[np.bool_]] = {}
        tally = _Tally()
        for place, number in enumerate(wanted):
            one = self._slice(number)
            values[place] = one.values[inside]
            if one.padding is not None:
                holes[place] = one.padding[inside]
            tally.add(one)
        if any(hole.any() for hole in holes.values()):
            fill = self._fill(tally, wanted)
            for place, hole in holes.items():
                values[place][hole] = fill
        array = values.transpose(2, 1, 0)
        return Volume((array if self.geometry.ndim == 3 else array[..., 0])[np.newaxis], self.geometry.crop(bounds))

    def _slice(self, number: int) -> Slice:
        where = f"{self.id}, slice {number + 1} of {len(self.ref.files)}"
        with refusing("the pixels cannot be decoded", where, "copy the series again from its origin"):
            one = read_slice(self.ref.files[number])
        if one.values.shape != (self.geometry.shape[1], self.geometry.shape[0]):
            raise InputRefusedError("a slice has changed its size since the scan", where, "scan the folder again")
        return one

    def _fill(self, seen: _Tally, done: range) -> np.float32:
        """Returns the lowest real value of the series; decodes the slices that have not been seen."""
        if "value" not in self._lowest:
            for number in range(len(self.ref.files)):
                if number not in done:
                    seen.add(self._slice(number))
            if not np.isfinite(seen.lowest):
                raise InputRefusedError("the series holds nothing but padding", self.id, _EXPORT_AGAIN)
            self._lowest["value"] = float(seen.lowest)
            self._lowest["share"] = seen.padded / seen.total
        return np.float32(self._lowest["value"])


class _Tally:
    """Lowest real value and share of padding over slices."""

    def __init__(self) -> None:
        self.lowest = np.float32(np.inf)
        self.padded = 0
        self.total = 0

    def add(self, one: Slice) -> None:
        """Counts a slice in."""
        self.total += one.values.size
        real = one.values if one.padding is None else one.values[~one.padding]
        self.padded += one.values.size - real.size
        if real.size:
            self.lowest = min(self.lowest, real.min())
