"""`unet-med check`: the label doctor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unet_med.doctoring import examine, is_fixable, repair
from unet_med.errors import UsageError
from unet_med.manifest import Finding, Manifest, load_manifest, save_manifest
from unet_med.workflows.outcome import DONE, SOME_REFUSED, Outcome
from unet_med.workflows.progress import track

_MOST_ALIKE = 5
"""Findings of one kind that are told one by one on the terminal."""


def check(manifest: Path, fix: Path | None = None, html: Path | None = None, pictures: Path | None = None) -> Outcome:
    """Examines every case of a manifest and, when asked, shows what it found and writes corrected copies of labels.

    Args:
        manifest: The data set.
        fix: Folder for corrected labels and ``manifest.json``; must not hold anything. The input is never touched.
        html: File for a page with pictures of the suspicious cases.
        pictures: Folder for these pictures as files; must not hold anything.

    Returns:
        ``{"cases", "findings", "fixed", "manifest"}``; exit code 3 when something was found, what was corrected
        not counted.

    Raises:
        UsageError: if the manifest cannot be read, a folder is not empty, or the page would replace the manifest.
        MachineError: if the page or a picture cannot be written.
    """
    if html is not None and (html.is_dir() or html.resolve() == manifest.resolve()):
        raise UsageError("the page would replace a folder or the manifest", "--html", "give the name of a new file")
    if pictures is not None:
        from unet_med.workflows.check_page import check_folder

        check_folder(pictures)
    known = load_manifest(manifest)
    findings = examine(known, track)
    count = len(known.training) + len(known.test)
    result: dict[str, object] = {"cases": count, "findings": [vars(one) for one in findings], "fixed": []}
    lines = _told(findings) or [f"{count} cases, nothing found"]
    lines += _shown(known, findings, html, pictures)
    if fix is not None:
        return _fixed(known, findings, fix, result, lines)
    if any(is_fixable(one) for one in findings):
        lines.append("`unet-med check M.json --fix DIR` writes corrected copies of the labels")
    return Outcome(result, lines, _code(findings))


def _told(findings: Sequence[Finding]) -> list[str]:
    """Returns a line for each finding; of many of one kind the first few and their number."""
    lines: list[str] = []
    for kind in dict.fromkeys((one.severity, one.kind) for one in findings):
        alike = [one for one in findings if (one.severity, one.kind) == kind]
        lines += [str(one) for one in alike[:_MOST_ALIKE]]
        if len(alike) > _MOST_ALIKE:
            lines.append(f"{kind[0]}: {len(alike) - _MOST_ALIKE} more of this kind (--json FILE lists all)")
    return lines


def _shown(known: Manifest, findings: Sequence[Finding], html: Path | None, pictures: Path | None) -> list[str]:
    """Writes the page and the pictures that were asked for."""
    if html is None and pictures is None:
        return []
    from unet_med.workflows.check_page import draw, write_page, write_pictures

    drawings = draw(known, findings)
    lines = []
    if html is not None:
        write_page(html, known, findings, drawings)
        lines.append(f"page: {html.name}")
    if pictures is not None:
        lines.append(f"pictures: {write_pictures(pictures, findings, drawings)}")
    return lines


def _fixed(
    known: Manifest, findings: Sequence[Finding], fix: Path, result: dict[str, object], lines: list[str]
) -> Outcome:
    """Writes corrected copies and the manifest of them, and examines these."""
    done = repair(known, findings, fix, track)
    remaining = examine(done.manifest, track)
    errors = tuple(one for one in remaining if one.severity == "error")
    written = save_manifest(replace(done.manifest, findings=errors), fix / "manifest.json")
    changes = ", ".join(f"{old} -> {new}" for old, new in done.values.items() if old != new)
    lines.append(
        f"corrected copies of {len(done.rewritten)} labels" + (f" ({changes})" if changes else "")
        if done.rewritten
        else "no label could be corrected"
    )
    lines += [f"still there: {line}" for line in _told(errors)]
    lines.append(f"wrote {written[0].name} beside them: train with this one")
    result |= {
        "fixed": list(done.rewritten),
        "values": {str(old): new for old, new in done.values.items()},
        "remaining": [vars(one) for one in remaining],
        "manifest": written[0].name,
    }
    return Outcome(result, lines, _code(remaining))


def _code(findings: Sequence[Finding]) -> int:
    return SOME_REFUSED if findings else DONE
