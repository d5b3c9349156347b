"""A name, a number and a date planted in headers, file names and folder names come out nowhere.

The only exceptions are the user's own private tables, which no one else may read, and DICOM objects made for a PACS,
which carry the patient unless ``--deidentify`` is given.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
import logging
import os
import shutil
import stat
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import dicom_writer as w
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
import yaml
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from toy_set import PIPELINE

from unet_med import cli

NAME, NUMBER, DATE = "SECRET^JANE", "SECRET-42", "19450607"
WORDS = (b"SECRET", b"JANE", b"Jane", b"jane", b"secret-42", DATE.encode(), b"1945-06-07")
TEXTS = (
    *("AccessionNumber", "StudyID", "StudyDescription", "SeriesDescription", "InstitutionName", "ProtocolName"),
    *("ImageComments", "PatientComments", "StationName", "ReferringPhysicianName", "OperatorsName", "OtherPatientIDs"),
    *("RequestedProcedureDescription", "PerformedProcedureStepDescription", "AdditionalPatientHistory"),
    *("PatientAddress", "ContentDescription", "ContentCreatorName", "StructureSetLabel", "StructureSetName"),
)
DATES = ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "StructureSetDate")
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
ALL_FORMATS = "nifti,label-tiff,ome-zarr,geojson,imagej-roi,coco,seg-nrrd,dicom-seg,rtstruct,dicom-sr,dicom-sc"
LABELS = {
    "labels": {
        "background": 0,
        "bright": {
            "value": 1,
            "category": ["SCT", "91723000", "Anatomical Structure"],
            "type": ["SCT", "10200004", "Liver"],
        },
        "dark": {
            "value": 2,
            "category": ["SCT", "49755003", "Morphologically Abnormal Structure"],
            "type": ["SCT", "4147007", "Mass"],
        },
    }
}


# ---- planting -------------------------------------------------------------------------------------------------------


def plant(data: Dataset, owner: str = "") -> None:
    """Puts the secrets into a header: public tags, private tags, sequences, item descriptions."""
    data.PatientName, data.PatientID = f"{NAME}{owner}", f"{NUMBER}{owner}"
    for keyword in TEXTS:
        setattr(data, keyword, NAME[:16])
    data.ContentLabel = "SECRET JANE"
    for keyword in DATES:
        setattr(data, keyword, DATE)
    block = data.private_block(0x0011, f"{NAME} 1.0", create=True)
    block.add_new(0x01, "LO", f"{NAME} private")
    block.add_new(0x02, "UN", f"{NAME} {DATE}".encode())
    step = Dataset()
    step.RequestedProcedureDescription, step.ScheduledProcedureStepDescription = NAME, NAME
    data.RequestAttributesSequence = Items([step])
    for keyword in ("SegmentSequence", "StructureSetROISequence"):
        for item in data.get(keyword, []):
            item.add_new(*((0x00620006, "ST") if keyword == "SegmentSequence" else (0x30060028, "ST")), NAME)


def plant_files(folder: Path) -> set[bytes]:
    """Plants in every DICOM file; returns the UIDs, which are private, too."""
    uids = set()
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        if path.read_bytes()[128:132] != b"DICM":
            continue
        data = pydicom.dcmread(path)
        plant(data)
        data.save_as(path)
        uids |= {str(data[keyword].value).encode() for keyword in UIDS if keyword in data}
    return uids


def make_series(number: int) -> tuple[list[FileDataset], np.ndarray]:
    """Returns a CT series with two bright blobs and a dark one, and its voxels (slices, rows, columns)."""
    series = w.Series(columns=26, rows=20, count=8, number=number)
    voxels = np.random.default_rng(number).integers(95, 105, (8, 20, 26)).astype(np.int16)
    voxels[1:4, 4:9, 3:9] = voxels[3:7, 10:17, 14:22] = 240
    voxels[2:6, 3:8, 17:23] = 0
    slices = series.slices()
    for one, picture in zip(slices, voxels, strict=True):
        w.set_stored(one, picture)
        one.RescaleSlope, one.RescaleIntercept = 1, 0
    return slices, voxels


def write_label(path: Path, voxels: np.ndarray) -> None:
    """Writes the labels of :func:`make_series` on its grid."""
    series = w.Series()
    affine = np.eye(4)
    affine[:3, :3] = series.turn * [series.between_columns, series.between_rows, series.step]
    affine[:3, 3] = series.position(0)
    labels = np.where(voxels > 200, 1, np.where(voxels < 50, 2, 0)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine), path)


# ---- looking --------------------------------------------------------------------------------------------------------


def unet_med(*words: object) -> tuple[int, str]:
    """Runs a command in this process and returns its exit code and all that it printed, child processes included."""
    printed = io.StringIO()
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), warnings.catch_warnings():
                warnings.simplefilter("default")  # as a process of its own has it, not as errors
                code = cli.main([str(word) for word in words])
        finally:
            for number, descriptor in zip((1, 2), saved, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
        file.seek(0)
        return code, printed.getvalue() + file.read().decode(errors="replace")


def assert_clean(content: bytes, what: str, words: Iterable[bytes] = WORDS) -> None:
    found = [word for word in words if word in content]
    assert not found, f"{found} in {what}: ...{_around(content, found[0])}..."


def _around(content: bytes, word: bytes) -> bytes:
    place = content.index(word)
    return content[max(place - 120, 0) : place + 120]


def plain(path: Path) -> bytes:
    """Returns the bytes of a file and, where it holds packed bytes, these unpacked."""
    content = path.read_bytes()
    start = content.find(b"\x1f\x8b\x08")
    with contextlib.suppress(OSError, EOFError, zlib.error):
        if start >= 0:
            content += gzip.decompress(content[start:])
    return content


def is_private(path: Path) -> bool:
    return path.name.endswith(".sources.json") or path.name == "files.json"


def look_at(folder: Path, words: Iterable[bytes]) -> list[Path]:
    """Looks into every file but the private tables, which must be closed to others; returns them."""
    private = []
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        assert_clean(str(path.relative_to(folder)).encode(), "the name of a file", words)
        if is_private(path):
            private.append(path)
            if os.name != "nt":
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
        else:
            assert_clean(plain(path), str(path.relative_to(folder)), words)
    return private


@pytest.fixture(autouse=True)
def _as_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands run in the folder of outputs, as if each had a process of its own."""
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["unet-med"])
    threads, level = torch.get_num_threads(), logging.getLogger("unet_med").level
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
    logging.getLogger("unet_med").setLevel(level)


