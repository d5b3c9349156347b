"""Manifests on disk: Decathlon JSON, and a private table for the files of DICOM cases: they may name patients."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from unet_med.errors import InputRefusedError, MachineError, UsageError
from unet_med.identity import safe_name, stem_of, unique_ids, write_private_table
from unet_med.io.cases import COLOURS_OR_GREYS, Case
from unet_med.io.discover import restore_ref
from unet_med.io.object_truth import MASK_FILES, OBJECT_KINDS, restored_object_ref
from unet_med.io.source import DICOM_KINDS, SourceRef
from unet_med.manifest.channels import absent_channels
from unet_med.manifest.description import (
    described_channels,
    described_labels,
    described_licence,
    described_modality,
)
from unet_med.manifest.folds import assign_folds
from unet_med.manifest.model import Finding, LazyHashes, Manifest, ManifestCase, Split
from unet_med.manifest.object_classes import as_text, from_text

SCHEMA_VERSION = 1
DEFAULT_FOLDS = 5
_DICOM = "dicom/"
_PRIVATE = "private/"
_TABLE_SUFFIX = ".sources.json"


def table_path(manifest: Path) -> Path:
    """Returns where the private table of a manifest lies: ``M.json`` -> ``M.json.sources.json``."""
    return manifest.with_name(manifest.name + _TABLE_SUFFIX)


# ---- writing ------------------------------------------------------------------------------------------------------


def save_manifest(manifest: Manifest, path: Path) -> list[Path]:
    """Writes a manifest, and beside it the private table (mode 0600) when there are DICOM sources.

    Args:
        manifest: The data set.
        path: The JSON file; its folder is made. An older file of this name is replaced.

    Returns:
        The files written.

    Raises:
        MachineError: if the disk is full.
    """
    table: dict[str, list[str]] = {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = path.parent.resolve()
        data = _to_json(manifest, folder, table)
        temporary = path.with_name(path.name + ".part")
        temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if table:
            write_private_table(table_path(path), table)
        else:
            table_path(path).unlink(missing_ok=True)
        temporary.replace(path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise MachineError("the disk is full", "writing the manifest", "free some space, then run again") from error
        raise UsageError(f"cannot write the manifest: {error.strerror}", path.name, "choose another --out") from error
    return [path, table_path(path)] if table else [path]


def _to_json(manifest: Manifest, folder: Path, table: dict[str, list[str]]) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": manifest.name,
        "description": manifest.description,
        "licence": manifest.licence,
        "tensorImageSize": _tensor_size(manifest),
        "modality": {str(index): manifest.modality or name for index, name in enumerate(manifest.channels)},
        "channel_names": {str(index): name for index, name in enumerate(manifest.channels)},
        "labels": {str(value): name for name, value in sorted(manifest.labels.items(), key=lambda item: item[1])},
        "numTraining": len(manifest.training),
        "numTest": len(manifest.test),
        "unet_med_schema": SCHEMA_VERSION,
        "task": manifest.task,
        "folds": manifest.folds,
    }
    if manifest.label_values:
        data["label_values"] = {str(stored): meant for stored, meant in sorted(manifest.label_values.items())}
    if manifest.regions:
        data["regions"] = {name: list(members) for name, members in manifest.regions.items()}
    if manifest.ignore_label is not None:
        data["ignore_label"] = manifest.ignore_label
    if manifest.findings:
        data["findings"] = [vars(finding) for finding in manifest.findings]
    data["training"] = [_entry(case, folder, table) for case in manifest.training]
    data["test"] = [_entry(case, folder, table) for case in manifest.test]
    return data


def _tensor_size(manifest: Manifest) -> str:
    cases = manifest.training or manifest.test
    geometry = cases[0].case.sources[0].geometry if cases else None
    return "2D" if geometry is not None and geometry.ndim == 2 else "3D"


def _entry(case: ManifestCase, folder: Path, table: dict[str, list[str]]) -> dict[str, Any]:
    label = case.case.label
    clinical = any(source.kind in DICOM_KINDS for source in (*case.case.sources, *([] if label is None else [label])))
    names = [f"{case.id}-image{number}" if clinical else "" for number in range(len(case.case.sources))]
    images = [_pointer(source, folder, table, name) for source, name in zip(case.case.sources, names, strict=True)]
    entry: dict[str, Any] = {"image": images[0] if len(images) == 1 else images}
    if label is not None:
        entry["label"] = _pointer(label, folder, table, f"{case.id}-label" if clinical else "")
    if case.case.annotated is not None:
        entry["annotated"] = _pointer(case.case.annotated, folder, table, f"{case.id}-annotated" if clinical else "")
    if case.case.classes is not None:
        entry["classes"] = as_text(case.case.classes)
    entry["id"] = case.id
    if case.fold is not None:
        entry["fold"] = case.fold
    entry["group"] = case.group
    entry["sha256"] = dict(case.sha256)
    if case.provenance:
        entry["provenance"] = dict(case.provenance)
    if case.case.frame is not None:
        entry["frame"] = case.case.frame
    read = {"image": [dict(source.read_as) for source in case.case.sources]}
    label_read = dict(label.read_as) if label is not None else {}
    if any(read["image"]) or label_read:
        entry["read"] = {**read, "label": label_read}
    if case.case.annotated is not None and case.case.annotated.read_as:
        entry.setdefault("read", {"image": [], "label": {}})["annotated"] = dict(case.case.annotated.read_as)
    return entry


def _pointer(source: SourceRef, folder: Path, table: dict[str, list[str]], private: str) -> str:
    """Path of a file, or its key in the private table: all files of a DICOM case have names that may be a patient's."""
    if source.kind in DICOM_KINDS:
        key = _DICOM + source.id
    elif private:
        key = _PRIVATE + private
    else:
        return _relative(_place(source)[0], folder)
    table[key] = [_relative(file, folder) for file in _place(source)]
    return key


