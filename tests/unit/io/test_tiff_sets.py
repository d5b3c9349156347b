"""TIFF as microscopes write it: sets of files, several images, pyramids, slides, names, times, huge ones."""

from __future__ import annotations

import pickle
import struct
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile

from unet_med.errors import InputRefusedError
from unet_med.io.discover import discover, open_source, restore_ref
from unet_med.io.levels import smaller
from unet_med.io.source import IntakeOptions, SourceRef
from unet_med.io.tiff import TiffSource, inspect_tiff, ome, pixels
from unet_med.io.tiff.scale import channel_names, scale_of

GREY = "minisblack"


def _array(shape: tuple[int, ...], dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 250, shape).astype(dtype)


def _one(path: Path, **options: Any) -> SourceRef:
    (ref,) = inspect_tiff(path, IntakeOptions(**options))
    return ref


# ---- only what is needed ------------------------------------------------------------------------------------------


def test_only_the_tiles_of_a_region_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = _array((128, 160))
    tifffile.imwrite(tmp_path / "a.tif", array, tile=(32, 32), compression="zlib")
    source = TiffSource(_one(tmp_path / "a.tif"))
    read: list[int] = []
    stored = pixels._bytes
    monkeypatch.setattr(pixels, "_bytes", lambda file, page, number: read.append(number) or stored(file, page, number))
    np.testing.assert_array_equal(source.read((slice(40, 70), slice(95, 97))).array[0], array[95:97, 40:70].T)
    assert read == [2 * 5 + 1, 2 * 5 + 2, 3 * 5 + 1, 3 * 5 + 2]


def test_a_picture_far_larger_than_memory_is_read_in_parts(tmp_path: Path) -> None:
    side, tile = 40_000, 512
    full = _array((tile, tile))
    across = -(-side // tile)
    tiles = (full if number in (0, across + 1) else None for number in range(across * across))
    tifffile.imwrite(
        tmp_path / "a.tif",
        tiles,
        shape=(side, side),
        dtype="uint16",
        tile=(tile, tile),
        compression="zlib",
        bigtiff=True,
    )
    ref = _one(tmp_path / "a.tif")
    assert ref.geometry.shape == (side, side)
    source = TiffSource(ref)
    source.read((slice(0, 1), slice(0, 1)))
    tracemalloc.start()
    part = source.read((slice(600, 700), slice(500, 600))).array[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(part[:, 12:], full[:88, 88:188].T)
    assert not part[:, :12].any()  # tiles that are left out are empty
    assert peak < 4e6


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_source_can_be_sent_to_another_process(tmp_path: Path, compression: str | None) -> None:
    array = _array((3, 20, 30))
    tifffile.imwrite(tmp_path / "a.tif", array, metadata={"axes": "TYX"}, compression=compression, photometric=GREY)
    source = TiffSource(_one(tmp_path / "a.tif"))
    source.read(frame=1)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.read(frame=2).array[0], array[2].T)


def test_a_file_that_was_written_again_is_looked_at_again(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, _array((20, 30)), compression="zlib")
    source = TiffSource(_one(path))
    source.read()
    other = _array((20, 30)) + 7
    tifffile.imwrite(path, other, compression="lzw")
    np.testing.assert_array_equal(source.read().array[0], other.T)


def test_of_channels_only_the_chosen_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = _array((2, 6, 20, 30))
    tifffile.imwrite(
        tmp_path / "a.ome.tif", array, metadata={"axes": "TCYX"}, compression="zlib", photometric="minisblack"
    )
    source = TiffSource(_one(tmp_path / "a.ome.tif", channels=("4", "2")))
    read: list[int] = []
    stored = pixels._bytes
    monkeypatch.setattr(
        pixels, "_bytes", lambda file, page, number: read.append(page.index) or stored(file, page, number)
    )
    np.testing.assert_array_equal(source.read(frame=1).array, array[1, [4, 2]].transpose(0, 2, 1))
    assert set(read) == {6 + 2, 6 + 3, 6 + 4}


# ---- pyramids and slides ------------------------------------------------------------------------------------------


def _pyramid(path: Path, array: np.ndarray, levels: int = 3, **options: Any) -> None:
    with tifffile.TiffWriter(path, ome=options.pop("ome", False)) as file:
        more = {"tile": (32, 32), "compression": "zlib", "photometric": "minisblack"}
        file.write(array, subifds=levels - 1, **more, **options)
        for level in range(1, levels):
            file.write(array[..., :: 2**level, :: 2**level], subfiletype=1, metadata=None, **more)


@pytest.mark.parametrize("ome", [False, True])
def test_smaller_copies_are_known_and_read(tmp_path: Path, ome: bool) -> None:
    array = _array((2, 256, 192))
    path = tmp_path / ("a.ome.tif" if ome else "a.tif")
    declared = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25}
    _pyramid(path, array, ome=ome, metadata=declared if ome else None)
    ref = _one(path, axes="CYX")
    assert (ref.shape, ref.channels, ref.levels) == ((2, 256, 192), 2, ((2, 128, 96), (2, 64, 48)))
    np.testing.assert_array_equal(TiffSource(ref).read().array, array.transpose(0, 2, 1))
    for side, step in ((300, 1), (129, 1), (128, 2), (100, 2), (64, 4), (10, 4)):
        copy = smaller(ref, side)
        volume = open_source(copy).read()
        np.testing.assert_array_equal(volume.array, array[:, ::step, ::step].transpose(0, 2, 1))
        if ome:
            assert copy.geometry.spacing_mm == pytest.approx((0.0005 * step, 0.00025 * step))
            corner = ref.geometry.affine @ [-0.5, -0.5, 1]
            np.testing.assert_allclose(copy.geometry.affine @ [-0.5, -0.5, 1], corner)


