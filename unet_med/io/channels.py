"""Channels by name: what a file calls them, which are chosen, and how a choice is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from unet_med.errors import InputRefusedError
from unet_med.io.source import IntakeOptions, SourceRef

RGB = ("red", "green", "blue")


def names_of(found: Sequence[str], channels: int) -> tuple[str, ...]:
    """Returns a name for each channel: the file's own where it has one that is not a second one's, else its number.

    Args:
        found: What the file says, in the order of its channels; of another length, it is about something else.
        channels: How many there are.
    """
    names = [str(name).strip() for name in found] if len(found) == channels else [""] * channels
    folded = [name.casefold() for name in names]
    return tuple(
        name if name and folded.count(name.casefold()) == 1 else str(number) for number, name in enumerate(names)
    )


def named(names: Sequence[str], picked: Sequence[int]) -> tuple[str, ...]:
    """Returns the names of the channels picked; none where all are mere numbers."""
    if all(name == str(number) for number, name in enumerate(names)):
        return ()
    return tuple(names[number] for number in picked)


def chosen_channels(names: Sequence[str], options: IntakeOptions) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Returns the channels that ``--channel`` names, and the switch that was used.

    A channel goes by its name (upper and lower case alike where that leaves no doubt), by its number from 0, or, where
    names are numbers, by ``#`` and its place. An image of one channel is left alone: labels lie in the same folders as
    images of several channels.

    Raises:
        InputRefusedError: A channel does not exist.
    """
    if not options.channels or len(names) == 1:
        return tuple(range(len(names))), {}
    picked = tuple(_place(wanted, names) for wanted in options.channels)
    return picked, {"channels": [str(number) for number in picked]}


def _place(wanted: str, names: Sequence[str]) -> int:
    number = wanted.removeprefix("#")
    if wanted in names:
        return list(names).index(wanted)
    alike = [place for place, name in enumerate(names) if name.casefold() == wanted.casefold()]
    if len(alike) == 1:
        return alike[0]
    if number.isdecimal() and int(number) < len(names):
        return int(number)
    told = ", ".join(name if name == str(place) else f"{name} ({place})" for place, name in enumerate(names))
    raise InputRefusedError(f"there is no channel {wanted}", remedy=f"give --channel out of {told}")


def read_channels(read_as: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Returns the channels that a stored record selects; ``None`` for all."""
    stored = read_as.get("channels")
    return None if stored is None else tuple(int(number) for number in stored)


def stored_channels(read_as: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what a record selects as an option that no channel's name is mistaken for."""
    return tuple(f"#{number}" for number in read_channels(read_as) or ())


def by_name(ref: SourceRef, wanted: Sequence[str]) -> SourceRef:
    """Returns a source with its channels in the order of ``wanted``; unchanged where it does not know all the names.

    Args:
        ref: A source as discovered.
        wanted: Names of channels, for example those that a model was trained with.
    """
    known = [name.casefold() for name in ref.channel_names]
    asked = [name.casefold() for name in wanted]
    if asked == known or len(set(asked)) != len(asked) or not asked or not set(asked) <= set(known):
        return ref
    places = [known.index(name) for name in asked]
    stored = read_channels(ref.read_as) or tuple(range(ref.channels))
    return replace(
        ref,
        channels=len(places),
        channel_names=tuple(ref.channel_names[place] for place in places),
        read_as={**ref.read_as, "channels": [str(stored[place]) for place in places]},
    )
