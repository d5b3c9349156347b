"""Folds that never split a group, and do not depend on the order of the cases."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence


def assign_folds(groups: Mapping[str, str], folds: int, seed: int = 0) -> dict[str, int]:
    """Distributes cases over folds.

    The groups are taken from the largest to the smallest, equals in the order of a hash of (seed, group), and each
    goes to the fold that has the fewest cases so far.

    Args:
        groups: Case id -> group.
        folds: Number of folds asked for, at least 2; there are never more folds than groups.
        seed: Changes the order of equally large groups.

    Returns:
        Case id -> fold (0 and up); empty when there are fewer than two groups or ``folds < 2``.
    """
    members: dict[str, list[str]] = {}
    for case, group in groups.items():
        members.setdefault(group, []).append(case)
    count = min(folds, len(members))
    if count < 2:
        return {}
    order = sorted(members, key=lambda group: (-len(members[group]), _rank(group, seed)))
    sizes = [0] * count
    chosen: dict[str, int] = {}
    for group in order:
        fold = sizes.index(min(sizes))
        sizes[fold] += len(members[group])
        chosen.update(dict.fromkeys(members[group], fold))
    return chosen


def merge_groups(groups: Mapping[str, str], same: Sequence[Sequence[str]]) -> dict[str, str]:
    """Puts cases that belong together (the same image twice) into one group.

    Args:
        groups: Case id -> group.
        same: Sets of case ids that must share a group.

    Returns:
        Case id -> group; merged groups take the first of their names in alphabetical order.
    """
    parent = {group: group for group in groups.values()}

    def root(group: str) -> str:
        while parent[group] != group:
            group = parent[group]
        return group

    for cases in same:
        first = root(groups[cases[0]])
        for case in cases[1:]:
            low, high = sorted((first, root(groups[case])))
            parent[high] = low
            first = low
    return {case: root(group) for case, group in groups.items()}


def _rank(group: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{group}".encode()).hexdigest()
