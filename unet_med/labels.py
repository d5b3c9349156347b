"""What the numbers in a mask mean."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import yaml

from unet_med.errors import ConfigError

if TYPE_CHECKING:
    import torch

# Distinct on grey images and for most colour-blind readers (Okabe and Ito 2008), black left out.
_PALETTE = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
_GOLDEN_RATIO = 0.618033988749895

_CODES = "labels_codes.yaml"
_SHORT_SIDES = {"l": "left", "lt": "left", "r": "right", "rt": "right"}
_BLOCK_VOXELS = 2**18
"""Voxels that are labelled at once: what a pass over the outputs holds of them stays in the processor's cache."""

OBJECT_OUTPUTS = ("border", "distance")
"""Outputs of a network for objects after those of its classes: one sigmoid each."""

_SMALL_WORDS = frozenset({"of", "the"})


def label_colour(index: int) -> tuple[int, int, int]:
    """Returns the RGB colour (0-255) of the label with this index (1, 2, ...)."""
    if index <= len(_PALETTE):
        return _PALETTE[index - 1]
    red, green, blue = colorsys.hsv_to_rgb((index * _GOLDEN_RATIO) % 1.0, 0.65, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


@dataclass(frozen=True)
class Code:
    """A coded term: coding scheme (``SCT`` for SNOMED CT), value and meaning."""

    scheme: str
    value: str
    meaning: str


@dataclass(frozen=True)
class LabelCode:
    """What a label is, in the terms that DICOM objects need.

    Attributes:
        category: What kind of thing, for example (SCT, 91723000, Anatomical Structure).
        type: Which one, for example (SCT, 10200004, Liver).
        modifier: Side, for example (SCT, 7771000, Left); ``None`` for none.
    """

    category: Code
    type: Code
    modifier: Code | None = None


@dataclass(frozen=True)
class Label:
    """One kind of thing: the value it has in masks (1 and up), its name, its colour and, if known, its code."""

    index: int
    name: str
    colour: tuple[int, int, int]
    code: LabelCode | None = None


@dataclass(frozen=True)
class LabelMap:
    """The labels of a task; 0 is always background and not listed.

    Attributes:
        labels: The foreground labels, in the order of their index.
        regions: Overlapping regions ``(name, label indices)``, outermost first; empty for exclusive labels. The
            network then has one sigmoid output for each region instead of softmax over labels.
        ignored: Value of voxels that nobody labelled, in true labels only; ``None``: there are none.
        objects: Whether the labels are classes of objects that are told apart; the network then has the outputs
            :data:`OBJECT_OUTPUTS`, too.
    """

    labels: tuple[Label, ...]
    regions: tuple[tuple[str, tuple[int, ...]], ...] = ()
    ignored: int | None = None
    objects: bool = False

    @classmethod
    def from_names(
        cls,
        names: Mapping[str, int],
        regions: Mapping[str, Sequence[int]] | None = None,
        ignored: int | None = None,
        *,
        objects: bool = False,
    ) -> LabelMap:
        """Builds the map from ``{"background": 0, "anterior": 1, ...}``; indices must be 0, 1, 2, ... without gap."""
        foreground = sorted((index, name) for name, index in names.items() if index != 0)
        if [index for index, _ in foreground] != list(range(1, len(foreground) + 1)):
            raise ConfigError(
                f"label values {[index for index, _ in foreground]} are not 1, 2, 3, ... without gap",
                "labels",
                "renumber the label images, for example with `unet-med check M.json --fix DIR`",
            )
        known = {index for index, _ in foreground}
        if ignored in known:
            raise ConfigError(
                f"the value {ignored} is a label and at the same time what is ignored",
                "ignore_label",
                "leave it out of labels",
            )
        for name, members in (regions or {}).items():
            if not members or not set(members) <= known:
                raise ConfigError(
                    f"region {name!r} names labels that do not exist",
                    "regions",
                    f"use label values out of {sorted(known)}",
                )
        if objects and regions:
            raise ConfigError(
                "classes of objects cannot overlap", "regions", "leave regions out, or set task to semantic"
            )
        return cls(
            tuple(Label(index, name, label_colour(index)) for index, name in foreground),
            tuple((name, tuple(members)) for name, members in (regions or {}).items()),
            ignored,
            objects,
        )

    def with_known_codes(self) -> LabelMap:
        """Returns the map with the codes of :func:`known_code` where a label has none of its own."""
        return replace(self, labels=tuple(replace(one, code=one.code or known_code(one.name)) for one in self.labels))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the foreground labels, in the order of their index."""
        return tuple(label.name for label in self.labels)

    @property
    def outputs(self) -> int:
        """Channels of the network's output: those of the classes, and of objects."""
        return self.class_outputs + (len(OBJECT_OUTPUTS) if self.objects else 0)

    @property
    def class_outputs(self) -> int:
        """Outputs for background and labels (softmax), or one for each region (sigmoid)."""
        return len(self.regions) or len(self.labels) + 1

    @property
    def softmax_only(self) -> bool:
        """Whether all outputs go through one softmax, which only knows their differences."""
        return not self.regions and not self.objects

    @property
    def output_names(self) -> tuple[str, ...]:
        """What each output stands for: background and labels, or regions; then what is known of objects."""
        classes = tuple(name for name, _ in self.regions) or ("background", *self.names)
        return classes + (tuple(f"{name} of objects" for name in OBJECT_OUTPUTS) if self.objects else ())

    def region_values(self) -> tuple[int, ...]:
        """Returns for each region the label written where it is the innermost one.

        That is its first label which no later region holds: with whole = {1, 2, 3}, core = {2, 3}, enhancing = {3}
        the values are 1, 2, 3.
        """
        values: list[int] = []
        for position, (name, members) in enumerate(self.regions):
            later = {index for _, inner in self.regions[position + 1 :] for index in inner}
            own = [index for index in members if index not in later]
            if not own:
                raise ConfigError(
                    f"region {name!r} has no label of its own",
                    "regions",
                    "list the regions from the outermost to the innermost, each with one label more than the next",
                )
            values.append(own[0])
        return tuple(values)

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """Type of masks: the smallest that holds every label."""
        return np.uint8 if len(self.labels) < 256 else np.uint16

    def from_outputs(
        self, logits: torch.Tensor | npt.NDArray[np.floating[Any]], out: npt.NDArray[Any] | None = None
    ) -> npt.NDArray[Any]:
        """Turns logits into labels: arg max (the first of equal ones), or regions painted from outside inwards.

        Of objects the class of each voxel is told, not which object it belongs to. Beside ``logits`` it holds one byte
        for each voxel, four above 255 labels.

        Args:
            logits: (outputs, ...), finite, on any device.
            out: Where the labels go, (...) of :attr:`dtype` or larger, any strides; ``None`` for a new array.

        Returns:
            Labels (...), ``out`` where it was given.
        """
        import torch  # reading labels needs none of it

        logits = torch.as_tensor(logits)[: self.class_outputs]
        number = torch.uint8 if len(self.labels) < 256 else torch.int32
        found = torch.zeros(logits.shape[1:], dtype=number, device=logits.device)
        block = _BLOCK_VOXELS if logits.device.type == "cpu" else max(1, found.numel())
        paint = self._paint_regions if self.regions else _paint_largest
        flat, numbers = logits.flatten(1), found.flatten()
        for start in range(0, found.numel(), block):
            paint(flat[:, start : start + block], numbers[start : start + block])
        if out is None:
            return found.cpu().numpy().astype(self.dtype, copy=False)
        out[...] = found.cpu().numpy()
        return out

    def _paint_regions(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        for value, output in zip(self.region_values(), outputs, strict=True):
            labels.masked_fill_(output > 0, value)


def _paint_largest(outputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Writes into ``labels`` (voxels), which are 0, the number of the largest of ``outputs`` (outputs, voxels).

    Numbers grow, so that the largest number of an output that beat all before it is the arg max.
    """
    import torch

    best = outputs[0].clone()
    for number, output in enumerate(outputs[1:], start=1):
        torch.maximum(labels, (output > best).to(labels.dtype).mul_(number), out=labels)
        torch.maximum(best, output, out=best)


def known_code(name: str) -> LabelCode | None:
    """Returns the code of a common structure by the name of a label, for example ``Kidney_L``; ``None`` if unknown.

    Case, the order of words, a plural, ``_``, ``-`` and "of" make no difference; ``left``, ``right`` (``L``, ``R``),
    ``anterior`` and ``posterior`` become the modifier where the structure has such parts.
    """
    words = _words(name)
    table = _known_codes()
    found = table.get(words)
    if found is not None:
        return found[0]
    modifiers = _modifiers()
    sides = [word for word in words if word in modifiers]
    if len(sides) != 1:
        return None
    found = table.get(words - {sides[0]})
    if found is None or sides[0] not in found[1]:
        return None
    return replace(found[0], modifier=modifiers[sides[0]])


def _words(name: str) -> frozenset[str]:
    """Returns the words of a name in lower case, without their plural's s."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = (_SHORT_SIDES.get(word, word) for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word)
    return frozenset(word.removesuffix("s") for word in words if word not in _SMALL_WORDS)


@lru_cache(maxsize=1)
def _modifiers() -> dict[str, Code]:
    return {name: Code(*triple) for name, triple in _code_table()["modifiers"].items()}


@lru_cache(maxsize=1)
def _known_codes() -> dict[frozenset[str], tuple[LabelCode, tuple[str, ...]]]:
    """Returns codes by the words of a name, and which sides the structure has."""
    table = _code_table()
    known: dict[frozenset[str], tuple[LabelCode, tuple[str, ...]]] = {}
    for group, category in table["categories"].items():
        for entry in table[group]:
            code = LabelCode(Code(*category), Code(*entry["type"]))
            known |= {_words(name): (code, tuple(entry.get("sides", ()))) for name in entry["names"]}
    return known


@lru_cache(maxsize=1)
def _code_table() -> dict[str, Any]:
    text = resources.files("unet_med").joinpath(_CODES).read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))
