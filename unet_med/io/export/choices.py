"""From what a user asks for to checked :class:`ExportOptions`, before any case is touched."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from unet_med.config import LabelEntry, dressed, load_labels
from unet_med.errors import ConfigError, UsageError
from unet_med.io.export.formats import FORMATS, parse_formats
from unet_med.io.export.mask import ExportOptions, SegType
from unet_med.labels import Code, LabelCode, LabelMap

_TISSUE = Code("SCT", "85756007", "Tissue")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9 _-]*")
_WORDS_OF_YAML = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
_SHOWN = 5


def export_options(
    labels: LabelMap,
    formats: Iterable[str] = (),
    seg_type: SegType = "binary",
    labels_file: Path | None = None,
    deidentify: bool = False,
) -> ExportOptions:
    """Returns how masks are written.

    Args:
        labels: Those of the model.
        formats: As typed; ``nifti`` for none.
        seg_type: Kind of DICOM SEG.
        labels_file: A ``labels`` block with colours and codes; same names and values as the model's.
        deidentify: Whether DICOM outputs carry no patient.

    Raises:
        UsageError: when there is no such format, or a kind of DICOM SEG is chosen and none is written.
        ConfigError: when the file does not fit the model, or a format needs codes that nobody gave: the error's
            ``example`` is the block to add.
    """
    names = parse_formats(formats)
    if seg_type != "binary" and "dicom-seg" not in names:
        raise UsageError(
            f"--seg-type {seg_type} without a DICOM SEG", "--format", "add dicom-seg to --format, or leave it out"
        )
    if labels_file is not None:
        entries = load_labels(labels_file)
        _check_fit(entries, labels, labels_file.name)
        labels = dressed(labels, entries)
    labels = labels.with_known_codes()
    _check_codes(labels, names)
    return ExportOptions(names, seg_type, deidentify, labels)


def labels_block(labels: LabelMap) -> str:
    """Returns a ``labels`` block of a pipeline with a code for each label: a general one where none is known."""
    lines = ["labels:", "  background: 0"]
    for label in labels.labels:
        code = label.code or LabelCode(_TISSUE, _TISSUE)
        lines += [f"  {_key(label.name)}:", f"    value: {label.index}", f"    category: {_flow(code.category)}"]
        hint = "" if label.code is not None else "  # any tissue; better the code of what it is"
        lines.append(f"    type: {_flow(code.type)}{hint}")
        if code.modifier is not None:
            lines.append(f"    modifier: {_flow(code.modifier)}")
    return "\n".join(lines) + "\n"


def _check_fit(entries: dict[str, LabelEntry], labels: LabelMap, where: str) -> None:
    """The file names labels of the model, each with the model's value."""
    known = {"background": 0} | {label.name: label.index for label in labels.labels}
    problems = [
        f"{name}: the model has no such label" if name not in known else f"{name}: the model's value is {known[name]}"
        for name, entry in entries.items()
        if known.get(name) != entry.value
    ]
    if problems:
        raise ConfigError(
            "the labels are not those of the model",
            where,
            "; ".join(problems) + f"; the model has {', '.join(f'{name}: {value}' for name, value in known.items())}",
            problems=tuple(problems),
        )


def _check_codes(labels: LabelMap, names: tuple[str, ...]) -> None:
    needing = [name for name in names if FORMATS[name].needs_codes]
    missing = [label.name for label in labels.labels if label.code is None]
    if needing and missing:
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise ConfigError(
            f"{' and '.join(needing)} {'needs' if len(needing) == 1 else 'need'} a code for each label, and "
            f"{len(missing)} of {len(labels.labels)} {'has' if len(missing) == 1 else 'have'} none ({shown})",
            "labels",
            "write these lines to a file and give it as --labels FILE.yaml, or put them into the pipeline",
            example=labels_block(labels),
        )


def _key(name: str) -> str:
    return name if _PLAIN.fullmatch(name) and name.lower() not in _WORDS_OF_YAML else json.dumps(name)


def _flow(code: Code) -> str:
    meaning = code.meaning if _PLAIN.fullmatch(code.meaning) else json.dumps(code.meaning)
    return f'[{code.scheme}, "{code.value}", {meaning}]'
