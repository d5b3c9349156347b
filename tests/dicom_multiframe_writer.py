"""Writes small enhanced multi-frame DICOM files whose voxels say where they are (see ``dicom_writer.truth``).

How to use it::

    series = w.Series(modality="MR")                       # of dicom_writer: grid, UIDs, syntax
    frames = [Frame(k) for k in range(series.count)]       # one for each slice, in any order
    data = enhanced(series, frames)                        # a pydicom FileDataset, to be changed
    w.write(folder, [data])

- ``Frame(index, offset=100.0)`` adds 100 to the frame's values: so echoes and time points can be told apart.
- ``Frame(index, slope=0.5, intercept=-7.0)`` writes its own PixelValueTransformation; ``slope=None`` leaves it out.
- ``Frame(index, move=(0, 1.5, 0))`` shifts the frame by mm (LPS) without its values lying about where they are.
- ``Frame(index, groups={"MREchoSequence": group(EffectiveEchoTime=4.9)})`` adds functional groups; several items are
  ``[group(...), group(...)]``; nested sequences are ``group(DiffusionGradientDirectionSequence=[group(...)])``.
- ``enhanced(..., shared=("orientation", "measures", "rescale"))``: what stands in the shared functional groups; the
  rest stands with each frame. ``rescale`` may be shared only when all frames have one slope and intercept.
- ``enhanced(..., dimensions=[0x00209057, ...])`` writes the DimensionIndexSequence, ``Frame(index, position=(1, 2))``
  the frame's DimensionIndexValues.
- ``echo(ms)``, ``diffusion(b, direction)``, ``time_point(number)``, ``kv(value)``, ``frame_type(*parts)`` and
  ``stack(name)`` give the commonest groups as dictionaries for ``Frame(groups=...)``; join them with ``|``.

Nothing of it is copied from a real file.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    UID,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    generate_uid,
)
from pydicom.valuerep import format_number_as_ds

if "dicom_writer" not in sys.modules:
    _SPEC = importlib.util.spec_from_file_location("dicom_writer", Path(__file__).with_name("dicom_writer.py"))
    sys.modules["dicom_writer"] = importlib.util.module_from_spec(_SPEC)
    _SPEC.loader.exec_module(sys.modules["dicom_writer"])
w = sys.modules["dicom_writer"]

CLASSES = {"CT": EnhancedCTImageStorage, "MR": EnhancedMRImageStorage, "PT": EnhancedPETImageStorage}
LEGACY_CLASSES = {
    "CT": UID("1.2.840.10008.5.1.4.1.1.2.2"),
    "MR": UID("1.2.840.10008.5.1.4.1.1.4.4"),
    "PT": UID("1.2.840.10008.5.1.4.1.1.128.1"),
}


@dataclass
class Frame:
    """One frame: its place along the slice normal, its values and its functional groups."""

    index: float
    offset: float = 0.0
    slope: float | None = w.SLOPE
    intercept: float = 0.0
    move: tuple[float, float, float] = (0.0, 0.0, 0.0)
    groups: Mapping[str, Any] = field(default_factory=dict)
    position: tuple[int, ...] = ()


def group(**values: Any) -> Dataset:
    """Returns a data set of these keywords; lists of data sets become sequences."""
    data = Dataset()
    for keyword, value in values.items():
        nested = isinstance(value, list) and value and isinstance(value[0], Dataset)
        setattr(data, keyword, DicomSequence(value) if nested else value)
    return data


def echo(milliseconds: float) -> dict[str, Dataset]:
    return {"MREchoSequence": group(EffectiveEchoTime=milliseconds)}


def diffusion(b: float, direction: Sequence[float] | None = None) -> dict[str, Dataset]:
    """Returns the group of a b-value in s/mm2, and a gradient direction where there is one."""
    item = group(DiffusionBValue=float(b), DiffusionDirectionality="NONE" if direction is None else "DIRECTIONAL")
    if direction is not None:
        item.DiffusionGradientDirectionSequence = DicomSequence(
            [group(DiffusionGradientOrientation=[float(v) for v in direction])]
        )
    return {"MRDiffusionSequence": item}


def time_point(number: int) -> dict[str, Dataset]:
    return {"FrameContentSequence": group(TemporalPositionIndex=number)}


def stack(name: str, place: int = 1) -> dict[str, Dataset]:
    return {"FrameContentSequence": group(StackID=name, InStackPositionNumber=place)}


def kv(value: float) -> dict[str, Dataset]:
    return {"CTXRayDetailsSequence": group(KVP=value)}


def frame_type(*parts: str, modality: str = "MR") -> dict[str, Dataset]:
    keyword = {"MR": "MRImageFrameTypeSequence", "CT": "CTImageFrameTypeSequence", "PT": "PETFrameTypeSequence"}
    return {keyword[modality]: group(FrameType=list(parts))}


def enhanced(
    series: Any,
    frames: Sequence[Frame],
    *,
    sop_class: str = "",
    shared: Sequence[str] = ("orientation", "measures"),
    dimensions: Sequence[int] = (),
    instance: int = 1,
) -> FileDataset:
    """Returns a multi-frame data set with one functional group item for each frame."""
    data = w.new_dataset(sop_class or CLASSES[series.modality], series.syntax)
    data.StudyInstanceUID, data.SeriesInstanceUID = series.study, series.uid
    data.FrameOfReferenceUID = series.frame
    data.Modality, data.SeriesNumber, data.InstanceNumber = series.modality, series.number, instance
    data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    common = Dataset()
    stored, items = [], []
    for frame in frames:
        item = Dataset()
        place = series.position(frame.index) + np.array(frame.move)
        _add(item, "PlanePositionSequence", group(ImagePositionPatient=_texts(place)))
        target = common if "orientation" in shared else item
        cosines = (*series.turn[:, 0], *series.turn[:, 1])
        _add(target, "PlaneOrientationSequence", group(ImageOrientationPatient=_texts(cosines)))
        target = common if "measures" in shared else item
        measures = group(PixelSpacing=[series.between_rows, series.between_columns], SliceThickness=series.step)
        _add(target, "PixelMeasuresSequence", measures)
        values = series.values(place) + frame.offset
        if frame.slope is not None:
            target = common if "rescale" in shared else item
            rescale = group(RescaleSlope=frame.slope, RescaleIntercept=frame.intercept, RescaleType="US")
            _add(target, "PixelValueTransformationSequence", rescale)
        stored.append(np.rint((values - frame.intercept) / (frame.slope or 1.0)).astype(np.int16))
        for keyword, content in frame.groups.items():
            _add(item, keyword, content)
        if frame.position:
            if "FrameContentSequence" not in item:
                _add(item, "FrameContentSequence", Dataset())
            item.FrameContentSequence[0].DimensionIndexValues = list(frame.position)
        items.append(item)
    data.SharedFunctionalGroupsSequence = DicomSequence([common])
    data.PerFrameFunctionalGroupsSequence = DicomSequence(items)
    if dimensions:
        uid = generate_uid()
        data.DimensionOrganizationSequence = DicomSequence([group(DimensionOrganizationUID=uid)])
        data.DimensionIndexSequence = DicomSequence(
            [group(DimensionOrganizationUID=uid, DimensionIndexPointer=pointer) for pointer in dimensions]
        )
    w.set_stored(data, stored[0])
    data.NumberOfFrames = len(frames)
    data.PixelData = b"".join(picture.tobytes() for picture in stored)
    data.PixelData += b"\0" * (len(data.PixelData) % 2)
    return data


def _add(target: Dataset, keyword: str, content: Dataset | Sequence[Dataset]) -> None:
    items = [content] if isinstance(content, Dataset) else list(content)
    if keyword in target and keyword == "FrameContentSequence":
        target[keyword].value[0].update(items[0])
        return
    setattr(target, keyword, DicomSequence(items))


def _texts(values: Sequence[float]) -> list[str]:
    return [format_number_as_ds(float(value)) for value in values]