def test_pages_that_are_reduced_copies_are_a_pyramid(tmp_path: Path) -> None:
    array = _array((256, 192))
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for level in range(3):
            part = array[:: 2**level, :: 2**level]
            file.write(part, tile=(32, 32), subfiletype=int(level > 0), metadata=None)
    ref = _one(tmp_path / "a.tif")
    assert (ref.axes, ref.shape, ref.levels) == ("YX", (256, 192), ((128, 96), (64, 48)))


def test_a_slide_is_read_without_the_pictures_of_its_label(tmp_path: Path) -> None:
    slide, small = _array((256, 320, 3), "uint8"), _array((64, 80, 3), "uint8")
    with tifffile.TiffWriter(tmp_path / "a.svs") as file:
        about = "Aperio Image Library v11.2\r\n320x256 [0,0 320x256] (64x64) |AppMag = 20|MPP = 0.4990"
        tiles = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib", "metadata": None}
        file.write(slide, description=about, **tiles)
        file.write(small, photometric="rgb", metadata=None, description="Aperio thumbnail")
        file.write(slide[::4, ::4], description="Aperio smaller", **tiles)
        file.write(small[::2], photometric="rgb", metadata=None, subfiletype=1, description="Aperio label 387x463")
        file.write(small[:, ::2], photometric="rgb", metadata=None, subfiletype=9, description="Aperio macro 1280x431")
    (ref,) = discover(tmp_path).usable
    assert (ref.kind, ref.axes, ref.shape, ref.levels) == ("tiff", "YXS", (256, 320, 3), ((64, 80, 3),))
    assert ref.geometry.spacing_mm == pytest.approx((0.000499, 0.000499))
    assert ref.channel_names == ("red", "green", "blue")
    assert any("label" in note for note in ref.notes)
    region = (slice(10, 30), slice(5, 9))
    part = open_source(ref).read(region).array
    np.testing.assert_array_equal(part, slide.transpose(2, 1, 0)[(slice(None), *region)])


# ---- sets ---------------------------------------------------------------------------------------------------------


