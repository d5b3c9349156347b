"""Cases with a file or a series for each modality: ``NAME/T1`` and ``NAME/T2``, or ``NAME_T1`` and ``NAME_T2``."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from unet_med.manifest.pairing import Pair, Pairing

_KNOWN = frozenset(
    {
        *("t1", "t1w", "t1c", "t1ce", "t1gd", "t1n", "t2", "t2w", "t2f", "flair", "pd", "dwi", "adc", "dce", "swi"),
        *("ct", "cta", "cbct", "pt", "pet", "suv", "mr", "mri"),
    }
)
"""Words for modalities, as files are called."""


def agreed(pairing: Pairing) -> Pairing:
    """Keeps as modalities what most cases have, in one order; a name that few cases have is no channel.

    Nothing is guessed from a single case: its files must be called by words that are known for modalities.
    """
    by_name = [pair for pair in pairing.pairs if _is_by_name(pair)]
    if not by_name:
        return pairing
    counts = Counter(key.casefold() for pair in by_name for key in pair.channels)
    shown = {key.casefold(): key for pair in reversed(by_name) for key in pair.channels}
    common = {key for key, count in counts.items() if 2 * count > len(by_name)}
    if len(by_name) == 1:
        common &= _KNOWN
    wanted = sorted(common)
    pairs: list[Pair] = []
    left = list(pairing.left_over)
    for pair in pairing.pairs:
        if not _is_by_name(pair):
            pairs.append(pair)
            continue
        places = {key.casefold(): image for key, image in zip(pair.channels, pair.images, strict=True)}
        left += [(image.id, _STRAY) for key, image in places.items() if key not in common]
        kept = [key for key in wanted if key in places]
        if kept:
            pairs.append(
                replace(pair, images=tuple(places[key] for key in kept), channels=tuple(shown[key] for key in kept))
            )
        elif pair.label is not None:
            left.append((pair.label.id, "a label without an image of the same name"))
    notes = list(pairing.notes)
    if wanted:
        notes.append(f"channels by name of file or folder: {', '.join(shown[key] for key in wanted)}")
    return Pairing(tuple(pairs), tuple(left), tuple(notes))


_STRAY = "beside the channels of a case, but no other case has an image of this name"


def _is_by_name(pair: Pair) -> bool:
    return any(not key.isdecimal() for key in pair.channels)
