"""The metadata of Zarr folders: nodes, multiscale images, and arrays that are safe to open."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from unet_med.errors import InputRefusedError
from unet_med.io.pixel_size import mm_per_unit, seconds_per_unit, sensible
from unet_med.io.reading import COPY_FILE_AGAIN

METADATA_NAMES = frozenset({"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"})
"""Names of the files that make a folder a Zarr node."""

_LARGEST_METADATA = 2**24
_LARGEST_CHUNK = 2**31
_ABSURD_RATIO = 50_000
_ABSURD_BYTES = 2**30
_MOST_AXES = 8
_OLD_AXES = ("t", "c", "z", "y", "x")
_LETTERS = {"x": "X", "y": "Y", "z": "Z", "c": "C", "t": "T"}
_LETTER_OF_TYPE = {"channel": "C", "time": "T"}
_V2_CODECS = frozenset({"blosc", "zlib", "gzip", "bz2", "lzma", "zstd", "lz4"})
_V2_FILTERS = frozenset({"shuffle", "delta", "packbits", "bitround", "fixedscaleoffset", "quantize"})
_V3_CODECS = frozenset({"bytes", "transpose", "gzip", "zstd", "blosc", "crc32c", "sharding_indexed"})
_V2_DTYPE = re.compile(r"[<>|][buif][1248]")
_V3_DTYPE = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")


@dataclass(frozen=True)
class Node:
    """A Zarr group or array.

    Attributes:
        folder: Where it lies.
        version: Of the Zarr format, 2 or 3.
        array: The metadata of the array; ``None`` for a group.
        attributes: What users store with it; of OME's own what concerns images.
    """

    folder: Path
    version: int
    array: Mapping[str, Any] | None
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Multiscale:
    """An image as OME-Zarr describes it.

    Attributes:
        axes: A letter for each stored axis; ``Q`` where its name says nothing.
        paths: The arrays, the finest first.
        steps: Distance of neighbours along each axis, in ``units``; empty where it does not say.
        units: Units of the steps; empty where it does not say.
        channels: Names of the channels.
    """

    axes: str
    paths: tuple[str, ...]
    steps: tuple[float, ...] = ()
    units: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()

    def spacing(self, letters: str) -> list[float | None]:
        """Returns the distance of voxels along these axes in mm."""
        return [sensible(*self._step(letter, mm_per_unit)) for letter in letters]

    def seconds(self) -> float | None:
        """Returns the seconds between time points."""
        return sensible(*self._step("T", seconds_per_unit))

    def _step(self, letter: str, scale: Any) -> tuple[float, float | None]:
        if letter not in self.axes or not self.steps:
            return math.nan, None
        axis = self.axes.index(letter)
        return self.steps[axis], scale(self.units[axis])


@dataclass(frozen=True)
class ArrayHeader:
    """Shape, chunks and type of a Zarr array."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]


def read_node(folder: Path) -> Node | None:
    """Returns what the metadata in a folder says; ``None`` where there is none.

    Raises:
        InputRefusedError: The metadata is no JSON object.
    """
    stored = _json(folder / "zarr.json")
    if stored is not None:
        attributes = _mapping(stored.get("attributes"))
        array = stored if stored.get("node_type") == "array" else None
        return Node(folder, 3, array, _mapping(attributes.get("ome")) or attributes)
    array, others = _json(folder / ".zarray"), _json(folder / ".zattrs")
    if array is None and others is None and _json(folder / ".zgroup") is None:
        return None
    return Node(folder, 2, array, others or {})


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        small = path.stat().st_size <= _LARGEST_METADATA
        content = json.loads(path.read_text(encoding="utf-8")) if small else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputRefusedError("the metadata of the Zarr folder cannot be read", remedy=COPY_FILE_AGAIN)
    return content


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def is_image(folder: Path) -> bool:
    """Whether a folder holds an OME-Zarr image, or is a Zarr array; one whose metadata is damaged may be one."""
    try:
        node = read_node(folder)
    except InputRefusedError:
        return True
    return node is not None and (node.array is not None or "multiscales" in node.attributes)


def label_images(folder: Path) -> list[str]:
    """Returns the names of the label images that an OME-Zarr image holds in its folder ``labels``."""
    labels = folder / "labels"
    return sorted(entry.name for entry in labels.iterdir() if entry.is_dir()) if labels.is_dir() else []


# ---- images -------------------------------------------------------------------------------------------------------


def multiscale_of(node: Node) -> Multiscale:
    """Returns the image that a node holds; an array alone is one whose axes have no names.

    Raises:
        InputRefusedError: It is no image, or its arrays lie elsewhere.
    """
    if node.array is not None:
        return Multiscale("Q" * len(header_of(node).shape), ("",))
    found = node.attributes.get("multiscales")
    entry = _mapping(found[0]) if isinstance(found, list) and found else {}
    datasets = [_mapping(one) for one in entry.get("datasets") or ()]
    paths = tuple(str(one.get("path", "")) for one in datasets)
    if not paths:
        raise InputRefusedError("the Zarr folder holds no OME-Zarr image", remedy="give the folder of an image")
    if any(not path or path.startswith("/") or ".." in PurePosixPath(path).parts or "\\" in path for path in paths):
        raise InputRefusedError("the arrays of the OME-Zarr image lie elsewhere", remedy="copy them into its folder")
    axes, units = _axes(entry.get("axes"))
    steps = _steps([datasets[0].get("coordinateTransformations"), entry.get("coordinateTransformations")], len(axes))
    channels = _mapping(node.attributes.get("omero")).get("channels")
    names = [str(_mapping(one).get("label") or "") for one in channels] if isinstance(channels, list) else []
    return Multiscale(axes, paths, steps, units, tuple(names))