# ---- the whole way --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("inline_worker")
def test_the_whole_way_tells_nothing(tmp_path: Path) -> None:
    data, out = tmp_path / f"clinic {NAME} {DATE}", tmp_path / "out"
    images = data / "images"
    for number in range(1, 5):
        name = f"{NAME}-{number}"
        series, voxels = make_series(number)
        w.write(images / name, series, [f"{NUMBER}.{DATE}.{n}.dcm" for n in range(len(series))])
        write_label(data / "labels" / f"{name}.nii.gz", voxels)
    words = {*WORDS, *plant_files(data)}
    short = PIPELINE | {
        "preprocess": {"spacing_mm": [0.8, 1.25, 2.5]},
        "sampling": {"patch_voxels": [16, 16, 8], "batch_size": 2},
        "training": PIPELINE["training"] | {"epochs": 1, "steps_per_epoch": 2},
    }
    (out / "toy.yaml").write_text(yaml.safe_dump(short), encoding="utf-8")
    loud, cpu = ("--debug", "-vv", "--json"), ("--device", "cpu")
    commands: list[tuple[object, ...]] = [
        ("scan", images, "--html", "scan.html", *loud, "scan.json"),
        ("convert", images, "NIFTI", *loud, "convert.json"),
        ("manifest", data, "--out", "M.json", "--folds", "2", *loud, "manifest.json"),
        ("check", "M.json", "--fix", "FIXED", *loud, "check.json"),
        ("plan", "toy.yaml", "--data", "M.json", "--explain", *loud, "plan.json"),
        (
            "train",
            "toy.yaml",
            "--data",
            "M.json",
            "--out",
            "RUN",
            "--fold",
            "0",
            "--device",
            "cpu",
            *loud,
            "train.json",
        ),
        ("evaluate", "RUN", "--data", "M.json", "--out", "EVAL", *cpu, *loud, "evaluate.json"),
        ("predict", "RUN", images, "MASKS", *cpu, *loud, "predict.json"),
        ("compare", "EVAL", "RUN", "--out", "COMPARED", "--data", "M.json", *cpu, *loud, "compare.json"),
        ("correct", "M.json", "MASKS", "CORRECTED", "--before", "EVAL/masks", *loud, "correct.json"),
    ]
    for command in commands:
        code, printed = unet_med(*command)
        assert code in (0, 3 if command[0] == "check" else 0), (command[0], printed)
        assert_clean(printed.encode(), f"what {command[0]} prints", words)
    private = look_at(out, words)
    assert {path.name for path in private} >= {"scan.json.sources.json", "M.json.sources.json", "files.json"}
    assert all(b"SECRET" in path.read_bytes() for path in private if path.parent.name != "FIXED")
    assert (out / "mlflow.db").exists()
    assert len(list((out / "MASKS").glob("*.nii.gz"))) == 4
    assert "data:image/png" in (out / "scan.html").read_text(encoding="utf-8")