def _companion_set(folder: Path, array: np.ndarray, files: int = 2) -> None:
    """Writes a (T, Y, X) film as OME-TIFF whose metadata lie in a companion; each file has some time points."""
    per_file = len(array) // files
    blocks = []
    for number in range(files):
        name = f"part{number}.ome.tif"
        binary = (
            '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{number}"><BinaryOnly MetadataFile="film.companion.ome" UUID="urn:uuid:c"/></OME>'
        )
        part = array[number * per_file : (number + 1) * per_file]
        tifffile.imwrite(folder / name, part, description=binary, metadata=None, photometric="minisblack")
        blocks += [
            f'<TiffData FirstT="{number * per_file + page}" IFD="{page}" PlaneCount="1">'
            f'<UUID FileName="{name}">urn:uuid:{number}</UUID></TiffData>'
            for page in range(per_file)
        ]
    (folder / "film.companion.ome").write_text(
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'UUID="urn:uuid:c"><Image ID="Image:0" Name="film"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" '
        f'SizeX="{array.shape[2]}" SizeY="{array.shape[1]}" SizeZ="1" SizeC="1" SizeT="{len(array)}" BigEndian="false" '
        'PhysicalSizeX="0.5" PhysicalSizeY="0.5" TimeIncrement="2" TimeIncrementUnit="min">'
        f'<Channel ID="Channel:0:0" Name="Histone"/>{"".join(blocks)}</Pixels></Image></OME>',
        encoding="utf-8",
    )


def test_a_set_with_a_companion_is_one_source(tmp_path: Path) -> None:
    array = _array((6, 20, 30))
    _companion_set(tmp_path, array)
    found = discover(tmp_path)
    (ref,) = found.sources
    assert ref.usable, ref.reason
    assert (ref.id, ref.axes, ref.shape, ref.channel_names) == ("film", "TYX", (6, 20, 30), ("Histone",))
    assert ref.geometry.spacing_mm == (0.0005, 0.0005)
    assert ref.seconds_per_frame == 120
    assert [file.name for file in ref.files] == ["film.companion.ome", "part0.ome.tif", "part1.ome.tif"]
    source = pickle.loads(pickle.dumps(open_source(ref)))
    for frame in range(6):
        np.testing.assert_array_equal(source.read(frame=frame).array[0], array[frame].T)
    again = restore_ref({"id": ref.id, "read": dict(ref.read_as)}, ref.files)
    assert repr(again) == repr(ref)
    (tmp_path / "part1.ome.tif").unlink()
    (ref,) = discover(tmp_path).sources
    assert not ref.usable
    assert "missing" in ref.reason


