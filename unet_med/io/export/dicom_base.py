"""What all written DICOM objects share: patient, study and frame of reference of their source, and who made them.

Nothing is copied from a source's header but the attributes listed here: no private tag, no free text of a series.
Values that DICOM forbids (a date that is none, a sex of four letters) are left empty, and attributes that must be there
are there, so that a poor source makes a valid object; only patient id and accession number, by which archives file, are
what the source says, however long. Text is written as UTF-8.

**Identifiers.** Series and instances are named ``2.25.<integer>`` by HMAC-SHA256 with this user's key, over the source
slices, the model, the options and the mask itself. A run that is repeated or resumed gives an object of the same
name, which an archive takes for the one it has; another mask, model or option gives another name.

**Without a patient** (``deidentify``): a profile after the Basic Application Level Confidentiality Profile of DICOM
PS3.15, annex E. Names and ids of the patient become a keyed hash (the same one for the same patient); birth date, sex,
age, weight, physicians, accession number, study id, dates, times, descriptions and clinical trial are emptied, or left
out where they may be; dates that must not be empty are those of 1 January 2000. Every UID of the source becomes
``2.25.<integer>`` by HMAC-SHA256, in the same way in all formats, so that the objects still belong together, and a
source that is remapped with the same key fits them. What the pixels of a secondary capture show is not changed.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import logging
import math
import re
import struct
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from unet_med.errors import InputRefusedError
from unet_med.geometry import CORNER_TOLERANCE_MM, Geometry
from unet_med.identity import keyed_hash, user_key
from unet_med.io.dicom.slices import LabelArray, SliceLayout, StoredSlice
from unet_med.io.export.mask import MaskExport, ReadBack
from unet_med.io.export.sidecars import RESEARCH_ONLY
from unet_med.io.export.stamp import stamp
from unet_med.io.reading import refusing
from unet_med.labels import Label
from unet_med.version import __version__

FloatArray = npt.NDArray[np.float64]

MAKER = "unet-med"
REPORT = "report this together with `unet-med scan --json`"

_SERIES_NUMBERS = {"dicom-seg": 1, "rtstruct": 2, "dicom-sr": 3, "dicom-sc": 4}
_LARGEST_NUMBER = 20_000_000

_PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
_STUDY = ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID")
_IF_THERE = (
    *("IssuerOfPatientID", "PatientBirthTime", "EthnicGroup", "QualityControlSubject", "StudyDescription"),
    *("PatientAge", "PatientSize", "PatientWeight"),
    *("PatientSpeciesDescription", "PatientBreedDescription", "ResponsiblePerson", "ResponsiblePersonRole"),
    *("ResponsibleOrganization", "PatientIdentityRemoved"),
)
_TRIAL = (
    *("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID"),
    *("ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID"),
    *("ClinicalTrialTimePointID", "ClinicalTrialTimePointDescription"),
)
_IMAGE = (
    *("SOPClassUID", "SOPInstanceUID", "NumberOfFrames", "SeriesNumber", "Modality", "PositionReferenceIndicator"),
    *("SliceThickness", "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
    *("WindowCenter", "WindowWidth", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
)
_CODES_OF_METHOD = "DeidentificationMethodCodeSequence"
_ROWS = 16  # of a mask that are hashed at once
_REGRID_VOXELS = 0.02
"""How far a slice may lie from its place on the grid of an untilted or resampled mask."""

_EMPTY_DATE = "20000101"
_EMPTY_TIME = "000000"

_ALLOWED = {
    "TM": re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?"),
    "AS": re.compile(r"\d{3}[DWMY]"),
    "CS": re.compile(r"[A-Z0-9 _]{1,16}"),
    "UI": re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+"),
}
_LONGEST = {"SH": 16, "LO": 64}
_NAMES_OF_RECORDS = ("PatientID", "AccessionNumber")
"""By these an archive files an object: they are what the source says, however long."""

_CHOICES = {
    "PatientSex": ("M", "F", "O"),
    "QualityControlSubject": ("YES", "NO"),
    "PatientIdentityRemoved": ("YES", "NO"),
}
_AGAIN = "write NIfTI instead, or send the series through an archive that gives it these"


# ---- the source -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SourceImage:
    """One file of the source, as other objects refer to it.

    Attributes:
        sop_class: Its class.
        sop_uid: Its instance UID, remapped if the patient is left out.
        several: Whether it holds frames that need a number.
    """

    sop_class: str
    sop_uid: str
    several: bool


@dataclass(frozen=True, eq=False)
class SourceSeries:
    """The series that a mask belongs to, read from its headers.

    Attributes:
        export: The mask.
        layout: Where the stored slices lie.
        images: One for each file, in their order.
        header: Of the first file, only attributes that this module lists; never written as it is.
        study_uid, series_uid, frame_uid: As they are written: remapped if the patient is left out.
    """

    export: MaskExport
    layout: SliceLayout
    images: tuple[SourceImage, ...]
    header: Dataset
    study_uid: str
    series_uid: str
    frame_uid: str

    @property
    def id(self) -> str:
        """Safe name of the source, for messages."""
        return self.export.source.id

    @property
    def modality(self) -> str:
        """Modality of the source, ``OT`` when it has none."""
        return _text(self.header, "Modality") or "OT"

    @property
    def model_sha256(self) -> tuple[str, ...]:
        """Hashes of the models that made the mask."""
        given = self.export.provenance.get("model_sha256", ())
        return (given,) if isinstance(given, str) else tuple(str(one) for one in given)

    @cached_property
    def stored_labels(self) -> LabelArray:
        """The mask on the stored slices: (columns, rows, slices)."""
        return self.layout.labels_on_slices(self.export.labels)

    def image(self, slice_number: int) -> tuple[SourceImage, int | None]:
        """Returns the file of a stored slice and its frame number, from 1; ``None`` where a file is one image."""
        stored = self.layout.slices[slice_number]
        image = self.images[stored.file]
        return image, stored.frame + 1 if image.several else None

    def reference(self, slice_number: int) -> Dataset:
        """Returns a new item that refers to a stored slice: class, instance and, if needed, frame."""
        image, frame = self.image(slice_number)
        item = reference_item(image.sop_class, image.sop_uid)
        if frame is not None:
            item.ReferencedFrameNumber = frame
        return item

    @cached_property
    def _said(self) -> bytes:
        """Digest of everything that makes one object differ from another."""
        export = self.export
        digest = hashlib.sha256()
        for array in (export.labels,) if export.probabilities is None else (export.labels, export.probabilities):
            for start in range(0, len(array), _ROWS):
                digest.update(np.ascontiguousarray(array[start : start + _ROWS]).data)
        facts = {
            "slices": [(stored.sop_uid, stored.frame) for stored in self.layout.slices],
            "labels": [(label.index, label.name, label.colour, repr(label.code)) for label in export.label_map.labels],
            "models": self.model_sha256,
            "options": [export.options.seg_type, export.options.deidentify, __version__],
        }
        digest.update(json.dumps(facts, sort_keys=True).encode())
        return digest.digest()

    def own_uid(self, *parts: str) -> str:
        """Returns the UID of something that is made from this mask: the same one whenever it is made again."""
        return _keyed_uid(b"made\0" + self._said + "\0".join(parts).encode())


def read_source(export: MaskExport) -> SourceSeries:
    """Reads the headers of the series that a mask belongs to.

    Raises:
        InputRefusedError: It is no DICOM volume, or its images lack what other objects must name.
    """
    layout, ref = slice_layout(export), export.dicom
    files = () if ref is None else ref.files
    wanted = [*_PATIENT, *_STUDY, *_IF_THERE, *_TRIAL, *_IMAGE, "DeidentificationMethod", _CODES_OF_METHOD]
    with guarded("a header cannot be read", export.source.id, "copy the series again from its origin"):
        headers = [
            dcmread(path, force=True, stop_before_pixels=True, specific_tags=wanted if number == 0 else [*_IMAGE])
            for number, path in enumerate(files)
        ]
        images = [_source_image(header, number, layout) for number, header in enumerate(headers)]
    if not (layout.study_uid and layout.series_uid and all(image.sop_class and image.sop_uid for image in images)):
        raise InputRefusedError(
            "its images lack the UIDs of study, series, class or instance, by which other objects name them",
            export.source.id,
            _AGAIN,
        )
    frame_uid = layout.frame_uid or _keyed_uid(f"frame of reference\0{layout.series_uid}".encode())
    uids = [layout.study_uid, layout.series_uid, frame_uid]
    if export.options.deidentify:
        uids = [remapped_uid(uid) for uid in uids]
        images = [replace(image, sop_uid=remapped_uid(image.sop_uid)) for image in images]
    return SourceSeries(export, layout, tuple(images), headers[0], *uids)


def slice_layout(export: MaskExport) -> SliceLayout:
    """Returns where the stored slices of a mask's image lie.

    Raises:
        InputRefusedError: It is no DICOM volume.
    """
    layout = None if export.dicom is None else export.dicom.layout
    if not isinstance(layout, SliceLayout) or export.labels.ndim != 3:
        raise InputRefusedError(
            "this format refers to the slices of a DICOM volume, and the image is none",
            export.source.id,
            "use --format nifti",
        )
    return layout


def _source_image(header: Dataset, number: int, layout: SliceLayout) -> SourceImage:
    sop_class = _text(header, "SOPClassUID")
    frames = [stored.frame for stored in layout.slices if stored.file == number]
    sop_uid = next((stored.sop_uid for stored in layout.slices if stored.file == number), "")
    several = len(frames) > 1 or any(frames) or (number_in(header, "NumberOfFrames") or 1) > 1
    return SourceImage(sop_class, sop_uid, several)


# ---- identifiers ----------------------------------------------------------------------------------------------------


def _keyed_uid(text: bytes) -> str:
    digest = hmac.new(user_key(), text, hashlib.sha256).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=4).int}"


def remapped_uid(uid: str) -> str:
    """Returns what a source's UID becomes where the patient is left out."""
    return _keyed_uid(b"remapped\0" + uid.encode())


