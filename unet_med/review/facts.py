"""What is said of a case on its page and in its PDF: sections of short tables, made from what prediction recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]

DASH = "\N{EN DASH}"
TIMES = " \N{MULTIPLICATION SIGN} "
VOLUMES, AREAS, OBJECTS, NOTICED = "Volumes", "Areas", "Objects", "What the model noticed"
STAMP, ORIGIN, CARD = "Geometry stamp", "Provenance", "Model card"

_MOST_ROWS = 40
_DIGITS = 3
_FLAT = ("mm2", "px")
_MEASURED = {"dice": "Dice", "hd95_mm": "HD95 mm", "nsd": "NSD"}


@dataclass(frozen=True)
class Section:
    """A heading and a table.

    Attributes:
        title: The heading.
        columns: Heads of the columns; none where rows are a word and what there is to say of it.
        rows: Texts.
        note: What has to be known to read it.
        folded: Whether a page shows it only when asked.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    folded: bool = False


def sections(record: Record, sidecar: Record, models: Sequence[Record]) -> list[Section]:
    """Returns what is said of a case, in the order in which it is read.

    Args:
        record: Of the case, as the journal or ``report.json`` keeps it.
        sidecar: The JSON beside its mask; empty where there is none.
        models: What each model says of itself, the first one first; see :func:`card`.
    """
    found = [objects(record), volumes(record), noticed(record), stamp(record), provenance(record, sidecar)]
    found += [card(model, len(models) > 1) for model in models]
    return [section for section in found if section.rows]


def volume_bounds(value: float, dice: float) -> tuple[float, float]:
    """Returns the least and the largest true volume with which a mask can have a Dice.

    Mask V and truth T share at most the smaller of the two, so that a Dice D = 2 |V and T| / (V + T) leaves T between
    V D / (2 - D) and V (2 - D) / D. Both ends are reached: when one lies within the other.

    Args:
        value: Volume of the mask, in any unit.
        dice: Above 0 and up to 1.
    """
    return value * dice / (2.0 - dice), value * (2.0 - dice) / dice


def number(value: float) -> str:
    """Returns a number with three digits, as people write it."""
    return f"{value:,.0f}" if abs(value) >= 10**_DIGITS else f"{value:.{_DIGITS}g}"


# ---- sections -------------------------------------------------------------------------------------------------------


def volumes(record: Record) -> Section:
    """Returns how large each label is, how large it may be in truth, and how good its mask is."""
    rows = list(record.get("volumes") or ())
    predicted = record.get("predicted_dice") or {}
    agreement, measured = record.get("agreement") or {}, record.get("labels") or {}
    frames = any(row.get("frame") is not None for row in rows)
    scores = [key for key in _MEASURED if any((measured.get(name) or {}).get(key) is not None for name in measured)]
    columns = [*(["Frame"] if frames else []), "Label", "Size"]
    columns += ["Between", "Predicted Dice"] if predicted else []
    columns += ["Models agree"] if agreement else []
    columns += [f"{_MEASURED[key]} measured" for key in scores]
    table = []
    for row in rows[:_MOST_ROWS]:
        name, estimate = row["label"], predicted.get(row["label"])
        cells = [str(row["frame"] + 1)] if frames else []
        cells += [name, f"{number(row['value'])} {_unit(row['unit'])}"]
        cells += [_between(row, estimate), _interval(estimate)] if predicted else []
        cells += [_or_dash(agreement.get(name))] if agreement else []
        cells += [_or_dash((measured.get(name) or {}).get(key)) for key in scores]
        table.append(tuple(cells))
    title = AREAS if any(row["unit"] in _FLAT for row in rows) else VOLUMES
    return Section(title, tuple(columns), tuple(table), _volume_note(bool(predicted), len(rows), record))


def _volume_note(predicted: bool, rows: int, record: Record) -> str:
    notes = [f"The first {_MOST_ROWS} of {rows} rows; volumes.csv holds all."] if rows > _MOST_ROWS else []
    if predicted:
        notes.append(
            "Between: the true size if the Dice is no lower than the lower end of its interval; "
            "nine of ten held-out cases lay in such an interval."
        )
    elif not record.get("objects"):
        notes.append("No range of sizes is given: the model has not learnt from held-out cases how good its masks are.")
    return " ".join(notes)


def _between(row: Record, estimate: Record | None) -> str:
    if estimate is None or not 0.0 < estimate["low"] <= 1.0 or not row["value"]:
        return DASH
    low, high = volume_bounds(row["value"], estimate["low"])
    return f"{number(low)} to {number(high)}"


def _interval(estimate: Record | None) -> str:
    if estimate is None:
        return DASH
    return f"{estimate['value']:.2f} ({estimate['low']:.2f} to {estimate['high']:.2f})"