# ---- what is refused ------------------------------------------------------------------------------------------------


def _without(number: int) -> Callable[[list], list]:
    return lambda slices: [one for index, one in enumerate(slices) if index != number]


def _each(change: Callable[[Dataset], None]) -> Callable[[list], list]:
    def apply(slices: list) -> list:
        for one in slices:
            change(one)
        return slices

    return apply


def _moved(slices: list) -> list:
    for number, one in enumerate(slices):
        x, y, z = (float(value) for value in one.ImagePositionPatient)
        one.ImagePositionPatient = [round(x, 6), round(y + 0.7 * number, 6), round(z, 6)]
    return slices


def _other_bytes(slices: list) -> list:
    twin = copy.deepcopy(slices[0])
    twin.RescaleIntercept = 7
    return [*slices, twin]


def _as_film(one: Dataset) -> None:
    """Says that the pixels are MPEG-2, which is no image."""
    one.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
    one.PixelData = encapsulate([one.PixelData])
    one["PixelData"].VR, one["PixelData"].is_undefined_length = "OB", True


REFUSED: dict[str, Callable[[list], list]] = {
    "a gap": _without(2),
    "tilted": _moved,
    "differing twins": _other_bytes,
    "no position": _each(lambda one: one.pop("ImagePositionPatient")),
    "burnt-in text": _each(lambda one: setattr(one, "BurnedInAnnotation", "YES")),
    "colour": _each(lambda one: setattr(one, "PhotometricInterpretation", "RGB")),
    "no decoder": _each(_as_film),
    "odd slope": _each(lambda one: setattr(one, "RescaleSlope", 0)),
    "odd kind": _each(lambda one: setattr(one, "Modality", "SECRET")),
    "no slices": _each(lambda one: setattr(one, "Rows", 0)),
}


def write_refused(root: Path) -> set[bytes]:
    """Writes a tree that holds nothing but series that are refused, damaged files and files that are skipped."""
    for number, (what, change) in enumerate(REFUSED.items(), start=1):
        w.write(root / f"{NAME} {what}", change(w.Series(number=number, turn=np.eye(3)).slices()))
    words = {*WORDS, *plant_files(root)}
    damaged = {}
    for number, what in enumerate(("cut", "cut in the header", "zeros", "noise"), start=50):
        slices = w.Series(number=number).slices()
        for one in slices:
            plant(one)
        damaged[what] = w.write(root / f"{NAME} {what}", slices, [f"{NAME}.{DATE}.{n}.dcm" for n in range(6)])
    whole = damaged["cut"][2].read_bytes()
    damaged["cut"][2].write_bytes(whole[:-30])
    damaged["cut in the header"][2].write_bytes(damaged["cut in the header"][2].read_bytes()[:700])
    damaged["zeros"][2].write_bytes(b"")
    noise = bytearray(damaged["noise"][2].read_bytes())
    noise[132:] = np.random.default_rng(0).bytes(len(noise) - 132)
    damaged["noise"][2].write_bytes(bytes(noise))
    (root / f"{NAME}.dcm").write_bytes(f"{NAME} {DATE}".encode() * 40)
    (root / f"{NAME}.SECRET").write_text(NAME)
    (root / "scan.nii.gz").write_bytes(b"not packed SECRET")
    (root / "cells.tif").write_bytes(b"II*\0SECRET" * 9)
    (root / "scan.nrrd").write_bytes(b"NRRD0004\ntype: SECRET\n\n")
    (root / "cells.png").write_bytes(b"\x89PNG\r\n\x1a\nSECRET")
    return words