def _place(source: SourceRef) -> tuple[Path, ...]:
    """Returns what a manifest names: the files of a source, or the folder where one mask for each object lies."""
    return (source.files[0].parent,) if source.kind == MASK_FILES else source.files


def _relative(file: Path, folder: Path) -> str:
    """POSIX path from the folder to the file; absolute where there is no way (another drive)."""
    absolute = file.parent.resolve() / file.name
    try:
        return PurePosixPath(Path(os.path.relpath(absolute, folder)).as_posix()).as_posix()
    except ValueError:
        return absolute.as_posix()


# ---- reading ------------------------------------------------------------------------------------------------------


def load_manifest(path: Path) -> Manifest:
    """Reads a manifest: ours, or any Decathlon JSON with ``training`` (and ``test``) lists.

    Only headers are read. A file without folds gets five deterministic ones; a file without hashes computes them
    when they are asked for.

    Args:
        path: The JSON file; paths in it are relative to its folder.

    Raises:
        UsageError: if the file is no manifest.
        InputRefusedError: if files are missing or cannot be read, naming the first case.
    """
    data = _parse(path)
    reader = _Reader(path, data)
    training = reader.cases("training")
    if not training and not data.get("test"):
        raise UsageError("the manifest lists no case", path.name, "make one with `unet-med manifest FOLDER`")
    test = reader.cases("test")
    training, folds = _with_folds(training, data.get("folds"))
    channels = _channels(data, (*training, *test))
    told = described_labels(data, path.name)
    absent = [] if "unet_med_schema" in data else absent_channels(training, channels)
    return Manifest(
        name=safe_name(str(data.get("name") or path.stem)),
        labels=told.labels,
        channels=channels,
        modality=described_modality(data),
        task="instance" if data.get("task") == "instance" else "semantic",
        training=training,
        test=test,
        folds=folds,
        label_values=reader.label_values,
        findings=(*_findings(data), *absent),
        regions=told.regions,
        ignore_label=told.ignore,
        description=str(data.get("description", "")),
        licence=described_licence(data),
    )


