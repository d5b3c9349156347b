"""Several modalities of one case: found by number or by name, and missed by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from unet_med.geometry import Geometry
from unet_med.identity import safe_name, stem_of, unique_ids
from unet_med.io.grouping import group_cases
from unet_med.io.source import Discovery, SourceRef
from unet_med.manifest.channels import channel_keys, missing_findings
from unet_med.manifest.modalities import agreed
from unet_med.manifest.pairing import Pairing, pair_sources

ROOT = Path("root")


def refs(*names: str) -> list[SourceRef]:
    """Sources of these files; a name that ends in / is a DICOM series of that folder."""
    ids = unique_ids([safe_name(stem_of(Path(name.rstrip("/")))) for name in names])
    found = []
    for source_id, name in zip(ids, names, strict=True):
        dicom = name.endswith("/")
        file = ROOT / name / "1.dcm" if dicom else ROOT / name
        kind, modality = ("dicom", "MR") if dicom else ("nifti", None)
        found.append(SourceRef(source_id, kind, (file,), "IJK", (4, 4, 4), Geometry((4, 4, 4)), modality=modality))
    return found


def paired(*names: str) -> Pairing:
    return agreed(pair_sources(ROOT, Discovery(tuple(refs(*names))), None, None))


def shown(pairing: Pairing) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Case -> its channels and their files."""

    def name(ref: SourceRef) -> str:
        file = ref.files[0].relative_to(ROOT)
        return (file.parent if ref.kind == "dicom" else file).as_posix()

    return {pair.label.id: (pair.channels, tuple(map(name, pair.images))) for pair in pairing.pairs if pair.label}


@pytest.mark.parametrize(
    "layout",
    [
        ("images/{0}/T1.nii", "images/{0}/FLAIR.nii", "labels/{0}.nii"),
        ("images/{0}_T1.nii", "images/{0}_FLAIR.nii", "labels/{0}.nii"),
        ("{0}/{0}_T1.nii", "{0}/{0}_FLAIR.nii", "{0}/{0}_seg.nii"),
        ("images/{0}/T1/", "images/{0}/FLAIR/", "labels/{0}.nii"),
        ("set/{0}/T1.nii", "set/{0}/FLAIR.nii", "labels/{0}.nii"),
    ],
)
def test_modalities_by_name_are_channels_in_one_order(layout: tuple[str, ...]) -> None:
    cases = ("p1", "p2", "p3")
    found = paired(*[name.format(case) for case in cases for name in layout])
    assert len(found.pairs) == 3
    for pair, case in zip(found.pairs, cases, strict=True):
        assert pair.channels == ("FLAIR", "T1")
        assert [ref.files[0].as_posix() for ref in pair.images] == [
            (ROOT / name.format(case) / ("1.dcm" if name.endswith("/") else "")).as_posix()
            for name in (layout[1], layout[0])
        ]
        assert pair.label is not None
    assert found.left_over == ()
    assert "channels by name of file or folder: FLAIR, T1" in found.notes


def test_a_name_that_only_one_case_has_is_no_channel() -> None:
    names = [f"images/{case}/{what}.nii" for case in "abc" for what in ("T1", "T2")]
    found = paired(*names, "images/b/scribble.nii", *[f"labels/{case}.nii" for case in "abc"])
    assert {channels for channels, _ in shown(found).values()} == {("T1", "T2")}
    assert [name for name, _ in found.left_over] == ["scribble"]


def test_a_single_case_needs_words_that_are_known() -> None:
    assert len(shown(paired("images/a/T1.nii", "images/a/flair.nii", "labels/a.nii"))) == 1
    guessed = paired("images/a/one.nii", "images/a/two.nii", "labels/a.nii")
    assert shown(guessed) == {}
    assert {name for name, _ in guessed.left_over} == {"one", "two", "a"}


def test_images_without_label_lose_the_number_of_the_only_channel() -> None:
    found = paired("imagesTr/a_0000.nii", "labelsTr/a.nii", "imagesTs/b_0000.nii")
    assert [pair.stem for pair in found.pairs] == ["a", "b"]
    other = paired("imagesTr/a.nii", "labelsTr/a.nii", "imagesTs/b_0000.nii")
    assert [pair.stem for pair in other.pairs] == ["a", "b_0000"]


# ---- what is missing ------------------------------------------------------------------------------------------------


def test_a_missing_channel_is_named_by_case_number_and_name() -> None:
    cases = {"a": ("0000", "0001", "0002"), "b": ("0000", "0002"), "c": ("0000",)}
    found = missing_findings(cases, ("T1", "T2", "FLAIR"))
    assert [(one.case, one.what) for one in found] == [
        ("b", "the image of channel 'T2' (0001) is missing"),
        ("c", "the image of channel 'T2' (0001) is missing"),
        ("c", "the image of channel 'FLAIR' (0002) is missing"),
    ]
    assert {one.severity for one in found} == {"error"}


def test_names_may_be_more_than_any_case_has() -> None:
    (found,) = missing_findings({"a": ("0000",)}, ("CT", "PET"))
    assert "'PET' (0001)" in found.what
    assert missing_findings({"a": ("0000",), "b": ()}, ("CT",)) == []


def test_a_gap_that_all_cases_have_is_a_gap() -> None:
    assert channel_keys({"a": ("0000", "0002")}) == ("0000", "0001", "0002")
    (found,) = missing_findings({"a": ("0000", "0002")}, ())
    assert found.what == "the image of channel 'channel_1' (0001) is missing"


def test_what_is_only_predicted_is_a_warning() -> None:
    (found,) = missing_findings({"a": ("CT", "PT"), "b": ("CT",)}, (), unlabelled=["b"])
    assert (found.severity, found.what) == ("warning", "the image of channel 'PT' (PT) is missing")


# ---- cases to be predicted ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a_0000.nii", "a_0001.nii"], {"a": (2, ())}),
        (["a_0001.nii"], {"a": (1, ("CT",))}),
        (["a_0000.nii", "b_0000.nii", "b_0001.nii"], {"a": (1, ("PET",)), "b": (2, ())}),
        (["a_pet.nii", "a_ct.nii"], {"a": (2, ())}),
        (["a/PET.nii", "a/CT.nii", "b/CT.nii"], {"a": (2, ()), "b": (1, ("PET",))}),
        (["other.nii"], {"other": (1, ())}),
    ],
)
def test_a_case_says_which_of_the_wanted_channels_it_lacks(
    names: list[str], expected: dict[str, tuple[int, tuple[str, ...]]]
) -> None:
    cases = group_cases(refs(*names), ("CT", "PET"))
    assert {case.id: (len(case.sources), case.missing) for case in cases} == expected


def test_series_in_folders_of_the_channels_names_are_one_case_in_their_order() -> None:
    cases = group_cases(refs("p/t2/", "p/t1/", "q/t1/"), ("T1", "T2"))
    assert [[source.files[0].parent.name for source in case.sources] for case in cases] == [["t1", "t2"], ["t1"]]
    assert [case.missing for case in cases] == [(), ("T2",)]


def test_one_channel_is_as_it_was() -> None:
    cases = group_cases(refs("a_0000.nii", "b_0001.nii", "c_CT.nii"), ("CT",))
    assert [(case.id, case.missing) for case in cases] == [("a", ()), ("b_0001", ()), ("c_CT", ())]


def test_two_files_for_one_channel_are_not_guessed() -> None:
    cases = group_cases(refs("x/a_CT.nii", "x/a_ct.nii.gz", "x/a_PET.nii"), ("CT", "PET"))
    assert [len(case.sources) for case in cases] == [1, 1, 1]
