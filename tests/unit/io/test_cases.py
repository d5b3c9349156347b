"""Cases: channels and labels on the reference grid."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import tifffile
from PIL import Image

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry, reorient
from unet_med.io.cases import Case, resample
from unet_med.io.grouping import group_cases
from unet_med.io.itk import inspect_itk
from unet_med.io.nifti import inspect_nifti
from unet_med.io.picture import inspect_picture
from unet_med.io.source import IntakeOptions, SourceRef
from unet_med.io.tiff import inspect_tiff

AFFINE = np.array([[-0.5, 0, 0, 10], [0, 0.75, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1.0]])
SHAPE = (6, 7, 8)


def _nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> SourceRef:
    nib.save(nib.Nifti1Image(array, affine), path)
    return inspect_nifti(path)[0]


def _tiff(path: Path, array: np.ndarray, axes: str = "YX", **metadata: object) -> SourceRef:
    tifffile.imwrite(path, array, metadata={"axes": axes, **metadata}, photometric="minisblack")
    return inspect_tiff(path)[0]


def _labels() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 3, SHAPE).astype(np.uint8)


@pytest.fixture
def image(tmp_path: Path) -> SourceRef:
    return _nifti(tmp_path / "image.nii.gz", np.random.default_rng(0).random(SHAPE).astype(np.float32))


def test_channels_of_one_grid_are_stacked_unchanged(tmp_path: Path, image: SourceRef) -> None:
    second = np.arange(6 * 7 * 8, dtype=np.int16).reshape(SHAPE)
    case = Case("a", (image, _nifti(tmp_path / "b.nii", second)))
    volume = case.read()
    assert (case.channels, case.frames, volume.array.dtype) == (2, (0,), np.float32)
    np.testing.assert_array_equal(volume.array[1], second)
    np.testing.assert_allclose(volume.geometry.affine, AFFINE)
    region = (slice(1, 3), slice(0, 7), slice(2, 5))
    np.testing.assert_array_equal(case.open().read(region).array, volume.array[(slice(None), *region)])


@pytest.mark.parametrize(
    ("stored", "meant"),
    [
        (["uint8"], "uint8"),
        (["int16"], "int16"),
        (["uint16"], "uint16"),
        (["int32"], "float32"),
        (["float64"], "float32"),
        (["uint8", "int16"], "int16"),
        (["uint16", "int16"], "float32"),
    ],
)
def test_values_stay_as_stored_where_float32_holds_them(tmp_path: Path, stored: list[str], meant: str) -> None:
    arrays = [(np.arange(6 * 7 * 8).reshape(SHAPE) % 250).astype(dtype) for dtype in stored]
    case = Case("a", tuple(_nifti(tmp_path / f"{n}.nii.gz", array) for n, array in enumerate(arrays)))
    found = case.read().array
    assert found.dtype == meant
    np.testing.assert_array_equal(found, np.stack(arrays))


def test_channels_of_another_grid_are_interpolated(tmp_path: Path, image: SourceRef) -> None:
    """A field that is linear in the world is linear on every grid: interpolation gives it back exactly."""
    grid = Geometry((30, 30, 14), np.array([[0, 0.4, 0, 4.0], [0.5, 0, 0, -23], [0, 0, -2.6, 58], [0, 0, 0, 1.0]]))

    def field(geometry: Geometry) -> np.ndarray:
        index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), axis=-1)
        return geometry.to_world(index) @ [2.0, 3.0, 5.0] + 40

    second = _nifti(tmp_path / "b.nii", field(grid).astype(np.float32), grid.affine)
    volume = Case("a", (image, second)).read()
    np.testing.assert_allclose(volume.array[1], field(image.geometry), atol=1e-3)
    region = (slice(2, 4), slice(1, 6), slice(3, 8))
    part = Case("a", (image, second)).open().read(region)
    np.testing.assert_allclose(part.array, volume.array[(slice(None), *region)], atol=1e-4)


def test_outside_of_the_other_box_its_lowest_value_holds(tmp_path: Path, image: SourceRef) -> None:
    values = np.full((6, 7, 4), 9.0, np.float32)
    values[0, 0, 0] = -3.0
    volume = Case("a", (image, _nifti(tmp_path / "b.nii", values))).read()
    np.testing.assert_array_equal(volume.array[1][..., 4:], -3.0)
    np.testing.assert_array_equal(volume.array[1][..., :4], values)


def test_half_a_voxel_beyond_the_last_centre_still_counts() -> None:
    coarse = Geometry.from_spacing((4, 4, 4), (2.0, 2.0, 2.0))
    fine = coarse.with_shape((8, 8, 8))
    result = resample(np.full((4, 4, 4), 5.0), coarse, fine)
    np.testing.assert_array_equal(result, 5.0)
    higher = np.full((4, 4, 4), 5.0)
    higher[0, 0, 0] = 1.0
    assert resample(higher, coarse, fine)[-1, -1, -1] == 5.0


def test_channels_in_different_places_are_refused(tmp_path: Path, image: SourceRef) -> None:
    far = AFFINE.copy()
    far[0, 3] += 500
    case = Case("a", (image, _nifti(tmp_path / "b.nii", np.zeros(SHAPE, np.float32), far)))
    with pytest.raises(InputRefusedError, match="do not meet"):
        case.read()


def test_uncalibrated_channels_need_one_shape(tmp_path: Path) -> None:
    first = _tiff(tmp_path / "a.tif", np.ones((5, 7), np.uint8))
    same = _tiff(tmp_path / "b.tif", np.full((5, 7), 2, np.uint8))
    other = _tiff(tmp_path / "c.tif", np.ones((5, 8), np.uint8))
    np.testing.assert_array_equal(Case("a", (first, same)).read().array[:, 0, 0], [1, 2])
    with pytest.raises(InputRefusedError, match="no common place"):
        Case("a", (first, other)).read()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_number_are_refused_by_name(tmp_path: Path, value: float) -> None:
    array = np.zeros(SHAPE, np.float32)
    array[1, 2, 3:6] = value
    with pytest.raises(InputRefusedError, match=r"0\.89%") as caught:
        Case("case7", (_nifti(tmp_path / "a.nii", array),)).read()
    assert caught.value.where == "case7"


def test_a_label_in_its_place_is_read_as_it_is(tmp_path: Path, image: SourceRef) -> None:
    label = _labels()
    slightly_off = AFFINE.copy()
    slightly_off[0, 3] += 0.04
    for affine in (AFFINE, slightly_off):
        case = Case("a", (image,), label=_nifti(tmp_path / "l.nii.gz", label, affine))
        found = case.read_label()
        np.testing.assert_array_equal(found, label)
        assert found.dtype == np.uint8


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_label_in_any_axis_order_is_turned_exactly(tmp_path: Path, image: SourceRef, order: tuple[int, ...]) -> None:
    label = _labels()
    for flips in product((False, True), repeat=3):
        grid = image.geometry.reoriented(order, flips)
        ref = _nifti(tmp_path / "l.nii", np.ascontiguousarray(reorient(label, order, flips)), grid.affine)
        np.testing.assert_array_equal(Case("a", (image,), label=ref).read_label(), label)


def test_a_label_elsewhere_or_of_another_shape_is_refused(tmp_path: Path, image: SourceRef) -> None:
    far = AFFINE.copy()
    far[0, 3] += 0.2
    with pytest.raises(InputRefusedError, match="lies elsewhere") as caught:
        Case("case7", (image,), label=_nifti(tmp_path / "l.nii", _labels(), far)).read_label()
    assert caught.value.where == "case7"
    assert caught.value.remedy
    with pytest.raises(InputRefusedError, match="another shape"):
        Case("a", (image,), label=_nifti(tmp_path / "l.nii", _labels()[:5])).read_label()
    first = _tiff(tmp_path / "a.tif", np.ones((5, 7), np.uint8))
    second = _tiff(tmp_path / "b.tif", np.ones((7, 5), np.uint8))
    with pytest.raises(InputRefusedError):
        Case("a", (first,), label=second).read_label()


def test_a_label_of_another_format_in_the_same_place(tmp_path: Path, image: SourceRef) -> None:
    label = _labels()
    itk = SimpleITK.GetImageFromArray(label.T)
    itk.SetSpacing((0.5, 0.75, 3.0))
    itk.SetOrigin((-10.0, 20.0, 30.0))
    itk.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
    SimpleITK.WriteImage(itk, str(tmp_path / "l.nrrd"))
    ref = inspect_itk(tmp_path / "l.nrrd")[0]
    np.testing.assert_array_equal(Case("a", (image,), label=ref).read_label(), label)


def test_pictures_need_only_the_same_shape(tmp_path: Path) -> None:
    label = (np.arange(35).reshape(5, 7) % 3).astype(np.uint8)
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(
        path, np.ones((5, 7), np.uint8), metadata={"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    )
    image = inspect_tiff(path)[0]
    assert image.geometry.is_calibrated
    case = Case("a", (image,), label=_tiff(tmp_path / "l.tif", label))
    np.testing.assert_array_equal(case.read_label(), label.T)


def test_label_values_are_whole_numbers(tmp_path: Path, image: SourceRef) -> None:
    label = _labels()
    for array in (label.astype(np.float32), label.astype(np.float64), label.astype(np.int64).astype(np.int32)):
        ref = _nifti(tmp_path / "l.nii", array)
        np.testing.assert_array_equal(Case("a", (image,), label=ref).read_label(), label)
    broken = label.astype(np.float32)
    broken[0, 0, 0] = 0.5
    with pytest.raises(InputRefusedError, match="not whole numbers"):
        Case("a", (image,), label=_nifti(tmp_path / "l.nii", broken)).read_label()
    broken[0, 0, 0] = np.nan
    with pytest.raises(InputRefusedError, match="not whole numbers"):
        Case("a", (image,), label=_nifti(tmp_path / "l.nii", broken)).read_label()
    with pytest.raises(InputRefusedError, match="negative"):
        Case("a", (image,), label=_nifti(tmp_path / "l.nii", label.astype(np.int16) - 1)).read_label()


def test_stored_values_are_mapped_and_unlisted_ones_refused(tmp_path: Path, image: SourceRef) -> None:
    stored = np.array([0, 128, 255], np.uint8)[_labels()]
    ref = _nifti(tmp_path / "l.nii", stored)
    case = Case("a", (image,), label=ref, label_values={255: 1, 128: 2})
    np.testing.assert_array_equal(case.read_label(), np.array([0, 2, 1])[_labels()])
    with pytest.raises(InputRefusedError, match=r"\[128\]"):
        Case("a", (image,), label=ref, label_values={255: 1}).read_label()


def test_object_numbers_above_255_are_kept(tmp_path: Path) -> None:
    image = _tiff(tmp_path / "a.tif", np.ones((5, 7), np.uint8))
    objects = (np.arange(35).reshape(5, 7) * 100).astype(np.uint16)
    case = Case("a", (image,), label=_tiff(tmp_path / "l.tif", objects), instances=True)
    np.testing.assert_array_equal(case.read_label(), objects.T)


def test_colour_pictures_are_labels_only_when_they_are_grey(tmp_path: Path) -> None:
    image = _tiff(tmp_path / "a.tif", np.ones((5, 7), np.uint8))
    grey = np.repeat((np.arange(35).reshape(5, 7, 1) % 3).astype(np.uint8), 3, axis=2)
    Image.fromarray(grey).save(tmp_path / "l.png")
    ref = inspect_picture(tmp_path / "l.png")[0]
    np.testing.assert_array_equal(Case("a", (image,), label=ref).read_label(), grey[..., 0].T)
    grey[0, 0, 0] = 9
    Image.fromarray(grey).save(tmp_path / "l.png")
    with pytest.raises(InputRefusedError, match="colour picture"):
        Case("a", (image,), label=inspect_picture(tmp_path / "l.png")[0]).read_label()


def test_a_palette_label_is_read_by_its_numbers(tmp_path: Path) -> None:
    image = _tiff(tmp_path / "a.tif", np.ones((5, 7), np.uint8))
    indices = (np.arange(35).reshape(5, 7) % 3).astype(np.uint8)
    picture = Image.fromarray(indices)
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    picture.save(tmp_path / "l.png")
    case = Case("a", (image,), label=inspect_picture(tmp_path / "l.png")[0])
    np.testing.assert_array_equal(case.read_label(), indices.T)


def test_frames_are_read_one_by_one(tmp_path: Path) -> None:
    film = np.arange(3 * 5 * 7, dtype=np.uint8).reshape(3, 5, 7)
    image = _tiff(tmp_path / "a.tif", film, "TYX")
    label = _tiff(tmp_path / "l.tif", film % 3, "TYX")
    case = Case("a", (image,), label=label)
    assert case.frames == (0, 1, 2)
    np.testing.assert_array_equal(case.read(2).array[0], film[2].T)
    np.testing.assert_array_equal(case.read_label(1), film[1].T % 3)
    with pytest.raises(InputRefusedError, match="frames"):
        case.read()
    with pytest.raises(InputRefusedError):
        case.read(3)
    one = Case("a", (image,), label=label, frame=1)
    assert one.frames == (1,)
    np.testing.assert_array_equal(one.read().array[0], film[1].T)
    np.testing.assert_array_equal(one.read_label(), film[1].T % 3)
    source = one.reference_source()
    assert source.frames == 1
    np.testing.assert_array_equal(source.read().array[0], film[1].T)
    single = _tiff(tmp_path / "s.tif", film[0])
    with pytest.raises(InputRefusedError, match="3"):
        Case("a", (image,), label=single).read_label(0)


def test_a_case_without_label_says_so(image: SourceRef) -> None:
    with pytest.raises(InputRefusedError, match="no label"):
        Case("a", (image,)).read_label()


def _ref(name: str, folder: str = "f", channels: int = 1, kind: str = "nifti") -> SourceRef:
    return SourceRef(name, kind, (Path(folder) / f"{name}.nii.gz",), "IJK", (2, 2, 2), Geometry((2, 2, 2)), channels)


def test_channel_files_are_one_case() -> None:
    sources = [
        _ref("x_0001"),
        _ref("y"),
        _ref("x_0000"),
        _ref("z_0000"),
        _ref("w_0001"),
        _ref("v_0000"),
        _ref("v_0002"),
    ]
    cases = group_cases(sources)
    found = {case.id: [source.id for source in case.sources] for case in cases}
    assert found == {
        "y": ["y"],
        "x": ["x_0000", "x_0001"],
        "z": ["z_0000"],
        "w_0001": ["w_0001"],
        "v_0000": ["v_0000"],
        "v_0002": ["v_0002"],
    }


def test_channel_files_of_different_folders_or_of_colour_are_not_mixed() -> None:
    cases = group_cases(
        [_ref("x_0000", "f"), _ref("x_0001", "g"), _ref("c_0000", channels=3), _ref("c_0001", channels=3)]
    )
    assert [case.id for case in cases] == ["x", "x_0001", "c_0000", "c_0001"]


def test_reading_options_reach_the_case(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((4, 5, 7), np.uint8), photometric="minisblack")
    (ref,) = inspect_tiff(path, IntakeOptions(axes="ZYX", pixel_size_mm=(0.1, 0.1, 0.3)))
    assert Case("a", (ref,)).read().geometry.spacing_mm == (0.1, 0.1, 0.3)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
@pytest.mark.parametrize("meant", [None, {1: 1, 7: 300, 200: 2}])
@pytest.mark.parametrize("is_annotated", [False, True])
def test_a_label_that_is_not_in_memory_is_the_same_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, meant: dict[int, int] | None, is_annotated: bool
) -> None:
    random = np.random.default_rng(0)
    image = _tiff(tmp_path / "image.tif", random.integers(0, 99, (40, 30)).astype(np.uint8))
    stored = random.choice([0, 0, 1, 7, 200], (40, 30)).astype(dtype)
    stored[:5, :5] = 0  # a region of small values is of the same type as the others
    label = _tiff(tmp_path / "label.tif", stored)
    drawn = _tiff(tmp_path / "drawn.tif", random.choice([0, 255], (40, 30)).astype(np.uint8))
    case = Case("a", (image,), label, label_values=meant)
    if is_annotated:
        case = Case("a", (image,), label, label_values=meant, annotated=drawn, unlabelled=999)
    expected = case.look_label()
    assert expected.in_memory and np.array_equal(expected.array[0], case.read_label())
    monkeypatch.setattr("unet_med.io.cases.LARGE_BYTES", 0)
    monkeypatch.setattr("unet_med.volume._BAND_BYTES", 2**9)
    found = case.look_label()
    assert not found.in_memory and found.geometry.same_grid(expected.geometry)
    for part in ((slice(None), slice(None)), (slice(0, 4), slice(0, 3)), (slice(3, 29), slice(20, 22))):
        values = np.asarray(found.array[(slice(None), *part)])
        assert np.array_equal(values[0], expected.array[0][part]) and values.dtype == found.array.dtype


def test_a_label_of_another_format_is_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unet_med.io.cases.LARGE_BYTES", 0)
    image = _tiff(tmp_path / "image.tif", np.arange(20, dtype=np.uint8).reshape(4, 5))
    Image.fromarray(np.eye(4, 5, dtype=np.uint8)).save(tmp_path / "label.png")
    case = Case("a", (image,), inspect_picture(tmp_path / "label.png")[0])
    assert not case.look().in_memory
    assert case.look_label().in_memory and np.array_equal(case.look_label().array[0], np.eye(5, 4))