def _parse(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UsageError(
            "cannot read the manifest", path.name, "give a JSON file made by `unet-med manifest FOLDER --out M.json`"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise UsageError("the manifest is no valid JSON", path.name, "make it again with `unet-med manifest`") from None
    if not isinstance(data, dict) or not isinstance(data.get("training", []), list) or "training" not in data:
        raise UsageError(
            "the file has no list 'training'",
            path.name,
            "give a Decathlon JSON, or make a manifest of the folder with `unet-med manifest FOLDER --out M.json`",
        )
    if int(data.get("unet_med_schema", SCHEMA_VERSION)) > SCHEMA_VERSION:
        raise UsageError("the manifest is of a newer version of unet-med", path.name, "update unet-med")
    return data


class _Reader:
    """Turns entries into cases; each file is inspected once."""

    def __init__(self, path: Path, data: Mapping[str, Any]) -> None:
        self._folder = path.parent.resolve()
        self._data = data
        self._name = path.name
        self._table_file = table_path(path)
        self._table: dict[str, list[str]] | None = None
        self._known: dict[str, SourceRef] = {}
        self._instances = data.get("task") == "instance"
        self._unlabelled = described_labels(data, path.name).ignore
        self._colour = described_channels(data) == COLOURS_OR_GREYS
        self.label_values = _label_values(data, path.name)

    def cases(self, split: Split) -> tuple[ManifestCase, ...]:
        """Returns the cases of one list."""
        raw = self._data.get(split) or []
        entries = [{"image": entry} if isinstance(entry, str) else entry for entry in raw]
        for number, entry in enumerate(entries):
            if not isinstance(entry, Mapping) or not entry.get("image"):
                raise UsageError(f"entry {number} of '{split}' has no image", self._name, "correct the manifest")
        wanted = [str(entry.get("id") or _id_of(entry)) for entry in entries]
        return tuple(
            self._case(case_id, entry, split) for case_id, entry in zip(unique_ids(wanted), entries, strict=True)
        )

    def _case(self, case_id: str, entry: Mapping[str, Any], split: Split) -> ManifestCase:
        images = [entry["image"]] if isinstance(entry["image"], str) else list(entry["image"])
        read = entry.get("read") or {}
        reads = read.get("image") or [{}] * len(images)
        names = [case_id] if len(images) == 1 else [f"{case_id}_{index:04d}" for index in range(len(images))]
        sources = tuple(
            self._source(name, image, how, case_id, part)
            for name, image, how, part in zip(names, images, reads, self._parts(len(images)), strict=True)
        )
        label, annotated = (
            self._source(case_id, str(entry[part]), read.get(part) or {}, case_id, part) if entry.get(part) else None
            for part in ("label", "annotated")
        )
        case = Case(
            case_id,
            sources,
            label,
            entry.get("frame"),
            self.label_values,
            self._instances,
            classes=from_text(entry.get("classes"), self._name),
            annotated=annotated,
            unlabelled=self._unlabelled,
            colour=self._colour,
        )
        hashes = entry.get("sha256")
        return ManifestCase(
            id=case_id,
            case=case,
            fold=None if split == "test" or entry.get("fold") is None else int(entry["fold"]),
            group=str(entry.get("group", case_id)),
            sha256=dict(hashes) if isinstance(hashes, Mapping) and "image" in hashes else LazyHashes(case),
            split=split,
            provenance=dict(entry.get("provenance") or {}),
        )

    def _parts(self, count: int) -> list[str]:
        """What the images of a case are called in messages: by their channels where there are several."""
        named = described_channels(self._data)
        if count == 1 or len(named) != count:
            return ["image"] * count
        return [f"image of channel {name!r}" for name in named]

    def _source(self, name: str, pointer: str, how: Mapping[str, Any], case_id: str, part: str) -> SourceRef:
        key = json.dumps([pointer, dict(how), name if pointer.startswith(_DICOM) else ""], sort_keys=True)
        if key not in self._known:
            files = self._files(pointer, case_id)
            if not all(file.exists() for file in files):
                raise InputRefusedError(
                    f"the {part} is missing", case_id, "put the files back where they were, or make the manifest again"
                )
            own = pointer.removeprefix(_DICOM) if pointer.startswith(_DICOM) else name
            outlines = how.get("objects") in OBJECT_KINDS
            self._known[key] = (
                restored_object_ref(how, files[0], own)
                if outlines
                else restore_ref({"id": own, "read": dict(how)}, files)
            )
        ref = self._known[key]
        if not ref.usable:
            raise InputRefusedError(f"the {part} cannot be used", case_id, ref.reason)
        return ref

    def _files(self, pointer: str, case_id: str) -> list[Path]:
        if not pointer.startswith((_DICOM, _PRIVATE)):
            return [self._folder / pointer]
        if self._table is None:
            try:
                self._table = json.loads(self._table_file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                raise InputRefusedError(
                    f"the table of DICOM files {self._table_file.name} is not beside the manifest",
                    case_id,
                    "copy it there (it is private: it may hold patients' names), or make the manifest again",
                ) from None
        if pointer not in self._table:
            raise InputRefusedError(
                f"the table {self._table_file.name} does not know this case", case_id, "make the manifest again"
            )
        return [self._folder / file for file in self._table[pointer]]


def _id_of(entry: Mapping[str, Any]) -> str:
    """Stem of the label (nnU-Net channels carry ``_0000``), else of the image."""
    image = entry["image"]
    if not isinstance(image, str):
        image = str(image[0])
        stem = stem_of(Path(image))
        return safe_name(stem[:-5] if stem[-5:-4] == "_" and stem[-4:].isdigit() else stem)
    return safe_name(stem_of(Path(image)))


def _with_folds(cases: tuple[ManifestCase, ...], stored: object) -> tuple[tuple[ManifestCase, ...], int]:
    folds = [case.fold for case in cases]
    if cases and None not in folds:
        return cases, max(
            int(stored) if isinstance(stored, int) else 0, *(fold + 1 for fold in folds if fold is not None), 1
        )
    if stored == 0:
        return cases, 0
    wanted = stored if isinstance(stored, int) else DEFAULT_FOLDS
    chosen = assign_folds({case.id: case.group for case in cases}, wanted)
    new = tuple(replace(case, fold=chosen.get(case.id)) for case in cases)
    return new, len(set(chosen.values()))


def _label_values(data: Mapping[str, Any], where: str) -> dict[int, int] | None:
    raw = data.get("label_values")
    if not raw:
        return None
    try:
        return {int(stored): int(meant) for stored, meant in raw.items()}
    except (TypeError, ValueError, AttributeError):
        raise UsageError(
            "label_values of the manifest are no whole numbers", where, 'write them as {"255": 1}'
        ) from None


def _channels(data: Mapping[str, Any], cases: Sequence[ManifestCase]) -> tuple[str, ...]:
    named = described_channels(data)
    if named:
        return named
    return tuple(f"channel_{index}" for index in range(cases[0].case.channels if cases else 1))


def _findings(data: Mapping[str, Any]) -> tuple[Finding, ...]:
    return tuple(_finding(item) for item in data.get("findings", ()) if isinstance(item, Mapping))


def _finding(item: Mapping[str, Any]) -> Finding:
    return Finding(
        case=str(item.get("case", "")),
        severity="warning" if item.get("severity") == "warning" else "error",
        what=str(item.get("what", "")),
        remedy=str(item.get("remedy", "")),
        kind=str(item.get("kind", "")),
    )