def test_images_of_one_size_in_one_file_keep_their_own_metadata(tmp_path: Path) -> None:
    arrays = [_array((20, 30)) + number for number in range(3)]
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        for number, array in enumerate(arrays):
            metadata = {"axes": "YX", "Name": f"well {number}", "PhysicalSizeX": 0.5 + number, "PhysicalSizeY": 0.5}
            file.write(array, metadata=metadata | {"Channel": {"Name": f"dye {number}"}}, photometric="minisblack")
    refs = inspect_tiff(tmp_path / "a.ome.tif")
    assert [ref.id for ref in refs] == ["a-s1", "a-s2", "a-s3"]
    for number, ref in enumerate(refs):
        assert ref.channel_names == (f"dye {number}",)
        assert ref.geometry.spacing_mm == pytest.approx((0.0005 + number * 0.001, 0.0005))
        np.testing.assert_array_equal(TiffSource(ref).read().array[0], arrays[number].T)


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('SizeT="3"', 'SizeT="30000000000"', "planes"),
        ('PlaneCount="3"', 'PlaneCount="99999999999"', "planes"),
        ('IFD="0"', 'IFD="-4"', "planes"),
        ("</TiffData>", '<UUID FileName="/etc/passwd">urn:uuid:1</UUID></TiffData>', "other folders"),
        ("</TiffData>", '<UUID FileName="../a.tif">urn:uuid:1</UUID></TiffData>', "other folders"),
    ],
)
def test_a_description_that_promises_nonsense_is_refused(tmp_path: Path, old: str, new: str, word: str) -> None:
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="30" SizeY="20" SizeZ="1" SizeC="1" '
        'SizeT="3"><TiffData IFD="0" PlaneCount="3"></TiffData></Pixels></Image></OME>'
    )
    for text in (xml, xml.replace(old, new)):
        stack = _array((3, 20, 30))
        tifffile.imwrite(tmp_path / "a.ome.tif", stack, description=text, metadata=None, photometric=GREY)
        ref = _one(tmp_path / "a.ome.tif")
        assert ref.usable == (text == xml)
    assert word in ref.reason


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("later", [False, True])
def test_pages_that_run_in_a_circle_are_refused(tmp_path: Path, big: bool, later: bool) -> None:
    """The last page leads to the first one again: of the file itself, or of a later file of its set."""
    array = _array((6, 20, 30))
    _companion_set(tmp_path, array)
    path = tmp_path / ("part1.ome.tif" if later else "alone.tif")
    if not later:
        tifffile.imwrite(path, array, bigtiff=big, photometric=GREY, metadata={"axes": "TYX"}, contiguous=False)
    with tifffile.TiffFile(path) as file:
        last, first = file.pages[-1], file.pages[0].offset
        size = (8, "<Q", 20, "<Q") if file.is_bigtiff else (2, "<H", 12, "<I")
    data = bytearray(path.read_bytes())
    tags = struct.unpack_from(size[1], data, last.offset)[0]
    struct.pack_into(size[3], data, last.offset + size[0] + size[2] * tags, first)
    path.write_bytes(data)
    refused = {ref.id: ref.reason for ref in discover(tmp_path).sources if not ref.usable}
    assert set(refused) == ({"film", "part1"} if later else {"alone"})
    assert all("never end" in reason for reason in refused.values())


# ---- names, times, sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["DAPI", "GFP"] * 3, ("DAPI", "GFP")),
        ([f"c:{c}/2 t:{t}/3 - {n}" for t in (1, 2, 3) for c, n in ((1, "DAPI"), (2, "GFP"))], ("DAPI", "GFP")),
        (["DAPI", "GFP", "DAPI", "other", "DAPI", "GFP"], ("DAPI", "1")),
        (["same"] * 6, ()),
        (["a_w1.tif", "a_w2.tif"] * 3, ()),
        ([], ()),
    ],
)
def test_channels_by_the_labels_of_imagej(tmp_path: Path, labels: list[str], names: tuple[str, ...]) -> None:
    metadata: dict[str, Any] = {"axes": "TCYX", "Labels": labels, "finterval": 2.5}
    tifffile.imwrite(tmp_path / "a.tif", _array((3, 2, 20, 30)), imagej=True, metadata=metadata)
    ref = _one(tmp_path / "a.tif")
    assert (ref.channel_names, ref.seconds_per_frame) == (names, 2.5)


def test_channels_are_chosen_by_name_and_found_again(tmp_path: Path) -> None:
    array = _array((3, 20, 30))
    metadata = {"axes": "CYX", "Channel": {"Name": ["2", "GFP", "0"]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", array, metadata=metadata, photometric="minisblack")
    for wanted, places in ((("gfp", "2"), [1, 0]), (("0",), [2]), (("#0", "#2"), [0, 2])):
        ref = _one(tmp_path / "a.ome.tif", channels=wanted)
        again = restore_ref({"id": "a", "read": dict(ref.read_as)}, ref.files)
        assert again.channel_names == ref.channel_names == tuple(["2", "GFP", "0"][place] for place in places)
        np.testing.assert_array_equal(TiffSource(again).read().array, array[places].transpose(0, 2, 1))
    refused = _one(tmp_path / "a.ome.tif", channels=("RFP",))
    assert "GFP (1)" in refused.reason


@pytest.mark.parametrize(("unit", "size"), [("inch", 72), ("inch", 300), ("cm", 28.35)])
def test_a_printers_resolution_in_an_imagej_file(tmp_path: Path, unit: str, size: float) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif",
        _array((20, 2000)),
        imagej=True,
        resolution=(size, size),
        metadata={"axes": "YX", "unit": unit},
    )
    ref = _one(tmp_path / "a.tif")
    assert ref.geometry.is_calibrated == (unit == "cm")
    text = " ".join(ref.notes)
    assert ("a printer's resolution" if unit == "inch" else "0.705 m wide") in text


def test_a_doubtful_pixel_size_is_questioned_and_can_be_replaced(tmp_path: Path) -> None:
    metadata = {"axes": "YX", "PhysicalSizeX": 1000, "PhysicalSizeY": 1000}
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((10, 2048), np.uint8), metadata=metadata)
    ref = _one(tmp_path / "a.ome.tif")
    assert ref.geometry.spacing_mm == (1.0, 1.0)
    assert any("2.05 m wide" in note and "--pixel-size" in note for note in ref.notes)
    given = _one(tmp_path / "a.ome.tif", pixel_size_mm=(0.001, 0.001))
    assert given.geometry.spacing_mm == (0.001, 0.001)
    again = restore_ref({"id": "a", "read": dict(given.read_as)}, given.files)
    assert again.geometry.spacing_mm == (0.001, 0.001)


