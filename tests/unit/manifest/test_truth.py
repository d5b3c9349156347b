"""Which annotation belongs to which series, and which segment is which label."""

from __future__ import annotations

from pathlib import Path

import annotation_writer as a
import dicom_writer as w
import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.uid import generate_uid

from unet_med.errors import UsageError
from unet_med.io.dicom.slices import Annotation, Segment
from unet_med.io.discover import discover
from unet_med.io.source import IntakeOptions, SourceRef
from unet_med.manifest import BuildOptions, BuildReport, build_manifest
from unet_med.manifest.truth import name_segments

SHAPE = (4, 8, 10)
"""Slices, rows, columns."""


def holding(*segments: tuple[str, str] | str) -> SourceRef:
    """Returns an annotation of these names (or names and codes), numbered from 1."""
    pairs = [(one, "") if isinstance(one, str) else one for one in segments]
    made = tuple(Segment(number, name, code) for number, (name, code) in enumerate(pairs, start=1))
    return SourceRef("s001-0", "dicom-seg", (), "", (), None, layout=Annotation(made))


# ---- names ----------------------------------------------------------------------------------------------------------


def test_names_are_compared_without_case_and_signs() -> None:
    naming = name_segments([holding("Left Kidney", "liver"), holding("LIVER", "left_kidney")], [])
    assert naming.labels == {1: "Left Kidney", 2: "liver"}
    assert naming.segments == ({1: 1, 2: 2}, {1: 2, 2: 1})
    assert naming.notes == ()


def test_codes_come_first() -> None:
    liver, spleen = "SCT:10200004", "SCT:78961009"
    naming = name_segments([holding(("liver", liver)), holding(("Leber", liver), ("Milz", spleen))], [])
    assert naming.labels == {1: "liver", 2: "Milz"}
    assert naming.segments == ({1: 1}, {1: 1, 2: 2})
    assert naming.notes[0] == "label 1 liver is called Leber, liver: one label by code or by list"


def test_a_case_may_lack_an_organ() -> None:
    naming = name_segments([holding("liver", "spleen"), holding("spleen")], [])
    assert naming.segments == ({1: 1, 2: 2}, {1: 2})
    assert naming.notes == ("label 1 liver is in 1 of 2 annotations",)


@pytest.mark.parametrize("code", ["SCT:85756007", "SCT:108369006"])
def test_a_vague_code_joins_nothing(code: str) -> None:
    naming = name_segments([holding(("liver", code)), holding(("spleen", code))], [])
    assert naming.labels == {1: "liver", 2: "spleen"}


def test_a_code_that_one_file_gives_twice_joins_nothing() -> None:
    code = "SCT:64033007"
    both = holding(("kidney left", code), ("kidney right", code))
    naming = name_segments([both, holding(("kidney right", code))], [])
    assert naming.labels == {1: "kidney left", 2: "kidney right"}
    assert naming.segments[1] == {1: 2}


def test_one_name_for_two_codes_is_not_guessed() -> None:
    left, right = "SCT:64033007+SCT:7771000", "SCT:64033007+SCT:24028007"
    naming = name_segments([holding(("kidney", left)), holding(("kidney", right))], [])
    assert naming.segments == ({1: 1}, {})
    assert "segments that are no known label: 1" in naming.notes


def test_two_segments_of_one_name_are_one_label() -> None:
    assert name_segments([holding("lesion", "lesion")], []).segments == ({1: 1, 2: 1},)


def test_a_segment_without_a_name_is_not_guessed() -> None:
    naming = name_segments([holding("unnamed_1", "liver")], [])
    assert naming.segments == ({2: 1},)


def test_listed_labels_close_the_list() -> None:
    naming = name_segments([holding("liver", "couch", "Leber")], [(2, "liver"), (1, "spleen"), (2, "leber")])
    assert naming.labels == {2: "liver", 1: "spleen"}
    assert naming.segments == ({1: 2, 3: 2},)
    out = name_segments([holding("liver", "couch", "body")], [(1, "liver"), (0, "Couch")])
    assert out.segments == ({1: 1, 2: 0},)
    rest = name_segments([holding("liver", "couch", "body")], [(1, "liver"), (0, "*")])
    assert rest.segments == ({1: 1, 2: 0, 3: 0},)
    assert "segments left out as --label-names says: 2" in rest.notes


