"""The label doctor on real pictures: what it says of tiles and copies is true."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from healthy_sets import manifest_of

from unet_med.doctoring import PairFinding, examine
from unet_med.doctoring.likeness import cell_size, likeness, near_duplicates
from unet_med.doctoring.looking import grey_of

Shared = Callable[[str], Path]


def test_tiles_of_one_field_are_found_and_no_others(shared_data: Shared, tmp_path: Path) -> None:
    """The table beside the pictures puts those that look adjacent into one group."""
    folder = shared_data("dsb2018_nuclei")
    with (folder / "index.csv").open(encoding="utf-8") as file:
        group = {row["name"]: row["group"] for row in csv.DictReader(file)}
    manifest = manifest_of(folder, tmp_path / "m.json", task="instance")
    apart = tuple(replace(case, fold=number, group=case.id) for number, case in enumerate(manifest.training))
    findings = examine(replace(manifest, training=apart))
    assert {finding.kind for finding in findings} == {"tiles_apart"}
    pairs = [(finding.case, finding.other) for finding in findings if isinstance(finding, PairFinding)]
    assert all(group[one] == group[other] for one, other in pairs)
    assert len(pairs) >= 45


def test_copies_of_pictures_are_found_and_no_others(shared_data: Shared, tmp_path: Path) -> None:
    manifest = manifest_of(shared_data("dsb2018_nuclei"), tmp_path / "m.json", task="instance")
    random = np.random.default_rng(0)
    pictures = [grey_of(case.case.read().array) for case in manifest.training[:75]]
    copied = range(0, len(pictures), 5)
    for number in copied:
        picture = pictures[number]
        noisy = 0.5 * (picture + random.normal(0, 0.1 * picture.std(), picture.shape)) + 3
        pictures.append(noisy[random.integers(0, 3) :, random.integers(0, 3) :].astype(np.float32))
    cells = cell_size([picture.shape for picture in pictures])
    kept = [likeness(picture, cells[2]) for picture in pictures]
    found = [(one, other) for one, other, _ in near_duplicates(kept, lambda one, other: True)]
    assert found == [(number, 75 + place) for place, number in enumerate(copied)]
