"""Masks as pictures that every viewer shows: outlines on the source slices, as DICOM Secondary Captures.

One RGB file for each stored slice: the slice in grey (the window of its header if that shows anything, else between
percentiles), the outline of each label in its colour, and below it a legend that says "Research use only". No text of
the patient is drawn. Small slices are enlarged by a whole factor. Position, orientation and pixel spacing go along, as
attributes beyond what the class demands, so that viewers that know them show a capture where its slice lies.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import FileDataset

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.io.dicom.slices import SliceLayout
from unet_med.io.dicom.source import DicomSource
from unet_med.io.export.dicom_base import (
    MAKER,
    REPORT,
    FloatArray,
    SourceSeries,
    code_item,
    ds,
    finish,
    guarded,
    lossy_compression,
    made_by,
    new_object,
    number_in,
    read_source,
    save,
    slice_layout,
    today,
)
from unet_med.io.export.mask import MaskExport
from unet_med.io.export.sidecars import RESEARCH_ONLY
from unet_med.labels import LabelMap

KIND = "dicom-sc"

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

Picture = npt.NDArray[np.uint8]

PERCENTILES = (0.5, 99.5)
"""The grey values shown as black and white where the header has no window."""

_WANTED_PIXELS = 512
_SAMPLE = 1_000_000
_LEGEND_ENTRIES = 40
_TEXT = 13
_LINE = 19
_GAP = 6
_PAPER = (16, 16, 16)
_INK = (235, 235, 235)
_NEAR_MM = 1e-3


def write(export: MaskExport, path: Path) -> None:
    """Writes a folder of captures, ``0001.dcm`` and so on, in the order of the grid's K.

    Raises:
        InputRefusedError: The image is no DICOM volume, or a slice cannot be decoded.
    """
    source = read_source(export)
    values = _stored_values(source)
    window = _window(source, values)
    factor = _factor(source.layout)
    path.mkdir(parents=True, exist_ok=True)
    legend = _legend(export.label_map, source.layout.size[0] * factor)
    for number in range(len(source.layout.slices)):
        grey = _grey(values[:, :, number].T, window)
        picture = _outlined(grey, source.stored_labels[:, :, number].T, export.label_map, factor)
        with guarded("a secondary capture cannot be made", source.id):
            dataset = _capture(source, number, np.concatenate([picture, legend]), factor)
        save(dataset, path / f"{number + 1:04d}.dcm")


# ---- pictures -------------------------------------------------------------------------------------------------------


def _stored_values(source: SourceSeries) -> npt.NDArray[np.float32]:
    """Returns the source's values on its stored slices (columns, rows, slices)."""
    ref, layout = source.export.dicom, source.layout
    if ref is None:
        raise InputRefusedError("the image is no DICOM series", source.id, "use --format nifti")
    if layout.regrid is not None:
        shape = (*layout.size, len(layout.slices))
        geometry = Geometry.from_lps(shape, layout.slice_affine(0))
        ref = replace(ref, layout=replace(layout, regrid=None), geometry=geometry, shape=shape)
    values: npt.NDArray[np.float32] = DicomSource(ref).read().array[0]
    return values


