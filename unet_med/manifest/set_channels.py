"""What the channels of a set are called, which case lacks one, and sets in which grey pictures stand beside colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unet_med.io.cases import COLOURS_OR_GREYS
from unet_med.io.channels import by_name
from unet_med.manifest.channels import missing_findings, named_channels
from unet_med.manifest.description import Description
from unet_med.manifest.draft import Draft
from unet_med.manifest.model import Finding

_COLOURS = ("red", "green", "blue")


def absent(drafts: Sequence[Draft], told: Description) -> list[Finding]:
    """Returns findings for the channels that a case lacks, where files are named by channel."""
    keys = {draft.case.id: draft.pair.channels for draft in drafts if draft.pair.channels}
    return missing_findings(keys, told.channels, [d.case.id for d in drafts if d.split == "test"])


def channel_notes(drafts: Sequence[Draft]) -> list[str]:
    """Says which cases have another number of channels than most, and what comes of it."""
    if not drafts:
        return []
    if colour_and_grey(drafts):
        grey = sum(draft.case.channels == 1 for draft in drafts)
        what = f"{grey} grey pictures among {len(drafts) - grey} in colour"
        return [f"{what}: each grey one is read as three equal channels"]
    usual = _usual_channels(drafts)
    other = [draft for draft in drafts if draft.case.channels != usual]
    if not other:
        return []
    what = f"{len(other)} of {len(drafts)} cases have another number of channels than {usual}, the first is"
    remedy = "one network cannot learn from both: use --images GLOB, or a table with split = skip (--group-by)"
    return [f"{what} {other[0].case.id}: {remedy}"]


def colour_and_grey(drafts: Sequence[Draft]) -> bool:
    """Whether a set has colour pictures and grey ones, and nothing else."""
    colour = [_is_colour(draft) for draft in drafts]
    grey = [_is_grey(draft) for draft in drafts]
    both = any(colour) and any(grey)
    return both and all(one or other for one, other in zip(colour, grey, strict=True))


def _is_colour(draft: Draft) -> bool:
    sources = draft.case.sources
    return len(sources) == 1 and sources[0].channels == len(_COLOURS) and "S" in sources[0].axes


def _is_grey(draft: Draft) -> bool:
    sources = draft.case.sources
    picture = len(sources) == 1 and sources[0].geometry is not None and sources[0].geometry.ndim == 2
    return picture and sources[0].channels == 1


def channel_names(drafts: Sequence[Draft], told: Description) -> tuple[str, ...]:
    """Returns the names of the channels: as described, by the files' names, as the files call them, else by number."""
    if colour_and_grey(drafts):
        return COLOURS_OR_GREYS
    usual = _usual_channels(drafts)
    if len(told.channels) == usual:
        return told.channels
    modalities = named_channels({draft.case.id: draft.pair.channels for draft in drafts})
    if modalities:
        return modalities
    alike = [draft for draft in drafts if draft.case.channels == usual]
    modality = common_modality(drafts)
    if usual == 1 and modality is not None:
        return (modality,)
    if usual == len(_COLOURS) and _is_colour(alike[0]):
        return _COLOURS
    own = {tuple(name for source in draft.case.sources for name in source.channel_names) for draft in alike}
    names = own.pop() if len(own) == 1 else ()
    if len(set(names)) == usual and not any(name.isdecimal() for name in names):
        return names
    return tuple(f"channel_{number}" for number in range(usual))


def in_one_order(drafts: Sequence[Draft]) -> tuple[list[Draft], list[str]]:
    """Takes the channels of each file by name, in the order that most files have, where files name their channels."""
    orders = [_own_names(draft) for draft in drafts]
    known = [order for order in orders if len(order) > 1 and not any(name.isdecimal() for name in order)]
    if not known:
        return list(drafts), []
    usual = max(dict.fromkeys(known), key=known.count)
    done = [
        replace(draft, case=replace(draft.case, sources=(by_name(draft.case.sources[0], usual),))) if order else draft
        for draft, order in zip(drafts, orders, strict=True)
    ]
    turned = sum(_own_names(draft) != order for draft, order in zip(done, orders, strict=True))
    told = f"{turned} files hold their channels in another order, or more of them: {', '.join(usual)} are taken by name"
    return done, [told] if turned else []


def _own_names(draft: Draft) -> tuple[str, ...]:
    """Returns the names that the one file of a case gives its channels."""
    sources = draft.case.sources
    return sources[0].channel_names if len(sources) == 1 else ()


def _usual_channels(drafts: Sequence[Draft]) -> int:
    counts = [draft.case.channels for draft in drafts]
    return max(sorted(set(counts)), key=counts.count)


def common_modality(drafts: Sequence[Draft]) -> str | None:
    """Returns the DICOM modality of all sources; ``None`` where they differ or it is not known."""
    found = {source.modality for draft in drafts for source in draft.case.sources}
    return found.pop() if len(found) == 1 else None
