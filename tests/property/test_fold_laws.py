"""Folds never split a group, are balanced, and do not depend on the order of the cases."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from unet_med.manifest.folds import assign_folds, merge_groups

GROUPS = st.dictionaries(
    st.text("abcdefghij0123456789", min_size=1, max_size=6), st.sampled_from([f"g{n}" for n in range(12)]), min_size=1
)


@given(GROUPS, st.integers(2, 8), st.integers(0, 5))
def test_a_group_lies_in_one_fold(groups: dict[str, str], folds: int, seed: int) -> None:
    chosen = assign_folds(groups, folds, seed)
    if len(set(groups.values())) < 2:
        assert chosen == {}
        return
    assert chosen.keys() == groups.keys()
    for group in set(groups.values()):
        assert len({chosen[case] for case in groups if groups[case] == group}) == 1
    assert set(chosen.values()) == set(range(min(folds, len(set(groups.values())))))


@given(GROUPS, st.integers(2, 8), st.randoms())
def test_the_order_of_the_cases_does_not_matter(groups: dict[str, str], folds: int, random) -> None:
    names = list(groups)
    random.shuffle(names)
    assert assign_folds({name: groups[name] for name in names}, folds) == assign_folds(groups, folds)


@given(GROUPS, st.integers(2, 8))
def test_folds_differ_by_at_most_the_largest_group(groups: dict[str, str], folds: int) -> None:
    chosen = assign_folds(groups, folds)
    if chosen:
        sizes = Counter(chosen.values())
        assert max(sizes.values()) - min(sizes.values()) <= max(Counter(groups.values()).values())


@given(GROUPS, st.data())
def test_merged_groups_keep_what_was_together_and_join_what_is_the_same(groups: dict[str, str], data) -> None:
    same = data.draw(st.lists(st.lists(st.sampled_from(sorted(groups)), min_size=2, max_size=4), max_size=4))
    merged = merge_groups(groups, same)
    assert merged.keys() == groups.keys()
    for cases in same:
        assert len({merged[case] for case in cases}) == 1
    for one in groups:
        for other in groups:
            if groups[one] == groups[other]:
                assert merged[one] == merged[other]
    if not same:
        assert merged == groups


def test_the_seed_changes_the_folds() -> None:
    groups = {f"case{n}": f"case{n}" for n in range(40)}
    assert assign_folds(groups, 5, seed=0) != assign_folds(groups, 5, seed=1)
    assert Counter(assign_folds(groups, 5).values()) == dict.fromkeys(range(5), 8)
