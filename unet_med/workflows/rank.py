"""``unet-med rank``: which images of a folder to label next, by a model's uncertainty and by how unlike they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from unet_med import __version__
from unet_med.bundle import BundleInfo, load_bundles, read_bundle_info
from unet_med.errors import NothingUsableError
from unet_med.inference.predictor import Predictor
from unet_med.inference.quality.evidence import CaseEvidence
from unet_med.io.atomic import whole_file, write_json
from unet_med.io.cases import Case
from unet_med.io.discover import discover
from unet_med.io.export.sidecars import RESEARCH_ONLY
from unet_med.io.grouping import group_cases
from unet_med.io.source import IntakeOptions
from unet_med.manifest import load_manifest
from unet_med.review.explaining.view import prepared_for
from unet_med.review.ranking import case_uncertainty, image_features, ranked
from unet_med.workflows.attempt import attempted, check_places, exit_code
from unet_med.workflows.casefolder import write_table
from unet_med.workflows.dispatch import files_of
from unet_med.workflows.journal import Journal, file_key, folder_key, input_state, open_job
from unet_med.workflows.outcome import Outcome
from unet_med.workflows.progress import track
from unet_med.workflows.rank_page import PAGE, page

RESULT = "ranking.json"
TABLE = "ranking.csv"
_COLUMNS = ("rank", "id", "score", "uncertainty", "diversity", "why")
_LABELLED = "labelled."
_SHOWN = 10


def rank(
    model: str,
    folder: Path,
    out: Path,
    also: Sequence[str] = (),
    labelled: Path | None = None,
    device: str = "auto",
    intake: IntakeOptions = IntakeOptions(),  # noqa: B008
    overwrite: bool = False,
) -> Outcome:
    """Orders the images of a folder for labelling: the first ones are the batch to label next, however many they are.

    Args:
        model: Bundle folder, run folder, or an MLflow address.
        folder: Folder of images; only read. Of several frames the middle one counts.
        out: Receives ``ranking.csv``, ``ranking.json`` and ``ranking.html`` with thumbnails. The same command again
            goes on where it stopped.
        also: More models, whose disagreement counts, too.
        labelled: Manifest of what is labelled already: its images are left out, and what is like them comes later.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        intake: How images are read.
        overwrite: Replace what an earlier job left in ``out``.

    Returns:
        ``{"ranking": [{"rank", "id", "score", "uncertainty", "diversity", "why"}], "refused", "labelled"}``; exit code
        3 when some images could not be used.

    Raises:
        UsageError: for an ``out`` that lies in the folder or belongs to another job.
        ModelError: when a model cannot be loaded.
        NothingUsableError: when no image can be used.
        MachineError: when the disk is full or memory ran out; what was finished is kept.
    """
    check_places(folder, "FOLDER", out)
    infos = [read_bundle_info(name) for name in (model, *also)]
    manifest = None if labelled is None else load_manifest(labelled)
    known = () if manifest is None else tuple(one.case for one in manifest.training)
    taken = {path.resolve() for case in known for path in files_of(case)}
    discovery = discover(folder, intake, track)
    cases = [
        case
        for case in group_cases(discovery.usable, infos[0].channels)
        if taken.isdisjoint(path.resolve() for path in files_of(case))
    ]
    refused = [{"id": one.id, "reason": one.reason} for one in discovery.sources if not one.usable]
    if not cases:
        raise NothingUsableError(
            "no image is left to be ranked" if taken else "no image was found",
            "FOLDER",
            "give a folder with images that are not labelled yet; `unet-med scan` says what is in it",
        )
    job = {
        "command": "rank",
        "model_sha256": [info.sha256 for info in infos],
        "input": folder_key(folder),
        "labelled": None if labelled is None else file_key(labelled),
        "intake": asdict(intake),
    }
    journal = open_job(out, job, overwrite)
    measured = _Measured(journal, infos, device)
    try:
        measured.all(((case.id, case) for case in cases), len(cases), "looking at images", unsure=True)
        measured.all(((_LABELLED + case.id, case) for case in known), len(known), "looking at what is labelled")
    finally:
        journal.release_all()
    result = _result(infos, journal.records(), cases, known, refused)
    pictures = {case.id: case.sources[0] for case in cases}
    write_json(out / RESULT, result, RESULT)
    write_table(out / TABLE, _COLUMNS, result["ranking"])
    with whole_file(out / PAGE, PAGE) as part:
        part.write_text(page(result, pictures), encoding="utf-8")
    states = ["done"] * len(result["ranking"]) + ["refused"] * len(result["refused"])
    return Outcome(result, _lines(result, out), exit_code(states))


class _Measured:
    """Looks at cases, each once; what is seen is kept in the journal."""

    def __init__(self, journal: Journal, infos: Sequence[BundleInfo], device: str) -> None:
        self._journal = journal
        self._infos = infos
        self._device = device

    @cached_property
    def _predictor(self) -> Predictor:
        return Predictor([bundle for info in self._infos for bundle in load_bundles(info.folder)], self._device)

    def all(self, cases: Iterable[tuple[str, Case]], count: int, told: str, *, unsure: bool = False) -> None:
        """Looks at all cases, named for the journal; ``unsure``: predicts them, too."""
        for name, case in track(cases, told, count):
            if self._journal.is_done(name, files_of(case)):
                continue
            claim = self._journal.claim(name)
            if claim is None:
                continue  # another process looks at it
            with attempted(name, "looked at") as record:
                record["input"] = input_state(files_of(case))
                record |= self._seen(case, unsure=unsure)
            self._journal.finish(claim, record)

    def _seen(self, case: Case, *, unsure: bool) -> dict[str, Any]:
        """Returns what an image is like, and how unsure the models are of it."""
        volume = case.look(case.frames[len(case.frames) // 2])
        predictor = self._predictor
        model = predictor.models[0]
        found: dict[str, Any] = {}
        if unsure:
            evidence = CaseEvidence(predictor.labels)
            predictor.predict(volume, evidence=evidence)
            assessment = predictor.assessor.assess(evidence)
            uncertainty, why = case_uncertainty(assessment, evidence.features())
            found = {"uncertainty": uncertainty, "why": why, "unusual": assessment.unusual}
        return found | {"features": image_features(model, prepared_for(model, volume)).tolist()}


def _result(
    infos: Sequence[BundleInfo],
    records: Mapping[str, Mapping[str, Any]],
    cases: Sequence[Case],
    known: Sequence[Case],
    refused: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    done = [records[case.id] for case in cases if records.get(case.id, {}).get("status") == "done"]
    troubled = [
        {"id": case.id, "reason": records.get(case.id, {}).get("reason") or "another process is looking at it"}
        for case in cases
        if records.get(case.id, {}).get("status") != "done"
    ]
    seen = [records.get(_LABELLED + case.id, {}) for case in known]
    others = [one["features"] for one in seen if one.get("status") == "done"]
    order = []
    if done:
        features = np.array([one["features"] for one in done], dtype=np.float64)
        order = ranked([one["uncertainty"] for one in done], features, np.array(others) if others else None)
    return {
        "tool": "unet-med",
        "version": __version__,
        "use": RESEARCH_ONLY,
        "model_sha256": [info.sha256 for info in infos],
        "labelled": len(others),
        "ranking": [
            {
                "rank": number,
                "id": done[one.place]["id"],
                "score": round(one.score, 6),
                "uncertainty": round(one.uncertainty, 6),
                "diversity": round(one.diversity, 6),
                "why": "; ".join([done[one.place]["why"], *done[one.place]["unusual"]]),
            }
            for number, one in enumerate(order, start=1)
        ],
        "refused": [*refused, *troubled],
    }


def _lines(result: Mapping[str, Any], out: Path) -> list[str]:
    lines = [f"{'rank':>4} {'score':>6} {'unsure':>6} {'unlike':>6}   image"]
    for row in result["ranking"][:_SHOWN]:
        numbers = f"{row['rank']:>4} {row['score']:>6.3f} {row['uncertainty']:>6.3f} {row['diversity']:>6.3f}"
        lines.append(f"{numbers}   {row['id']}: {row['why']}")
    if len(result["ranking"]) > _SHOWN:
        lines.append(f"... and {len(result['ranking']) - _SHOWN} more in {TABLE}")
    if result["labelled"]:
        lines.append(f"compared with {result['labelled']} images that are labelled already")
    lines += [f"refused: {one['id']}: {one['reason']}" for one in result["refused"][:_SHOWN]]
    if len(result["refused"]) > _SHOWN:
        lines.append(f"... and {len(result['refused']) - _SHOWN} more refused in {RESULT}")
    return [*lines, f"{TABLE}, {RESULT} and {PAGE}: {out}", "Research use only"]
