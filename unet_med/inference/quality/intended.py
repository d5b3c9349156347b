"""Which images a model is meant for: modality, part of the body, spacing; and what of that another image is not.

A model that is given an image of another modality is refused it: what it finds there means nothing. Another part of
the body, or voxels of another size than in training, are doubts that somebody should look at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Self

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.inference.quality.outliers import spacing_sentence
from unet_med.io.cases import Case

SCHEMA = 1
META_KEY = "intended"
"""Where a bundle's ``meta`` keeps which images it is meant for."""

Range = tuple[float, float]

_FACTOR = 2.0
"""So many times as large as in training, or as small, voxels are still nothing to speak of."""
_ALIKE = {"CR": "X-ray", "DX": "X-ray", "DR": "X-ray", "RG": "X-ray", "PX": "X-ray", "IO": "X-ray"}
_VAGUE = frozenset({"OT", "SC", "DG"})
"""Modalities of DICOM that say nothing about how an image was made."""

_TRUNK = ("neck", "chest", "abdomen", "pelvis")
_REGIONS = {
    **dict.fromkeys(("BRAIN", "EYE", "HEAD", "JAW", "ORBIT", "SKULL", "TONGUE"), ("head",)),
    **dict.fromkeys(("CAROTID", "CSPINE", "LARYNX", "NECK", "THYROID"), ("neck",)),
    **dict.fromkeys(
        ("BREAST", "BRONCHUS", "CHEST", "CLAVICLE", "HEART", "LUNG", "RIB", "STERNUM", "THYMUS", "TRACHEA", "TSPINE"),
        ("chest",),
    ),
    **dict.fromkeys(
        ("ABDOMEN", "ADRENAL", "BILEDUCT", "COLON", "DUODENUM", "GALLBLADDER", "KIDNEY", "LIVER", "LSPINE", "PANCREAS"),
        ("abdomen",),
    ),
    **dict.fromkeys(("SPLEEN", "STOMACH"), ("abdomen",)),
    **dict.fromkeys(("BLADDER", "OVARY", "PELVIS", "PROSTATE", "RECTUM", "SSPINE", "UTERUS"), ("pelvis",)),
    **dict.fromkeys(("ARM", "ELBOW", "FINGER", "FOREARM", "HAND", "HUMERUS", "WRIST"), ("arm",)),
    **dict.fromkeys(("ANKLE", "CALCANEUS", "FEMUR", "FOOT", "KNEE", "LEG", "THIGH"), ("leg",)),
    **dict.fromkeys(("SCAPULA", "SHOULDER"), ("chest", "arm")),
    "HIP": ("pelvis", "leg"),
    "HEADNECK": ("head", "neck"),
    "NECKCHEST": ("neck", "chest"),
    "CTSPINE": ("neck", "chest"),
    "ESOPHAGUS": ("neck", "chest", "abdomen"),
    "AORTA": ("chest", "abdomen"),
    "TLSPINE": ("chest", "abdomen"),
    "CHESTABDOMEN": ("chest", "abdomen"),
    "LSSPINE": ("abdomen", "pelvis"),
    "ABDOMENPELVIS": ("abdomen", "pelvis"),
    "NECKCHESTABDOMEN": ("neck", "chest", "abdomen"),
    "CHESTABDPELVIS": ("chest", "abdomen", "pelvis"),
    "NECKCHESTABDPELV": _TRUNK,
    "SPINE": _TRUNK,
    "EXTREMITY": ("arm", "leg"),
    "WHOLEBODY": ("head", *_TRUNK, "arm", "leg"),
}
"""In which regions of the body its parts lie, by the names of DICOM."""


