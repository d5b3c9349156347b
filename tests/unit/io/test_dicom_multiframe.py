"""Enhanced multi-frame DICOM: frames in any order and of several volumes, loaded exactly or refused with a reason."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    XRay3DAngiographicImageStorage,
    generate_uid,
)

from unet_med.errors import InputRefusedError, UsageError
from unet_med.io.dicom.headers import read_header
from unet_med.io.dicom.multiframe import frame_headers, frame_rescale, frame_rescales, frames_in, frames_text
from unet_med.io.dicom.slices import SliceLayout
from unet_med.io.dicom.source import DicomSource, inspect_dicom
from unet_med.io.discover import discover, restore_ref
from unet_med.io.source import Discovery, IntakeOptions, SourceRef
from unet_med.manifest import content_sha256

_SPEC = importlib.util.spec_from_file_location(
    "dicom_multiframe_writer", Path(__file__).parents[2] / "dicom_multiframe_writer.py"
)
m = importlib.util.module_from_spec(_SPEC)
sys.modules["dicom_multiframe_writer"] = m
_SPEC.loader.exec_module(m)
w = m.w
Frame = m.Frame


def mr(**changes: object) -> object:
    return w.Series(modality="MR", **changes)


def found_in(folder: Path, options: IntakeOptions = IntakeOptions()) -> Discovery:  # noqa: B008
    return inspect_dicom(sorted(path for path in folder.rglob("*") if path.is_file()), options)


def only(folder: Path, options: IntakeOptions = IntakeOptions()) -> SourceRef:  # noqa: B008
    found = found_in(folder, options)
    assert len(found.sources) == 1, found.sources
    return found.sources[0]


def parts(folder: Path) -> dict[str, SourceRef]:
    """Returns the sources by what tells them apart."""
    return {str(ref.read_as.get("part", "")): ref for ref in found_in(folder).sources}


def assert_exact(ref: SourceRef, offset: float = 0.0, tolerance: float = w.SLOPE * 0.51) -> None:
    """Every voxel says where it is."""
    assert ref.usable, ref.reason
    volume = DicomSource(ref).read()
    index = np.stack(np.meshgrid(*map(np.arange, ref.shape), indexing="ij"), axis=-1)
    lps = volume.geometry.to_world(index) * [-1.0, -1.0, 1.0]
    assert volume.array.shape == (1, *ref.shape)
    assert np.abs(volume.array[0] - w.truth(lps) - offset).max() <= tolerance


def refused(folder: Path, *words: str) -> SourceRef:
    ref = only(folder)
    assert not ref.usable
    for word in words:
        assert word in ref.reason
    assert ": " in ref.reason, "a remedy"
    return ref


# ---- one volume -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
@pytest.mark.parametrize("legacy", [False, True])
def test_one_stack_of_frames(tmp_path: Path, modality: str, legacy: bool) -> None:
    series = w.Series(modality=modality)
    sop_class = (m.LEGACY_CLASSES if legacy else m.CLASSES)[modality]
    data = m.enhanced(series, [Frame(k) for k in range(6)], sop_class=sop_class)
    del data.Modality  # the class tells it
    paths = w.write(tmp_path, [data])
    ref = only(tmp_path)
    assert_exact(ref)
    assert (ref.shape, ref.modality, ref.files, ref.notes, ref.read_as) == ((9, 7, 6), modality, tuple(paths), (), {})
    assert np.allclose(ref.geometry.to_lps()[:3, 3], series.origin)
    assert isinstance(ref.layout, SliceLayout)
    assert [(one.file, one.frame) for one in ref.layout.slices] == [(0, k) for k in range(6)]
    assert {one.sop_uid for one in ref.layout.slices} == {data.SOPInstanceUID}


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
@pytest.mark.parametrize("undefined", [False, True])
def test_every_encoding_of_the_functional_groups(tmp_path: Path, syntax: str, undefined: bool) -> None:
    frames = [Frame(k, slope=0.01 + 0.001 * k, intercept=5.0 * k, groups=m.diffusion(700, (0, 1, 0))) for k in range(6)]
    data = m.enhanced(mr(), frames)
    inner = m.group(ReferencedImageSequence=[m.group(ReferencedSOPInstanceUID="1.2.3")])
    data.PerFrameFunctionalGroupsSequence[2].DerivationImageSequence = DicomSequence([inner])
    if undefined:
        for one in data.iterall():
            if one.VR == "SQ":
                one.is_undefined_length = True
                for item in one.value:
                    item.is_undefined_length_sequence_item = True
    data.file_meta.TransferSyntaxUID = syntax
    big = syntax == ExplicitVRBigEndian
    if big:
        data.PixelData = np.frombuffer(data.PixelData, "<i2").astype(">i2").tobytes()
    path = tmp_path / "x.dcm"
    dcmwrite(path, data, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=not big)
    header = read_header(path)
    assert (header.frames, header.grouped, header.fault) == (6, True, "")
    expanded = frame_headers(header)
    for frame, one in zip(frames, expanded, strict=True):
        assert one.slope == frame.slope
        assert one.split[0x00189087] == (700.0,)
        assert one.split[0x00189089] == (0.0, 1.0, 0.0)
    assert_exact(only(tmp_path), tolerance=0.0151 * 0.51)


@pytest.mark.parametrize("in_shared", [(), ("orientation",), ("orientation", "measures", "rescale")])
def test_what_is_shared_and_what_stands_with_each_frame(tmp_path: Path, in_shared: tuple[str, ...]) -> None:
    data = m.enhanced(mr(), [Frame(k, slope=0.02, intercept=-3.0) for k in range(6)], shared=in_shared)
    w.write(tmp_path, [data])
    assert_exact(only(tmp_path), tolerance=0.0102)
    for frame in range(6):
        assert frame_rescale(data, frame) == (0.02, -3.0)
    assert frame_rescales(tmp_path / "IM0000.dcm") == ((0.02, -3.0),) * 6


def test_shuffled_frames_are_sorted_by_their_place(tmp_path: Path) -> None:
    order = [4, 0, 5, 2, 1, 3]
    w.write(tmp_path, [m.enhanced(mr(), [Frame(k) for k in order])])
    ref = only(tmp_path)
    assert_exact(ref)
    assert [one.frame for one in ref.layout.slices] == [order.index(k) for k in range(6)]
    assert any("not stored in spatial order" in note for note in ref.notes)


def test_frames_without_rescale_keep_their_stored_values(tmp_path: Path) -> None:
    series = mr(origin=(0.0, 0.0, 0.0), between_rows=1.0, between_columns=1.0, step=1.0, turn=np.eye(3))
    data = m.enhanced(series, [Frame(k, slope=None) for k in range(6)])
    item = m.group(RealWorldValueSlope=7.0, RealWorldValueIntercept=1.0)
    data.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence = DicomSequence([item])
    w.write(tmp_path, [data])
    assert_exact(only(tmp_path))
    assert frame_rescales(tmp_path / "IM0000.dcm") == (None,) * 6


def test_private_dimensions_and_no_frame_of_reference_are_no_reason_to_refuse(tmp_path: Path) -> None:
    data = m.enhanced(mr(), [Frame(k, position=(1, k + 1)) for k in range(6)], dimensions=[0x20051001, 0x00209057])
    data.DimensionIndexSequence[0].DimensionIndexPrivateCreator = "SOMEBODY"
    del data.FrameOfReferenceUID
    w.write(tmp_path, [data])
    ref = only(tmp_path)
    assert_exact(ref)
    assert ref.notes == ("no frame of reference",)


def test_a_volume_in_several_files(tmp_path: Path) -> None:
    series = mr()
    halves = [range(3, 6), range(3)]
    data = [m.enhanced(series, [Frame(k) for k in half], instance=n) for n, half in enumerate(halves, start=1)]
    for number, one in enumerate(data, start=1):
        one.ConcatenationUID, one.InConcatenationNumber = "1.2.3.4", number
    w.write(tmp_path, data)
    ref = only(tmp_path)
    assert_exact(ref)
    assert len(ref.files) == 2
    assert [(one.file, one.frame) for one in ref.layout.slices] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [one.sop_uid for one in ref.layout.slices][::3] == [data[1].SOPInstanceUID, data[0].SOPInstanceUID]


def test_other_objects_with_places_for_their_frames(tmp_path: Path) -> None:
    series = w.Series(modality="XA")
    w.write(tmp_path, [m.enhanced(series, [Frame(k) for k in range(6)], sop_class=XRay3DAngiographicImageStorage)])
    ref = only(tmp_path)
    assert_exact(ref)
    assert ref.axes == "IJK"


def test_compressed_frames(tmp_path: Path) -> None:
    data = m.enhanced(mr(), [Frame(k, slope=0.01 + 0.01 * k) for k in (3, 0, 2, 1)])
    data.compress(RLELossless, generate_instance_uid=False)
    w.write(tmp_path, [data])
    assert_exact(only(tmp_path), tolerance=0.0205)


def test_a_single_frame(tmp_path: Path) -> None:
    w.write(tmp_path, [m.enhanced(mr(), [Frame(0)])])
    ref = only(tmp_path)
    assert_exact(ref)
    assert ref.shape == (9, 7, 1)


# ---- several volumes ------------------------------------------------------------------------------------------------

Groups = Callable[[int], dict[str, Dataset]]

_SPLITS: dict[str, tuple[Groups, list[str], list[str]]] = {
    "echo": (lambda n: m.echo([4.9, 9.8][n]), ["echo1", "echo2"], ["4.9 ms", "9.8 ms"]),
    "time": (lambda n: m.time_point(n + 1), ["time1", "time2"], ["time 1", "time 2"]),
    "b": (lambda n: m.diffusion([0, 800][n]), ["b0", "b800"], ["0 s/mm2", "800 s/mm2"]),
    "energy": (lambda n: m.kv([80, 140][n]), ["energy80", "energy140"], ["80 kV", "140 kV"]),
    "direction": (
        lambda n: m.diffusion(800, [(0.0, 0.0, 1.0), (1.0, 0.0, 0.0)][n]),
        ["direction1", "direction2"],
        ["direction", "direction"],
    ),
    "type": (
        lambda n: m.frame_type("ORIGINAL", "PRIMARY", ["M", "P"][n]),
        ["type1", "type2"],
        ["(M)", "(P)"],
    ),
    "inversion": (
        lambda n: {"MRModifierSequence": m.group(InversionTimes=[float(100 + 50 * n)])},
        ["inversion1", "inversion2"],
        ["100 ms", "150 ms"],
    ),
    "phase": (
        lambda n: {"CardiacSynchronizationSequence": m.group(NominalCardiacTriggerDelayTime=40.0 * n)},
        ["phase1", "phase2"],
        ["0 ms", "40 ms"],
    ),
    "offset": (
        lambda n: {"TemporalPositionSequence": m.group(TemporalPositionTimeOffset=2.5 * n)},
        ["time1", "time2"],
        ["0 s", "2.5 s"],
    ),
}


@pytest.mark.parametrize("name", _SPLITS)
def test_frames_at_one_place_are_split(tmp_path: Path, name: str) -> None:
    groups, names, told = _SPLITS[name]
    frames = [Frame(k, offset=1000.0 * n, slope=0.1, groups=groups(n)) for k in (2, 0, 1, 3) for n in (1, 0)]
    w.write(tmp_path, [m.enhanced(mr(), frames)])
    found = parts(tmp_path)
    assert list(found) == names
    for number, (ref, text) in enumerate(zip(found.values(), told, strict=True)):
        assert_exact(ref, offset=1000.0 * number, tolerance=0.0501)
        assert ref.id.endswith("-" + names[number])
        assert any(text in note for note in ref.notes)


def test_private_dimensions_split_too(tmp_path: Path) -> None:
    frames = [Frame(k, offset=1000.0 * n, slope=0.1, position=(n + 1, k + 1)) for k in range(4) for n in range(3)]
    w.write(tmp_path, [m.enhanced(mr(), frames, dimensions=[0x20051001, 0x00209057])])
    found = parts(tmp_path)
    assert list(found) == ["dimension1-1", "dimension1-2", "dimension1-3"]
    for number, ref in enumerate(found.values()):
        assert_exact(ref, offset=1000.0 * number, tolerance=0.0501)


def test_attributes_left_from_converted_slices_split_too(tmp_path: Path) -> None:
    frames = [
        Frame(
            k,
            offset=1000.0 * n,
            slope=0.1,
            groups={"UnassignedPerFrameConvertedAttributesSequence": m.group(EchoTime=5.0 + n, EchoNumbers=n + 1)},
        )
        for n in range(2)
        for k in range(4)
    ]
    w.write(tmp_path, [m.enhanced(mr(), frames, sop_class=m.LEGACY_CLASSES["MR"])])
    found = parts(tmp_path)
    assert list(found) == ["echo1", "echo2"]
    for number, ref in enumerate(found.values()):
        assert_exact(ref, offset=1000.0 * number, tolerance=0.0501)


def test_diffusion_with_several_directions_and_an_image_without(tmp_path: Path) -> None:
    """b=0, three directions at b=800, and the isotropic mean of them: neither b-value nor direction alone suffices."""
    kinds = [(0, None, "NONE"), (800, (1.0, 0.0, 0.0), ""), (800, (0.0, 1.0, 0.0), ""), (800, None, "ISOTROPIC")]
    frames = []
    for n, (b, direction, directionality) in enumerate(kinds):
        group = m.diffusion(b, direction)
        if directionality:
            group["MRDiffusionSequence"].DiffusionDirectionality = directionality
        frames += [Frame(k, offset=1000.0 * n, slope=0.1, groups=group) for k in range(4)]
    w.write(tmp_path, [m.enhanced(mr(), frames)])
    found = parts(tmp_path)
    assert list(found) == ["b0-direction1", "b800-direction1", "b800-direction2", "b800-direction3"]
    offsets = {name: round(float(DicomSource(ref).read().array.mean() / 1000.0)) for name, ref in found.items()}
    assert sorted(offsets.values()) == [0, 1, 2, 3]
    assert (offsets["b0-direction1"], offsets["b800-direction1"]) == (0, 3)


def test_two_tags_together_split(tmp_path: Path) -> None:
    frames = [
        Frame(k, offset=100.0 * e + 1000.0 * t, slope=0.1, groups=m.echo(5.0 + e) | m.time_point(t + 1))
        for k in range(4)
        for e in range(2)
        for t in range(3)
    ]
    w.write(tmp_path, [m.enhanced(mr(), frames)])
    found = parts(tmp_path)
    assert list(found) == [f"echo{e}-time{t}" for e in (1, 2) for t in (1, 2, 3)]
    for name, ref in found.items():
        assert_exact(ref, offset=100.0 * (int(name[4]) - 1) + 1000.0 * (int(name[-1]) - 1), tolerance=0.0501)


def test_a_file_for_each_volume(tmp_path: Path) -> None:
    series = mr()
    for number in range(3):
        data = m.enhanced(series, [Frame(k, offset=1000.0 * number, slope=0.1) for k in range(4)], instance=number + 1)
        w.write(tmp_path, [data], [f"{9 - number}.dcm"])
    found = parts(tmp_path)
    assert list(found) == ["file1", "file2", "file3"]
    for number, ref in enumerate(found.values()):
        assert [path.name for path in ref.files] == [f"{9 - number}.dcm"]
        assert_exact(ref, offset=1000.0 * number, tolerance=0.0501)


def test_stacks_of_other_orientations_are_sources_of_their_own(tmp_path: Path) -> None:
    series = mr()
    other = replace(series, turn=w.rotation(80.0, 0.0, 0.0))
    both = [m.enhanced(one, [Frame(k) for k in range(5)], shared=()) for one in (series, other)]
    data = both[0]
    data.PerFrameFunctionalGroupsSequence.extend(both[1].PerFrameFunctionalGroupsSequence)
    data.NumberOfFrames = 10
    data.PixelData += both[1].PixelData
    w.write(tmp_path, [data])
    found = parts(tmp_path)
    assert sorted(found) == ["stack1", "stack2"]
    for ref in found.values():
        assert_exact(ref)


def test_slabs_that_the_scanner_names_are_taken_apart(tmp_path: Path) -> None:
    """Two stacks of one orientation with a gap between, or overlapping, are no volume with a hole."""
    places = [("A", k) for k in range(4)] + [("B", k + 5.5) for k in range(4)]
    frames = [Frame(k, groups=m.stack(name)) for name, k in places]
    w.write(tmp_path, [m.enhanced(mr(), frames)])
    found = parts(tmp_path)
    assert list(found) == ["slab1", "slab2"]
    for ref in found.values():
        assert_exact(ref)
        assert ref.shape == (9, 7, 4)


def test_localizers_are_left_out(tmp_path: Path) -> None:
    data = m.enhanced(mr(), [Frame(k, groups=m.frame_type("ORIGINAL", "PRIMARY", "LOCALIZER")) for k in range(3)])
    w.write(tmp_path, [data])
    found = found_in(tmp_path)
    assert found.sources == ()
    assert [(one.what, one.count) for one in found.skipped] == [("localizer images", 3)]


# ---- traps that are those of classic series too ---------------------------------------------------------------------


def test_gaps_tilt_and_repeats_are_refused(tmp_path: Path) -> None:
    cases = {
        "gap": ([Frame(k) for k in (0, 1, 2, 4, 5)], "1 slice is missing"),
        "uneven": ([Frame(k) for k in (0, 1, 2, 3.4, 4, 5)], "not evenly spaced"),
        "tilt": ([Frame(k, move=(0.3 * k, 0.0, 0.0)) for k in range(6)], "tilted"),
        "twice": ([Frame(k) for k in (0, 1, 2, 3, 3)], "tells the repeats apart"),
    }
    for name, (frames, words) in cases.items():
        w.write(tmp_path / name, [m.enhanced(mr(), frames)])
        refused(tmp_path / name, words)


def test_switches_work_on_frames_and_are_restored(tmp_path: Path) -> None:
    frames = [Frame(k, groups=m.echo(5.0 + e), offset=1000.0 * e, slope=0.1) for k in (0, 1, 2, 4, 5) for e in (0, 1)]
    w.write(tmp_path, [m.enhanced(mr(), frames)])
    found = found_in(tmp_path, IntakeOptions(allow_gaps=True))
    assert [ref.read_as for ref in found.sources] == [
        {"part": "echo1", "frames": ["0-8/2"], "allow_gaps": True},
        {"part": "echo2", "frames": ["1-9/2"], "allow_gaps": True},
    ]
    for ref in found.sources:
        again = restore_ref({"id": ref.id, "read": dict(ref.read_as)}, ref.files)
        assert (again.usable, again.read_as, again.layout) == (True, ref.read_as, ref.layout)
        assert np.array_equal(DicomSource(again).read().array, DicomSource(ref).read().array)


# ---- found again ----------------------------------------------------------------------------------------------------


def test_parts_of_several_files_are_found_again(tmp_path: Path) -> None:
    """The files of one part alone must not be taken for another part, even where numbers begin again."""
    series = mr()
    for number in range(2):
        frames = [
            Frame(k, offset=1000.0 * number + 100.0 * e, slope=0.1, groups=m.echo(5.0 + e + 2 * number))
            for k in range(4)
            for e in range(2)
        ]
        w.write(tmp_path / str(number), [m.enhanced(series, frames, instance=number + 1)])
    found = discover(tmp_path).sources
    assert [ref.read_as["part"] for ref in found] == ["echo1", "echo2", "echo3", "echo4"]
    for ref, offset in zip(found, (0.0, 100.0, 1000.0, 1100.0), strict=True):
        assert_exact(ref, offset=offset, tolerance=0.0501)
        again = restore_ref({"id": "case", "read": dict(ref.read_as)}, ref.files)
        assert (again.id, again.files, again.shape) == ("case", ref.files, ref.shape)
        assert_exact(again, offset=offset, tolerance=0.0501)


def test_volumes_of_one_file_are_different_contents(tmp_path: Path) -> None:
    frames = [Frame(k, groups=m.echo(5.0 + e)) for k in range(4) for e in range(2)]
    w.write(tmp_path, [m.enhanced(mr(), frames)])
    first, second = found_in(tmp_path).sources
    assert first.files == second.files
    assert content_sha256([first]) != content_sha256([second])
    again = restore_ref({"id": "x", "read": dict(first.read_as)}, first.files)
    assert content_sha256([again]) == content_sha256([first])


def test_a_damaged_record_of_frames_is_told(tmp_path: Path) -> None:
    paths = w.write(tmp_path, [m.enhanced(mr(), [Frame(k) for k in range(6)])])
    with pytest.raises(UsageError, match="frames"):
        restore_ref({"id": "x", "read": {"frames": ["one-two"]}}, paths)


@pytest.mark.parametrize("numbers", [[0], [3, 4], [0, 1, 2], [5, 3, 1], [1, 2, 4], list(range(0, 40, 7))])
def test_frames_as_text(numbers: list[int]) -> None:
    wanted = frames_in(frames_text(numbers))
    assert [number for number in range(60) if number in wanted] == sorted(numbers)


# ---- refused --------------------------------------------------------------------------------------------------------


def _without(keyword: str, *frames: int) -> Callable[[FileDataset], None]:
    def change(data: FileDataset) -> None:
        for number, item in enumerate(data.PerFrameFunctionalGroupsSequence):
            if not frames or number in frames:
                delattr(item, keyword)

    return change


def _set(keyword: str, value: object) -> Callable[[FileDataset], None]:
    return lambda data: setattr(data, keyword, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without("PlanePositionSequence"), ["no position in space"]),
        (_without("PlanePositionSequence", 2), ["1 of 6 frames", "frame 3"]),
        (_without("PixelMeasuresSequence", 0, 1), ["2 of 6 frames", "frame 1"]),
        (lambda data: data.PerFrameFunctionalGroupsSequence.pop(), ["6 frames describes 5"]),
        (_set("NumberOfFrames", 5), ["5 frames describes 6"]),
        (_set("NumberOfFrames", 2**31), ["truncated"]),
        (lambda data: delattr(data, "PerFrameFunctionalGroupsSequence"), ["no position in space"]),
        (_set("PixelData", b"\0" * 100), ["truncated"]),
        (_set("Rows", 0), []),
        (_set("PhotometricInterpretation", "RGB"), ["colour"]),
    ],
)
def test_what_cannot_be_loaded_exactly(
    tmp_path: Path, change: Callable[[FileDataset], object], words: list[str]
) -> None:
    data = m.enhanced(mr(), [Frame(k) for k in range(6)], shared=("orientation",))
    change(data)
    w.write(tmp_path, [data])
    ref = refused(tmp_path, *words)
    assert "SECRET" not in ref.reason
    with pytest.raises(InputRefusedError):
        DicomSource(ref)


def test_a_bad_slope_of_one_frame(tmp_path: Path) -> None:
    data = m.enhanced(mr(), [Frame(k) for k in range(6)])
    data.PerFrameFunctionalGroupsSequence[4].PixelValueTransformationSequence[0].RescaleSlope = 0
    w.write(tmp_path, [data])
    refused(tmp_path, "rescale slope is 0", "slice at")


def test_fewer_compressed_frames_than_declared(tmp_path: Path) -> None:
    data = m.enhanced(mr(), [Frame(k) for k in range(6)])
    data.compress(RLELossless, generate_instance_uid=False)
    streams = list(generate_frames(data.PixelData, number_of_frames=6))
    data.PixelData = encapsulate(streams[:5])
    w.write(tmp_path, [data])
    refused(tmp_path, "truncated")


@pytest.mark.parametrize("at", ["length", "tag", "end"])
def test_damaged_functional_groups(tmp_path: Path, at: str) -> None:
    path = w.write(tmp_path, [m.enhanced(mr(), [Frame(k) for k in range(6)])])[0]
    raw = bytearray(path.read_bytes())
    place = raw.index(b"\x00\x52\x30\x92SQ")
    if at == "length":
        raw[place + 16 : place + 20] = b"\xf0\xff\xff\x7f"  # the first item
    elif at == "tag":
        raw[place + 12 : place + 16] = b"\x08\x00\x05\x00"
    else:
        del raw[place + 200 :]
    path.write_bytes(raw)
    refused(tmp_path)


@pytest.mark.parametrize("modality", ["US", "NM", "XA"])
def test_cine_loops(tmp_path: Path, modality: str) -> None:
    series = w.Series(modality=modality)
    data = series.slice(0, 1)
    data.SOPClassUID = {"US": "1.2.840.10008.5.1.4.1.1.3.1", "NM": "1.2.840.10008.5.1.4.1.1.20"}.get(
        modality, "1.2.840.10008.5.1.4.1.1.12.1"
    )
    data.NumberOfFrames = 4
    data.PixelData = data.PixelData * 4
    w.write(tmp_path, [data])
    ref = refused(tmp_path, "4 frames", "no position in space")
    assert ref.shape == (9, 7, 4)


def test_mosaics_are_refused(tmp_path: Path) -> None:
    for name in ("type", "vendor"):
        slices = mr().slices()[:1]
        if name == "type":
            slices[0].ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        else:
            slices[0].add_new(0x00190010, "LO", "SIEMENS MR HEADER")
            slices[0].add_new(0x0019100A, "US", 36)
        w.write(tmp_path / name, slices)
        refused(tmp_path / name, "a mosaic", "dcm2niix")


def test_integer_parametric_maps(tmp_path: Path) -> None:
    data = m.enhanced(mr(), [Frame(k) for k in range(6)], sop_class="1.2.840.10008.5.1.4.1.1.30")
    w.write(tmp_path, [data])
    refused(tmp_path, "parametric map")


def test_copies_are_dropped_and_false_ones_refused(tmp_path: Path) -> None:
    data = m.enhanced(mr(), [Frame(k) for k in range(6)])
    w.write(tmp_path, [data, data])
    ref = only(tmp_path)
    assert_exact(ref)
    assert "1 duplicate file dropped" in ref.notes
    data.PixelData = data.PixelData[:-2] + b"\7\7"
    w.write(tmp_path, [data], ["other.dcm"])
    refused(tmp_path, "claim to be the same image")


def test_two_series_of_frames_in_a_folder(tmp_path: Path) -> None:
    for number in (3, 4):
        series = mr(number=number, uid=generate_uid())
        w.write(tmp_path, [m.enhanced(series, [Frame(k) for k in range(number)])], [f"{number}.dcm"])
    found = found_in(tmp_path)
    assert [(ref.id[:4], ref.shape[2]) for ref in found.sources] == [("s003", 3), ("s004", 4)]
    for ref in found.sources:
        assert_exact(ref)
