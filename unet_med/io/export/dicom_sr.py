"""Volumes as a DICOM Structured Report (TID 1500, Measurement Report), written by highdicom.

One group for each label: what it is (its code), its volume in ml, and either the segment of the DICOM SEG that is
written along with it or else the source images. Nobody has verified it, and it says so. The document is read back with
pydicom, item by item.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import highdicom as hd
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as DicomCode
from pydicom.uid import UID, ExplicitVRLittleEndian

from unet_med.errors import InputRefusedError
from unet_med.io.export import dicom_seg
from unet_med.io.export.dicom_base import (
    MAKER,
    REPORT,
    SourceSeries,
    device_serial,
    finish,
    guarded,
    read_source,
    save,
    today,
)
from unet_med.io.export.mask import MaskExport
from unet_med.io.export.sidecars import RESEARCH_ONLY
from unet_med.labels import Code, Label, LabelCode
from unet_med.version import __version__

KIND = "dicom-sr"

_PROCEDURES = {
    "CT": DicomCode("77477000", "SCT", "Computed tomography imaging procedure"),
    "MR": DicomCode("113091000", "SCT", "Magnetic resonance imaging procedure"),
    "PT": DicomCode("82918005", "SCT", "Positron emission tomography imaging procedure"),
}
_ANY_PROCEDURE = DicomCode("363679005", "SCT", "Imaging procedure")
_ARTIFICIAL_INTELLIGENCE = DicomCode("123110", "DCM", "Artificial Intelligence")
_VOLUME = codes.SCT.Volume
_MILLILITRE = DicomCode("ml", "UCUM", "milliliter")
_ENGLISH = DicomCode("en-US", "RFC5646", "English (United States)")
_TOLERANCE = 1e-6


def volumes_ml(export: MaskExport) -> dict[int, float]:
    """Returns the volume of every label in the mask, ml; 0 for one that does not occur."""
    voxel = export.geometry.voxel_ml
    if voxel is None:
        raise InputRefusedError("a picture has no volume", export.source.id, "use another format than dicom-sr")
    found = export.measures
    return {
        label.index: found[label.index].voxels * voxel if label.index in found else 0.0
        for label in export.label_map.labels
    }


def write(export: MaskExport, path: Path) -> None:
    """Writes the volumes.

    Raises:
        InputRefusedError: The image is no DICOM volume, or a label has no code.
    """
    source = read_source(export)
    uncoded = [label.name for label in export.label_map.labels if label.code is None]
    if uncoded:
        raise InputRefusedError(
            f"no code is known for {', '.join(uncoded)}, and every finding of a structured report has one",
            source.id,
            "give codes in the labels block of a file for --labels: category and type, each with scheme, value and "
            "meaning",
        )
    with guarded("the structured report cannot be made", source.id):
        date, time = today(source)
        dataset = hd.sr.Comprehensive3DSR(
            evidence=_evidence(source),
            content=_report(source)[0],
            series_instance_uid=source.own_uid(KIND, "series"),
            series_number=1,
            sop_instance_uid=source.own_uid(KIND, "instance"),
            instance_number=1,
            manufacturer=MAKER,
            is_complete=True,
            is_final=False,
            is_verified=False,
            performed_procedure_codes=None,
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
        dataset.ContentDate, dataset.ContentTime = date, time
        for item in _walk(dataset):
            if "ObservationDateTime" in item:
                del item.ObservationDateTime
        finish(dataset, source, KIND, f"{MAKER} volumes")
    save(dataset, path)


def _with_segmentation(source: SourceSeries) -> bool:
    return dicom_seg.KIND in source.export.options.formats


def _evidence(source: SourceSeries) -> list[Dataset]:
    """Returns a header for everything that the report names: the source images and, if written, the SEG."""
    found = [
        _instance(source, image.sop_class, image.sop_uid, source.series_uid, source.modality) for image in source.images
    ]
    if _with_segmentation(source):
        series, instance = (source.own_uid(dicom_seg.KIND, part) for part in ("series", "instance"))
        found.append(_instance(source, dicom_seg.sop_class(source.export), instance, series, "SEG"))
    return found


def _instance(source: SourceSeries, sop_class: str, sop_uid: str, series_uid: str, modality: str) -> Dataset:
    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID = UID(sop_class), UID(sop_uid)
    header.StudyInstanceUID, header.SeriesInstanceUID = source.study_uid, series_uid
    header.PatientID = header.PatientName = header.PatientBirthDate = header.PatientSex = None
    header.AccessionNumber = header.StudyID = header.StudyDate = header.StudyTime = None
    header.ReferringPhysicianName = None
    header.Modality = modality
    return header


def _report(source: SourceSeries) -> hd.sr.MeasurementReport:
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=source.own_uid("device"),
        name=MAKER,
        manufacturer_name=MAKER,
        model_name=MAKER,
        serial_number=device_serial(source),
    )
    observer = hd.sr.ObserverContext(codes.DCM.Device, device)
    return hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_PROCEDURES.get(source.modality, _ANY_PROCEDURE),
        imaging_measurements=[_group(source, label) for label in source.export.label_map.labels],
        title=codes.DCM.ImagingMeasurementReport,
        language_of_content_item_and_descendants=hd.sr.LanguageOfContentItemAndDescendants(_ENGLISH),
    )


def _group(source: SourceSeries, label: Label) -> Any:
    """Returns the measurements of one label: of its segment if there is one, else of the source images."""
    code = label.code
    if code is None:
        raise InputRefusedError("a label has no code", source.id, "give codes with --labels")
    common: dict[str, Any] = {
        "tracking_identifier": hd.sr.TrackingIdentifier(
            uid=source.own_uid("label", str(label.index)), identifier=label.name[:64]
        ),
        "finding_type": _code(code.type),
        "finding_category": _code(code.category),
        "finding_sites": _sites(code),
        "algorithm_id": hd.sr.AlgorithmIdentification(
            name=MAKER,
            version=__version__,
            parameters=[f"model_sha256: {', '.join(source.model_sha256) or 'none'}", RESEARCH_ONLY],
            family=_ARTIFICIAL_INTELLIGENCE,
            manufacturer=MAKER,
        ),
        "measurements": [
            hd.sr.Measurement(name=_VOLUME, value=volumes_ml(source.export)[label.index], unit=_MILLILITRE)
        ],
    }
    if _with_segmentation(source):
        segment = hd.sr.ReferencedSegment(
            sop_class_uid=dicom_seg.sop_class(source.export),
            sop_instance_uid=source.own_uid(dicom_seg.KIND, "instance"),
            segment_number=dicom_seg.segment_numbers(source.export)[label.index],
            source_series=hd.sr.SourceSeriesForSegmentation(source.series_uid),
        )
        return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=segment, **common)
    images = [
        hd.sr.SourceImageForMeasurementGroup(image.sop_class, image.sop_uid, _frames(source, number))
        for number, image in enumerate(source.images)
    ]
    return hd.sr.MeasurementsAndQualitativeEvaluations(source_images=images, **common)


def _sites(code: LabelCode) -> list[Any] | None:
    """Returns where a finding lies, if its code names a side."""
    if code.modifier is None:
        return None
    return [hd.sr.FindingSite(anatomic_location=_code(code.type), laterality=_code(code.modifier))]


def _frames(source: SourceSeries, file: int) -> list[int] | None:
    if not source.images[file].several:
        return None
    return sorted(stored.frame + 1 for stored in source.layout.slices if stored.file == file)


def _code(code: Code) -> DicomCode:
    return DicomCode(code.value, code.scheme, code.meaning[:64])


# ---- reading back ---------------------------------------------------------------------------------------------------


def _walk(item: Dataset) -> Iterator[Dataset]:
    """Yields the content items below an item, depth first."""
    for child in item.get("ContentSequence") or ():
        yield child
        yield from _walk(child)


def _named(item: Dataset, code: Any) -> bool:
    name = (item.get("ConceptNameCodeSequence") or [None])[0]
    return name is not None and (name.CodeValue, name.CodingSchemeDesignator) == (code.value, code.scheme_designator)


def check(path: Path, export: MaskExport) -> dict[str, Any]:
    """Reads the document with pydicom and compares every volume with the mask in memory.

    Raises:
        InputRefusedError: when it says anything else.
    """
    where = export.source.id
    with guarded("the written structured report cannot be read", where):
        dataset = dcmread(path)
        found: dict[str, tuple[float, str]] = {}
        for group in (item for item in _walk(dataset) if _named(item, codes.DCM.MeasurementGroup)):
            name = next(str(item.TextValue) for item in _walk(group) if _named(item, codes.DCM.TrackingIdentifier))
            value = next(item.MeasuredValueSequence[0] for item in _walk(group) if _named(item, _VOLUME))
            unit = str(value.MeasurementUnitsCodeSequence[0].CodeValue)
            found[name] = float(value.NumericValue), unit
        unverified = str(dataset.VerificationFlag) == "UNVERIFIED"
    meant = {label.name[:64]: volumes_ml(export)[label.index] for label in export.label_map.labels}
    if found.keys() != meant.keys() or not unverified:
        raise InputRefusedError(
            "the written structured report does not read back as it was meant: it has other labels, or is verified",
            where,
            REPORT,
        )
    worst = 0.0
    for name, (value, unit) in found.items():
        if unit != "ml" or abs(value - meant[name]) > _TOLERANCE * max(1.0, meant[name]):
            raise InputRefusedError(
                f"the written structured report says {value:g} {unit} of label {name} instead of {meant[name]:g} ml",
                where,
                REPORT,
            )
        worst = max(worst, abs(value - meant[name]))
    return {"reader": "pydicom", "labels": len(found), "volume_ml": round(worst, 9), "passed": True}