def _window(source: SourceSeries, values: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Returns the values shown as black and white."""
    flat = values.ravel(order="K")
    low, high = (float(value) for value in np.percentile(flat[:: max(1, flat.size // _SAMPLE)], PERCENTILES))
    centre, width = (number_in(source.header, name) for name in ("WindowCenter", "WindowWidth"))
    if centre is not None and width is not None and width >= 1.0:
        black, white = centre - width / 2.0, centre + width / 2.0
        if black < high and white > low:
            return black, white
    return low, high if high > low else low + 1.0


def _factor(layout: SliceLayout) -> int:
    """Returns how many times a slice is enlarged: the smallest whole number that makes it as large as a thumb."""
    return max(1, -(-_WANTED_PIXELS // max(layout.size)))


def _grey(values: npt.NDArray[np.float32], window: tuple[float, float]) -> Picture:
    shown = (values - np.float32(window[0])) * np.float32(255.0 / (window[1] - window[0]))
    picture: Picture = np.nan_to_num(shown).clip(0, 255).astype(np.uint8)
    return picture


def _outlined(grey: Picture, labels: npt.NDArray[Any], label_map: LabelMap, factor: int) -> Picture:
    """Returns (rows, columns, 3): the slice, enlarged, with the outermost pixels of each label in its colour."""
    picture = np.repeat(_enlarged(grey, factor)[..., np.newaxis], 3, axis=-1)
    enlarged = _enlarged(labels, factor)
    border = _border(enlarged)
    colours = np.zeros((max([0, int(labels.max()), *(label.index for label in label_map.labels)]) + 1, 3), np.uint8)
    for label in label_map.labels:
        colours[label.index] = label.colour
    picture[border] = colours[enlarged[border]]
    return picture


def _enlarged(values: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    return values if factor == 1 else values.repeat(factor, axis=0).repeat(factor, axis=1)


def _border(labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Returns where a pixel has a neighbour of another label, or lies at the edge of the picture."""
    framed = np.pad(labels, 1)
    centre = framed[1:-1, 1:-1]
    neighbours = (framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:])
    return np.asarray((centre > 0) & np.logical_or.reduce([centre != other for other in neighbours]))


