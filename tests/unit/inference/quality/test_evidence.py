"""What is gathered row by row is what plain formulas over the whole case say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unet_med.bundle import load_bundle
from unet_med.geometry import Geometry
from unet_med.inference.predictor import Predictor
from unet_med.inference.quality import evidence as evidence_module
from unet_med.inference.quality.evidence import CaseEvidence
from unet_med.labels import LabelMap
from unet_med.metrics import confusion_counts, dice_iou, structures
from unet_med.volume import Volume

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = LabelMap.from_names({"a": 1, "b": 2, "c": 3})
REGIONS = LabelMap.from_names({"rim": 1, "core": 2, "spot": 3}, {"whole": [1, 2, 3], "inner": [2, 3], "spot": [3]})


def _gathered(logits: torch.Tensor, labels: LabelMap, along: int = 0, cuts: Sequence[int] = ()) -> CaseEvidence:
    evidence = CaseEvidence(labels)
    evidence.begin(along, 1)
    size = logits.shape[along + 1]
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < size}), size]
    for start, stop in pairwise(bounds):
        rows = logits.narrow(along + 1, start, stop - start)
        evidence.add(0, rows)
        evidence.join(labels.from_outputs(rows))
    return evidence


def _chances(logits: torch.Tensor, labels: LabelMap) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Probability of each structure, and how unlikely each voxel's label is, as they are defined."""
    if not labels.regions:
        chances = torch.softmax(logits.double(), 0).numpy()
        return dict(zip(labels.names, chances[1:], strict=True)), 1.0 - chances.max(axis=0)
    whole, inner, spot = torch.sigmoid(logits.double()).numpy()
    nested = {"rim": whole * (1 - inner) * (1 - spot), "core": inner * (1 - spot), "spot": spot}
    unsure = np.max([0.5 - abs(p - 0.5) for p in (whole, inner, spot)], axis=0)
    return {**nested, "whole": whole, "inner": inner}, unsure


def _edge_doubt(mask: np.ndarray, doubt: np.ndarray) -> float:
    found = []
    for axis in range(mask.ndim):
        for place in np.ndindex(*mask.shape):
            after = tuple(n + (axis == number) for number, n in enumerate(place))
            if after[axis] < mask.shape[axis] and mask[place] != mask[after]:
                found.append((doubt[place] + doubt[after]) / 2)
    return float(np.mean(found)) if found else 0.0


@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=3),
    axis=st.integers(0, 2),
    cuts=st.lists(st.integers(1, 4), max_size=3),
    seed=st.integers(0, 2**16),
    slab=st.sampled_from([1, 30, 2**22]),
    nested=st.booleans(),
)
def test_features_are_what_the_formulas_say(
    shape: list[int], axis: int, cuts: list[int], seed: int, slab: int, nested: bool
) -> None:
    labels = REGIONS if nested else LABELS
    logits = torch.randn(labels.outputs, *shape, generator=torch.Generator().manual_seed(seed)) * 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence_module, "_SLAB_VALUES", slab)
        patch.setattr(evidence_module, "_CACHED_VALUES", slab)
        (found,) = _gathered(logits, labels, axis % len(shape), cuts).features()
    mask = labels.from_outputs(logits)
    chances, doubt = _chances(logits, labels)
    assert list(found) == list(structures(labels))
    for name, members in structures(labels).items():
        inside = np.isin(mask, members)
        if not inside.any():
            assert found[name] == {"expected_dice": None, "edge_doubt": None, "mirror_dice": None}
            continue
        expected = 2 * chances[name][inside].sum() / (chances[name].sum() + inside.sum())
        assert found[name]["expected_dice"] == pytest.approx(expected, abs=1e-5)
        assert found[name]["edge_doubt"] == pytest.approx(_edge_doubt(inside, doubt), abs=1e-5)


def test_expected_dice_is_the_mean_dice_with_truths_drawn_from_the_probabilities() -> None:
    random = np.random.default_rng(0)
    chance = np.clip(random.beta(0.5, 0.8, 20000), 1e-6, 1 - 1e-6)
    logits = torch.tensor(np.stack([np.zeros_like(chance), np.log(chance / (1 - chance))]), dtype=torch.float32)
    labels = LabelMap.from_names({"a": 1})
    (found,) = _gathered(logits.view(2, 100, 200), labels).features()
    mask = chance > 0.5
    drawn = [random.random(len(chance)) < chance for _ in range(50)]
    dice = np.mean([2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for truth in drawn])
    assert found["a"]["expected_dice"] == pytest.approx(dice, abs=2e-3)


def test_a_sure_model_expects_a_perfect_mask() -> None:
    label = np.zeros((6, 7), dtype=np.int64)
    label[2:4, 2:5] = 1
    sure = torch.tensor(np.stack([label == 0, label == 1]) * 40.0, dtype=torch.float32)
    labels = LabelMap.from_names({"a": 1})
    certain, wavering = (_gathered(logits, labels).features()[0]["a"] for logits in (sure, sure / 80))
    assert certain["expected_dice"] == pytest.approx(1.0)
    assert certain["edge_doubt"] == pytest.approx(0.0, abs=1e-6)
    assert wavering["expected_dice"] < 0.5
    assert wavering["edge_doubt"] > 0.3


