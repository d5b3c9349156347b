"""The page of a comparison: everything is said, nothing is loaded, names are told only where they may be."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from unet_med.review.comparison import case_scores, changes_of, compared, verdict_of
from unet_med.review.comparison_page import Figure, page

_VOID = {"meta", "img", "br", "link", "input"}
_EMPTY_SVG = {"line", "circle", "rect"}


class Balanced(HTMLParser):
    """Notices an element that is not closed, or closed out of turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        assert tag in _EMPTY_SVG

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def result_of(gains: dict[str, float]) -> dict[str, Any]:
    a = {name: case_scores({"dice": {"<liver>": 0.8}}) for name in gains}
    b = {name: case_scores({"dice": {"<liver>": 0.8 + gain}}) for name, gain in gains.items()}
    differences = compared(a, b, list(gains), seed=0)
    verdict = verdict_of(differences)
    rows = {k: {n: vars(d) | {"shown": d.is_shown} for n, d in v.items()} for k, v in differences.items()}
    changes = [vars(one) | {"id": one.case} for one in changes_of(a, b, list(gains), verdict)]
    return {
        "a": "toy <1>, model 0123",
        "b": "toy, model 4567",
        "cases": len(gains),
        "only_a": 1,
        "only_b": 0,
        "other_truth": [],
        "verdict": {"headline": verdict.headline, "evidence": verdict.evidence, "title": verdict.title},
        "differences": rows,
        "changes": changes,
        "settings": [{"key": "seed", "a": "0", "b": "1"}],
    }


def test_the_page_says_everything_and_loads_nothing() -> None:
    result = result_of({"one": -0.3, "two": 0.1, "three": -0.2, "four": 0.05})
    figures = {"one": Figure((("A", "QUJD"), ("B", "REVG"))), "two": Figure(reason="no picture: <gone>")}
    html = page(result, figures)
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    for word in (
        "No difference shown",
        "toy &lt;1&gt;, model 0123",
        "1 only in A",
        "&lt;liver&gt;",
        "&lt;gone&gt;",
        "seed",
    ):
        assert word in html
    assert "<liver>" not in html and "<gone>" not in html
    assert html.count("data:image/png;base64,QUJD") == html.count("data:image/png;base64,REVG") == 1
    assert not re.search(r"https?://|<script|url\(|src=\"(?!data:)", html)
    assert len(re.findall(r'class="dot" cx="[\d.]+" cy="[\d.]+" r="4"', html)) == 4, "a dot for each case"
    assert (
        html.index("Largest losses") < html.index("<code>one") < html.index("Largest gains") < html.index("<code>two")
    )


@pytest.mark.parametrize("with_pictures", [True, False])
def test_cases_go_by_the_names_that_are_asked_for(with_pictures: bool) -> None:
    result = result_of({"SECRET-1": -0.3, "SECRET-2": 0.2, "SECRET-3": 0.1})
    result["other_truth"] = ["SECRET-3"]
    figures = {"SECRET-1": Figure((("A", "QUJD"), ("B", "REVG")))} if with_pictures else {}
    assert "SECRET-1" in page(result, figures)
    told = page(result, figures, lambda case: f"tag-{len(case)}")
    assert "SECRET" not in told and "tag-8" in told and "other true labels" in told


def test_equal_runs_have_a_page() -> None:
    html = page(result_of(dict.fromkeys(("one", "two", "three", "four"), 0.0)), {})
    assert "No difference shown" in html and "No case changed" in html