def test_what_a_zeiss_file_says(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", _array((2, 2, 3, 20, 30)), photometric=GREY, metadata={"axes": "TCZYX"})
    about = {"VoxelSizeX": 2.5e-7, "VoxelSizeY": 5e-7, "VoxelSizeZ": 1e-6, "TimeIntervall": 3.5}
    about |= {"ChannelColors": {"ColorNames": ["Ch1", "Ch2"]}}
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        (series,) = file.series
        series.kind = "lsm"
        told = SimpleNamespace(lsm_metadata=about)
        scale = scale_of(told, series, 3, None)
        assert scale.spacing_mm == pytest.approx((0.00025, 0.0005, 0.001))
        assert (scale.seconds, channel_names(told, series, "TCZYX", None)) == (3.5, ("Ch1", "Ch2"))
        nothing = scale_of(SimpleNamespace(lsm_metadata={"TimeIntervall": 0.0}), series, 2, None)
        assert (nothing.spacing_mm, nothing.seconds, nothing.notes) == (None, None, ("no pixel size",))


def test_all_positions_of_a_stack_of_micro_manager_have_one_scale(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        for position in range(2):
            metadata = {"axes": "TYX", "Name": f"Pos{position}", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25}
            file.write(_array((3, 20, 30)), metadata=metadata, photometric=GREY)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        series = file.series[0]
        series.kind, series.name = "mmstack", ""
        pixels = ome.pixels_of(ome.root_of(file), [series], 0)
        assert (ome.size(pixels, "X"), ome.size(pixels, "Y")) == (0.0005, 0.00025)


def test_positions_are_frames(tmp_path: Path) -> None:
    array = _array((4, 3, 20, 30))
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", metadata=None)
    ref = _one(tmp_path / "a.tif", axes="PYX")
    assert (ref.frames, ref.axes) == (12, "PYX")
    tifffile.imwrite(tmp_path / "b.tif", array, photometric="minisblack", metadata={"axes": "RZYX"})
    ref = _one(tmp_path / "b.tif")
    assert (ref.frames, ref.geometry.shape) == (4, (30, 20, 3))
    np.testing.assert_array_equal(TiffSource(ref).read(frame=2).array[0], array[2].T)


def test_axes_that_are_not_known_can_be_named(tmp_path: Path) -> None:
    array = _array((4, 20, 30))
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", metadata={"axes": "HYX"})
    ref = _one(tmp_path / "a.tif")
    assert not ref.usable
    assert "its axes H are" in ref.reason
    assert _one(tmp_path / "a.tif", axes="CYX").channels == 4


def test_a_truncated_tile_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, _array((64, 64)), tile=(32, 32), compression="zlib")
    source = TiffSource(_one(path))
    data = path.read_bytes()
    path.write_bytes(data[:-50])
    with pytest.raises(InputRefusedError):
        source.read()
