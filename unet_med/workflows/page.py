"""``unet-med page``: an output folder as pages to look through, to accept and to reject."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unet_med.bundle import read_bundle_info
from unet_med.errors import UnetMedError, UsageError
from unet_med.identity import case_tag
from unet_med.io.atomic import remove, whole_file
from unet_med.labels import Label, LabelMap
from unet_med.manifest import load_manifest
from unet_med.review.case_page import CaseFacts, case_page
from unet_med.review.facts import number, sections
from unet_med.review.folder_page import Entry, FolderFacts, folder_page
from unet_med.review.need import FIRST, need_of
from unet_med.review.pictures import Small, small
from unet_med.workflows.casefolder import MODELS, REPORT, about_model, output_name
from unet_med.workflows.journal import FOLDER, JOURNAL, PAGES, Journal
from unet_med.workflows.outcome import Outcome
from unet_med.workflows.page_voxels import Seen, Truth, holds_dicom, object_columns, seen_of
from unet_med.workflows.progress import track

logger = logging.getLogger(__name__)

INDEX = "index.html"
CASES = "cases"

_SIDES = ((120, 144), (400, 96))
_SMALL_SIDE = 72
"""Pixels of a small picture's longest side, by the number of cases: the page of hundreds stays a megabyte or two."""
_MOST_TOLD = 3
_COMPARED = "Dashed white lines are the true labels."


def page(out: Path, model: str | None = None, data: Path | None = None, pdf: bool = False) -> Outcome:
    """Writes a page for each case of an output folder, and one for all of them.

    Args:
        out: Output folder of ``predict``, ``evaluate`` or ``run``. Images are shown where they still lie where they
            did.
        model: The model, for its card; of folders that older versions made. Bundle, run folder, or MLflow address.
        data: Manifest of the cases; their true labels are drawn, too.
        pdf: Write each page as a PDF, too.

    Raises:
        UsageError: when the folder holds no predictions, or the model is another one.
        MachineError: when the disk is full.
    """
    folder = _Folder.open(out, model, {} if data is None else _truths(data))
    ids = [str(record["id"]) for record in folder.records]
    side = next((side for count, side in _SIDES if len(ids) <= count), _SMALL_SIDE)
    pages = out / PAGES
    for stale in sorted((pages / CASES).glob("*")):
        remove(stale)
    entries, blind = [], 0
    for record in track(folder.records, "making pages"):
        facts = folder.facts(record)
        name = output_name(facts.id)
        _write(pages / CASES / f"{name}.html", case_page(facts), facts.id)
        if pdf:
            from unet_med.review.case_pdf import case_pdf

            _write(pages / CASES / f"{name}.pdf", case_pdf(facts), facts.id)
        entries.append(Entry(facts.need, f"{CASES}/{name}.html", _small(facts, side), _told(record)))
        blind += bool(facts.missing and record["status"] == "done")
    _write(pages / INDEX, folder_page(entries, folder.about()), INDEX)
    first = [entry.need for entry in entries if entry.need.group == FIRST]
    result = {
        "pages": f"{PAGES}/{INDEX}",
        "cases": len(entries),
        "look_at": [need.id for need in sorted(first)],
        "without_image": blind,
    }
    lines = [f"{len(entries)} {'case' if len(entries) == 1 else 'cases'}, {len(first)} to look at first"]
    lines += [f"{blind} without their image: each page says why"] if blind else []
    return Outcome(result, [*lines, f"open {pages / INDEX}"])


def with_pages(outcome: Outcome, out: Path) -> Outcome:
    """Makes the pages of what was just predicted, and says so after what is said of that."""
    return replace(outcome, lines=[*outcome.lines, *page(out).lines])


