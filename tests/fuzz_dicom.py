"""Mutated DICOM files against the intake: no crash, no hang, no more memory than 2 GB, every refusal with a reason.

``python tests/fuzz_dicom.py --count 10000 --seed 0 --jobs 1 [--only NUMBER] [--keep FOLDER]``

Synthetic series of every transfer syntax, multi-frame files, SEG and RTSTRUCT, and real files where the data sets lie
beside the checkout, are damaged one at a time: bits flipped, cut off, lengths and sizes that claim too much, wrong
VRs, elements doubled or lost, sequences nested without end, noise in compressed streams. Each result is searched, read
and, where there are annotations, labelled, in a process that may take 2 GB of address space beyond its own. A finding
is a crash of that process, an exception that is none of ours, more than five seconds for one file, a refusal without a
reason or a remedy, or a text that holds the patient's name. ``--only`` repeats one mutation and tells what came of it;
``--keep`` keeps the files of findings.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

SECONDS = 5.0
MEMORY = 2 << 30
_KILLED_AFTER = 40.0
_SECRET = "SECRET"


# ---- the process that reads ------------------------------------------------------------------------------------------


def worker(intake: Callable[[Path], dict[str, Any]] | None = None) -> None:
    """Reads the folders whose names come in, and tells what became of them."""
    import logging
    import warnings

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    warnings.showwarning = lambda message, *_: said.append(str(message))  # type: ignore[assignment]
    warnings.simplefilter("always")
    _limit_memory()
    for line in sys.stdin:
        said.clear()
        started, used = time.monotonic(), time.process_time()
        answer = (intake or _intake)(Path(line.rstrip("\n")))
        answer["seconds"], answer["cpu"] = time.monotonic() - started, time.process_time() - used
        if any(_SECRET in text for text in said):
            answer.setdefault("findings", []).append("a warning or a log holds the patient's name")
        answer["memory"], answer["decoder memory"] = _most_memory()
        print(json.dumps(answer), file=answers, flush=True)


def _limit_memory() -> None:
    import resource

    from unet_med.io import discover  # noqa: F401 - it belongs to what is there anyway
    from unet_med.io.dicom import annotations, source  # noqa: F401

    base = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (base + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _most_memory() -> tuple[float, float]:
    """MB that this process has taken at the most since it began, and the decoder process that it has now."""
    import resource

    from unet_med.io.dicom import decoding

    peaks = [0.0]
    for decoder in decoding._spare:
        try:
            lines = Path(f"/proc/{decoder._process.pid}/status").read_text().splitlines()
        except OSError:
            continue
        peaks += [float(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM")]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, max(peaks)


def _intake(folder: Path) -> dict[str, Any]:
    from unet_med.errors import NothingUsableError, UnetMedError
    from unet_med.io.dicom.annotations import belongs_to, open_label
    from unet_med.io.discover import discover, open_source
    from unet_med.io.source import IntakeOptions

    findings: list[str] = []
    outcomes: Counter[str] = Counter()
    reasons: list[str] = []

    def attempt(what: str, read: Callable[[], Any]) -> Any:
        try:
            result = read()
        except UnetMedError as error:
            outcomes[f"{what} refused"] += 1
            reasons.append(str(error))
            if not error.what or not (error.remedy or ": " in error.what):
                findings.append(f"{what}: refused without a remedy: {error.what}")
            return None
        except BaseException as error:  # noqa: BLE001 - this is what is looked for
            import traceback

            place = traceback.extract_tb(error.__traceback__)[-1]
            findings.append(f"{what}: {type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {error}")
            return None
        outcomes[f"{what} loaded"] += 1
        return result

    def read(source: Any, what: str) -> None:
        volume = source.read()
        if volume.array.shape[1:] != source.geometry.shape:
            findings.append(f"{what}: an array of another shape than its grid")
        str(getattr(source, "notes", ""))

    try:
        found = discover(folder)
    except NothingUsableError:
        return {"outcomes": {"nothing there": 1}, "findings": []}
    except UnetMedError as error:
        return {"outcomes": {"search refused": 1}, "findings": [f"discover: {error}"]}
    except BaseException as error:  # noqa: BLE001 - this is what is looked for
        import traceback

        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"discover: {type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {error}"
        return {"outcomes": {}, "findings": [text]}
    for ref in (*found.sources, *found.annotations):
        reasons += [ref.reason, *ref.notes, ref.id]
        if not ref.usable:
            outcomes["scan refused"] += 1
            if ": " not in ref.reason:
                findings.append(f"refused without a reason or a remedy: {ref.reason!r}")
    if len(found.usable) < len(found.sources):
        every = IntakeOptions(untilt=True, resample_slices=True, allow_gaps=True)
        again = attempt("search with switches", lambda: discover(folder, every))
        for ref in again.usable if again is not None else ():
            if ref.layout is not None and ref.layout.regrid is not None:
                attempt("regridded image", lambda ref=ref: read(open_source(ref), "regridded image"))
    for ref in found.usable:
        attempt("image", lambda ref=ref: read(open_source(ref), "image"))
    for label in found.annotations:
        for image in found.usable:
            if label.usable and image.kind == "dicom" and belongs_to(label, image):
                attempt("label", lambda label=label, image=image: read(open_label(label, image), "label"))
        if label.usable and label.kind == "dicom-seg":
            attempt("segmentation", lambda label=label: read(open_source(label), "segmentation"))
    outcomes["skipped"] += bool(found.skipped)
    reasons += [f"{one.what} {one.reason}" for one in found.skipped]
    if any(_SECRET in text for text in reasons):
        findings.append("a message holds the patient's name")
    return {"outcomes": dict(outcomes), "findings": findings, "reasons": reasons}


# ---- what is mutated -------------------------------------------------------------------------------------------------


@dataclass
class Seed:
    """The files of one folder, of which one is damaged."""

    name: str
    files: dict[str, bytes]


def seeds(folder: Path) -> list[Seed]:
    """Writes and collects everything that is mutated."""
    import warnings

    import annotation_writer
    import dicom_multiframe_writer
    import dicom_writer
    import numpy as np
    from pydicom import dcmread
    from pydicom.filewriter import dcmwrite
    from pydicom.uid import (
        DeflatedExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        HTJ2KLossless,
        ImplicitVRLittleEndian,
        JPEG2000Lossless,
        JPEGLSLossless,
        RLELossless,
    )

    w, m, a = dicom_writer, dicom_multiframe_writer, annotation_writer
    warnings.simplefilter("ignore")
    random_state = random.Random(4)
    found: list[Seed] = []

    def keep(name: str, *parts: Path) -> None:
        files = {f"{_SECRET}^JANE{n}{path.suffix}": path.read_bytes() for n, path in enumerate(parts)}
        found.append(Seed(name, files))

    def small(count: int = 3) -> Any:
        return w.Series(columns=40, rows=36, count=count, number=random_state.randrange(99), turn=w.rotation(0, 0, 20))

    series = small(4)
    slices = series.slices()
    for data in slices:
        data.SeriesDescription = data.StudyDescription = data.PatientComments = f"{_SECRET}^JANE"
    classic = w.write(folder / "classic", slices)
    keep("explicit", *classic)
    for name, syntax in (
        ("implicit", ImplicitVRLittleEndian),
        ("big endian", ExplicitVRBigEndian),
        ("deflated", DeflatedExplicitVRLittleEndian),
    ):
        (folder / name).mkdir()
        paths = []
        for path in classic:
            data = dcmread(path)
            if syntax == ExplicitVRBigEndian:
                data.PixelData = np.frombuffer(data.PixelData, "<u2").byteswap().tobytes()
            data.file_meta.TransferSyntaxUID = syntax
            paths.append(folder / name / path.name)
            implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
            dcmwrite(paths[-1], data, implicit_vr=implicit, little_endian=little, force_encoding=True)
        keep(name, *paths)
    for name, syntax in (("RLE", RLELossless), ("JPEG-LS", JPEGLSLossless), ("JPEG 2000", JPEG2000Lossless)):
        compressed = small(3).slices()
        for data in compressed:
            data.compress(syntax, generate_instance_uid=False)
        keep(name, *w.write(folder / name, compressed))
    found += _by_imagecodecs(folder, small, {"HTJ2K": HTJ2KLossless})
    found += _by_dcmtk(folder, small)
    padded = small(3).slices()
    for data in padded:
        data.add_new(0x00280120, "SS", -2000)
        data.PhotometricInterpretation = "MONOCHROME1"
    keep("padded", *w.write(folder / "padded", padded))
    frames = [m.Frame(k, groups=m.echo(4.0 + e)) for e in range(2) for k in range(3)]
    series = w.Series(modality="MR", columns=12, rows=10, count=3)
    enhanced = m.enhanced(series, frames, shared=("orientation",), dimensions=(0x00209057,))
    keep("enhanced", *w.write(folder / "enhanced", [enhanced]))
    enhanced.compress(RLELossless, generate_instance_uid=False)
    keep("enhanced RLE", *w.write(folder / "enhanced RLE", [enhanced]))
    series = small(4)
    slices = series.slices()
    images = w.write(folder / "seg", slices)
    masks = np.zeros((4, 36, 40), np.uint8)
    masks[1:3, 5:15, 6:18], masks[2, 8:10, 8:10] = 1, 2
    for kind in ("BINARY", "FRACTIONAL", "LABELMAP"):
        bits = masks if kind == "LABELMAP" else np.stack([masks == 1, masks == 2], -1).astype(np.uint8)
        seg = a.segmentation(slices, bits, ("liver", "lesion"), kind)
        keep(f"SEG {kind}", *images, a.save(seg, folder / f"{kind}.dcm"))
    ring = [series.position(1) + series.turn[:, :2] @ np.array(xy) for xy in a.circle((14, 20), 9)]
    structures = _structures(series, [tuple(map(float, point)) for point in ring])
    keep("RTSTRUCT", *images, a.save(structures, folder / "rtstruct.dcm"))
    return found + _real(ROOT.parent / "shared" / "data")


def _structures(series: Any, ring: list[tuple[float, float, float]]) -> Any:
    """Returns an RTSTRUCT with one region of one contour."""
    import dicom_writer as w
    from pydicom.dataset import Dataset
    from pydicom.uid import RTStructureSetStorage

    data = w.new_dataset(RTStructureSetStorage)
    data.StudyInstanceUID, data.Modality, data.SeriesNumber = series.study, "RTSTRUCT", 400
    data.FrameOfReferenceUID, data.StructureSetLabel = series.frame, f"{_SECRET}^JANE"
    frame, study, one, region, contour = (Dataset() for _ in range(5))
    one.SeriesInstanceUID = series.uid
    study.RTReferencedSeriesSequence = [one]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = series.frame, [study]
    data.ReferencedFrameOfReferenceSequence = [frame]
    roi = Dataset()
    roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = 1, "tumour", series.frame
    data.StructureSetROISequence = [roi]
    contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(ring)
    contour.ContourData = [f"{value:.4f}" for point in ring for value in point]
    region.ReferencedROINumber, region.ContourSequence = 1, [contour]
    data.ROIContourSequence = [region]
    return data


def _by_imagecodecs(folder: Path, small: Callable[[int], Any], syntaxes: dict[str, str]) -> list[Seed]:
    import imagecodecs

    found = []
    for name, syntax in syntaxes.items():
        files = {}
        for number, data in enumerate(small(3).slices()):
            code = bytes(imagecodecs.htj2k_encode(data.pixel_array, reversible=True))
            parts = [b"", code + b"\0" * (len(code) % 2)]
            data.PixelData = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(part)) + part for part in parts)
            data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
            data.file_meta.TransferSyntaxUID = syntax
            data.save_as(folder / "one", enforce_file_format=True)
            files[f"{_SECRET}^JANE{number}.dcm"] = (folder / "one").read_bytes()
        found.append(Seed(name, files))
    return found


def _by_dcmtk(folder: Path, small: Callable[[int], Any]) -> list[Seed]:
    import dicom_writer as w

    found = []
    kinds = (("lossless", "+el", 16), ("lossless SV1", "+e1", 16), ("extended", "+ee", 12), ("baseline", "+eb", 8))
    for name, option, bits in kinds if shutil.which("dcmcjpeg") else ():
        files = {}
        for number, data in enumerate(small(3).slices()):
            stored = data.pixel_array.astype(int)
            stored = (stored - stored.min()) % (1 << bits)
            w.set_stored(data, stored.astype("uint8" if bits == 8 else "uint16"), bits)
            data.save_as(folder / "one", enforce_file_format=True)
            command = ["dcmcjpeg", option, str(folder / "one"), str(folder / "two")]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                files[f"{_SECRET}^JANE{number}.dcm"] = (folder / "two").read_bytes()
        if files:
            found.append(Seed(f"JPEG {name}", files))
    return found


def _real(data: Path) -> list[Seed]:
    """Some files of real series, with a name planted."""
    import io

    from pydicom import dcmread

    found = []
    patterns = {
        "real MR": ("dicom_mr_hippocrop/Study1_13_HCropVolume", 99),
        "real Siemens": ("dicom2nifti/siemens", 4),
        "real JPEG-LS": ("dicom2nifti/generic", 4),
        "real Philips": ("dicom2nifti/philips", 4),
        "real RTSTRUCT": ("sts_tumour/dicom/STS_008/MR_T1", 99),
        "real CT": ("dicom_ct_head/series", 2),
        "real SEG": ("dicom_seg_liver", 4),
    }
    for name, (place, most) in patterns.items():
        files = {}
        paths = sorted(path for path in (data / place).rglob("*") if path.is_file())
        if name == "real RTSTRUCT":
            paths = [path for path in paths if "rtstruct" in path.parts] + [
                path for path in paths if "rtstruct" not in path.parts
            ]
        if name == "real SEG":
            paths = sorted(paths, key=lambda path: path.parent.name, reverse=True)
        for path in paths:
            raw = path.read_bytes()
            if raw[128:132] != b"DICM" or len(files) >= most:
                continue
            one = dcmread(io.BytesIO(raw))
            one.PatientName = one.PatientID = f"{_SECRET}^JANE"
            buffer = io.BytesIO()
            one.save_as(buffer)
            files[f"{_SECRET}^JANE{len(files)}"] = buffer.getvalue()
        if files:
            found.append(Seed(name, files))
    return found


# ---- mutations -------------------------------------------------------------------------------------------------------

DEFLATED = b"1.2.840.10008.1.2.1.99"
SYNTAXES = [
    *(
        b"1.2.840.10008.1.2" + end
        for end in (b"", b".1", b".1.99", b".2", b".5", b".4.50", b".4.51", b".4.57", b".4.70")
    ),
    *(b"1.2.840.10008.1.2" + end for end in (b".4.80", b".4.90", b".4.91", b".4.201", b".4.203", b".4.100", b".8.1")),
]
VRS = [
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"OB", b"OW", b"PN", b"SH"),
    *(b"SL", b"SQ", b"SS", b"ST", b"TM", b"UI", b"UL", b"UN", b"US", b"UT", b"UC", b"OV", b"\0\0", b"??", b"ox"),
]
LENGTHS = [0, 1, 2, 3, 7, 8, 0xFF, 0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]
NUMBERS = [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 32, 64, 255, 256, 4095, 32767, 32768, 40000, 65534, 65535]
TEXTS = [
    *(b"", b" ", b"0", b"-1", b"1e400", b"nan", b"-inf", b"1\\2", b"1\\2\\3\\4\\5\\6\\7", b"999999999999", b"1e-300"),
    *(b"\\\\\\\\", b"\0" * 16, b"\xff" * 32, b"0\\0\\0", b"0\\0\\0\\0\\0\\0", b"9" * 400, b"1_0", b"1e9\\1e9\\1e9"),
    *(
        b"1\\0\\0\\1\\0\\0",
        b"SECRET^JANE",
        b"12345678901234567",
        b"2147483648",
        b"-2147483649",
        b"0.0000001\\0.0000001",
    ),
]


@dataclass
class Element:
    """Where an element is: its tag, VR (if written), length and value."""

    at: int
    tag: int
    vr: bytes
    length_at: int
    length_size: int
    value: int
    length: int

    @property
    def end(self) -> int:
        return self.value + (0 if self.length == 0xFFFFFFFF or self.vr == b"SQ" else self.length)


@dataclass
class Layout:
    """A file, taken apart: everything before the data set, and its elements, nested ones as well."""

    head: bytes
    body: bytes
    order: str
    elements: list[Element] = field(default_factory=list)
    deflated: bool = False

    def joined(self, body: bytes) -> bytes:
        if not self.deflated:
            return self.head + body
        packer = zlib.compressobj(wbits=-15)
        return self.head + packer.compress(body) + packer.flush()


def taken_apart(data: bytes) -> Layout:
    from unet_med.io.dicom import walker

    at, syntax = 132, b""
    while data[at : at + 2] == b"\x02\x00":
        tag, _, length, value = walker.element(data, at, walker.EXPLICIT)
        if tag == 0x00020010:
            syntax = data[value : value + length].rstrip(b"\0 ")
        at = value + length
    head, body = data[:at], data[at:]
    layout = Layout(head, body, "<", deflated=syntax == DEFLATED)
    if layout.deflated:
        layout.body = zlib.decompressobj(-15).decompress(body)
    encoding = {b"1.2.840.10008.1.2": walker.IMPLICIT, b"1.2.840.10008.1.2.2": walker.EXPLICIT_BIG}.get(
        syntax, walker.EXPLICIT
    )
    layout.order = encoding.order
    index, pixels = 0, False
    while index + 12 <= len(layout.body):
        tag, vr, length, value = walker.element(layout.body, index, encoding)
        wide = not encoding.explicit or tag >> 16 == 0xFFFE or vr in walker.LONG_VRS
        length_at = value - (4 if wide else 2)
        one = Element(index, tag, vr, length_at, 4 if wide else 2, value, length)
        layout.elements.append(one)
        inside = vr == b"SQ" or length == 0xFFFFFFFF or (tag == 0xFFFEE000 and not pixels)
        pixels = pixels or tag >> 16 == 0x7FE0
        index = value if inside else value + length
    return layout


class Mutation:
    """One random damage; the same for the same seed and number."""

    def __init__(self, seed: int, number: int) -> None:
        self.random = random.Random(seed * 1_000_003 + number)
        self.told: list[str] = []

    def apply(self, data: bytes) -> bytes:
        layout = taken_apart(data)
        ways = [
            *(self.flip, self.cut, self.length, self.length, self.number, self.number, self.text, self.text),
            *(self.vr, self.double, self.lose, self.nest, self.noise, self.noise, self.stream, self.stream),
            *(self.syntax, self.element, self.swap, self.bomb, self.preamble, self.insert),
        ]
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            way = self.random.choice(ways)
            self.told.append(way.__name__)
            data = way(data, layout)
            try:
                layout = taken_apart(data)
            except Exception:  # noqa: BLE001 - it can no longer be taken apart: enough
                break
            if len(layout.elements) < 2 or len(data) < 200:
                break
        return data

    def _one(self, layout: Layout, *tags: int) -> Element:
        wanted = [one for one in layout.elements if one.tag in tags]
        return self.random.choice(wanted or layout.elements)

    def _short(self, layout: Layout, value: int) -> bytes:
        return struct.pack(f"{layout.order}H", value & 0xFFFF)

    def flip(self, data: bytes, layout: Layout) -> bytes:
        out = bytearray(data)
        end = len(out) if self.random.random() < 0.4 else min(len(out), len(layout.head) + 1500)
        for _ in range(self.random.choice((1, 1, 2, 4, 16, 200))):
            out[self.random.randrange(128, end)] ^= 1 << self.random.randrange(8)
        return bytes(out)

    def cut(self, data: bytes, layout: Layout) -> bytes:
        return data[: self.random.randrange(len(data))]

    def length(self, data: bytes, layout: Layout) -> bytes:
        one = self.random.choice(layout.elements)
        body = bytearray(layout.body)
        value = self.random.choice([*LENGTHS, one.length + self.random.randrange(-4, 5), self.random.getrandbits(32)])
        code = "L" if one.length_size == 4 else "H"
        mask = (1 << (8 * one.length_size)) - 1
        struct.pack_into(f"{layout.order}{code}", body, one.length_at, max(0, value) & mask)
        return layout.joined(bytes(body))

    def number(self, data: bytes, layout: Layout) -> bytes:
        tags = (0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280002, 0x00280006)
        tags += (0x00280120, 0x0062000B, 0x00209157)
        body = bytearray(layout.body)
        for tag in self.random.sample(tags, self.random.choice((1, 1, 2, 3))):
            one = next((one for one in layout.elements if one.tag == tag and one.length == 2), None)
            if one is not None:
                body[one.value : one.value + 2] = self._short(layout, self.random.choice(NUMBERS))
        return layout.joined(bytes(body))

    def text(self, data: bytes, layout: Layout) -> bytes:
        tags = (0x00280008, 0x00280030, 0x00200032, 0x00200037, 0x00281052, 0x00281053, 0x00180050, 0x00200013)
        tags += (0x0020000D, 0x0020000E, 0x00080018, 0x00080016, 0x00080060, 0x00280004, 0x00200052, 0x30060050)
        tags += (0x00620001, 0x0062000E, 0x00620010, 0x30060046, 0x00080008, 0x00200011, 0x00180088)
        one = self._one(layout, self.random.choice(tags))
        if one.length_size == 4 and one.vr == b"SQ":
            return data
        value = self.random.choice(TEXTS)
        value += b" " * (len(value) % 2)
        code = "L" if one.length_size == 4 else "H"
        length = struct.pack(f"{layout.order}{code}", len(value))
        return layout.joined(layout.body[: one.length_at] + length + value + layout.body[one.end :])

    def vr(self, data: bytes, layout: Layout) -> bytes:
        body = bytearray(layout.body)
        for _ in range(self.random.choice((1, 1, 3))):
            one = self.random.choice(layout.elements)
            if one.vr:
                body[one.at + 4 : one.at + 6] = self.random.choice(VRS)
        return layout.joined(bytes(body))

    def double(self, data: bytes, layout: Layout) -> bytes:
        one = self.random.choice(layout.elements)
        part = layout.body[one.at : one.end]
        return layout.joined(layout.body[: one.end] + part * self.random.choice((1, 1, 2, 50)) + layout.body[one.end :])

    def lose(self, data: bytes, layout: Layout) -> bytes:
        one = self.random.choice(layout.elements)
        return layout.joined(layout.body[: one.at] + layout.body[one.end :])

    def swap(self, data: bytes, layout: Layout) -> bytes:
        one, other = sorted(self.random.sample(layout.elements, 2), key=lambda element: element.at)
        if one.end > other.at:
            return data
        body = layout.body
        return layout.joined(
            body[: one.at] + body[other.at : other.end] + body[one.end : other.at] + body[one.at : one.end]
            + body[other.end :]
        )  # fmt: skip

    def element(self, data: bytes, layout: Layout) -> bytes:
        one = self.random.choice(layout.elements)
        body = bytearray(layout.body)
        tag = self.random.choice([other.tag for other in layout.elements] + [0xFFFEE00D, 0xFFFEE0DD, 0xFFFEE000, 0])
        struct.pack_into(f"{layout.order}HH", body, one.at, tag >> 16, tag & 0xFFFF)
        return layout.joined(bytes(body))

    def nest(self, data: bytes, layout: Layout) -> bytes:
        """Puts sequences into sequences, with or without an end."""
        depth = self.random.choice((3, 60, 190, 250, 1100, 20000))
        top = [one for one in layout.elements if one.tag >> 16 < 0x7FE0]
        one = self.random.choice(top)
        explicit = bool(one.vr)
        tag = self.random.choice((0x00081140, 0x00091001, 0x52009229, 0x52009230, 0x30060039, one.tag))
        sequence = struct.pack(f"{layout.order}HH", tag >> 16, tag & 0xFFFF)
        sequence += b"SQ\0\0" + b"\xff" * 4 if explicit else b"\xff" * 4
        item = struct.pack(f"{layout.order}HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
        ends = struct.pack(f"{layout.order}HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
        closed = self.random.choice((0, depth, depth, depth // 2))
        nested = (sequence + item) * depth + ends * closed
        return layout.joined(layout.body[: one.at] + nested + layout.body[one.at :])

    def noise(self, data: bytes, layout: Layout) -> bytes:
        out = bytearray(data)
        start = self.random.randrange(len(out))
        out[start : start + self.random.choice((1, 8, 64, 4000))] = self.random.randbytes(
            self.random.choice((1, 8, 64))
        )
        return bytes(out)

    def stream(self, data: bytes, layout: Layout) -> bytes:
        """Damages the pixels alone."""
        one = next((one for one in layout.elements if one.tag >> 16 == 0x7FE0), None)
        if one is None:
            return self.flip(data, layout)
        out = bytearray(layout.body)
        for _ in range(self.random.choice((1, 3, 20))):
            at = self.random.randrange(one.value, len(out)) if one.value < len(out) else len(out) - 1
            if self.random.random() < 0.5:  # near the beginning are the headers of code streams
                at = min(len(out) - 1, one.value + 16 + self.random.randrange(150))
            choice = self.random.randrange(4)
            if choice == 0:
                out[at] = self.random.randrange(256)
            elif choice == 1:
                out[at : at + 2] = bytes(
                    (0xFF, self.random.choice((0x4F, 0x51, 0x52, 0xC4, 0xDA, 0xD8, 0xD9, 0xF8, 0xFF)))
                )
            elif choice == 2:
                out[at : at + 4] = struct.pack(">L", self.random.choice(LENGTHS))
            else:
                del out[at : at + self.random.randrange(1, 40)]
        return layout.joined(bytes(out))

    def syntax(self, data: bytes, layout: Layout) -> bytes:
        """Says another transfer syntax than the one in use."""
        at = data.find(b"\x02\x00\x10\x00UI")
        if at < 0:
            return data
        length = int.from_bytes(data[at + 6 : at + 8], "little")
        new = self.random.choice(SYNTAXES)
        new += b"\0" * (len(new) % 2)
        return data[: at + 6] + struct.pack("<H", len(new)) + new + data[at + 8 + length :]

    def bomb(self, data: bytes, layout: Layout) -> bytes:
        """A deflated file of little size that inflates to a lot."""
        data = data.replace(b"UI\x14\x001.2.840.10008.1.2.1\0", b"UI\x16\x00" + DEFLATED, 1)
        if DEFLATED not in data:
            return self.syntax(data, layout)
        where = self.random.choice(layout.elements).at
        size = self.random.choice((1 << 16, 1 << 22, 300 << 20)) if self.random.random() < 0.3 else 1 << 14
        head = struct.pack("<HH2sHL", 0x0009, 0x1002, b"OB", 0, size)
        packer = zlib.compressobj(9, wbits=-15)
        zeros = b"".join(packer.compress(bytes(1 << 14)) for _ in range(size >> 14))
        first = zlib.compressobj(9, wbits=-15)
        start = first.compress(layout.body[:where] + head) + first.flush(zlib.Z_FULL_FLUSH)
        last = zlib.compressobj(9, wbits=-15)
        end = last.compress(layout.body[where:]) + last.flush()
        return (
            layout.head.replace(b"1.2.840.10008.1.2.1\0", DEFLATED)
            + start
            + zeros
            + packer.flush(zlib.Z_FULL_FLUSH)
            + end
        )

    def preamble(self, data: bytes, layout: Layout) -> bytes:
        start = self.random.choice((132, 128, len(layout.head), 1))
        return data[start:]

    def insert(self, data: bytes, layout: Layout) -> bytes:
        """Puts an element where it does not belong."""
        one, other = self.random.choice(layout.elements), self.random.choice(layout.elements)
        part = layout.body[other.at : other.end]
        return layout.joined(layout.body[: one.at] + part + layout.body[one.at :])


# ---- the run ---------------------------------------------------------------------------------------------------------


@dataclass
class Reader:
    """The process that reads, and what it told so far."""

    command: tuple[str, ...] = (sys.executable, str(Path(__file__).resolve()), "--worker")
    process: subprocess.Popen[str] | None = None
    memory: float = 0.0
    decoder: float = 0.0

    def ask(self, folder: Path) -> dict[str, Any]:
        """Returns what became of a folder."""
        if self.process is None:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
        process = self.process
        killer = threading.Timer(_KILLED_AFTER, process.kill)
        killer.start()
        started = time.monotonic()
        line = ""
        try:
            process.stdin.write(f"{folder}\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            pass
        killer.cancel()
        if line:
            answer: dict[str, Any] = json.loads(line)
            self.memory = max(self.memory, answer["memory"])
            self.decoder = max(self.decoder, answer["decoder memory"])
            return answer
        seconds = time.monotonic() - started
        code = process.wait()
        self.stop()
        what = "hangs" if seconds >= _KILLED_AFTER else f"the intake died with {code}"
        return {"outcomes": {}, "findings": [what], "seconds": seconds, "cpu": 0.0}

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                pipe.close()
        self.process = None


def faults(answer: dict[str, Any]) -> list[str]:
    """Returns the findings of an answer."""
    found = list(answer.get("findings", []))
    if answer["seconds"] > SECONDS:
        found.append(f"takes {answer['seconds']:.1f} s, {answer['cpu']:.1f} s of them in the intake's processor time")
    return found


@dataclass
class Summary:
    """What a run found."""

    files: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    slowest: float = 0.0
    memory: float = 0.0
    decoder: float = 0.0


def numbers(count: int, only: int | None) -> Iterator[int]:
    yield from range(count) if only is None else (only,)


def _check_whole(everything: list[Seed], place: Path, summary: Summary) -> None:
    """Finds seeds that are not loaded undamaged: their mutations would test little."""
    reader = Reader()
    for seed in everything:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for name, data in seed.files.items():
            (place / name).write_bytes(data)
        answer = reader.ask(place)
        wanted = {"image loaded"}
        wanted |= {"label loaded"} if "RTSTRUCT" in seed.name or "SEG" in seed.name else set()
        if not wanted <= set(answer["outcomes"]) or answer["findings"]:
            summary.findings.append(f"{seed.name}, undamaged: {answer}")
    reader.stop()


def run(options: argparse.Namespace) -> Summary:
    summary = Summary()
    lock = threading.Lock()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "seeds").mkdir()
        everything = seeds(folder / "seeds")
        _check_whole(everything, folder / "whole", summary)
        pending = numbers(options.count, options.only)

        def work(job: int) -> None:
            try:
                read_all(job)
            except Exception as error:
                with lock:
                    summary.findings.append(f"the run itself failed: {error!r}")
                raise

        def read_all(job: int) -> None:
            reader = Reader()
            while True:
                with lock:
                    number = next(pending, None)
                if number is None:
                    break
                one(reader, folder / f"{_SECRET}^JANE {job}", number)
            summary.memory = max(summary.memory, reader.memory)
            summary.decoder = max(summary.decoder, reader.decoder)
            reader.stop()

        def one(reader: Reader, place: Path, number: int) -> None:
            seed = everything[number % len(everything)]
            mutation = Mutation(options.seed, number)
            damaged = mutation.random.choice(sorted(seed.files))
            if len(seed.files) > 1 and seed.name.rpartition(" ")[2] in ("BINARY", "FRACTIONAL", "LABELMAP", "RTSTRUCT"):
                damaged = max(seed.files) if "real" not in seed.name else min(seed.files)
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            for name, data in seed.files.items():
                (place / name).write_bytes(mutation.apply(data) if name == damaged else data)
            answer = reader.ask(place)
            for pause in (0.5, 2, 5, 10):  # a busy machine is no finding
                if answer["seconds"] <= SECONDS:
                    break
                time.sleep(pause)
                answer = min(answer, reader.ask(place), key=lambda one: one["seconds"])
            found = faults(answer)
            with lock:
                summary.files += 1
                summary.outcomes.update([key for key, value in answer["outcomes"].items() if value])
                summary.slowest = max(summary.slowest, answer["seconds"])
                told = f"{number} ({seed.name}, {'+'.join(mutation.told)})"
                summary.findings += [f"{told}: {text}" for text in found]
                if options.only is not None:
                    print(json.dumps(answer, indent=1))
                elif found:
                    print(f"{told}: {'; '.join(found)}", flush=True)
                if summary.files % 500 == 0:
                    print(f"{summary.files} files, {len(summary.findings)} findings", flush=True)
            if (found or options.only is not None) and options.keep is not None:
                shutil.copytree(place, options.keep / str(number), dirs_exist_ok=True)

        threads = [threading.Thread(target=work, args=(job,)) for job in range(options.jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return summary


def main(run: Callable[[argparse.Namespace], Summary] = run, worker: Callable[[], None] = worker) -> None:
    """Reads the command line, fuzzes, and tells what was found; it is that of every fuzzer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", type=int)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--worker", action="store_true")
    options = parser.parse_args()
    if options.worker:
        worker()
        return
    started = time.monotonic()
    summary = run(options)
    print(f"{summary.files} mutated files in {time.monotonic() - started:.0f} s, seed {options.seed}")
    for outcome, count in sorted(summary.outcomes.items()):
        print(f"{count:>7} {outcome}")
    print(f"slowest: {summary.slowest:.2f} s; most memory: {summary.memory:.0f} MB, decoder {summary.decoder:.0f} MB")
    print(f"{len(summary.findings)} findings")
    for finding in summary.findings:
        print(finding)
    sys.exit(1 if summary.findings else 0)


if __name__ == "__main__":
    main()