def test_listed_names_know_their_codes() -> None:
    naming = name_segments([holding(("Leber", "SCT:10200004"))], [(1, "liver")])
    assert naming.segments == ({1: 1},)


def test_everything_else_is_no_label() -> None:
    with pytest.raises(UsageError, match=r"write 0=\*"):
        name_segments([holding("liver")], [(1, "*")])


# ---- pairing --------------------------------------------------------------------------------------------------------


def mask(seed: int = 0, highest: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, highest + 1, SHAPE).astype(np.uint8)


def a_series(number: int = 13, **changes: object) -> w.Series:
    return w.Series(**({"columns": SHAPE[2], "rows": SHAPE[1], "count": SHAPE[0], "number": number} | changes))


def add_case(root: Path, name: str, names: tuple[str, ...] = ("liver",), seed: int = 0) -> tuple[w.Series, np.ndarray]:
    """Writes a series of a patient of its own, and a SEG of it in another folder."""
    series = a_series()
    slices = series.slices()
    for data in slices:
        data.PatientID = f"SECRET-{name}"
        w.set_values(
            data, w.truth(np.zeros((SHAPE[1], SHAPE[2], 3))) + np.random.default_rng(seed).normal(size=SHAPE[1:])
        )
    w.write(root / "SECRET^JANE" / name, slices)
    truth = mask(seed, len(names))
    a.save(a.segmentation(slices, truth, names), root / "truth" / f"{name}.dcm")
    return series, truth


def build(root: Path, **options: object) -> BuildReport:
    return build_manifest(root, discover(root), BuildOptions(**options), "set")


def test_annotations_are_paired_with_the_series_that_they_name(tmp_path: Path) -> None:
    truths = [add_case(tmp_path, f"p{number}", seed=number)[1] for number in range(3)]
    report = build(tmp_path)
    assert report.notes[0] == "series paired with the SEG or RTSTRUCT that refers to them: 3"
    assert (report.left_over, report.manifest.findings) == ((), ())
    found = [case.case.read_label() for case in report.manifest.training]
    for truth in truths:
        assert sum(np.array_equal(one, truth.transpose(2, 1, 0)) for one in found) == 1
    assert len({case.group for case in report.manifest.training}) == 3
    assert report.manifest.labels == {"background": 0, "liver": 1}


def test_a_label_file_goes_before_an_annotation(tmp_path: Path) -> None:
    add_case(tmp_path, "p0")
    image = discover(tmp_path).sources[0]
    (tmp_path / "labels").mkdir()
    values = np.zeros(image.shape, dtype=np.uint8)
    values[0] = 2
    values[1] = 1
    nib.save(nib.Nifti1Image(values, image.geometry.affine), tmp_path / "labels" / "p0.nii.gz")
    report = build(tmp_path)
    assert report.manifest.training[0].case.label.kind == "nifti"
    assert [reason for _, reason in report.left_over] == ["its series has a label file"]


def test_two_annotations_of_a_series_are_not_chosen_between(tmp_path: Path) -> None:
    add_case(tmp_path, "p0")
    add_case(tmp_path, "p1", seed=1)
    again = _again(tmp_path, "p0")
    a.save(a.segmentation(again, mask(7), ["tumour"]), tmp_path / "truth" / "reader2" / "p0.dcm")
    report = build(tmp_path)
    assert len(report.manifest.training) == 1
    reasons = [reason for _, reason in report.left_over]
    assert len(reasons) == 3
    assert all("2 annotations refer to one series: choose one with --labels GLOB" in one for one in reasons)
    chosen = build(tmp_path, labels="truth/p*.dcm")
    assert (chosen.manifest.labels, len(chosen.manifest.training)) == ({"background": 0, "liver": 1}, 2)
    assert [reason for _, reason in chosen.left_over] == ["does not match --labels"]


def _again(root: Path, name: str) -> list[FileDataset]:
    """Returns the slices of a case as they were written."""
    return [dcmread(path) for path in sorted((root / "SECRET^JANE" / name).iterdir())]


