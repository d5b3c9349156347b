"""Labels that somebody corrected, back in the data set as truth.

A corrected case keeps its fold, so that scores before and after are of the same held-out cases; what it replaces is
named by its hash. An image that had no label becomes a training case, in the fold of its group or the smallest one.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unet_med.io.source import SourceRef
from unet_med.manifest.model import Manifest, ManifestCase, content_sha256
from unet_med.manifest.object_classes import as_text


@dataclass(frozen=True)
class Correction:
    """The new label of a case.

    Attributes:
        case: The case as it was; one that the data set does not list is added to it.
        label: The file of the new label, on the grid of the image.
        classes: Number of each object -> its class; ``None``: they have none.
        provenance: Where the label comes from, JSON-able, without names of people.
    """

    case: ManifestCase
    label: SourceRef
    classes: Mapping[int, int] | None
    provenance: Mapping[str, Any]


def corrected(manifest: Manifest, corrections: Sequence[Correction]) -> Manifest:
    """Returns the data set with new labels; what was found wrong with these cases is forgotten.

    Args:
        manifest: The data set.
        corrections: Each of another case.
    """
    new = {one.case.id: _relabelled(one) for one in corrections}
    known = [new.pop(case.id, case) for case in (*manifest.training, *manifest.test)]
    done = {one.case.id for one in corrections}
    test_groups = {case.group for case in manifest.test if case.case.label is not None}
    kept = [case for case in known if case.split == "training"]
    test = [case for case in known if case.split == "test" and (case.id not in done or case.group in test_groups)]
    joining = [case for case in known if case.split == "test" and case.id in done and case.group not in test_groups]
    for case in new.values():
        if case.group in test_groups:
            test.append(replace(case, split="test", fold=None))
        else:
            joining.append(case)
    return replace(
        manifest,
        training=(*kept, *_in_folds(joining, kept, manifest.folds)),
        test=tuple(test),
        findings=tuple(one for one in manifest.findings if one.case not in done),
    )


def _relabelled(one: Correction) -> ManifestCase:
    case = replace(one.case.case, label=one.label, classes=None if one.classes is None else dict(one.classes))
    hashes = {key: value for key, value in one.case.sha256.items() if key not in ("label", "classes")}
    hashes["label"] = content_sha256([one.label], case.frame)
    if case.classes is not None:
        hashes["classes"] = hashlib.sha256(json.dumps(as_text(case.classes)).encode()).hexdigest()
    return replace(one.case, case=case, sha256=hashes, provenance=dict(one.provenance))


def _in_folds(joining: Sequence[ManifestCase], kept: Sequence[ManifestCase], folds: int) -> list[ManifestCase]:
    """Returns new training cases, each in the fold of its group, or in the one that has the fewest cases."""
    groups = {case.group: case.fold for case in kept}
    sizes = Counter(dict.fromkeys(range(folds), 0))
    sizes.update(case.fold for case in kept if case.fold is not None)
    placed = []
    for case in joining:
        if case.group not in groups:
            groups[case.group] = min(sizes, key=lambda fold: (sizes[fold], fold)) if folds else None
        fold = groups[case.group]
        if fold is not None:
            sizes[fold] += 1
        placed.append(replace(case, split="training", fold=fold))
    return placed
