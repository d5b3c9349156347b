"""Which sources of a folder are the channels of one case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from re import compile as pattern

from unet_med.identity import safe_name, stem_of, unique_ids
from unet_med.io.cases import COLOURS_OR_GREYS, Case
from unet_med.io.channels import by_name
from unet_med.io.source import SourceRef

_CHANNEL_SUFFIX = pattern(r"(?P<case>.+)_(?P<channel>\d{4})(?:-\d+)?")

_Key = tuple[Path, str, bool]
"""Folder and name of a case, and whether its channels go by number."""


@dataclass
class _Family:
    """The channel files of one case."""

    name: str
    members: dict[int, SourceRef] = field(default_factory=dict)
    twice: bool = False

    def add(self, channel: int, source: SourceRef) -> None:
        self.twice |= channel in self.members
        self.members[channel] = source

    def is_whole(self) -> bool:
        return not self.twice and sorted(self.members) == list(range(len(self.members)))


def group_cases(sources: Sequence[SourceRef], channels: Sequence[str] = ()) -> list[Case]:
    """Returns the cases that these sources make, in their order.

    Files of one folder called ``x_0000``, ``x_0001``, ... (from 0 without gap, one channel each) are one case ``x``;
    every other source is a case of its own. Frames stay within their case. Where several channels are wanted, files
    ``x_T1`` and ``x_T2`` or ``x/T1`` and ``x/T2`` of the channels' names, and DICOM series in folders of these names or
    of these modalities, are one case, too, and a case that lacks a channel says which. Of a file that calls channels by
    the wanted names these are taken, in the wanted order.

    Args:
        sources: Usable sources.
        channels: Names of the channels that are wanted; empty where any number will do.
    """
    named = {_plain(name): number for number, name in enumerate(channels)} if len(channels) > 1 else {}
    families: dict[_Key, _Family] = {}
    places = [_place(source, named) for source in sources]
    for source, place in zip(sources, places, strict=True):
        if place is not None:
            families.setdefault(place[0], _Family(place[1])).add(place[2], source)
    wanted: list[tuple[str, tuple[SourceRef, ...], tuple[str, ...]]] = []
    for source, place in zip(sources, places, strict=True):
        family = None if place is None else families[place[0]]
        if family is None or family.twice or not (family.is_whole() or named):
            wanted.append((source.id, (by_name(source, channels),), ()))
        elif family.members[min(family.members)] is source:
            members = tuple(family.members[number] for number in sorted(family.members))
            missing = tuple(name for number, name in enumerate(channels) if named and number not in family.members)
            wanted.append((family.name, members, missing))
    ids = unique_ids([name for name, _, _ in wanted])
    colour = tuple(channels) == COLOURS_OR_GREYS
    return [
        Case(case_id, members, missing=missing, colour=colour)
        for case_id, (_, members, missing) in zip(ids, wanted, strict=True)
    ]


def _place(source: SourceRef, named: dict[str, int]) -> tuple[_Key, str, int] | None:
    """Returns the family that a channel file belongs to, the name of its case, and its channel."""
    if source.channels != 1 or not source.files:
        return None
    folder = source.files[0].parent
    if source.kind == "dicom":
        channel = named.get(_plain(folder.name), named.get(_plain(source.modality or "")))
        return None if channel is None else ((folder.parent, "", False), source.id, channel)
    match = _CHANNEL_SUFFIX.fullmatch(source.id)
    if match is not None:
        return (folder, match["case"], True), match["case"], int(match["channel"])
    stem = stem_of(source.files[0])
    if _plain(stem) in named:
        return (folder.parent, folder.name, False), safe_name(folder.name), named[_plain(stem)]
    for name in sorted(named, key=len, reverse=True):
        if _plain(stem).endswith(f"_{name}"):
            case = stem[: -len(name) - 1]
            return (folder, case, False), safe_name(case), named[name]
    return None


def _plain(name: str) -> str:
    """A name as files and folders have it, without regard to case."""
    return safe_name(name).lower() if name else ""
