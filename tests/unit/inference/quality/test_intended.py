"""An image that a model is not meant for is refused or doubted; one like those of training is neither."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.inference.quality.assessment import Assessor
from unet_med.inference.quality.intended import _REGIONS, META_KEY, Intended, joined_intended_meta
from unet_med.io.cases import Case
from unet_med.io.dicom.headers import BODY_PARTS, MODALITIES
from unet_med.io.source import SourceRef


def _case(
    spacing: tuple[float, ...] | None = (1.0, 1.0, 2.0),
    modality: str | None = "CT",
    part: str | None = "ABDOMEN",
    images: int = 1,
) -> Case:
    grid = Geometry.from_spacing((8, 8, 8), spacing)
    source = SourceRef("a", "dicom", (Path("a"),), "IJK", (8, 8, 8), grid, modality=modality, body_part=part)
    return Case("a", (source,) * images)


@pytest.fixture
def model() -> Intended:
    return Intended.of([_case(), _case((0.8, 0.8, 3.0), part="LIVER")])


def test_what_is_learnt_of_the_cases_of_training(model: Intended) -> None:
    assert model.modalities == ("CT",)
    assert model.body_parts == ("ABDOMEN", "LIVER")
    assert model.spacing_mm == ((0.8, 1.0), (0.8, 1.0), (2.0, 3.0))
    assert Intended.from_json(json.loads(json.dumps(model.to_json()))) == model


def test_what_not_all_cases_say_is_not_known() -> None:
    mixed = Intended.of([_case(), _case(None, "MR", None)])
    assert mixed == Intended((None,), (), None)
    assert mixed.doubts(_case((9.0, 9.0, 9.0), "US", "BRAIN")) == []
    assert Intended.of([_case(modality=None)], "MR").modalities == ("MR",)
    assert Intended.of([]).doubts(_case()) == []


def test_another_modality_is_refused_with_a_remedy(model: Intended) -> None:
    with pytest.raises(InputRefusedError, match=r"an? MR image.*made for CT.*use a model for MR"):
        model.doubts(_case(modality="MR"))


@pytest.mark.parametrize("given_modality", ["CT", None, "OT"])
def test_the_same_or_an_unknown_modality_is_taken(model: Intended, given_modality: str | None) -> None:
    assert model.doubts(_case(modality=given_modality)) == []


def test_radiographs_are_alike_whatever_made_them() -> None:
    model = Intended.of([_case(modality="CR")])
    assert model.doubts(_case(modality="DX")) == []
    with pytest.raises(InputRefusedError):
        model.doubts(_case(modality="CT"))


def test_each_image_of_a_case_has_a_modality_of_its_own() -> None:
    both = Case("a", (_case(modality="PT").sources[0], _case(modality="CT").sources[0]))
    model = Intended.of([both])
    assert model.modalities == ("PT", "CT")
    assert model.doubts(both) == []
    with pytest.raises(InputRefusedError):
        model.doubts(replace(both, sources=both.sources[::-1]))


@pytest.mark.parametrize(
    ("part", "doubted"), [("PELVIS", True), ("ABDOMENPELVIS", False), ("WHOLEBODY", False), (None, False)]
)
def test_another_part_of_the_body_is_doubted(model: Intended, part: str | None, doubted: bool) -> None:
    found = model.doubts(_case(part=part))
    assert bool(found) is doubted
    if doubted:
        assert found == ["an image of the pelvis; the model was made for abdomen"]


def test_far_larger_voxels_are_doubted_and_slightly_larger_ones_are_not(model: Intended) -> None:
    assert model.doubts(_case((1.5, 1.5, 5.0))) == []
    assert model.doubts(_case((1.0, 1.0, 7.0))) == ["voxels of 7 mm from foot to head, 2 to 3 in training"]
    assert len(model.doubts(_case((0.1, 0.1, 2.5)))) == 2
    assert model.doubts(_case(None)) == []


def test_every_part_that_a_header_can_name_lies_somewhere() -> None:
    assert set(_REGIONS) == BODY_PARTS


@pytest.mark.parametrize("data", [None, {}, {"schema": 99}, {"schema": 1, "modalities": 3}, [1]])
def test_what_is_no_record_says_nothing(data: object) -> None:
    assert Intended.from_json(data) == Intended()


def test_a_model_made_before_this_takes_everything() -> None:
    assert Assessor([{}]).doubts(_case(modality="MR")) == []
    assert Assessor([]).doubts(_case()) == []


def test_the_members_of_an_ensemble_together(model: Intended) -> None:
    other = Intended.of([_case((0.5, 1.0, 2.5), part="PELVIS")])
    together = Intended.from_json(joined_intended_meta([{META_KEY: one.to_json()} for one in (model, other)]))
    assert together == Intended(("CT",), ("ABDOMEN", "LIVER", "PELVIS"), ((0.5, 1.0), (0.8, 1.0), (2.0, 3.0)))
    assert Intended.from_json(joined_intended_meta([{}, {META_KEY: model.to_json()}])) == Intended()


_cases = st.builds(
    _case,
    st.tuples(*[st.floats(0.1, 10.0)] * 3) | st.none(),
    st.sampled_from([None, *sorted(MODALITIES)]),
    st.sampled_from([None, *sorted(BODY_PARTS)]),
    st.integers(1, 2),
)


@settings(deadline=None)
@given(st.lists(_cases, min_size=1, max_size=4))
def test_no_case_of_training_is_refused_or_doubted(cases: list[Case]) -> None:
    model = Intended.from_json(Intended.of(cases).to_json())
    assert all(model.doubts(case) == [] for case in cases)
