"""OME-XML: what the description inside an OME-TIFF, or in a companion file, says of its images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import tifffile

from unet_med.errors import InputRefusedError
from unet_med.io.pixel_size import mm_per_unit, seconds_per_unit, sensible
from unet_med.io.reading import COPY_FILE_AGAIN

COMPANION = ".companion.ome"
_MOST_PLANES = 2**20
_LARGEST_COMPANION = 2**28
_COUNTS = ("IFD", "NumPlanes", "PlaneCount", "FirstZ", "FirstC", "FirstT")
_WHOLE_SET = "copy the whole set into one folder"


class CompanionedTiff(tifffile.TiffFile):  # type: ignore[misc]  # tifffile is not checked
    """The first TIFF file of a set whose OME-XML lies in a file of its own."""

    def __init__(self, companion: Path) -> None:
        if companion.stat().st_size > _LARGEST_COMPANION:
            raise InputRefusedError("the OME-XML file is larger than any description", remedy=COPY_FILE_AGAIN)
        self._xml = companion.read_text(encoding="utf-8")
        names = set_names(ElementTree.fromstring(self._xml))
        if not names or not (companion.parent / names[0]).is_file():
            raise InputRefusedError("the TIFF files that the OME-XML file describes are missing", remedy=_WHOLE_SET)
        super().__init__(companion.parent / names[0])

    @property
    def ome_metadata(self) -> str | None:
        """The OME-XML of the companion."""
        return self._xml


def root_of(file: tifffile.TiffFile) -> ElementTree.Element | None:
    """Returns the checked OME-XML of a file; ``None`` where it has none.

    Raises:
        InputRefusedError: It promises an absurd number of planes, or names files elsewhere.
    """
    if not file.is_ome or not file.ome_metadata:
        return None
    root = ElementTree.fromstring(file.ome_metadata)
    for pixels in root.iterfind("{*}Image/{*}Pixels"):
        numbers = [_whole(pixels, f"Size{letter}") for letter in "ZCT"]
        numbers += [_whole(data, name) for data in pixels.iterfind("{*}TiffData") for name in _COUNTS]
        if max(math.prod(max(1, number) for number in numbers[:3]), *numbers) > _MOST_PLANES or min(numbers) < 0:
            raise InputRefusedError(
                "the OME-XML of the file promises an absurd number of planes", remedy=COPY_FILE_AGAIN
            )
    if any(Path(name).name != name for name in _stored_names(root)):
        raise InputRefusedError("the OME-XML of the file names files in other folders", remedy=_WHOLE_SET)
    return root


def _whole(element: ElementTree.Element, name: str) -> int:
    return int(element.get(name, 0))


def pixels_of(
    ome: ElementTree.Element | None, every: Sequence[tifffile.TiffPageSeries], number: int
) -> ElementTree.Element | None:
    """Returns the Pixels element of a series, when it certainly is that one's.

    All positions of a Micro-Manager stack are one series: what is said of the first is said of all.

    Args:
        ome: The OME-XML.
        every: All series of the file; images without planes are not among them.
        number: Which of them.
    """
    if ome is None or every[number].kind not in ("ome", "mmstack"):
        return None
    images = [
        (image.get("Name"), pixels) for image in ome.iterfind("{*}Image") for pixels in image.iterfind("{*}Pixels")
    ]
    if len(images) == len(every):
        images = [images[number]]
    series = every[number]
    sizes = dict(zip(series.axes, series.shape, strict=True))
    together = series.kind == "mmstack"
    fitting = [
        pixels
        for name, pixels in images
        if (together or (name or "") == series.name)
        and all(pixels.get(f"Size{letter}") == str(sizes[letter]) for letter in "XY")
    ]
    return fitting[0] if len(fitting) == 1 or (together and fitting) else None


def channel_names(pixels: ElementTree.Element) -> list[str]:
    """Returns the name of each channel; empty where it has none: its fluorophore is taken then."""
    return [entry.get("Name") or entry.get("Fluor") or "" for entry in pixels.iterfind("{*}Channel")]


def size(pixels: ElementTree.Element, letter: str) -> float | None:
    """Returns a PhysicalSize in mm; micrometres where no unit is named (the schema's default)."""
    scale = mm_per_unit(pixels.get(f"PhysicalSize{letter}Unit", "um"))
    return sensible(_number(pixels.get(f"PhysicalSize{letter}")), scale)


def time_step(pixels: ElementTree.Element) -> float | None:
    """Returns the seconds between two time points; the unit is a second where none is named (the schema's default)."""
    scale = seconds_per_unit(pixels.get("TimeIncrementUnit", "s"))
    return sensible(_number(pixels.get("TimeIncrement")), scale)


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def is_partner(ome: ElementTree.Element, path: Path) -> bool:
    """Whether this file is a later part of a set that is read through another file which lies beside it.

    Raises:
        InputRefusedError: It is one, and the file with the metadata is missing.
    """
    only = ome.find("{*}BinaryOnly")
    if only is not None:
        master = Path(only.get("MetadataFile", "")).name
        if master and (path.parent / master).is_file():
            return True
        raise InputRefusedError(
            "the file is a part of an OME-TIFF set whose first file, with the metadata, is missing", remedy=_WHOLE_SET
        )
    names = set_names(ome)
    return len(names) > 1 and path.name in names[1:] and (path.parent / names[0]).is_file()


def set_names(ome: ElementTree.Element) -> list[str]:
    """Returns the names of the files of an OME-TIFF set, in the order of their planes."""
    return list(dict.fromkeys(name for name in _stored_names(ome) if name and Path(name).name == name))


def _stored_names(ome: ElementTree.Element) -> Iterator[str]:
    for uuid in ome.iterfind("{*}Image/{*}Pixels/{*}TiffData/{*}UUID"):
        yield uuid.get("FileName", "")
