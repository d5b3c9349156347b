"""Which image belongs to which label."""

from __future__ import annotations

from pathlib import Path

import pytest

from unet_med.errors import NothingUsableError
from unet_med.geometry import Geometry
from unet_med.identity import safe_name, stem_of, unique_ids
from unet_med.io.source import Discovery, SourceRef
from unet_med.manifest.pairing import Pairing, pair_sources

ROOT = Path("root")


def found(*names: str) -> Discovery:
    """A discovery of these files; a name that ends in / is a DICOM series of that folder."""
    ids = unique_ids([safe_name(stem_of(Path(name.rstrip("/")))) for name in names])
    sources = []
    for source_id, name in zip(ids, names, strict=True):
        dicom = name.endswith("/")
        file = ROOT / name / "1.dcm" if dicom else ROOT / name
        kind = "dicom" if dicom else "nifti" if ".nii" in name else "tiff"
        sources.append(SourceRef(source_id, kind, (file,), "IJK", (4, 4, 4), Geometry((4, 4, 4))))
    return Discovery(tuple(sources))


def pairs(*names: str, images: str | None = None, labels: str | None = None) -> list[tuple[str, ...]]:
    pairing = pair_sources(ROOT, found(*names), images, labels)
    return [as_text(pair.images, pair.label) for pair in pairing.pairs]


def as_text(images: tuple[SourceRef, ...], label: SourceRef | None) -> tuple[str, ...]:
    def shown(ref: SourceRef) -> str:
        path = ref.files[0].relative_to(ROOT)
        return (path.parent if ref.kind == "dicom" else path).as_posix()

    return (*[shown(image) for image in images], "-" if label is None else shown(label))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["imagesTr/a.nii.gz", "imagesTr/b.nii.gz", "labelsTr/a.nii.gz", "labelsTr/b.nii.gz"],
            [("imagesTr/a.nii.gz", "labelsTr/a.nii.gz"), ("imagesTr/b.nii.gz", "labelsTr/b.nii.gz")],
        ),
        (
            ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz"],
            [("imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")],
        ),
        (["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"], [("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")]),
        (
            ["images/f_0000.tif", "images/f_0001.tif", "labels/f_0000.tif", "labels/f_0001.tif"],
            [("images/f_0000.tif", "labels/f_0000.tif"), ("images/f_0001.tif", "labels/f_0001.tif")],
        ),
        (["images/a.tif", "masks/a.tif"], [("images/a.tif", "masks/a.tif")]),
        (["images/a.tif", "masks/a_mask.tif"], [("images/a.tif", "masks/a_mask.tif")]),
        (["a.nii.gz", "a_seg.nii.gz"], [("a.nii.gz", "a_seg.nii.gz")]),
        (["t2.nii.gz", "t2_seg-manual.nii.gz"], [("t2.nii.gz", "t2_seg-manual.nii.gz")]),
        (["train-volume.tif", "train-labels.tif"], [("train-volume.tif", "train-labels.tif")]),
        (
            ["p1/image.nii.gz", "p1/label.nii.gz", "p2/image.nii.gz", "p2/label.nii.gz"],
            [("p1/image.nii.gz", "p1/label.nii.gz"), ("p2/image.nii.gz", "p2/label.nii.gz")],
        ),
        (["flair/a.nii.gz", "labels/a.nii.gz"], [("flair/a.nii.gz", "labels/a.nii.gz")]),
        (
            ["images/a.tif", "labels/a.tif", "truth/b.tif", "unlabelled/b.tif"],
            [("images/a.tif", "labels/a.tif"), ("unlabelled/b.tif", "-")],
        ),
        (["images/anna/", "labels/anna.nii.gz"], [("images/anna", "labels/anna.nii.gz")]),
        (["images/anna/CT/", "labels/anna.nii.gz"], [("images/anna/CT", "labels/anna.nii.gz")]),
        (
            ["CT/images/s.nii.gz", "CT/labels/s.nii.gz", "MR/images/s.nii.gz", "MR/labels/s.nii.gz"],
            [("CT/images/s.nii.gz", "CT/labels/s.nii.gz"), ("MR/images/s.nii.gz", "MR/labels/s.nii.gz")],
        ),
    ],
)
def test_conventions(names: list[str], expected: list[tuple[str, ...]]) -> None:
    assert pairs(*names) == expected
    assert pairs(*reversed(names)) == expected