def pseudonym(source: SourceSeries) -> str:
    """Returns what stands for the patient's name and id: the same for all studies of one patient."""
    parts = [_text(source.header, name) for name in ("PatientID", "IssuerOfPatientID")]
    return keyed_hash("patient\0" + ("\0".join(parts) if parts[0] else source.layout.study_uid), 16)


# ---- values ---------------------------------------------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[None]:
    """Silences warnings and logs of the DICOM libraries, whose texts quote values of headers."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def guarded(what: str, where: str, remedy: str = REPORT) -> Iterator[None]:
    """Turns whatever the DICOM libraries raise into :class:`InputRefusedError`, without their texts."""
    with quiet(), refusing(what, where, remedy, AttributeError, AssertionError, InvalidDicomError, struct.error):
        yield


def ds(value: float) -> str:
    """Returns a number as a decimal string of at most 16 characters."""
    number = float(value)
    return format_number_as_ds(0.0 if abs(number) < 1e-12 else number)


def _value(header: Dataset, keyword: str) -> Any:
    """Returns a value; ``None`` where there is none that can be read."""
    try:
        return header.get(keyword)
    except (ValueError, TypeError, ArithmeticError, AttributeError, LookupError):
        return None


def number_in(header: Dataset, keyword: str) -> float | None:
    """Returns the first number of an attribute; ``None`` where there is none that is finite."""
    value = _value(header, keyword)
    first = value[0] if isinstance(value, Sequence) and not isinstance(value, str) and value else value
    try:
        number = float(first)
    except (ValueError, TypeError):
        return None
    return number if math.isfinite(number) else None


def _text(header: Dataset, keyword: str) -> str:
    """Returns a single value as text without control characters; empty where there is none."""
    value = _value(header, keyword)
    if value is None or (not isinstance(value, str) and isinstance(value, Sequence)):
        return ""
    return "".join(sign for sign in str(value) if sign.isprintable()).strip()


def _valid(header: Dataset, keyword: str) -> str:
    """Returns a value as text, empty where DICOM forbids it."""
    value = _text(header, keyword)
    kind = dictionary_VR(keyword)
    if keyword in _CHOICES:
        return value if value in _CHOICES[keyword] else ""
    if kind == "DA":
        return value if _is_date(value) else ""
    if kind == "DS":
        return value if len(value) <= 16 and _is_number(value) else ""
    if len(value) > _LONGEST.get(kind, len(value)) and keyword not in _NAMES_OF_RECORDS:
        return ""
    if kind in _ALLOWED:
        return value if _ALLOWED[kind].fullmatch(value) else ""
    return value


def _is_date(text: str) -> bool:
    try:
        return len(text) == 8 and bool(datetime.datetime.strptime(text, "%Y%m%d").replace(tzinfo=datetime.UTC))
    except ValueError:
        return False


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def reference_item(sop_class: str, sop_uid: str) -> Dataset:
    """Returns a new item that refers to an instance."""
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class
    item.ReferencedSOPInstanceUID = sop_uid
    return item


def code_item(scheme: str, value: str, meaning: str) -> Dataset:
    """Returns a coded term as an item."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning[:64]
    return item


