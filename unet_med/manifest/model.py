"""The data set in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from unet_med.errors import InputRefusedError
from unet_med.identity import files_sha256
from unet_med.io.cases import Case
from unet_med.io.source import SourceRef

Task = Literal["semantic", "instance"]
Severity = Literal["error", "warning"]
Split = Literal["training", "test"]


@dataclass(frozen=True)
class Finding:
    """Something wrong with a case.

    Attributes:
        case: Id of the case; empty for the set as a whole.
        severity: ``error``: training on it would be wrong. ``warning``: look at it.
        what: The fault, a short phrase.
        remedy: What to do about it.
        kind: Stable name of the fault, for example ``values_0_255``.
    """

    case: str
    severity: Severity
    what: str
    remedy: str = ""
    kind: str = ""

    def __str__(self) -> str:
        where = f" ({self.case})" if self.case else ""
        return f"{self.severity}: {self.what}{where}" + (f": {self.remedy}" if self.remedy else "")


def content_sha256(sources: Sequence[SourceRef], frame: int | None = None) -> str:
    """Returns the sha256 of what a case is made of.

    One file: the file's own sha256 (what ``sha256sum`` prints). Several files: that of their sorted hashes. One page
    of a file (``frame``): that of ``HASH#FRAME``, so that the pages of a stack are different contents; likewise the
    volumes that take only some frames of a multi-frame DICOM file, and the later images of a TIFF of several.
    """
    stamps = [(file, file.stat().st_mtime_ns) for source in sources for file in source.files]
    whole = _hash_files(tuple(stamps))
    parts = [source.read_as["frames"] for source in sources if source.read_as.get("frames")]
    parts += [f"s{source.read_as['series']}" for source in sources if source.read_as.get("series")]
    which = "#".join(str(part) for part in ([] if frame is None else [frame]) + parts)
    return hashlib.sha256(f"{whole}#{which}".encode()).hexdigest() if which else whole


@lru_cache(maxsize=64)
def _hash_files(stamps: tuple[tuple[Path, int], ...]) -> str:
    """The pages of one stack are asked for one after the other: the stack is hashed once, as long as it is the same."""
    return files_sha256([file for file, _ in stamps])


class LazyHashes(Mapping[str, str]):
    """The hashes of a case from a manifest that has none, computed when they are asked for."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._known: dict[str, str] = {}

    def __getitem__(self, key: str) -> str:
        if key not in self:
            raise KeyError(key)
        if key not in self._known:
            parts = self._case.sources if key == "image" else (self._case.label,)
            self._known[key] = content_sha256([part for part in parts if part is not None], self._case.frame)
        return self._known[key]

    def __contains__(self, key: object) -> bool:
        return key == "image" or (key == "label" and self._case.label is not None)

    def __iter__(self) -> Iterator[str]:
        return iter([key for key in ("image", "label") if key in self])

    def __len__(self) -> int:
        return 1 if self._case.label is None else 2


@dataclass(frozen=True)
class ManifestCase:
    """One case of the data set.

    Attributes:
        id: Safe name, unique in the manifest.
        case: Image and label, ready to be read.
        fold: Fold in which it is held out, 0 and up; ``None`` for test cases and sets too small for folds.
        group: What must stay together (a patient, a field of view); never a patient's data.
        sha256: ``{"image": ..., "label": ...}`` (see :func:`content_sha256`).
        split: ``training`` or ``test``.
        provenance: Where its label comes from, where somebody corrected one (see
            :mod:`unet_med.manifest.corrections`); JSON-able. Empty: nothing is known.
    """

    id: str
    case: Case
    fold: int | None
    group: str
    sha256: Mapping[str, str]
    split: Split = "training"
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """A data set: cases, what their labels mean, and folds.

    Attributes:
        name: Name of the set.
        labels: Label name -> value in the (remapped) label images, ``background`` included.
        channels: Names of the image's channels, in order.
        modality: DICOM modality (CT, MR, ...), if it is known and the same for all.
        task: ``semantic``: values are kinds of tissue. ``instance``: values are object ids.
        training: Labelled cases that folds are made of.
        test: Cases kept apart, with or without label.
        folds: Number of folds; 0 when the set is too small.
        label_values: Stored label value -> value meant, applied whenever a label is read.
        findings: Faults known when the manifest was made; training refuses a set with errors.
        regions: Overlapping regions of label values, outermost first, where the set is labelled so.
        ignore_label: Value of voxels that nobody labelled; it is no label.
        description, licence: Free text from the manifest.
    """

    name: str
    labels: dict[str, int]
    channels: tuple[str, ...]
    modality: str | None
    task: Task
    training: tuple[ManifestCase, ...]
    test: tuple[ManifestCase, ...] = ()
    folds: int = 5
    label_values: Mapping[int, int] | None = None
    findings: tuple[Finding, ...] = field(default=())
    regions: Mapping[str, tuple[int, ...]] | None = None
    ignore_label: int | None = None
    description: str = ""
    licence: str = ""

    @cached_property
    def digest(self) -> str:
        """sha256 over the contents of all cases, whatever their order and names."""
        lines = sorted(
            f"{case.split} {case.sha256['image']} {case.sha256.get('label', '-')}"
            for case in (*self.training, *self.test)
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def require_clean(self) -> None:
        """Refuses a set in which errors were found.

        Raises:
            InputRefusedError: with the first error found when the manifest was made.
        """
        errors = [finding for finding in self.findings if finding.severity == "error"]
        if errors:
            more = f" (and {len(errors) - 1} more findings)" if len(errors) > 1 else ""
            raise InputRefusedError(errors[0].what + more, errors[0].case, errors[0].remedy)


def verified(
    cases: Iterable[ManifestCase],
) -> tuple[list[ManifestCase], list[tuple[ManifestCase, InputRefusedError]]]:
    """Parts cases into those whose files are unchanged and the others with what :func:`verify` says of them."""
    unchanged: list[ManifestCase] = []
    changed: list[tuple[ManifestCase, InputRefusedError]] = []
    for case in cases:
        try:
            verify(case)
        except InputRefusedError as error:
            changed.append((case, error))
        else:
            unchanged.append(case)
    return unchanged, changed


def verify(case: ManifestCase) -> None:
    """Checks that the files of a case are still those that the manifest was made of.

    Raises:
        InputRefusedError: naming the case, when a file is missing or has changed.
    """
    if isinstance(case.sha256, LazyHashes):
        return
    parts: dict[str, tuple[SourceRef, ...]] = {"image": tuple(case.case.sources)}
    if case.case.label is not None:
        parts["label"] = (case.case.label,)
    if case.case.annotated is not None:
        parts["annotated"] = (case.case.annotated,)
    for key, sources in parts.items():
        if key not in case.sha256:
            continue
        try:
            found = content_sha256(sources, case.case.frame)
        except OSError:
            raise InputRefusedError(
                f"the {key} cannot be read any more", case.id, "restore the file, or make the manifest again"
            ) from None
        if found != case.sha256[key]:
            raise InputRefusedError(
                f"the {key} is not the one the manifest was made of (its sha256 differs)",
                case.id,
                "restore the file, or make the manifest again with `unet-med manifest`",
            )