def test_test_images_are_kept_apart() -> None:
    pairing = pair_sources(
        ROOT, found("imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesTs/a.nii.gz", "imagesTs/b.nii.gz"), None, None
    )
    assert [(pair.relative, pair.test, pair.label is None) for pair in pairing.pairs] == [
        ("imagesTr/a.nii.gz", False, False),
        ("imagesTs/a.nii.gz", True, True),
        ("imagesTs/b.nii.gz", True, True),
    ]


def test_an_unlabelled_channel_group_is_one_case() -> None:
    assert pairs("imagesTs/a_0000.nii.gz", "imagesTs/a_0001.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz") == [
        ("imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz"),
        ("imagesTs/a_0000.nii.gz", "imagesTs/a_0001.nii.gz", "-"),
    ]


def test_a_label_without_image_is_left_over() -> None:
    pairing = pair_sources(ROOT, found("images/a.tif", "labels/a.tif", "labels/b.tif"), None, None)
    assert pairing.left_over == (("b", "a label without an image of the same name"),)


def test_no_label_takes_an_image_twice() -> None:
    pairing = pair_sources(ROOT, found("images/a.tif", "labels/a.tif", "labels/a_mask.tif"), None, None)
    assert [pair.label.files[0].name for pair in pairing.pairs if pair.label] == ["a.tif"]
    assert [reason for _, reason in pairing.left_over] == ["a label without an image of the same name"]


def test_one_mask_for_each_object_is_explained() -> None:
    with pytest.raises(NothingUsableError, match="one mask file for each object"):
        pair_sources(ROOT, found("x/images/x.nii.gz", "x/masks/m1.nii.gz", "x/masks/m2.nii.gz"), None, None)
    with pytest.raises(NothingUsableError, match="one mask file for each object"):
        pair_sources(ROOT, found("x/x.tif", "x/m1_mask.tif", "x/m2_mask.tif"), None, None)


@pytest.mark.parametrize(
    ("images", "labels", "names", "expected"),
    [
        ("raw/*", "truth2/*", ["raw/a.tif", "truth2/a.tif"], [("raw/a.tif", "truth2/a.tif")]),
        ("*_x.tif", "*_y.tif", ["a_x.tif", "a_y.tif", "b_x.tif"], [("a_x.tif", "a_y.tif"), ("b_x.tif", "-")]),
        ("img3d.tif", "mask3d.tif", ["img3d.tif", "mask3d.tif"], [("img3d.tif", "mask3d.tif")]),
        ("deep", "labels", ["deep/x/", "labels/x.nii.gz", "other/y.tif"], [("deep/x", "labels/x.nii.gz")]),
    ],
)
def test_patterns(images: str, labels: str, names: list[str], expected: list[tuple[str, ...]]) -> None:
    assert pairs(*names, images=images, labels=labels) == expected


def test_a_pattern_for_images_alone_leaves_labels_to_the_convention() -> None:
    assert pairs("images/a.tif", "labels/a.tif", "images/b.tif", "labels/b.tif", images="images/a*") == [
        ("images/a.tif", "labels/a.tif")
    ]


def test_dicom_folders_give_no_name() -> None:
    pairing: Pairing = pair_sources(ROOT, found("images/SECRET/", "labels/SECRET.nii.gz"), None, None)
    assert pairing.pairs[0].stem == ""


def test_what_was_refused_is_left_over_with_its_reason() -> None:
    good = found("images/a.tif", "labels/a.tif")
    bad = SourceRef("b", "tiff", (ROOT / "images/b.tif",), "", (), None, usable=False, reason="damaged: copy it again")
    pairing = pair_sources(ROOT, Discovery((*good.sources, bad)), None, None)
    assert pairing.left_over == (("b", "damaged: copy it again"),)


def test_nothing_found_says_how_files_are_found() -> None:
    with pytest.raises(NothingUsableError, match="no image was found") as error:
        pair_sources(ROOT, Discovery(()), None, None)
    assert "labelsTr" in error.value.remedy
    assert "--images" in error.value.remedy