def _axes(stored: Any) -> tuple[str, tuple[str, ...]]:
    """Returns letters and units; the oldest versions always store five axes and name none."""
    entries = [one if isinstance(one, Mapping) else {"name": str(one)} for one in stored or _OLD_AXES]
    letters = "".join(
        _LETTER_OF_TYPE.get(str(one.get("type"))) or _LETTERS.get(str(one.get("name")).lower(), "Q") for one in entries
    )
    return letters, tuple(str(one.get("unit") or "") for one in entries)


def _steps(transformations: Iterable[Any], ndim: int) -> tuple[float, ...]:
    """Returns the product of all scales; empty where there is none."""
    scales = [
        one["scale"]
        for every in transformations
        if isinstance(every, list)
        for one in every
        if isinstance(one, Mapping) and one.get("type") == "scale" and isinstance(one.get("scale"), list)
    ]
    if not scales or any(len(scale) != ndim for scale in scales):
        return ()
    return tuple(math.prod(float(scale[axis]) for scale in scales) for axis in range(ndim))


# ---- arrays -------------------------------------------------------------------------------------------------------


def header_of(node: Node) -> ArrayHeader:
    """Returns the shape and type of an array, which is then safe to be opened.

    Raises:
        InputRefusedError: It claims what cannot be, or needs a codec that is not read.
    """
    array = node.array
    if array is None:
        raise InputRefusedError("an array of the OME-Zarr image is missing", remedy=COPY_FILE_AGAIN)
    if node.version == 3:
        grid = _mapping(array.get("chunk_grid"))
        chunks = _mapping(grid.get("configuration")).get("chunk_shape")
        text, pattern = str(array.get("data_type")), _V3_DTYPE
        _check_codecs(_v3_names(array.get("codecs")), _V3_CODECS)
        _check_codecs(["storage_transformers"] if array.get("storage_transformers") else [], frozenset())
    else:
        chunks, text, pattern = array.get("chunks"), str(array.get("dtype")), _V2_DTYPE
        _check_codecs(_v2_names([array.get("compressor")]), _V2_CODECS)
        _check_codecs(_v2_names(array.get("filters") or ()), _V2_FILTERS)
    if not pattern.fullmatch(text):
        raise InputRefusedError("the Zarr array holds values that are not real numbers", remedy="save real numbers")
    shape, parts = _sizes(array.get("shape")), _sizes(chunks)
    if len(shape) != len(parts) or not 2 <= len(shape) <= _MOST_AXES:
        raise InputRefusedError("the shape of the Zarr array makes no sense", remedy=COPY_FILE_AGAIN)
    header = ArrayHeader(shape, parts, np.dtype(text))
    _check_size(node.folder, header)
    return header


def _sizes(stored: Any) -> tuple[int, ...]:
    sizes = stored if isinstance(stored, list) else []
    if not sizes or any(type(n) is not int or n < 1 for n in sizes):
        raise InputRefusedError("the shape of the Zarr array makes no sense", remedy=COPY_FILE_AGAIN)
    return tuple(sizes)


def _v2_names(codecs: Iterable[Any]) -> list[str]:
    return [str(_mapping(codec).get("id")) for codec in codecs if codec is not None]


def _v3_names(codecs: Any) -> list[str]:
    """Returns the names of codecs, those inside of shards too."""
    names = []
    for codec in codecs if isinstance(codecs, list) else [None]:
        inside = _mapping(_mapping(codec).get("configuration"))
        names.append(str(_mapping(codec).get("name")))
        names += [name for key in ("codecs", "index_codecs") if key in inside for name in _v3_names(inside[key])]
    return names


def _check_codecs(names: Sequence[str], known: frozenset[str]) -> None:
    strange = [name for name in names if name not in known]
    if strange:
        raise InputRefusedError(
            f"the Zarr array is stored with {strange[0][:40]}, which is not read",
            remedy="save it with Blosc, Zstandard or gzip",
        )


def _check_size(folder: Path, header: ArrayHeader) -> None:
    """Refuses arrays and chunks that claim absurdly more than is stored; what is not stored is empty, by the format."""
    chunk = math.prod(header.chunks) * header.dtype.itemsize
    expected = math.prod(header.shape) * header.dtype.itemsize
    if chunk > _LARGEST_CHUNK:
        raise InputRefusedError(
            f"the chunks of the Zarr array are {chunk} bytes long", remedy="save it in smaller ones"
        )
    needed = expected // _ABSURD_RATIO
    if expected > _ABSURD_BYTES and not _holds(folder, needed):
        raise InputRefusedError(
            f"the Zarr array claims {expected} bytes and holds not even {needed}", remedy=COPY_FILE_AGAIN
        )


def _holds(folder: Path, needed: int) -> bool:
    """Whether the files in a folder are that many bytes; no more of them are looked at than that takes."""
    found = 0
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                elif entry.name not in METADATA_NAMES:
                    found += entry.stat().st_size
                if found >= needed:
                    return True
    return False
