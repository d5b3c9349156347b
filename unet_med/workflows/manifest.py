"""`unet-med manifest`: pair images with labels, hash them, store folds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from unet_med.identity import safe_name, stem_of
from unet_med.io.discover import discover
from unet_med.io.source import IntakeOptions
from unet_med.manifest import BuildOptions, BuildReport, Manifest, build_manifest, save_manifest
from unet_med.manifest.nnunet import SPLITS
from unet_med.manifest.nnunet_raw import write_raw
from unet_med.workflows.outcome import DONE, SOME_REFUSED, Outcome
from unet_med.workflows.progress import track

_SHOWN = 10


def make_manifest(
    folder: Path,
    out: Path,
    images: str | None = None,
    labels: str | None = None,
    folds: int = 5,
    group_by: str | None = None,
    task: Literal["semantic", "instance"] | None = None,
    label_values: str | None = None,
    label_names: str | None = None,
    classes: Path | None = None,
    ignore_label: int | None = None,
    nnunet: Path | None = None,
    intake: IntakeOptions = IntakeOptions(),  # noqa: B008
) -> Outcome:
    """Writes the manifest of a folder and says what was paired and what is left over.

    A set whose labels are faulty is written, too, with the findings in it: `check --fix` works on it, training
    refuses it, and the exit code is 3.

    Args:
        folder: Where to look, recursively; never written to by this function unless ``out`` lies in it.
        out: The JSON file to write.
        images: Pattern of the image files relative to the folder, where the conventions do not hold.
        labels: Pattern of the label files.
        folds: Number of folds.
        group_by: A regular expression or a CSV file that says what stays together.
        task: What label values mean; ``None`` to look at them.
        label_values: ``"255=1"``: how stored values are to be read.
        label_names: ``"1=liver,2=tumour"``; see :class:`unet_med.manifest.BuildOptions`.
        classes: A CSV file that names the class of each object: columns ``id``, ``object`` and ``class``.
        ignore_label: Value of voxels that nobody labelled.
        nnunet: Also write the set in nnU-Net's raw layout into this new folder.
        intake: How images are read.

    Raises:
        NothingUsableError: if no image is paired with a label.
        UsageError: if a pattern, table or option makes no sense.
    """
    options = BuildOptions(
        images,
        labels,
        folds,
        group_by,
        task,
        label_values,
        label_names,
        classes=classes,
        ignore_label=ignore_label,
    )
    found = discover(folder, intake, track)
    report = build_manifest(folder, found, options, safe_name(stem_of(out)), track)
    written = save_manifest(report.manifest, out)
    errors = [finding for finding in report.manifest.findings if finding.severity == "error"]
    lines = _lines(report, written)
    if nnunet is not None:
        lines += _raw_lines(report.manifest, nnunet, refused=bool(errors))
    skipped = [f"skipped: {one.count} {one.what}, {one.reason}" for one in found.skipped]
    return Outcome(_result(report), lines + skipped, SOME_REFUSED if errors else DONE)


def _raw_lines(manifest: Manifest, folder: Path, refused: bool) -> list[str]:
    """Writes nnU-Net's layout and says what was done."""
    if refused:
        return ["nnU-Net's layout is not written: correct the errors first"]
    done = write_raw(manifest, folder, track)
    counts = ", ".join(f"{count} {what}" for what, count in sorted(done.items()) if count)
    lines = [f"nnU-Net's layout: {counts} in {folder.name}"]
    if (folder / SPLITS).exists():
        lines.append(f"copy {SPLITS} into nnU-Net's preprocessed folder to train on the same folds")
    return lines


def _result(report: BuildReport) -> dict[str, object]:
    manifest = report.manifest
    return {
        "name": manifest.name,
        "task": manifest.task,
        "labels": manifest.labels,
        "regions": manifest.regions,
        "ignore_label": manifest.ignore_label,
        "channels": list(manifest.channels),
        "modality": manifest.modality,
        "folds": manifest.folds,
        "numTraining": len(manifest.training),
        "numTest": len(manifest.test),
        "groups": len({case.group for case in manifest.training}),
        "digest": manifest.digest,
        "notes": list(report.notes),
        "findings": [vars(finding) for finding in manifest.findings],
        "left_over": [{"id": source, "reason": reason} for source, reason in report.left_over],
    }


def _lines(report: BuildReport, written: list[Path]) -> list[str]:
    manifest = report.manifest
    names = ", ".join(f"{value} {name}" for name, value in manifest.labels.items())
    groups = len({case.group for case in manifest.training})
    lines = [
        f"paired: {len(manifest.training)} training cases in {groups} groups, {len(manifest.test)} for testing",
        f"labels ({manifest.task}): {names}",
        f"channels: {', '.join(manifest.channels)}",
    ]
    if manifest.regions:
        regions = (f"{name} = {', '.join(map(str, members))}" for name, members in manifest.regions.items())
        lines.append(f"regions: {'; '.join(regions)}")
    if manifest.ignore_label is not None:
        lines.append(f"neither learnt from nor scored: value {manifest.ignore_label}")
    sizes = Counter(case.fold for case in manifest.training if case.fold is not None)
    if sizes:
        lines.append(f"folds: {', '.join(str(sizes[fold]) for fold in sorted(sizes))} cases")
    lines += list(report.notes)
    if report.left_over:
        lines.append(f"left over: {len(report.left_over)}")
        lines += [f"  {source}: {reason}" for source, reason in report.left_over[:_SHOWN]]
        if len(report.left_over) > _SHOWN:
            lines.append(f"  ... and {len(report.left_over) - _SHOWN} more (see --json)")
    lines += [str(finding) for finding in manifest.findings]
    lines += [f"wrote {file.name}" for file in written]
    if len(written) > 1:
        lines.append("the table of DICOM files is private (it may hold patients' names): do not pass it on")
    return lines