def _legend(label_map: LabelMap, width: int) -> Picture:
    """Returns a strip of this width with the colour and name of every label, and what the picture is for."""
    entries: list[tuple[tuple[int, int, int] | None, str]] = [(None, RESEARCH_ONLY)]
    entries += [(label.colour, label.name) for label in label_map.labels[:_LEGEND_ENTRIES]]
    if len(label_map.labels) > _LEGEND_ENTRIES:
        entries.append((None, f"and {len(label_map.labels) - _LEGEND_ENTRIES} more"))
    font = ImageFont.load_default(size=_TEXT)
    places, x, y = [], _GAP, _GAP
    for colour, text in entries:
        length = round(font.getlength(text)) + (_LINE if colour else 0)
        if x > _GAP and x + length > width:
            x, y = _GAP, y + _LINE
        places.append((x, y))
        x += length + 2 * _GAP
    canvas = Image.new("RGB", (width, y + _LINE + _GAP), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for (left, top), (colour, text) in zip(places, entries, strict=True):
        if colour:
            draw.rectangle((left, top + 2, left + _TEXT - 1, top + 1 + _TEXT), fill=colour)
        draw.text((left + (_LINE if colour else 0), top), text, fill=_INK, font=font)
    return np.asarray(canvas)


# ---- the object -----------------------------------------------------------------------------------------------------


def _capture(source: SourceSeries, number: int, picture: Picture, factor: int) -> FileDataset:
    dataset = new_object(source, KIND, SECONDARY_CAPTURE)
    dataset.SOPInstanceUID = source.own_uid(KIND, "instance", str(number))
    dataset.Modality = "OT"
    dataset.ConversionType = "WSD"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.InstanceNumber = number + 1
    dataset.ContentDate, dataset.ContentTime = today(source)
    dataset.PatientOrientation = dataset.Laterality = None
    dataset.BurnedInAnnotation = "NO"
    for keyword, value in ({"LossyImageCompression": "00"} | lossy_compression(source)).items():
        setattr(dataset, keyword, value)
    dataset.DerivationDescription = f"Outlines of labels. {made_by(source)}"
    reference = source.reference(number)
    reference.PurposeOfReferenceCodeSequence = [
        code_item("DCM", "121322", "Source image for image processing operation")
    ]
    dataset.SourceImageSequence = [reference]
    _place(dataset, source, number, factor)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.Rows, dataset.Columns = picture.shape[:2]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    pixels = picture.tobytes()
    dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
    dataset["PixelData"].VR = "OB"
    finish(dataset, source, KIND, f"{MAKER} outlines")
    return dataset


def _place(dataset: FileDataset, source: SourceSeries, number: int, factor: int) -> None:
    """Says where the first pixel of the enlarged slice lies."""
    layout = source.layout
    affine = layout.slice_affine(number)
    inwards = (1.0 / factor - 1.0) / 2.0
    corner = (affine @ np.array([inwards, inwards, 0.0, 1.0]))[:3]
    dataset.FrameOfReferenceUID = source.frame_uid
    dataset.ImagePositionPatient = [ds(value) for value in corner]
    dataset.ImageOrientationPatient = [ds(value) for value in (*layout.row, *layout.column)]
    dataset.PixelSpacing = [ds(layout.spacing_mm[1] / factor), ds(layout.spacing_mm[0] / factor)]


# ---- reading back ---------------------------------------------------------------------------------------------------


def check(path: Path, export: MaskExport) -> dict[str, Any]:
    """Reads every capture with SimpleITK: the voxels in which a colour lies must be the border of its label.

    Raises:
        InputRefusedError: when a capture shows anything else than the mask in memory.
    """
    layout = slice_layout(export)
    stored = layout.labels_on_slices(export.labels)
    files = sorted(path.glob("*.dcm"))
    if len(files) != len(layout.slices):
        raise _unlike(f"{len(files)} captures of {len(layout.slices)} slices", export.source.id)
    colours = _telling_colours(export.label_map)
    outlined = 0
    for number, file in enumerate(files):
        with guarded("a written secondary capture cannot be read", export.source.id):
            picture, affine = _read(file)
        to_slice = _to_slice(affine, layout, number, export.source.id)
        labels = stored[:, :, number]
        border = _border(labels)
        tones = _tones(picture)
        for label in export.label_map.labels:
            shown = np.argwhere(tones == _tones(np.array(label.colour, dtype=np.uint8)))
            voxels = np.rint(shown @ to_slice[:2, :2].T + to_slice[:2, 3]).astype(int)
            voxels = voxels[((voxels >= 0) & (voxels < layout.size)).all(axis=1)]  # the legend lies outside
            found = np.zeros(layout.size, dtype=np.bool_)
            found[tuple(voxels.T)] = True
            meant = border & (labels == label.index)
            wrong = found != meant if label.index in colours else meant & ~found
            if wrong.any():
                raise _unlike(f"the outline of label {label.name} lies elsewhere", export.source.id)
            outlined += int(np.count_nonzero(meant))
    return {"reader": "SimpleITK", "files": len(files), "outline_voxels": outlined, "passed": True}


def _tones(colours: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Returns colours (..., 3) as one number each."""
    red, green, blue = np.moveaxis(colours, -1, 0).astype(np.uint32)
    return np.asarray(red << 16 | green << 8 | blue, dtype=np.uint32)


def _telling_colours(label_map: LabelMap) -> frozenset[int]:
    """Returns the labels whose colour is neither a grey nor that of another label."""
    every = [label.colour for label in label_map.labels]
    return frozenset(
        label.index for label in label_map.labels if len(set(label.colour)) > 1 and every.count(label.colour) == 1
    )


def _read(file: Path) -> tuple[Picture, FloatArray]:
    """Returns a capture (columns, rows, 3), and where its pixels lie: (column, row, 0) to LPS mm."""
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(file))
    reader.SetImageIO("GDCMImageIO")
    image = reader.Execute()
    picture = SimpleITK.GetArrayFromImage(image)
    # Its own geometry leaves position and orientation of secondary captures out.
    numbers = {
        tag: np.array(reader.GetMetaData(tag).split("\\"), dtype=np.float64)
        for tag in ("0020|0032", "0020|0037", "0028|0030")
    }
    directions, spacing = numbers["0020|0037"], numbers["0028|0030"]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = directions[:3] * spacing[1], directions[3:] * spacing[0]
    affine[:3, 2] = np.cross(directions[:3], directions[3:])
    affine[:3, 3] = numbers["0020|0032"]
    return picture.reshape(*picture.shape[-3:]).transpose(1, 0, 2), affine


def _to_slice(affine: FloatArray, layout: SliceLayout, number: int, where: str) -> FloatArray:
    """Returns the matrix from pixels of a capture to voxels (column, row, 0) of its stored slice."""
    to_slice = np.asarray(np.linalg.inv(layout.slice_affine(number)) @ affine, dtype=np.float64)
    if abs(to_slice[2, 3]) * layout.step_mm > _NEAR_MM:
        raise _unlike("a capture lies beside its slice", where)
    return to_slice


def _unlike(what: str, where: str) -> InputRefusedError:
    return InputRefusedError(f"the written captures do not read back as they were meant: {what}", where, REPORT)
