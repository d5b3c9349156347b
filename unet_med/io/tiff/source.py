"""A series of images of a TIFF file as a source."""

from __future__ import annotations

from dataclasses import dataclass, field

import tifffile

from unet_med.io.reading import COPY_FILE_AGAIN, check_frame, native, refusing, whole
from unet_med.io.stack import StackSource, count
from unet_med.io.tiff.headers import DAMAGED, FAULTS
from unet_med.io.tiff.pixels import select, series_of
from unet_med.io.tiff.scale import colour_samples
from unet_med.volume import Region, Volume


@dataclass(frozen=True)
class TiffSource(StackSource):
    """One series of images of a TIFF file.

    Headers are read once. Of the pixels only the strips or tiles are read and decoded that a frame and region need;
    the file is open only meanwhile.
    """

    _known: dict[tuple[int, int], tifffile.TiffPageSeries] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def read(self, region: Region | None = None, frame: int = 0) -> Volume:
        """Returns (C, X, Y[, Z]) values as stored, of one frame.

        Raises:
            InputRefusedError: The file is damaged or truncated, or has no such frame.
        """
        check_frame(frame, self.frames, self.id)
        bounds = whole(region, self.geometry)
        with refusing(DAMAGED, self.id, COPY_FILE_AGAIN, *FAULTS):
            series = self._series()
            array = select(series, self.index(bounds, frame))
            colours = colour_samples(series, count(self.ref.axes, self.ref.shape, "S"))
            return Volume(native(self.channels_first(array, colours)), self.geometry.crop(bounds))

    def _series(self) -> tifffile.TiffPageSeries:
        """Returns where pixels lie; read again when the file was written again."""
        path = self.ref.files[0]
        status = path.stat()
        state = (status.st_mtime_ns, status.st_size)
        if state not in self._known:
            self._known.clear()
            number, level = self.ref.read_as.get("series", 0), self.ref.read_as.get("level", 0)
            self._known[state] = series_of(path, int(number), int(level))
        return self._known[state]