def label_code_item(label: Label) -> Dataset | None:
    """Returns the type code of a label with its modifier as an item; ``None`` where it has no code."""
    if label.code is None:
        return None
    item = code_item(label.code.type.scheme, label.code.type.value, label.code.type.meaning)
    if label.code.modifier is not None:
        one = label.code.modifier
        item.SegmentedPropertyTypeModifierCodeSequence = [code_item(one.scheme, one.value, one.meaning)]
    return item


def made_by(source: SourceSeries) -> str:
    """Returns one line of provenance: use, tool, version and models."""
    models = ", ".join(source.model_sha256) or "none"
    return f"{RESEARCH_ONLY}. {MAKER} {__version__}, model sha256 {models}"


def lossy_compression(source: SourceSeries) -> dict[str, Any]:
    """Returns what a source says of lossy compression, by keyword; empty where it does not say that it was lossy."""
    if _text(source.header, "LossyImageCompression") != "01":
        return {}
    found = {
        name: _value(source.header, name) for name in ("LossyImageCompressionRatio", "LossyImageCompressionMethod")
    }
    return {"LossyImageCompression": "01"} | {name: value for name, value in found.items() if value}


def device_serial(source: SourceSeries) -> str:
    """Returns what identifies the equipment: the beginning of the hash of the (first) model."""
    return source.model_sha256[0][:16] if source.model_sha256 else "none"