@dataclass(frozen=True)
class Intended:
    """The images that a model learnt from, as far as their files tell.

    Attributes:
        modalities: DICOM modality of each image of a case; ``None``: not known, or several.
        body_parts: What DICOM calls the parts of the body that were examined; empty unless all cases say it.
        spacing_mm: Smallest and largest voxel size along each axis, towards R, A, S; ``None`` when uncalibrated.
    """

    modalities: tuple[str | None, ...] = ()
    body_parts: tuple[str, ...] = ()
    spacing_mm: tuple[Range, ...] | None = None

    @classmethod
    def of(cls, cases: Iterable[Case], modality: str | None = None) -> Self:
        """Learns it from cases of training; ``modality`` is what the data set says of images that say nothing."""
        seen = list(cases)
        columns = zip(*[[one.modality or modality for one in case.sources] for case in seen], strict=False)
        modalities = tuple(found[0] if len(set(found)) == 1 else None for found in columns)
        parts = {one.body_part for case in seen for one in case.sources}
        spacings = [_spacing(case.geometry) for case in seen]
        known = [spacing for spacing in spacings if spacing is not None]
        ranges: tuple[Range, ...] | None = None
        if known and len(known) == len(spacings) and len({len(spacing) for spacing in known}) == 1:
            ranges = tuple((min(values), max(values)) for values in zip(*known, strict=True))
        return cls(modalities, () if None in parts else tuple(sorted(filter(None, parts))), ranges)

    def joined(self, other: Self) -> Self:
        """Returns what the images of both are like; what only one of them knows is not known."""
        pairs = zip(self.modalities, other.modalities, strict=False)
        ranges: tuple[Range, ...] | None = None
        if self.spacing_mm and other.spacing_mm and len(self.spacing_mm) == len(other.spacing_mm):
            both = zip(self.spacing_mm, other.spacing_mm, strict=True)
            ranges = tuple((min(a[0], b[0]), max(a[1], b[1])) for a, b in both)
        parts = {*self.body_parts, *other.body_parts} if self.body_parts and other.body_parts else set()
        return type(self)(tuple(a if a == b else None for a, b in pairs), tuple(sorted(parts)), ranges)

    def doubts(self, case: Case) -> list[str]:
        """Returns what speaks against an image that a mask is wanted of, in sentences; mostly nothing.

        Raises:
            InputRefusedError: Its modality is another one.
        """
        if len(case.sources) == len(self.modalities):
            for wanted, source in zip(self.modalities, case.sources, strict=True):
                _check_modality(wanted, source.modality, case.id)
        return [*self._other_parts(case), *self._other_spacing(case.geometry)]

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        return {
            "schema": SCHEMA,
            "modalities": list(self.modalities),
            "body_parts": list(self.body_parts),
            "spacing_mm": None if self.spacing_mm is None else [list(one) for one in self.spacing_mm],
        }

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Returns what :meth:`to_json` wrote; of anything else that nothing is known."""
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            return cls()
        try:
            spacing = data["spacing_mm"]
            ranges = None if spacing is None else tuple((float(low), float(high)) for low, high in spacing)
            modalities = tuple(None if one is None else str(one) for one in data["modalities"])
            return cls(modalities, tuple(map(str, data["body_parts"])), ranges)
        except (KeyError, TypeError, ValueError):
            return cls()

    def _other_parts(self, case: Case) -> list[str]:
        known = {region for part in self.body_parts for region in _REGIONS.get(part, ())}
        for part in dict.fromkeys(source.body_part for source in case.sources):
            regions = _REGIONS.get(part or "", ())
            if known and regions and known.isdisjoint(regions):
                ours, theirs = (" and ".join(some) for some in (regions, sorted(known)))
                return [f"an image of the {ours}; the model was made for {theirs}"]
        return []

    def _other_spacing(self, geometry: Geometry) -> list[str]:
        own = _spacing(geometry)
        if own is None or self.spacing_mm is None or len(own) != len(self.spacing_mm):
            return []
        return [
            spacing_sentence(value, low, high, axis, len(own))
            for axis, (value, (low, high)) in enumerate(zip(own, self.spacing_mm, strict=True))
            if value * _FACTOR < low or value > high * _FACTOR
        ]


def joined_intended_meta(metas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns for an ensemble what its members, one at least, keep under :data:`META_KEY`."""
    return reduce(Intended.joined, [Intended.from_json(meta.get(META_KEY)) for meta in metas]).to_json()


def _spacing(geometry: Geometry) -> tuple[float, ...] | None:
    return geometry.reoriented(*geometry.canonical_axes()).spacing_mm


def _check_modality(wanted: str | None, given: str | None, where: str) -> None:
    if wanted is None or given is None or {wanted, given} & _VAGUE:
        return
    if _ALIKE.get(wanted, wanted) != _ALIKE.get(given, given):
        raise InputRefusedError(
            f"a {given} image, and the model was made for {wanted}",
            where,
            f"use a model for {given}; to try this one all the same, convert the image to NIfTI first",
        )
