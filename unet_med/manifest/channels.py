"""Which channels the cases of a set have, and which one a case lacks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from unet_med.identity import stem_of
from unet_med.io.cases import Case
from unet_med.manifest.model import Finding, ManifestCase, Severity

_NUMBER = re.compile(r"\d{4}")
_NUMBERED = re.compile(r".+_(\d{4})")
_REMEDY = "put its file beside the others, or leave the case out (a table with split = skip, --group-by)"


def channel_keys(cases: Mapping[str, Sequence[str]], named: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns what the files of a set call its channels, in order.

    Args:
        cases: Case id -> the keys of its files: ``0000``, ``0001``, ..., or names of modalities.
        named: Names of the channels that a description gives; there are at least as many numbers as names.
    """
    found = {key for keys in cases.values() for key in keys}
    if found and all(_NUMBER.fullmatch(key) for key in found):
        found |= {f"{number:04d}" for number in range(max(len(named), 1 + max(map(int, found))))}
    return tuple(sorted(found, key=str.casefold))


def channel_name(key: str, named: Sequence[str]) -> str:
    """Returns the name of a channel whose files have this key."""
    if not _NUMBER.fullmatch(key):
        return key
    return named[int(key)] if int(key) < len(named) else f"channel_{int(key)}"


def missing_findings(
    cases: Mapping[str, Sequence[str]], named: Sequence[str], unlabelled: Sequence[str] = ()
) -> list[Finding]:
    """Returns a finding for each channel that a case lacks.

    Args:
        cases: Case id -> the keys of its files; cases without keys have all their channels in one file.
        named: Names of the channels.
        unlabelled: Cases that are only predicted; for these it is a warning.
    """
    wanted = channel_keys(cases, named)
    findings = []
    for case, keys in cases.items():
        severity: Severity = "warning" if case in unlabelled else "error"
        findings += [
            _missing(case, f"{channel_name(key, named)!r} ({key})", severity)
            for key in wanted
            if keys and key not in keys
        ]
    return findings


def absent_channels(cases: Sequence[ManifestCase], channels: Sequence[str]) -> list[Finding]:
    """Returns a finding for each case of a foreign manifest that has fewer channels than are named."""
    findings = []
    for one in cases:
        if one.case.channels < len(channels):
            findings += _absent(one.case, channels)
    return findings


def _absent(case: Case, channels: Sequence[str]) -> list[Finding]:
    found = [_NUMBERED.fullmatch(stem_of(source.files[0])) for source in case.sources if source.files]
    numbers = {int(match[1]) for match in found if match is not None}
    if len(numbers) == case.channels:
        lacking = [number for number in range(len(channels)) if number not in numbers]
        return [_missing(case.id, f"{channels[number]!r} ({number:04d})", "error") for number in lacking]
    what = f"{case.channels} of the channels {', '.join(channels)} are there, the others are missing"
    return [Finding(case.id, "error", what, _REMEDY, "missing_channel")]


def _missing(case: str, channel: str, severity: Severity) -> Finding:
    return Finding(case, severity, f"the image of channel {channel} is missing", _REMEDY, "missing_channel")


def modality_keys(names: Sequence[str], stem: str) -> tuple[str, ...] | None:
    """Returns the modality that each file of a case is named by; ``None`` where the names are no modalities.

    Args:
        names: Stems of the files, or folder names of DICOM series.
        stem: Name of the case, which may stand before each.
    """
    keys = tuple(re.sub(rf"^{re.escape(stem)}[_.-]+", "", name, flags=re.IGNORECASE) for name in names)
    distinct = len({key.casefold() for key in keys}) == len(keys) > 1
    return keys if distinct and all(re.search("[A-Za-z]", key) for key in keys) else None


def named_channels(channels: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Returns the modalities of the cases, in order; none where their files go by number."""
    found = {key for keys in channels.values() for key in keys}
    return tuple(sorted(found, key=str.casefold)) if found and not any(key.isdecimal() for key in found) else ()