def today(source: SourceSeries) -> tuple[str, str]:
    """Returns date and time of the content; those of no day where the patient is left out."""
    if source.export.options.deidentify:
        return _EMPTY_DATE, _EMPTY_TIME
    now = datetime.datetime.now().astimezone()
    return now.strftime("%Y%m%d"), now.strftime("%H%M%S")


def series_number(source: SourceSeries, kind: str) -> int:
    """Returns a number by which viewers sort an object behind its source: 13 gives 1391, 1392, ..."""
    text = _text(source.header, "SeriesNumber")
    own = int(text) if text.isdigit() and int(text) < _LARGEST_NUMBER else 0
    return own * 100 + 90 + _SERIES_NUMBERS[kind]


# ---- modules --------------------------------------------------------------------------------------------------------


def new_object(source: SourceSeries, kind: str, sop_class: str, syntax: str = ExplicitVRLittleEndian) -> FileDataset:
    """Returns an empty data set of a class, to be filled and then given to :func:`finish`."""
    dataset = FileDataset("", Dataset(), file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = source.own_uid(kind, "instance")
    dataset.SeriesInstanceUID = source.own_uid(kind, "series")
    return dataset


def finish(dataset: Dataset, source: SourceSeries, kind: str, description: str) -> None:
    """Gives an object its patient, study, equipment, series number, description and dates.

    Args:
        dataset: With class, instance and series UIDs; everything that this sets is replaced.
        source: What it was made from.
        kind: Format name.
        description: What the series is, at most 50 characters; "(research)" is added.
    """
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword in (*_PATIENT, *_STUDY, *_IF_THERE, *_TRIAL):
        if keyword in dataset:
            delattr(dataset, keyword)
    for name, value in _patient_and_study(source).items():
        setattr(dataset, name, value)
    _say_what_was_removed(dataset, source)
    dataset.StudyInstanceUID = source.study_uid
    dataset.SeriesNumber = series_number(source, kind)
    dataset.SeriesDescription = f"{description} (research)"
    dataset.Manufacturer = dataset.ManufacturerModelName = MAKER
    dataset.DeviceSerialNumber = device_serial(source)
    dataset.SoftwareVersions = __version__
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = today(source)
    dataset.SeriesDate, dataset.SeriesTime = today(source)
    for equipment in dataset.get("ContributingEquipmentSequence") or ():
        equipment.ContributionDateTime = "".join(today(source))
    if "FrameOfReferenceUID" in dataset:
        dataset.PositionReferenceIndicator = _position_indicator(source)


def _patient_and_study(source: SourceSeries) -> dict[str, str]:
    """Returns the attributes of patient and study by keyword."""
    if source.export.options.deidentify:
        values = dict.fromkeys((*_PATIENT, *_STUDY), "")
        values["PatientID"] = pseudonym(source)
        values["PatientName"] = f"Anonymous^{values['PatientID']}"
        return values
    header = source.header
    values = {keyword: _valid(header, keyword) for keyword in (*_PATIENT, *_STUDY)}
    found = {keyword: _valid(header, keyword) for keyword in _IF_THERE}
    if _text(header, "ClinicalTrialSponsorName") and _text(header, "ClinicalTrialProtocolID"):
        trial = {keyword: _valid(header, keyword) for keyword in _TRIAL}
        values |= {keyword: trial.pop(keyword) for keyword in _TRIAL[:5]}
        if trial["ClinicalTrialSubjectID"] or trial["ClinicalTrialSubjectReadingID"]:
            found |= trial
    return values | {keyword: value for keyword, value in found.items() if value}


def _say_what_was_removed(dataset: Dataset, source: SourceSeries) -> None:
    if source.export.options.deidentify:
        dataset.PatientIdentityRemoved = "YES"
        dataset.DeidentificationMethod = f"{MAKER} {__version__}: attributes left out or emptied, UIDs remapped"
        dataset.DeidentificationMethodCodeSequence = [
            code_item("DCM", "113100", "Basic Application Confidentiality Profile")
        ]
        dataset.LongitudinalTemporalInformationModified = "REMOVED"
    elif dataset.get("PatientIdentityRemoved") == "YES":
        method = _value(source.header, "DeidentificationMethod") or "not told by the source"
        lines = [method] if isinstance(method, str) else list(method)
        dataset.DeidentificationMethod = [str(line)[:64] for line in lines]
        codes = [
            code_item(*(_text(item, name) for name in ("CodingSchemeDesignator", "CodeValue", "CodeMeaning")))
            for item in _value(source.header, _CODES_OF_METHOD) or ()
        ]
        if known := [item for item in codes if item.CodeValue and item.CodingSchemeDesignator and item.CodeMeaning]:
            dataset.DeidentificationMethodCodeSequence = known


def _position_indicator(source: SourceSeries) -> str:
    return "" if source.export.options.deidentify else _valid(source.header, "PositionReferenceIndicator")


def save(dataset: Dataset, path: Path) -> None:
    """Writes an object with its meta group."""
    meta = dataset.file_meta
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.ImplementationClassUID = UID("2.25.262680110707615222523973152861365400020")
    meta.ImplementationVersionName = f"{MAKER} {__version__}"[:16]
    with quiet():
        dataset.save_as(path, enforce_file_format=True)


# ---- reading back ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FoundSlice:
    """What a file says of one slice.

    Attributes:
        affine: 4x4, (column, row, 0) to LPS mm.
        labels: (columns, rows) integers.
    """

    affine: FloatArray
    labels: npt.NDArray[np.integer[Any]]


def stamp_slices(export: MaskExport, reader: str, found: Sequence[FoundSlice], exact: bool) -> dict[str, Any]:
    """Compares slices that were read in a file with the mask in memory; slices without a label may be left out.

    Each slice must lie where a slice of the source lies, by its own position. A mask whose grid is not that of the
    stored slices (untilted, resampled) is compared on these, voxel by voxel, and then on its grid.

    Args:
        export: The mask as it was meant.
        reader: The library that read the file.
        found: What it found.
        exact: Whether every voxel must be the same.

    Raises:
        InputRefusedError: when the file says anything else.
    """
    layout = slice_layout(export)
    stored = np.zeros((*layout.size, len(layout.slices)), dtype=np.uint16)
    places: dict[int, FloatArray] = {}
    for one in found:
        number = slice_at(one.affine, layout.slices, export.source.id)
        if one.labels.shape != layout.size:
            raise _not_as_meant("a slice has another size", export.source.id)
        stored[:, :, number] = one.labels
        places[number] = one.affine
    if layout.regrid is None:
        return stamp(export, ReadBack(reader, stored, _grid(places, layout), exact))
    meant = layout.labels_on_slices(export.labels)
    if exact and (different := int(np.count_nonzero(meant != stored))):
        raise _not_as_meant(f"{different} voxels differ on the stored slices", export.source.id)
    origins = [places.get(number, layout.slice_affine(number))[:, 3] for number in range(len(layout.slices))]
    starts = (np.array(origins) @ np.linalg.inv(export.geometry.to_lps()).T)[:, :3]
    if (off := float(np.abs(starts - np.array(layout.regrid.origins)).max())) > _REGRID_VOXELS:
        raise _not_as_meant(f"a slice lies {off:.3g} voxels off on the grid of the mask", export.source.id)
    on_grid = replace(export, labels=layout.labels_on_grid(meant).astype(np.uint16))
    ours = ReadBack(reader, layout.labels_on_grid(stored), export.geometry, exact)
    return stamp(on_grid, ours) | {"regridded": True}


def _not_as_meant(what: str, where: str) -> InputRefusedError:
    return InputRefusedError(
        f"the written file does not read back as it was meant: {what}",
        where,
        "the file was removed; report this together with `unet-med scan --json`",
    )


def slice_at(affine: FloatArray, slices: Sequence[StoredSlice], where: str) -> int:
    """Returns which stored slice lies where a found one says it lies.

    Raises:
        InputRefusedError: when there is none within 1e-3 mm.
    """
    away = np.linalg.norm(np.array([stored.position for stored in slices]) - affine[:3, 3], axis=1)
    number = int(away.argmin())
    if away[number] > CORNER_TOLERANCE_MM:
        raise _not_as_meant(f"a slice lies {away[number]:.3g} mm off", where)
    return number


def _grid(places: dict[int, FloatArray], layout: SliceLayout) -> Geometry:
    """Returns the grid of found slices; where there are fewer than two, their step is the source's."""
    shape = (*layout.size, len(layout.slices))
    first = min(places, default=0)
    affine = places[first].copy() if places else layout.slice_affine(0)
    last = max(places, default=0)
    if last > first:
        affine[:3, 2] = (places[last][:3, 3] - places[first][:3, 3]) / (last - first)
    affine[:3, 3] -= first * affine[:3, 2]
    return Geometry.from_lps(shape, affine)
