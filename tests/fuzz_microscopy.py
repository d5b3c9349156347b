"""Mutated TIFF files and OME-Zarr folders against the intake: no crash, no hang, no more memory than 2 GB.

``python tests/fuzz_microscopy.py --count 2000 --seed 0 [--only NUMBER] [--keep FOLDER]``

Small files of every kind that is read (tiles, strips, compressions, stacks, OME-TIFF sets, pyramids, slides, Zarr of
both versions) are damaged one at a time: bits flipped, cut off, tags of other counts, types and values, offsets that
lead anywhere, numbers in descriptions that promise too much, metadata with odd values, noise in compressed pixels. Each
result is searched and read, whole and in parts, in a process that may take 2 GB of address space beyond its own. A
finding is a crash of that process, an exception that is none of ours, memory that did not suffice, more than five
seconds for one file, a refusal without a reason or a remedy, or a text that holds the name of a folder. ``--only``
repeats one mutation and tells what came of it; ``--keep`` keeps the files of findings.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import fuzz_dicom as base  # noqa: E402 - the path comes first

_SECRET = "SECRET"
_AXES = ("ZYX", "TYX")
_ODD_NUMBERS = [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 32, 255, 256, 4095, 32768, 65535, 65536, 100_000, 4_000_000]
_ODD_NUMBERS += [2**31 - 1, 2**31, 2**32 - 1]
_ODD_TEXTS = [b"0", b"-1", b"3", b"17", b"65536", b"4000000", b"99999999999", b"1e400", b"nan", b"", b"x" * 50]
_ODD_VALUES: list[Any] = [
    None,
    True,
    "",
    "x",
    [],
    {},
    -1,
    0,
    1,
    2.5,
    1e308,
    4_000_000,
    2**40,
    2**64,
    [[]],
    [None],
    "\0",
]


# ---- the process that reads ---------------------------------------------------------------------------------------


def intake(folder: Path) -> dict[str, Any]:
    """Returns what became of everything in a folder."""
    from unet_med.errors import MachineError, NothingUsableError, UnetMedError
    from unet_med.io.discover import discover, open_source
    from unet_med.io.levels import copy_of
    from unet_med.io.source import IntakeOptions

    findings: list[str] = []
    outcomes: Counter[str] = Counter()
    reasons: list[str] = []

    def attempt(what: str, act: Callable[[], Any]) -> Any:
        try:
            result = act()
        except NothingUsableError:
            outcomes["nothing there"] += 1
            return None
        except UnetMedError as error:
            outcomes[f"{what} refused"] += 1
            reasons.append(str(error))
            if isinstance(error, MachineError) or not error.remedy:
                findings.append(f"{what}: {error!r}")
            return None
        except BaseException as error:  # noqa: BLE001 - this is what is looked for
            import traceback

            places = [f"{Path(one.filename).name}:{one.lineno}" for one in traceback.extract_tb(error.__traceback__)]
            findings.append(f"{what}: {type(error).__name__} at {' '.join(places[-3:])}: {error}")
            return None
        outcomes[f"{what} loaded"] += 1
        return result

    def read(ref: Any) -> None:
        source = open_source(ref)
        shape = source.geometry.shape
        corner = tuple(slice(n // 2, n // 2 + max(1, min(9, n // 4))) for n in shape)
        part = source.read(corner, source.frames - 1)
        size = source.channels
        for n in shape:
            size *= n
        if size <= 2**26:
            whole = source.read(frame=source.frames - 1)
            same = (whole.array[(slice(None), *corner)] == part.array).all() or whole.array.dtype.kind == "f"
            if whole.array.shape != (source.channels, *shape) or not same:
                findings.append("a part is not that of the whole")

    for options in (IntakeOptions(), *(IntakeOptions(axes=axes) for axes in _AXES)):
        found = attempt("search", lambda options=options: discover(folder, options))
        if found is None:
            break
        for ref in found.sources:
            reasons += [ref.reason, *ref.notes, ref.id]
            if not ref.usable:
                outcomes["scan refused"] += 1
                if ": " not in ref.reason:
                    findings.append(f"refused without a reason or a remedy: {ref.reason!r}")
            else:
                attempt("image", lambda ref=ref: read(ref))
                for level in range(len(ref.levels)):
                    attempt("copy", lambda ref=ref, level=level: read(copy_of(ref, level + 1)))
        if all(ref.usable or "--axes" not in ref.reason for ref in found.sources):
            break
    if any(_SECRET in text for text in reasons):
        findings.append("a message holds the name of a folder")
    return {"outcomes": dict(outcomes), "findings": findings, "reasons": reasons}


def worker() -> None:
    import tifffile  # noqa: F401 - its memory is there anyway
    import zarr  # noqa: F401

    import unet_med.io.tiff  # noqa: F401

    def silent(folder: Path) -> dict[str, Any]:
        warnings.simplefilter("ignore", ResourceWarning)  # tifffile forgets a file of a set that is damaged
        return intake(folder)

    base.worker(silent)


# ---- what is mutated ----------------------------------------------------------------------------------------------


def seeds(folder: Path) -> list[base.Seed]:
    """Writes and collects everything that is mutated."""
    return [*_tiffs(folder), *_sets(folder), *_zarrs(folder)]


def _tiffs(folder: Path) -> Iterator[base.Seed]:
    import numpy as np
    import tifffile

    random_state = np.random.default_rng(0)
    stack = random_state.integers(0, 2**12, (4, 48, 40)).astype(np.uint16)
    colour = random_state.integers(0, 256, (48, 40, 3)).astype(np.uint8)
    grey: dict[str, Any] = {"photometric": "minisblack"}
    declared = {"metadata": {"axes": "TYX"}, **grey}
    tiles = {"tile": (16, 16), **declared}
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "plain": (stack[0], grey),
        "undeclared": (stack, grey),
        "shaped": (stack, declared),
        "deflate": (stack, {"compression": "zlib", "rowsperstrip": 8, "predictor": True, **declared}),
        "lzw": (stack, {"compression": "lzw", **tiles}),
        "zstd": (stack, {"compression": "zstd", **tiles}),
        "packbits": (stack, {"compression": "packbits", "rowsperstrip": 9, **declared}),
        "tiles": (stack, tiles),
        "big endian": (stack, {"byteorder": ">", "compression": "zlib", **tiles}),
        "BigTIFF": (stack, {"bigtiff": True, "compression": "zlib", **tiles}),
        "float": (stack.astype(np.float32) / 7, {"compression": "zlib", "predictor": True, **tiles}),
        "12 bits": (stack[0], {"bitspersample": 12, "rowsperstrip": 5, **grey}),
        "1 bit": (stack[0] > 2000, {"rowsperstrip": 5, **grey}),
        "RGB": (colour, {"photometric": "rgb", "compression": "lzw", "rowsperstrip": 7}),
        "RGB tiles": (colour, {"photometric": "rgb", "compression": "zlib", "tile": (16, 16)}),
        "RGB apart": (
            colour.transpose(2, 0, 1),
            {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib", "tile": (16, 16)},
        ),
        "JPEG": (colour, {"photometric": "rgb", "compression": "jpeg", "tile": (16, 16)}),
        "JPEG 2000": (colour, {"photometric": "rgb", "compression": "jpeg2000", "tile": (32, 32)}),
        "WebP": (colour, {"photometric": "rgb", "compression": "webp", "tile": (32, 32)}),
        "ImageJ": (
            stack.reshape(2, 2, 48, 40),
            {
                "imagej": True,
                "metadata": {"axes": "TCYX", "unit": "um", "Labels": ["a", "b"] * 2},
                "resolution": (2, 2),
            },
        ),
        "OME": (
            stack.reshape(2, 2, 48, 40),
            {"ome": True, "metadata": {"axes": "ZCYX", "PhysicalSizeX": 0.5, "Channel": {"Name": ["a", "b"]}}, **grey},
        ),
    }
    for number, (name, (array, options)) in enumerate(kinds.items()):
        path = folder / f"{number}{'.ome' if options.get('ome') else ''}.tif"
        tifffile.imwrite(path, array, **options)
        yield base.Seed(name, {f"{_SECRET}/a{path.name.lstrip('0123456789')}": path.read_bytes()})


def _sets(folder: Path) -> Iterator[base.Seed]:
    """Pyramids, a slide, several images in one file, and a set of several files with and without a companion."""
    import numpy as np
    import tifffile

    array = np.random.default_rng(0).integers(0, 255, (64, 48)).astype(np.uint8)
    tiles: dict[str, Any] = {"tile": (16, 16), "compression": "zlib", "photometric": "minisblack"}
    with tifffile.TiffWriter(folder / "pyramid.ome.tif", ome=True) as file:
        file.write(array, subifds=1, metadata={"axes": "YX"}, **tiles)
        file.write(array[::2, ::2], subfiletype=1, **tiles)
        file.write(array[:33], metadata={"axes": "YX"}, **tiles)
    with tifffile.TiffWriter(folder / "slide.svs") as file:
        file.write(array, description="Aperio Image Library |AppMag = 20|MPP = 0.5", metadata=None, **tiles)
        file.write(array[::4, ::4], photometric="minisblack", metadata=None)
        file.write(array[::4, ::4], description="Aperio", metadata=None, **tiles)
    for name in ("pyramid.ome.tif", "slide.svs"):
        yield base.Seed(name, {f"{_SECRET}/{name}": (folder / name).read_bytes()})
    head = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{}">'
    planes = "".join(
        f'<TiffData FirstT="{n}" IFD="0" PlaneCount="1"><UUID FileName="p{n}.ome.tif">urn:uuid:{n}</UUID></TiffData>'
        for n in range(2)
    )
    image = (
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="48" SizeY="64" '
        f'SizeZ="1" SizeC="1" SizeT="2" PhysicalSizeX="0.5" PhysicalSizeY="0.5"><Channel Name="a"/>'
        f"{planes}</Pixels></Image></OME>"
    )
    for name, binary in (("set", image), ("companion", '<BinaryOnly MetadataFile="m.companion.ome" UUID="x"/></OME>')):
        files = {}
        for number in range(2):
            path = folder / f"p{number}.ome.tif"
            tifffile.imwrite(path, array, description=head.format(number) + binary, metadata=None, **tiles)
            files[f"{_SECRET}/{path.name}"] = path.read_bytes()
        if name == "companion":
            files[f"{_SECRET}/m.companion.ome"] = (head.format("x") + image).encode()
        yield base.Seed(name, files)


def _zarrs(folder: Path) -> Iterator[base.Seed]:
    import numpy as np
    import zarr

    array = np.random.default_rng(0).integers(0, 255, (2, 40, 48)).astype(np.uint16)
    for name, version, more in (
        ("zarr 2", 2, {}),
        ("zarr 3", 3, {}),
        ("zarr 3 shards", 3, {"shards": (1, 32, 32)}),
        ("zarr 2 gzip", 2, {"compressors": {"id": "gzip", "level": 1}}),
        ("zarr 2 plain", 2, {"compressors": None}),
    ):
        path = folder / f"{name.replace(' ', '')}.zarr"
        group = zarr.create_group(path, zarr_format=version)
        for level in range(2):
            part = np.ascontiguousarray(array[:, :: level + 1, :: level + 1])
            group.create_array(str(level), data=part, chunks=(1, 16, 16), **(more if not level else {}))
        scales = [
            {"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [1, 0.5, 0.5]}]} for n in range(2)
        ]
        axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", "unit": "micrometer"} for n in "yx")]
        content = {
            "multiscales": [{"axes": axes, "datasets": scales, "version": "0.4"}],
            "omero": {"channels": [{"label": "a"}, {"label": "b"}]},
        }
        group.attrs.update({"ome": content} if version == 3 else content)
        files = [one for one in sorted(path.rglob("*")) if one.is_file()]
        yield base.Seed(name, {f"{_SECRET}/{one.relative_to(folder).as_posix()}": one.read_bytes() for one in files})


# ---- mutations ----------------------------------------------------------------------------------------------------


class Mutation:
    """One random damage; the same for the same seed and number."""

    def __init__(self, seed: int, number: int) -> None:
        self.random = random.Random(seed * 1_000_003 + number)
        self.told: list[str] = []

    def apply(self, name: str, data: bytes) -> bytes:
        """Returns a file, damaged once or several times."""
        described = name.endswith((".json", ".zattrs", ".zarray", ".zgroup"))
        packed = "/c/" in name or ".zarr/" in name
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            if described:
                ways = [self.json, self.json, self.json, self.json, self.cut, self.flip, self.text]
            elif packed:
                ways = [self.flip, self.cut, self.noise, self.start, self.swell]
            elif name.endswith(".ome"):
                ways = [self.text, self.text, self.cut, self.flip]
            else:
                ways = [self.tag, self.tag, self.tag, self.tag, self.offset, self.flip, self.cut, self.noise, self.text]
                ways += [self.text, self.start]
            way = self.random.choice(ways)
            self.told.append(way.__name__)
            data = way(data)
            if len(data) < 16:
                break
        return data

    def flip(self, data: bytes) -> bytes:
        out = bytearray(data)
        end = len(out) if self.random.random() < 0.5 else min(len(out), 600)
        for _ in range(self.random.choice((1, 1, 2, 4, 16, 100))):
            out[self.random.randrange(end)] ^= 1 << self.random.randrange(8)
        return bytes(out)

    def cut(self, data: bytes) -> bytes:
        return data[: self.random.randrange(len(data))]

    def noise(self, data: bytes) -> bytes:
        out = bytearray(data)
        start = self.random.randrange(len(out))
        length = min(len(out) - start, self.random.choice((1, 8, 100, 2000)))
        out[start : start + length] = self.random.randbytes(length)
        return bytes(out)

    def start(self, data: bytes) -> bytes:
        """Replaces one of the first numbers, where compressed streams and files say how long they are."""
        out = bytearray(data)
        at = self.random.randrange(min(32, len(out) - 4))
        struct.pack_into(self.random.choice("<>") + "I", out, at, self.random.choice(_ODD_NUMBERS))
        return bytes(out)

    def swell(self, data: bytes) -> bytes:
        """Replaces a chunk by one that unpacks to far more than it should."""
        import gzip

        return gzip.compress(bytes(2**26))

    def text(self, data: bytes) -> bytes:
        """Replaces a number in a description."""
        places = [match.span() for match in re.finditer(rb"(?<=[\"'=:>])-?[0-9]+(?:\.[0-9]+)?(?=[\"'\n,<\]}])", data)]
        if not places:
            return self.flip(data)
        begin, end = self.random.choice(places)
        value = self.random.choice(_ODD_TEXTS)
        if not data.startswith((b"II", b"MM")):
            return data[:begin] + value + data[end:]
        return data[:begin] + value[: end - begin].rjust(end - begin, b"9") + data[end:]

    def json(self, data: bytes) -> bytes:
        """Replaces or drops a value anywhere in JSON."""
        try:
            content = json.loads(data)
        except ValueError:
            return self.flip(data)
        place, parents = content, []
        while isinstance(place, (dict, list)) and place:
            key = self.random.choice(list(place) if isinstance(place, dict) else range(len(place)))
            parents.append((place, key))
            place = place[key]
        if not parents:
            return data
        holder, key = self.random.choice(parents)
        if self.random.random() < 0.2:
            del holder[key]
        else:
            holder[key] = self.random.choice(_ODD_VALUES)
        return json.dumps(content).encode()

    def tag(self, data: bytes) -> bytes:
        """Changes the count, the type or the value of a tag."""
        entries = list(_entries(data))
        if not entries:
            return self.flip(data)
        order, big, at = self.random.choice(entries)
        out = bytearray(data)
        what = self.random.choice(("count", "type", "value", "value", "value", "code"))
        number = self.random.choice([*_ODD_NUMBERS, self.random.getrandbits(32)])
        if what == "count":
            struct.pack_into(order + ("Q" if big else "I"), out, at + 4, number)
        elif what == "type":
            struct.pack_into(order + "H", out, at + 2, self.random.randrange(20))
        elif what == "code":
            struct.pack_into(
                order + "H", out, at, self.random.choice((254, 256, 258, 262, 270, 273, 279, 322, 324, 330))
            )
        else:
            struct.pack_into(order + ("Q" if big else "I"), out, at + (12 if big else 8), number)
        return bytes(out)

    def offset(self, data: bytes) -> bytes:
        """Lets the list of pages go on anywhere, in a circle for example."""
        links = list(_links(data))
        if not links:
            return self.flip(data)
        order, big, at = self.random.choice(links)
        out = bytearray(data)
        first = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
        target = self.random.choice((first, self.random.randrange(len(data)), 2**32 - 1, 0, at))
        struct.pack_into(order + ("Q" if big else "I"), out, at, target)
        return bytes(out)


def _pages(data: bytes) -> Iterator[tuple[str, bool, int, int]]:
    """Yields byte order, whether it is BigTIFF, the offset and the number of tags of each page."""
    order = "<" if data[:2] == b"II" else ">"
    big = len(data) > 4 and struct.unpack_from(order + "H", data, 2)[0] == 43
    link, seen = 8 if big else 4, set()
    while link + 8 <= len(data):
        page = struct.unpack_from(order + ("Q" if big else "I"), data, link)[0]
        if page in seen or not 0 < page < len(data) - 8:
            return
        seen.add(page)
        count = struct.unpack_from(order + ("Q" if big else "H"), data, page)[0]
        yield order, big, page, min(count, 200)
        link = page + (8 + 20 * count if big else 2 + 12 * count)


def _entries(data: bytes) -> Iterator[tuple[str, bool, int]]:
    for order, big, page, count in _pages(data):
        for number in range(count):
            at = page + (8 + 20 * number if big else 2 + 12 * number)
            if at + 20 <= len(data):
                yield order, big, at


def _links(data: bytes) -> Iterator[tuple[str, bool, int]]:
    for order, big, page, count in _pages(data):
        at = page + (8 + 20 * count if big else 2 + 12 * count)
        if at + 8 <= len(data):
            yield order, big, at


# ---- the run ------------------------------------------------------------------------------------------------------


def _put(place: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(place, ignore_errors=True)
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)


def run(options: argparse.Namespace) -> base.Summary:
    """Reads all mutations, one after the other."""
    summary = base.Summary()
    reader = base.Reader(command=(sys.executable, str(Path(__file__).resolve()), "--worker"))
    with tempfile.TemporaryDirectory() as temporary:
        folder, place = Path(temporary) / "seeds", Path(temporary) / "place"
        folder.mkdir()
        everything = seeds(folder)
        for seed in everything if options.only is None else ():
            _put(place, seed.files)
            answer = reader.ask(place)
            if "image loaded" not in answer["outcomes"] or answer["findings"]:
                summary.findings.append(f"{seed.name}, undamaged: {answer}")
        for number in base.numbers(options.count, options.only):
            seed = everything[number % len(everything)]
            mutation = Mutation(options.seed, number)
            damaged = mutation.random.choice(sorted(seed.files))
            content = {n: mutation.apply(n, data) if n == damaged else data for n, data in seed.files.items()}
            _put(place, content)
            answer = reader.ask(place)
            for pause in (0.5, 2, 5, 10):  # a busy machine is no finding
                if answer["seconds"] <= base.SECONDS or answer["cpu"] > base.SECONDS:
                    break
                time.sleep(pause)
                answer = min(answer, reader.ask(place), key=lambda one: one["seconds"])
            found = base.faults(answer)
            summary.files += 1
            summary.outcomes.update([key for key, value in answer["outcomes"].items() if value])
            summary.slowest = max(summary.slowest, answer["seconds"])
            told = f"{number} ({seed.name}, {damaged}, {'+'.join(mutation.told)})"
            summary.findings += [f"{told}: {text}" for text in found]
            if options.only is not None:
                print(json.dumps(answer, indent=1))
            elif found:
                print(f"{told}: {'; '.join(found)}", flush=True)
            if summary.files % 500 == 0:
                print(f"{summary.files} files, {len(summary.findings)} findings", flush=True)
            if (found or options.only is not None) and options.keep is not None:
                shutil.copytree(place, options.keep / str(number), dirs_exist_ok=True)
        summary.memory = reader.memory
        reader.stop()
    return summary


if __name__ == "__main__":
    base.main(run, worker)