def test_refusals_tell_nothing(tmp_path: Path, tiny_bundle: Callable[..., Path]) -> None:
    data, out = tmp_path / f"clinic {NAME}", tmp_path / "out"
    words = write_refused(data)
    dicom_only = [path for path in data.iterdir() if path.is_dir()]
    loud = ("--debug", "-vv", "--json")
    bundle = tiny_bundle()
    commands: list[tuple[object, ...]] = [
        ("scan", data, "--html", "scan.html", *loud, "scan.json"),
        ("convert", data, "NIFTI", *loud, "convert.json"),
        ("manifest", data, "--out", "M.json", *loud, "manifest.json"),
        ("predict", bundle, data, "MASKS", "--device", "cpu", *loud, "predict.json"),
        *(("scan", folder, *loud, "one.json") for folder in dicom_only),
        *(("predict", bundle, folder, "ONE", "--device", "cpu", *loud, "one.json") for folder in dicom_only),
    ]
    for command in commands:
        code, printed = unet_med(*command)
        assert code in ((2, 3, 4) if data in command else (0, 2, 3, 4)), (command[0], printed)
        assert_clean(printed.encode(), f"what {command[0]} prints", words)
    result = json.loads((out / "scan.json").read_text(encoding="utf-8"))
    assert len([one for one in result["sources"] if one["kind"] == "dicom"]) >= len(REFUSED)
    look_at(out, words)


def test_errors_of_a_case_tell_nothing(tmp_path: Path, tiny_bundle: Callable[..., Path]) -> None:
    """Files that change or vanish between the scan and the reading: the errors that quote paths."""
    data, out = tmp_path / f"clinic {NAME}", tmp_path / "out"
    w.write(data / NAME, w.Series(number=1).slices())
    compressed = w.Series(number=2).slices()
    for one in compressed:
        one.compress("1.2.840.10008.1.2.5")
    paths = w.write(data / f"{NAME} 2", compressed, [f"{NAME}.{n}.dcm" for n in range(6)])
    words = {*WORDS, *plant_files(data)}
    for path in paths:  # the header is whole, the pixels are not
        content = bytearray(path.read_bytes())
        content[-40:-12] = b"\x7f" * 28
        path.write_bytes(bytes(content))
    for command in (
        ("scan", data, "--html", "scan.html", "--debug", "-vv"),
        ("convert", data, "NIFTI", "--debug", "-vv"),
        ("predict", tiny_bundle(), data, "MASKS", "--device", "cpu", "--debug", "-vv"),
    ):
        code, printed = unet_med(*command)
        assert code in (0, 3), printed
        assert_clean(printed.encode(), f"what {command[0]} prints", words)
    look_at(out, words)


# ---- DICOM out and in again -----------------------------------------------------------------------------------------


def _patient_of(out: Path, words: Iterable[bytes]) -> set[str]:
    """Returns which files carry a secret, private tables left out."""
    return {
        path.relative_to(out).as_posix()
        for path in out.rglob("*")
        if path.is_file() and not is_private(path) and any(word in plain(path) for word in words)
    }


def _clinic(folder: Path) -> set[bytes]:
    """Writes one series; returns what must not come out."""
    slices, _ = make_series(1)
    w.write(folder / NAME / DATE, slices, [f"{NAME}.{n}" for n in range(8)])
    return {*WORDS, *plant_files(folder)}