def objects(record: Record) -> Section:
    """Returns how many objects of each class there are, and how densely they lie."""
    rows = list(record.get("objects") or ())
    frames = any(row.get("frame") is not None for row in rows)
    table = [
        (
            *([str(row["frame"] + 1)] if frames else []),
            row["class"],
            f"{row['objects']:,}",
            DASH if row["density"] is None else f"{number(row['density'])} {_unit(row['unit'])}",
            f"{row['covered']:.1%}",
            DASH if row["mean_size"] is None else number(row["mean_size"]),
        )
        for row in rows[:_MOST_ROWS]
    ]
    columns = (*(("Frame",) if frames else ()), "Class", "Count", "Density", "Covers", "Mean size (voxels)")
    note = f"The first {_MOST_ROWS} of {len(rows)} rows; counts.csv holds all." if len(rows) > _MOST_ROWS else ""
    return Section(OBJECTS, columns, tuple(table), note)


def noticed(record: Record) -> Section:
    """Returns in which ways the image is unlike those of training, where the model looked at that."""
    found = record.get("unusual")
    if found is None:
        return Section(NOTICED, (), ())
    unusual = [str(sentence) for sentence in found]
    told = [("unlike training" if place == 0 else "", text) for place, text in enumerate(unusual)]
    return Section(NOTICED, (), tuple(told or [("image", "nothing unusual")]))


def stamp(record: Record) -> Section:
    """Returns how each written file was checked against the mask in memory."""
    checks = record.get("checks") or {}
    formats = checks.get("formats") or ({"mask": checks} if checks.get("passed") is not None else {})
    rows = [(name, _stamped(check)) for name, check in formats.items() if isinstance(check, Mapping)]
    note = "Every file was opened again by another library and compared with the mask in memory." if rows else ""
    return Section(STAMP, (), tuple(rows), note)


def _stamped(check: Record) -> str:
    told = ["passed" if check.get("passed") else "NOT PASSED"]
    readers = check.get("readers") or filter(None, [check.get("reader")])
    told += [f"read back by {' and '.join(map(str, readers))}"] if readers else []
    texts = {"corner_mm": "corners within {} mm", "centroid_mm": "centroids within {} mm", "dice": "Dice at least {}"}
    told += [text.format(number(check[key])) for key, text in texts.items() if check.get(key) is not None]
    if check.get("voxels") is not None:
        told.append(f"{check['voxels']:,} voxels differ")
    if (check.get("order") or {}).get("left_right"):
        told.append("left is left")
    return ", ".join(told)


def provenance(record: Record, sidecar: Record) -> Section:
    """Returns where a mask comes from: the image, how it was read, and what computed it."""
    origin = sidecar.get("provenance") or {}
    shape, spacing = sidecar.get("shape"), sidecar.get("spacing_mm")
    rows = [("image", TIMES.join(map(str, shape)) + " voxels")] if shape else []
    if shape:
        rows.append(("voxel size", TIMES.join(number(size) for size in spacing) + " mm" if spacing else "not known"))
    for source in origin.get("sources") or ():
        read = _plain(source.get("read_as") or {})
        rows.append((f"source {source['id']}", f"{source['kind']}{f', read with {read}' if read else ''}"))
        rows += [("", str(note)) for note in source.get("notes") or ()]
    rows += [("note", str(note)) for note in record.get("notes") or ()]
    rows += [("model sha256", str(sha)) for sha in origin.get("model_sha256") or ()]
    rows += [(key.replace("_", " "), str(origin[key])) for key in ("input_sha256",) if origin.get(key)]
    computed = [record.get("device"), record.get("engine") or record.get("precision"), record.get("engine_why")]
    rows.append(("computed by", ", ".join(str(one) for one in computed if one)))
    if record.get("seconds") is not None:
        memory = record.get("peak_memory_mb")
        rows.append(("took", f"{number(record['seconds'])} s" + (f", {number(memory)} MB of memory" if memory else "")))
    rows.append(("options", _plain(origin.get("options") or {})))
    rows.append(("made by", f"unet-med {sidecar.get('version') or ''}".strip()))
    return Section(ORIGIN, (), tuple((word, text) for word, text in rows if text), folded=True)


def card(model: Record, several: bool = False) -> Section:
    """Returns what a model says of itself: what it is for, what it learnt from, how good it is, its limits.

    Args:
        model: ``name``, ``sha256``, ``card`` (title to sentences) and ``knows`` (sentences).
        several: Whether it is one of several.
    """
    rows = [("sha256", str(model["sha256"]))] if model.get("sha256") else []
    told = {**(model.get("card") or {}), "knowing when it fails": model.get("knows") or ()}
    for title, sentences in told.items():
        rows += [(str(title) if place == 0 else "", str(text)) for place, text in enumerate(sentences)]
    title = f"{CARD}: {model.get('name')}" if several else CARD
    return Section(title, (), tuple(rows), folded=True)


# ---- words ----------------------------------------------------------------------------------------------------------


def _unit(unit: str) -> str:
    return {"mm2": "mm²", "1/mm2": "per mm²", "1/mm3": "per mm³"}.get(unit, unit)


def _or_dash(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"


def _plain(value: Any) -> str:
    """Returns a value as text; of a mapping what is empty or switched off is left out."""
    if isinstance(value, Mapping):
        return "; ".join(text for key, entry in value.items() if (text := _pair(str(key).replace("_", " "), entry)))
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(_plain(entry) for entry in value)
    return str(value)


def _pair(key: str, entry: Any) -> str:
    if entry is None or entry is False:
        return ""
    if entry is True:
        return key
    text = _plain(entry)
    return f"{key} {text}" if text else ""