def test_the_same_truth_as_seg_and_contours(tmp_path: Path) -> None:
    """An export of both: the SEG holds every voxel."""
    series, truth = add_case(tmp_path, "p0")
    structures = a.Structures(series, _again(tmp_path, "p0"))
    square = structures.points(1, [(1.5, 1.5), (5.5, 1.5), (5.5, 5.5), (1.5, 5.5)])
    a.save(structures.dataset({"Liver": [square]}), tmp_path / "truth" / "contours.dcm")
    report = build(tmp_path)
    case = report.manifest.training[0].case
    assert case.label.kind == "dicom-seg"
    assert np.array_equal(case.read_label(), truth.transpose(2, 1, 0))
    assert [reason for _, reason in report.left_over] == ["the SEG of the same segments is used"]


def test_an_annotation_of_an_absent_series(tmp_path: Path) -> None:
    """Its series was renamed: it is placed by frame of reference and study, but only where that leaves no choice."""
    _, truth = add_case(tmp_path, "p0")
    slices = _again(tmp_path, "p0")
    for data in slices:
        data.SeriesInstanceUID = "1.2.3.4"
        w.renew(data)
    w.write(tmp_path / "SECRET^JANE" / "p0", slices)
    report = build(tmp_path)
    assert np.array_equal(report.manifest.training[0].case.read_label(), truth.transpose(2, 1, 0))
    assert any("names no series of the folder: placed by the frame of reference" in note for note in report.notes)
    for data in slices:
        data.SeriesInstanceUID, data.SeriesNumber = "1.2.3.5", 20
        w.renew(data)
    w.write(tmp_path / "SECRET^JANE" / "twin", slices)
    add_case(tmp_path, "p1", seed=1)
    report = build(tmp_path)
    assert "names no series of the folder, and 2 share its frame of reference" in [why for _, why in report.left_over]


def test_an_annotation_of_a_refused_series_goes_to_no_other(tmp_path: Path) -> None:
    add_case(tmp_path, "p0")
    add_case(tmp_path, "p1", seed=1)
    slices = _again(tmp_path, "p0")
    (tmp_path / "SECRET^JANE" / "p0" / "IM0001.dcm").unlink()
    for data in slices:
        data.SeriesInstanceUID, data.SeriesNumber = generate_uid(), 20
        w.renew(data)
    w.write(tmp_path / "SECRET^JANE" / "other series of the study", slices)
    report = build(tmp_path)
    assert "refers to a series that is not used" in [reason for _, reason in report.left_over]
    assert len(report.manifest.training) == 1


def test_a_segment_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    add_case(tmp_path, "p0", ("liver", "couch"))
    add_case(tmp_path, "p1", seed=1)
    report = build(tmp_path, label_names="1=liver")
    [finding] = report.manifest.findings
    assert finding.what == "segment 2 (couch) is no label that is known"
    assert "0=NAME" in finding.remedy
    report = build(tmp_path, label_names="1=liver,0=couch")
    assert report.manifest.findings == ()
    assert {value for case in report.manifest.training for value in np.unique(case.case.read_label())} == {0, 1}


def test_label_files_and_annotations_need_names(tmp_path: Path) -> None:
    add_case(tmp_path, "p0")
    values = mask(3).transpose(2, 1, 0)
    for folder, array in (("imagesTr", values.astype(np.float32)), ("labelsTr", values)):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / folder / "c1.nii.gz")
    with pytest.raises(UsageError, match="say which value is which"):
        build(tmp_path)
    report = build(tmp_path, label_names="1=liver")
    assert len(report.manifest.training) == 2
    assert report.manifest.findings == ()


def test_series_chooses_an_annotation(tmp_path: Path) -> None:
    add_case(tmp_path, "p0")
    a.save(a.segmentation(_again(tmp_path, "p0"), mask(7), ["tumour"]), tmp_path / "truth" / "second.dcm")
    for annotation in discover(tmp_path).annotations:
        found = discover(tmp_path, IntakeOptions(series=(annotation.id,)))
        report = build_manifest(tmp_path, found, BuildOptions(), "set")
        assert list(report.manifest.labels) == ["background", annotation.layout.segments[0].name]


def test_unusable_annotations_are_told(tmp_path: Path) -> None:
    add_case(tmp_path, "p0")
    add_case(tmp_path, "p1", seed=1)
    path = tmp_path / "truth" / "p0.dcm"
    path.write_bytes(path.read_bytes()[:-20])
    report = build(tmp_path)
    assert any("truncated" in reason for _, reason in report.left_over)
    assert len(report.manifest.training) == 1