@pytest.mark.usefixtures("inline_worker")
def test_exports_carry_the_patient_only_where_a_pacs_needs_it(tmp_path: Path, tiny_bundle: Callable[..., Path]) -> None:
    data, out = tmp_path / f"clinic {NAME}", tmp_path / "out"
    words = _clinic(data)
    (out / "labels.yaml").write_text(yaml.safe_dump(LABELS), encoding="utf-8")
    export = ("--format", ALL_FORMATS, "--labels", "labels.yaml", "--device", "cpu", "--debug", "-vv", "--json")
    bundle = tiny_bundle()
    for command in (
        ("predict", bundle, data, "NAMED", *export, "named.json"),
        ("predict", bundle, data, "NAMELESS", "--deidentify", *export, "nameless.json"),
    ):
        code, printed = unet_med(*command)
        assert code == 0, printed
        assert_clean(printed.encode(), "what predict prints", words)

    # without --deidentify exactly the DICOM objects tell who it is, and nothing else does
    dicom = {path.relative_to(out).as_posix() for path in (out / "NAMED").rglob("*.dcm")}
    assert {Path(name).name.partition(".")[2] for name in dicom} >= {"seg.dcm", "rtstruct.dcm", "sr.dcm"}
    assert _patient_of(out, WORDS) == dicom
    for name in dicom:
        assert pydicom.dcmread(out / name).PatientName == NAME
        assert NAME not in name

    nameless = list((out / "NAMELESS").rglob("*.dcm"))
    assert len(nameless) == len(dicom)
    for path in nameless:
        written = pydicom.dcmread(path)
        assert str(written.PatientIdentityRemoved) == "YES"
        assert not written.get("PatientBirthDate")
    shutil.rmtree(out / "NAMED")
    look_at(out, words)


@pytest.mark.usefixtures("inline_worker")
def test_labels_in_dicom_tell_nothing(tmp_path: Path, tiny_bundle: Callable[..., Path]) -> None:
    """Our own SEG and RTSTRUCT, which carry the patient, come back as truth."""
    data, out = tmp_path / f"clinic {NAME}", tmp_path / "out"
    _clinic(data)
    (out / "labels.yaml").write_text(yaml.safe_dump(LABELS), encoding="utf-8")
    code, printed = unet_med(
        *("predict", tiny_bundle(), data, "MADE", "--format", "dicom-seg,rtstruct", "--labels", "labels.yaml"),
        *("--device", "cpu"),
    )
    assert code == 0, printed
    for path in (out / "MADE").glob("*.dcm"):
        path.rename(data / NAME / f"{NAME}.{path.name.partition('.')[2]}")
    shutil.rmtree(out / "MADE")
    words = {*WORDS, *plant_files(data)}
    loud = ("--debug", "-vv", "--json")
    broken = data / f"{NAME} broken"
    broken.mkdir()
    for path in sorted((data / NAME).glob("*.dcm")):
        whole = path.read_bytes()
        (broken / f"{NAME} {path.name}").write_bytes(whole[: len(whole) * 3 // 4])
    for command, codes in (
        (("scan", data / NAME, "--html", "scan.html", *loud, "scan.json"), (0,)),
        (("convert", data / NAME, "NIFTI", *loud, "convert.json"), (0,)),
        (("manifest", data / NAME, "--labels", "*seg*", "--out", "M.json", *loud, "manifest.json"), (0,)),
        (("manifest", data / NAME, "--labels", "*rtstruct*", "--out", "R.json", *loud, "manifest2.json"), (0,)),
        (("check", "M.json", *loud, "check.json"), (0, 3)),
        (("scan", data, *loud, "all.json"), (0, 3)),
        (("convert", data, "ALL", *loud, "all2.json"), (0, 3)),
        (("manifest", data, "--out", "ALL.json", *loud, "all3.json"), (0, 2, 3)),
    ):
        code, printed = unet_med(*command)
        assert code in codes, (command[0], printed)
        assert_clean(printed.encode(), f"what {command[0]} prints", words)
    found = json.loads((out / "scan.json").read_text(encoding="utf-8"))["annotations"]
    assert sorted(one["kind"] for one in found) == ["dicom-seg", "rtstruct"]
    assert all(one["refers_to"] for one in found)
    look_at(out, words)