def test_a_mask_that_fills_the_image_has_no_edge() -> None:
    logits = torch.stack([torch.zeros(3, 4), torch.full((3, 4), 5.0)])
    assert _gathered(logits, LabelMap.from_names({"a": 1})).features()[0]["a"]["edge_doubt"] == 0.0


def test_a_second_attempt_begins_from_nothing() -> None:
    logits = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))
    evidence = _gathered(logits, LABELS)
    once = evidence.features()
    evidence.begin(0, 1)
    evidence.add(0, logits)
    assert evidence.features() == once


def test_what_mirroring_changes() -> None:
    plain, mean = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(2))
    labels = LabelMap.from_names({"a": 1, "b": 2})
    plain, mean = (batch.view(4, 3, 5, 6) for batch in (plain.reshape(-1)[:360], mean.reshape(-1)[:360]))
    evidence = CaseEvidence(labels)
    evidence.begin(0, 1)
    for part in (slice(0, 1), slice(1, 4)):
        evidence.mirrored(0)(plain[part], mean[part])
    evidence.add(0, plain[0])
    masks = [np.stack([labels.from_outputs(one) for one in batch]) for batch in (plain, mean)]
    expected = dice_iou(confusion_counts(*masks, labels))
    for name, features in evidence.features()[0].items():
        assert features["mirror_dice"] == pytest.approx(expected[name][0])


def _volume(seed: int = 0) -> Volume:
    array = np.random.default_rng(seed).normal(100, 20, (1, 20, 17, 11)).astype(np.float32)
    return Volume(array, Geometry.from_spacing((20, 17, 11), (1.0, 0.8, 2.5)))


def test_a_prediction_is_the_same_with_evidence(tiny_bundle) -> None:
    predictor = Predictor([load_bundle(tiny_bundle())], "cpu")
    evidence = CaseEvidence(predictor.labels)
    labels = predictor.predict(_volume(), evidence=evidence).labels
    np.testing.assert_array_equal(labels, predictor.predict(_volume()).labels)
    (found,) = evidence.features()
    assert 0.3 < found["bright"]["expected_dice"] < 1.0
    assert found["bright"]["mirror_dice"] is None
    assert evidence.agreement() == {}
    assert evidence.traits["spacing/2"] == pytest.approx(np.log(2.5))


def test_a_network_that_sees_no_neighbours_is_the_same_mirrored(tiny_bundle) -> None:
    bundle = load_bundle(tiny_bundle(training__precision="fp32", network__features=[4, 4]))
    predictor = Predictor([bundle], "cpu", mirror=True)
    evidence = CaseEvidence(predictor.labels)
    predictor.predict(_volume(), evidence=evidence)
    assert evidence.features()[0]["bright"]["mirror_dice"] == pytest.approx(1.0, abs=1e-3)


def test_models_that_predict_together_are_measured_one_by_one(tiny_bundle) -> None:
    one = load_bundle(tiny_bundle(training__precision="fp32"))
    weights = {key: value.clone() for key, value in one.state.items()}
    weights["heads.0.weight"][2, 1] = 0.0  # it sees nothing dark
    bundles = [one, replace(one, state=weights, sha256="other")]
    together = CaseEvidence(one.labels)
    common = Predictor(bundles, "cpu").predict(_volume(), evidence=together).labels
    agreements = []
    for number, bundle in enumerate(bundles):
        alone = CaseEvidence(one.labels)
        own = Predictor([bundle], "cpu").predict(_volume(), evidence=alone).labels
        for name, features in alone.features()[0].items():
            assert together.features()[number][name] == pytest.approx(features, abs=1e-6)
        agreements.append(dice_iou(confusion_counts(own, common, one.labels)))
    for name in one.labels.names:
        expected = np.mean([row[name][0] for row in agreements])
        assert together.agreement()[name] == pytest.approx(expected, abs=1e-9)


def test_memory_that_runs_out_leaves_no_trace_in_the_evidence(tiny_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_bundle(tiny_bundle(training__precision="fp32"))
    whole, again = CaseEvidence(bundle.labels), CaseEvidence(bundle.labels)
    Predictor([bundle], "cpu").predict(_volume(), evidence=whole)
    add, calls = CaseEvidence.add, 0

    def starved(self: CaseEvidence, model: int, logits: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        add(self, model, logits)
        if calls == 1:
            raise MemoryError

    monkeypatch.setattr(CaseEvidence, "add", starved)
    prediction = Predictor([bundle], "cpu").predict(_volume(), evidence=again)
    assert any("out of memory" in note for note in prediction.notes)
    assert again.features()[0]["bright"] == pytest.approx(whole.features()[0]["bright"], abs=1e-2)
