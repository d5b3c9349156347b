"""Label images as OME-Zarr: ``labels/<name>`` with its pyramid, version 0.4 (Zarr 2) or 0.5 (Zarr 3).

The group holds no image beside the labels, so that its own multiscales point to them, too: programs that know nothing
of labels show them as an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from unet_med.io.export.nifti import unlike
from unet_med.io.mapped import let_go
from unet_med.io.sinks.pyramid import Pages
from unet_med.labels import LabelMap

if TYPE_CHECKING:
    import zarr

Version = Literal["0.4", "0.5"]

CHUNK = 1024
NAME = "mask"
_KINDS = {"T": "time", "C": "channel", "Z": "space", "Y": "space", "X": "space"}


def save_ome_zarr(
    part: Path,
    levels: Sequence[Pages],
    axes: str,
    spacing_mm: tuple[float, ...] | None,
    labels: LabelMap,
    version: Version = "0.4",
    name: str = NAME,
) -> None:
    """Writes levels of a label image.

    Args:
        part: Folder to make.
        levels: From full resolution down, integers, each (..., rows, columns).
        axes: Letters of their axes, for example ``ZYX``.
        spacing_mm: Pixel size along X, Y (and Z) of the first level; ``None`` when unknown.
        labels: Names and colours; of objects, whose values are numbers, none is listed.
        version: Of OME-Zarr.
        name: Of the label image.
    """
    import zarr

    root = zarr.create_group(str(part), zarr_format=2 if version == "0.4" else 3)
    group = root.create_group("labels")
    own = group.create_group(name)
    for number, level in enumerate(levels):
        _write(own, str(number), level, version, axes)
    scales = _multiscales(levels, axes, spacing_mm, name, version)
    _describe(own, version, {"multiscales": [scales("")], "image-label": _image_label(labels, version)})
    _describe(group, version, {"labels": [name]})
    _describe(root, version, {"multiscales": [scales(f"labels/{name}/")]})


def check_ome_zarr(part: Path, levels: Sequence[Pages], axes: str, where: str, name: str = NAME) -> dict[str, Any]:
    """Opens the folder again as its metadata say and compares every pixel of every level.

    Raises:
        InputRefusedError: when it does not say what was meant.
    """
    import zarr

    root = zarr.open_group(str(part), mode="r")
    for group, path in ((root, ""), (root[f"labels/{name}"], f"labels/{name}/")):
        metadata = dict(group.attrs)
        scales = metadata.get("ome", metadata)["multiscales"][0]
        if "".join(axis["name"] for axis in scales["axes"]).upper() != axes or len(scales["datasets"]) != len(levels):
            raise unlike("axes or levels", where)
        for dataset, level in zip(scales["datasets"], levels, strict=True):
            stored = root[path + dataset["path"]]
            if stored.shape != level.shape or stored.dtype != level.dtype:
                raise unlike("shape", where)
            if path and not _same(stored, level):
                raise unlike("voxels", where)
    return {"readers": ["zarr"], "axes": axes, "levels": len(levels), "shape": True, "values": True, "passed": True}


def _write(group: zarr.Group, name: str, level: Pages, version: Version, axes: str) -> None:
    import zarr

    array = group.create_array(
        name=name,
        shape=level.shape,
        chunks=(*(1,) * (level.ndim - 2), *(min(n, CHUNK) for n in level.shape[-2:])),
        dtype=level.dtype,
        fill_value=0,
        compressors="auto" if version == "0.4" else zarr.codecs.ZstdCodec(level=3),
        chunk_key_encoding={"name": "v2", "separator": "/"} if version == "0.4" else None,
        dimension_names=None if version == "0.4" else list(axes.lower()),
    )
    for lead in np.ndindex(level.shape[:-2]):
        for top in range(0, level.shape[-2], CHUNK):
            rows = slice(top, top + CHUNK)
            array[(*lead, rows)] = np.asarray(level[lead][rows])
            let_go(level)


def _same(stored: zarr.Array[Any], level: Pages) -> bool:
    for lead in np.ndindex(level.shape[:-2]):
        for top in range(0, level.shape[-2], CHUNK):
            rows = slice(top, top + CHUNK)
            if not np.array_equal(stored[(*lead, rows)], level[lead][rows]):
                return False
            let_go(level)
    return True


def _multiscales(
    levels: Sequence[Pages], axes: str, spacing_mm: tuple[float, ...] | None, name: str, version: Version
) -> Any:
    """Returns what makes the multiscales of arrays that lie below a path."""
    um = None if spacing_mm is None else dict(zip("XYZ", (1e3 * mm for mm in spacing_mm), strict=False))
    listed = []
    for letter in axes:
        axis = {"name": letter.lower(), "type": _KINDS[letter]}
        listed.append(axis | ({"unit": "micrometer"} if um is not None and letter in um else {}))

    def scale(number: int) -> list[float]:
        grown = {"X": 2.0**number, "Y": 2.0**number}
        return [(um or {}).get(letter, 1.0) * grown.get(letter, 1.0) for letter in axes]

    def shift(number: int) -> list[float]:
        """The centre of the first pixel of a level, in steps of the first level."""
        moved = {"X": (2.0**number - 1) / 2, "Y": (2.0**number - 1) / 2}
        return [(um or {}).get(letter, 1.0) * moved.get(letter, 0.0) for letter in axes]

    def placed(number: int) -> list[dict[str, Any]]:
        moved = [{"type": "translation", "translation": shift(number)}] if number else []
        return [{"type": "scale", "scale": scale(number)}, *moved]

    def multiscales(path: str) -> dict[str, Any]:
        datasets = [{"path": f"{path}{n}", "coordinateTransformations": placed(n)} for n in range(len(levels))]
        said = {"version": version} if version == "0.4" else {}
        return said | {"name": name, "axes": listed, "datasets": datasets, "type": "mode"}

    return multiscales


def _image_label(labels: LabelMap, version: Version) -> dict[str, Any]:
    classes = () if labels.objects else labels.labels
    colours = [{"label-value": one.index, "rgba": [*one.colour, 255]} for one in classes]
    names = [{"label-value": one.index, "name": one.name} for one in classes]
    content: dict[str, Any] = {"version": version} if version == "0.4" else {}
    content |= {"colors": colours, "properties": names} if classes else {}
    return content | {"source": {"image": "../../"}}


def _describe(group: zarr.Group, version: Version, content: dict[str, Any]) -> None:
    group.attrs.update(content if version == "0.4" else {"ome": {"version": version, **content}})
