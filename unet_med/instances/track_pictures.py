"""Pictures of linked movies: every track in a colour of its own, with the way that it came."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from unet_med.instances.linking import Linking

Picture = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

_GOLDEN = 0.6180339887498949
_TINT = 0.35
_TAIL = 8
_TEXT = 14
_GAP = 4
_LARGEST = 1024
_LEAST = 320
_PERCENTILES = (0.5, 99.8)
_PAPER: Colour = (16, 16, 16)
_INK: Colour = (235, 235, 235)


def track_colour(label: int) -> Colour:
    """Returns the colour of a track; labels that follow each other are far apart on the colour circle."""
    red, green, blue = colorsys.hsv_to_rgb((label * _GOLDEN) % 1.0, 0.75 if label % 2 else 0.5, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


class TrackPainter:
    """Draws the frames of one movie in the same colours, greys and size.

    Args:
        linking: The movie.
        spacing: That it was linked with, along I, J[, K].
        shape: Of a frame, (I, J[, K]); volumes are shown from above, as their brightest values and their first labels
            along K.
        window: Grey values that are shown as black and white.
        longest: Pixels of a picture's longer side, at most; small ones are drawn larger.
    """

    def __init__(
        self,
        linking: Linking,
        spacing: Sequence[float],
        shape: Sequence[int],
        window: tuple[float, float] = (0.0, 1.0),
        longest: int = _LARGEST,
    ) -> None:
        self._linking = linking
        self._window = window
        self._step = max(1, -(-max(shape[:2]) // longest))
        self._factor = max(1, _LEAST // max(shape[:2]))
        self._per_pixel = np.asarray(spacing[:2])
        names = np.array([track_colour(track.label) for track in linking.tracks], dtype=np.float64).reshape(-1, 3)
        self._colours = np.concatenate([np.zeros((1, 3)), names])

    def paint(
        self, frame: int, labels: npt.NDArray[np.integer], image: npt.NDArray[np.generic] | None = None
    ) -> Picture:
        """Returns the picture (rows, columns, 3) of one frame.

        Args:
            frame: Its number.
            labels: (I, J[, K]) labels of tracks.
            image: (I, J[, K]) of any real type; without it the objects are drawn on black.
        """
        flat, grey = _seen(labels, image)
        flat, grey = self._sized(flat), self._sized(grey)
        low, high = self._window
        shown = 255.0 * np.clip((grey - low) / max(high - low, 1e-9), 0.0, 1.0)
        canvas = np.repeat(shown[..., None], 3, axis=2)
        inside = flat > 0
        canvas[inside] = (1.0 - _TINT) * canvas[inside] + _TINT * self._colours[flat[inside]]
        edge = inside & (ndimage.grey_erosion(flat, 3) != ndimage.grey_dilation(flat, 3))
        canvas[edge] = self._colours[flat[edge]]
        picture = Image.fromarray(np.rint(canvas).astype(np.uint8))
        self._draw_ways(ImageDraw.Draw(picture), frame)
        return np.asarray(picture)

    def _sized(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Returns rows and columns of an array (I, J), in the picture's pixels."""
        return np.kron(array[:: self._step, :: self._step].T, np.ones((self._factor, self._factor), array.dtype))

    def _draw_ways(self, draw: ImageDraw.ImageDraw, frame: int) -> None:
        """Draws where each object of the frame was in the frames before, and a white line from mother to daughter."""
        parents = {track.label: track.parent for track in self._linking.tracks}
        here = self._places(frame)
        present = {label: [place] for label, place in here.items()}
        for earlier in range(frame - 1, max(frame - _TAIL, 0) - 1, -1):
            places = self._places(earlier)
            for label, way in present.items():
                if label in places:
                    way.append(places[label])
        for label, way in present.items():
            if len(way) > 1:
                draw.line(way, fill=track_colour(label), width=1)
        if frame:
            before = self._places(frame - 1)
            for label, place in here.items():
                if parents[label] in before and label not in before:
                    draw.line([before[parents[label]], place], fill=(255, 255, 255), width=2)

    def _places(self, frame: int) -> dict[int, tuple[float, float]]:
        """Returns the centre of each track of a frame in the pixels of the picture."""
        pixels = (self._linking.frames[frame].centres[:, :2] / self._per_pixel / self._step + 0.5) * self._factor
        return {
            label: (x, y) for label, (x, y) in zip(self._linking.labels[frame].tolist(), pixels.tolist(), strict=True)
        }


def _seen(
    labels: npt.NDArray[np.integer], image: npt.NDArray[np.generic] | None
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.float32]]:
    """Returns labels and grey values (I, J) of a frame; of a volume the first label and the highest value along K."""
    grey = np.zeros(labels.shape, np.float32) if image is None else np.asarray(image, dtype=np.float32)
    if labels.ndim == 2:
        return labels, grey
    first = np.argmax(labels > 0, axis=2)
    return np.take_along_axis(labels, first[..., None], axis=2)[..., 0], grey.max(axis=2)


def grey_window(image: npt.NDArray[np.generic]) -> tuple[float, float]:
    """Returns the grey values of an image that are shown as black and white."""
    low, high = np.percentile(np.asarray(image, dtype=np.float32), _PERCENTILES)
    return float(low), float(high)


def montage(pictures: Sequence[Picture], captions: Sequence[str], columns: int = 4) -> Picture:
    """Returns pictures of one size side by side in rows, each with its caption above, (rows, columns, 3)."""
    font = ImageFont.load_default(size=_TEXT)
    height, width = pictures[0].shape[:2]
    line = _TEXT + _GAP
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    size = (columns * (width + _GAP) + _GAP, rows * (height + line + _GAP) + _GAP)
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = _GAP + (number % columns) * (width + _GAP)
        top = _GAP + (number // columns) * (height + line + _GAP)
        draw.text((left, top), caption, fill=_INK, font=font)
        canvas.paste(Image.fromarray(picture), (left, top + line))
    return np.asarray(canvas)
