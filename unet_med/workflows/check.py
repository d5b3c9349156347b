"""`unet-med check`: the label doctor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unet_med.doctoring import examine, repair
from unet_med.manifest import Finding, load_manifest, save_manifest
from unet_med.workflows.outcome import DONE, SOME_REFUSED, Outcome
from unet_med.workflows.progress import track

_FIXABLE = ("values_0_255", "gaps", "label_floats")


def check(manifest: Path, fix: Path | None = None) -> Outcome:
    """Examines every case of a manifest and, when asked, writes corrected copies of its labels.

    Args:
        manifest: The data set.
        fix: Folder for corrected labels and ``manifest.json``; must not hold anything. The input is never touched.

    Returns:
        ``{"cases", "findings", "fixed", "manifest"}``; exit code 3 while there are errors, those that were corrected
        not counted.

    Raises:
        UsageError: if the manifest cannot be read or the folder is not empty.
    """
    known = load_manifest(manifest)
    findings = examine(known, track)
    count = len(known.training) + len(known.test)
    result: dict[str, object] = {"cases": count, "findings": [vars(one) for one in findings], "fixed": []}
    lines = [str(one) for one in findings] or [f"{count} cases, nothing found"]
    if fix is None:
        if any(one.kind in _FIXABLE for one in findings):
            lines.append("`unet-med check M.json --fix DIR` writes corrected copies of the labels")
        return Outcome(result, lines, _code(findings))
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
    lines += [f"still there: {one}" for one in errors]
    lines.append(f"wrote {written[0].name} beside them: train with this one")
    result |= {
        "fixed": list(done.rewritten),
        "values": {str(old): new for old, new in done.values.items()},
        "remaining": [vars(one) for one in remaining],
        "manifest": written[0].name,
    }
    return Outcome(result, lines, _code(remaining))


def _code(findings: Sequence[Finding]) -> int:
    return SOME_REFUSED if any(one.severity == "error" for one in findings) else DONE
