"""``unet-med correct``: masks that somebody corrected in a viewer go back into the data set as truth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError, NothingUsableError, UsageError
from unet_med.identity import file_sha256, stem_of
from unet_med.io.atomic import disk_errors, write_json
from unet_med.io.discover import restore_ref
from unet_med.io.edited_masks import EditedMask, read_edited
from unet_med.io.sinks import open_mask_sink
from unet_med.labels import LabelMap
from unet_med.manifest import Manifest, ManifestCase, content_sha256, load_manifest, save_manifest, verify
from unet_med.manifest.corrections import Correction, corrected
from unet_med.overlays import Picture
from unet_med.overlays.changes import change_preview
from unet_med.review.changes import label_changes, object_changes
from unet_med.version import __version__
from unet_med.workflows.attempt import attempted, check_places, exit_code
from unet_med.workflows.casefolder import output_name
from unet_med.workflows.correct_files import known_cases, mask_files, the_one
from unet_med.workflows.outcome import Outcome
from unet_med.workflows.progress import track
from unet_med.workflows.thumbnail import may_carry_a_name

MANIFEST, REPORT, PAGE, LABELS = "manifest.json", "report.json", "changes.html", "labels"
MADE_BY = "unet-med correct"
CHANGES = ("new", "changed", "unchanged")
MOST_PICTURES = 60
"""More cases than this are listed, not shown."""
_SHOWN = 20

LabelArray = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class ShownChange:
    """The picture of what became of a mask, or why there is none."""

    picture: Picture | None = None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class _Before:
    """A mask as it was.

    Attributes:
        labels: (I, J[, K]) values or numbers of objects; ``None``: there was none.
        classes: Class of each object, where known.
        origin: What is recorded of it.
    """

    labels: LabelArray | None = None
    classes: Mapping[int, int] | None = None
    origin: Mapping[str, Any] | None = None


def correct(data: Path, masks: Path, out: Path, before: Path | None = None, images: Path | None = None) -> Outcome:
    """Makes a data set in which corrected masks are the truth, and says what they changed.

    A mask belongs to the case whose id its file is called by (``ID.seg.nrrd``, ``ID.nii.gz``, ``ID.tif``,
    ``ID.geojson``; ``ID_label.nii.gz`` does, too). Nothing that lies in the folders is changed: each label is written
    anew, on the grid of its image. A case keeps its fold; an image without a label becomes a training case.

    Args:
        data: The manifest that knows the images.
        masks: A folder of corrected masks, or one.
        out: New folder for ``manifest.json``, ``labels/``, ``report.json`` and the page ``changes.html``.
        before: Folder of the masks as they were, for example of ``unet-med predict``; where there is none of a case
            its present label is what was before.
        images: Folder of images that the manifest does not list.

    Returns:
        ``{"cases": [...], "totals"}``; exit code 3 when a mask was refused.

    Raises:
        UsageError: ``out`` is not empty or lies in another folder, or the manifest cannot be read.
        NothingUsableError: no mask can be used.
        MachineError: the disk is full.
    """
    for folder, name in ((masks, "MASKS"), (before, "--before"), (images, "--images")):
        if folder is not None:
            check_places(folder, name, out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("the folder for the corrected data set is not empty", out.name, "name a new folder")
    manifest = load_manifest(data)
    known = known_cases(manifest, images)
    edited = mask_files(masks, known)
    earlier = {} if before is None else mask_files(before, known)
    if not edited:
        raise NothingUsableError("there is no mask in the folder", "MASKS", "give .seg.nrrd, NIfTI, TIFF or GeoJSON")
    job = _Job(manifest, out)
    records: list[dict[str, Any]] = []
    for name, paths in track(sorted(edited.items()), "taking over masks"):
        case = known.get(name)
        with attempted(case.id if case else name, "taken over") as record:
            job.take(*the_one(name, paths, case), earlier.get(name, ()), record)
        records.append(record)
    if not job.corrections:
        first = records[0]
        raise NothingUsableError(f"no mask can be used: {first['reason']}", first["id"], "correct it, then run again")
    save_manifest(corrected(manifest, job.corrections), out / MANIFEST)
    return _finish(out, manifest, records, job.shown)


def _finish(
    out: Path, manifest: Manifest, records: Sequence[dict[str, Any]], shown: Mapping[str, ShownChange]
) -> Outcome:
    from unet_med.workflows.correct_page import write_changes

    states = [record["status"] for record in records]
    kinds = [record["change"] for record in records if record["status"] == "done"]
    totals = {kind: kinds.count(kind) for kind in CHANGES} | {"refused": len(states) - states.count("done")}
    result = {"tool": MADE_BY, "version": __version__, "cases": list(records), "totals": totals}
    write_json(out / REPORT, result, REPORT)
    write_changes(out / PAGE, manifest.name, result, shown)
    lines = [", ".join(f"{count} {kind}" for kind, count in totals.items())]
    troubled = [record for record in records if record["status"] != "done"]
    lines += [f"{record['status']}: {record['id']}: {record['reason']}" for record in troubled[:_SHOWN]]
    lines += [
        f"{MANIFEST}, {LABELS}/, {REPORT} and {PAGE}: {out}",
        f"go on with: unet-med train PIPELINE.yaml --data {out / MANIFEST} --out RUN --start-from MODEL",
    ]
    return Outcome(result, lines, exit_code(states))


# ---- one case -------------------------------------------------------------------------------------------------------


class _Job:
    """Takes over one mask after the other.

    Attributes:
        corrections: Those that were taken over.
        shown: Case id -> what became of its mask, as a picture.
    """

    def __init__(self, manifest: Manifest, out: Path) -> None:
        self.corrections: list[Correction] = []
        self.shown: dict[str, ShownChange] = {}
        self._manifest = manifest
        self._names = manifest.labels
        self._out = out

    def take(self, case: ManifestCase, path: Path, earlier: Sequence[Path], record: dict[str, Any]) -> None:
        """Writes the new label of a case; puts into ``record`` what it changed.

        Raises:
            InputRefusedError: The mask does not fit its image, or the image is another one.
        """
        if case.id in self.shown:
            raise InputRefusedError("another mask of this image was taken over", case.id, "leave one in the folder")
        verify(replace(case, sha256={"image": case.sha256["image"]}))
        names = self._names_in(case, (path, *earlier))
        mask = read_edited(path, case.case, names)
        was = self._before(case, earlier, names)
        now = self._known(mask.labels)
        classes = self._classes(case, mask, now, was)
        record |= self._compared(case, was.labels, now)
        provenance = {
            "kind": "corrected",
            "format": mask.format,
            "file_sha256": file_sha256(path),
            "before": None if was.origin is None else dict(was.origin),
            "made_by": f"{MADE_BY} {__version__}",
            "added": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        shown = self._drawn(case, was.labels, now)
        written = self._write(case, mask, provenance)
        record["outputs"] = [f"{LABELS}/{written.name}"]
        record |= {"notes": [*mask.notes, *_left_unknown(case)], "provenance": provenance}
        label = replace(restore_ref({"id": case.id, "read": {}}, [written]), id=case.id)
        self.corrections.append(Correction(case, label, classes, provenance))
        self.shown[case.id] = shown

    def _names_in(self, case: ManifestCase, masks: Sequence[Path]) -> dict[str, int]:
        """Returns the names of labels: those of the set, and what the model calls them that made a mask."""
        names = dict(self._names)
        known = {" ".join(name.split()).casefold(): value for name, value in names.items()}
        for mask in masks:
            for entry in _beside(mask).get("labels", ()):
                name, value = str(entry["name"]), int(entry["value"])
                if known.get(" ".join(name.split()).casefold(), value) != value:
                    raise InputRefusedError(
                        f"the model that made the mask calls label {value} {name!r}, which is another label of the set",
                        case.id,
                        "predict with a model whose labels have the values of the set",
                    )
                if value in self._names.values():
                    names.setdefault(name, value)
        return names

    def _before(self, case: ManifestCase, earlier: Sequence[Path], names: Mapping[str, int]) -> _Before:
        """Returns the mask as it was: of the folder, else the present label, unless this was changed in its place."""
        if earlier:
            first = min(earlier, key=lambda path: path.name)  # of several formats of one mask any will do
            mask = read_edited(first, case.case, names)
            made_by = _beside(first).get("provenance", {}).get("model_sha256")
            origin = {"mask_sha256": file_sha256(first), "model_sha256": made_by}
            return _Before(self._known(mask.labels), mask.classes, origin)
        if case.case.label is None:
            return _Before()
        origin = {"label_sha256": case.sha256["label"]}
        if content_sha256([case.case.label], case.case.frame) != case.sha256["label"]:
            return _Before(origin=origin)
        return _Before(self._known(case.case.read_label()), case.case.classes, origin)

    def _known(self, labels: LabelArray) -> LabelArray:
        """Returns labels without the value of what nobody labelled."""
        ignored = self._manifest.ignore_label
        return labels if ignored is None else np.where(labels == ignored, 0, labels)

    def _classes(self, case: ManifestCase, mask: EditedMask, now: LabelArray, was: _Before) -> dict[int, int] | None:
        """Returns the class of each object: what the file says, else that of the same object before."""
        several = sum(value != 0 for value in self._names.values()) > 1
        if not case.case.instances or mask.classes is not None or not several:
            return mask.classes
        numbers: Mapping[int, int] = {} if was.labels is None else object_changes(was.labels, now).numbers
        before = was.classes or {}
        present = [int(number) for number in np.unique(now) if number]
        found = {number: before[numbers[number]] for number in present if numbers.get(number) in before}
        if len(found) < len(present):
            raise InputRefusedError(
                f"{len(present) - len(found)} objects have no class, and were not there before",
                case.id,
                "save outlines with classes (GeoJSON)",
            )
        return found

    def _compared(self, case: ManifestCase, was: LabelArray | None, now: LabelArray) -> dict[str, Any]:
        """Returns what became of a mask: ``change``, and ``labels`` or ``objects``."""
        before = np.zeros_like(now) if was is None else was
        record: dict[str, Any] = {}
        if case.case.instances:
            found = object_changes(before, now)
            record["objects"] = {kind: getattr(found, kind) for kind in ("kept", "changed", "added", "removed")}
            same = not (found.changed or found.added or found.removed)
        else:
            changes = label_changes(before, now, self._names)
            record["labels"] = [vars(one) | {"dice": one.dice} for one in changes]
            same = bool((before == now).all())
        return record | {"change": "new" if was is None else "unchanged" if same else "changed"}

    def _write(self, case: ManifestCase, mask: EditedMask, provenance: Mapping[str, Any]) -> Path:
        """Writes a label as the files of the set hold it; returns the file."""
        stored = mask.labels if case.case.instances else _as_stored(mask.labels, self._manifest.label_values)
        target = self._out / LABELS / output_name(case.id)
        with disk_errors(case.id):
            target.parent.mkdir(parents=True, exist_ok=True)
        sink = open_mask_sink(case.case.reference_source(), target, LabelMap.from_names(self._names), provenance)
        try:
            sink.write(None, stored)
            return sink.close()[0]
        except BaseException:
            sink.abort()
            raise

    def _drawn(self, case: ManifestCase, was: LabelArray | None, now: LabelArray) -> ShownChange:
        if len(self.shown) >= MOST_PICTURES:
            return ShownChange(reason=f"not shown: there are more than {MOST_PICTURES}")
        if any(may_carry_a_name(source) for source in case.case.sources):
            return ShownChange(reason="not shown: text in the pixels may tell a name")
        volume, before = case.case.read(), np.zeros_like(now) if was is None else was
        if case.case.instances:
            now = object_changes(before, now).aligned
        labels = LabelMap.from_names(self._names, objects=case.case.instances)
        place = volume.geometry
        return ShownChange(change_preview(volume.array, before, now, place.spacing_mm, labels, place.orientation))


def _left_unknown(case: ManifestCase) -> list[str]:
    if case.case.annotated is None:
        return []
    return ["nothing is learnt from where nobody had labelled, whatever the mask holds there"]


def _beside(mask: Path) -> dict[str, Any]:
    """Returns the JSON that ``unet-med predict`` wrote beside a mask; nothing where there is none."""
    try:
        told = json.loads(mask.with_name(f"{stem_of(mask)}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) and told.get("tool") == "unet-med" else {}


def _as_stored(labels: LabelArray, label_values: Mapping[int, int] | None) -> LabelArray:
    """Returns the values that a manifest reads as ``labels``."""
    if label_values is None:
        return labels
    stored = {0: 0} | {meant: value for value, meant in sorted(label_values.items(), reverse=True)}
    present, inverse = np.unique(labels, return_inverse=True)
    table = np.array([stored.get(int(value), int(value)) for value in present], dtype=np.uint16)
    return table[inverse].reshape(labels.shape)