@dataclass(frozen=True)
class _Folder:
    """An output folder as it is read.

    Attributes:
        out: The folder.
        job: What was asked for.
        records: Of each case, those that were refused at once included.
        models: What each model says of itself.
        files: Files of each source or case.
        truths: True labels by case.
    """

    out: Path
    job: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    models: Sequence[Mapping[str, Any]]
    files: Mapping[str, Sequence[str]]
    truths: Mapping[str, Truth]

    @classmethod
    def open(cls, out: Path, model: str | None, truths: Mapping[str, Truth]) -> _Folder:
        job = _read(out / JOURNAL).get("job") or {}
        if "model_sha256" not in job:
            raise UsageError(
                "the folder holds no predictions", out.name, "give what `unet-med predict` or `evaluate` wrote"
            )
        records = Journal(out, job, fresh=False).records()
        report = _read(out / REPORT).get("cases") or ()
        others = [entry for entry in report if entry["id"] not in records]
        models = _read(out / FOLDER / MODELS).get("models") or []
        if model is not None:
            info = read_bundle_info(model)
            if info.sha256 not in job["model_sha256"]:
                raise UsageError("another model made these masks", "--model", "give that one, or leave --model out")
            models = [about_model(info)]
        files = _read(out / FOLDER / "files.json")
        return cls(out, job, [*records.values(), *others], models, files, truths)

    def facts(self, record: Mapping[str, Any]) -> CaseFacts:
        """Returns what the page of a case shows."""
        outputs = record.get("outputs") or ()
        sidecar = self._sidecar(outputs)
        labels = _labels(sidecar)
        table = object_columns(self.out, outputs) if "objects" in record else None
        seen = self._seen(record, sidecar)
        confidence = [] if table is None else [float(one) for one in table["confidence"] if one == one]
        return CaseFacts(
            need_of(record, confidence),
            sections(record, sidecar, self.models),
            labels,
            seen.view,
            b"" if seen.private else self._preview(record),
            seen.missing,
            table,
            _COMPARED if seen.view is not None and seen.view.reference is not None else "",
        )

    def about(self) -> FolderFacts:
        """Returns what the page of the folder says of itself."""
        shas = [str(sha) for sha in self.job["model_sha256"]]
        names = ", ".join(str(model.get("name")) for model in self.models)
        told = f"Masks by {names}, model {shas[0][:12]}." if names else f"Masks by model {shas[0][:12]}."
        made = sorted(f"{record['id']} {record.get('recorded')}" for record in self.records)
        key = hashlib.sha256("\n".join([*shas, *made]).encode()).hexdigest()[:20]
        return FolderFacts(f"unet-med review {key}", shas[0], told)

    def _preview(self, record: Mapping[str, Any]) -> bytes:
        """Returns the picture that prediction drew of a case; nothing where there is none."""
        name = next((name for name in record.get("outputs") or () if name.startswith("previews/")), None)
        path = None if name is None else self.out / name
        return path.read_bytes() if path is not None and path.is_file() else b""

    def _sidecar(self, outputs: Sequence[str]) -> Mapping[str, Any]:
        """Returns the JSON beside the mask."""
        for name in outputs:
            if name.endswith(".json"):
                content = _read(self.out / name)
                if "provenance" in content:
                    return content
        return {}

    def _seen(self, record: Mapping[str, Any], sidecar: Mapping[str, Any]) -> Seen:
        if record["status"] != "done":
            return Seen(None, "There is no mask.")
        try:
            return seen_of(self.out, record, sidecar, self.files, self.truths.get(str(record["id"])))
        except (UnetMedError, MemoryError) as error:
            logger.info("%s is not shown (%s)", case_tag(str(record["id"])), type(error).__name__)
            why = error.what if isinstance(error, UnetMedError) else "out of memory"
            return Seen(None, f"The slices are not shown: {why}.", holds_dicom(sidecar))


def _truths(data: Path) -> dict[str, Truth]:
    """Returns the true labels of a manifest's cases."""
    manifest = load_manifest(data)
    known = (entry.case for entry in (*manifest.training, *manifest.test) if entry.case.label is not None)
    return {case.id: Truth(case, manifest.ignore_label) for case in known}


def _labels(sidecar: Mapping[str, Any]) -> LabelMap:
    """Returns the labels as the JSON beside a mask tells them."""
    labels = []
    for entry in sidecar.get("labels") or ():
        red, green, blue = (int(part) for part in entry["colour"])
        labels.append(Label(int(entry["value"]), str(entry["name"]), (red, green, blue)))
    return LabelMap(tuple(labels))


def _small(facts: CaseFacts, side: int) -> Small | None:
    return None if facts.view is None else small(facts.view, facts.colour, side)


def _told(record: Mapping[str, Any]) -> str:
    """Returns the sizes of the first labels, or how many objects there are."""
    counts: dict[str, int] = {}
    for row in record.get("objects") or ():
        counts[row["class"]] = counts.get(row["class"], 0) + row["objects"]
    if counts:
        return ", ".join(f"{count:,} {name}" for name, count in list(counts.items())[:_MOST_TOLD])
    rows = [row for row in record.get("volumes") or () if row.get("frame") is None][:_MOST_TOLD]
    return ", ".join(f"{row['label']} {number(row['value'])} {row['unit']}" for row in rows)


def _write(path: Path, content: str | bytes, where: str) -> None:
    with whole_file(path, where) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
