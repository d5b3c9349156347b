"""Real files of many writers: right axes, right values, right pixel size."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile

from unet_med.io.cases import Case
from unet_med.io.itk import ItkSource, inspect_itk
from unet_med.io.nifti import NiftiSource, inspect_nifti
from unet_med.io.source import IntakeOptions, SourceRef
from unet_med.io.tiff import TiffSource, inspect_tiff

Data = Callable[[str], Path]

# file, axes, shape, channels, frames, spacing in um (None: uncalibrated), --axes
TIFFS = [
    ("ome_artificial/4D-series.ome.tif", "TZYX", (7, 5, 167, 439), 1, 7, None, None),
    ("ome_artificial/z-series.ome.tif", "ZYX", (5, 167, 439), 1, 1, None, None),
    ("ome_artificial/multi-channel.ome.tif", "CYX", (3, 167, 439), 3, 1, None, None),
    ("ome_multifile_master/multifile-Z1.ome.tiff", "ZYX", (5, 24, 18), 1, 1, None, None),
    ("ome_real/TC_BF_cells.ome.tif", "TZYX", (3, 7, 193, 174), 1, 3, (0.065, 0.065, 0.3), None),
    ("ome_real/TZ_nucleus.ome.tif", "TZYX", (4, 5, 51, 73), 1, 4, (0.415133, 0.415133, 1.5), None),
    ("imagej/Stack-1_zstack_um.tif", "ZYX", (5, 172, 165), 1, 1, (0.415133, 0.415133, 0.415133), None),
    ("imagej/arabidopsis-embryo_zstack.tif", "ZYX", (106, 112, 109), 1, 1, None, None),
    ("imagej/BBBC022_IXMtest_A02_s9_3channel.tif", "CYX", (3, 395, 695), 3, 1, None, None),
    ("plain/cancer_cell_migration_crop_48pages.tif", "TYX", (48, 130, 130), 1, 48, None, "TYX"),
    ("encodings/shapes_lzw_tiled_planar.tif", "SYX", (3, 72, 128), 3, 1, None, None),
    ("encodings/shapes_jpg.tif", "YXS", (72, 128, 3), 3, 1, None, None),
    ("encodings/shapes_zstd.tif", "YXS", (72, 128, 3), 3, 1, None, None),
    ("encodings/shapes_lzw_12bps.tif", "YXS", (72, 128, 3), 3, 1, None, None),
    ("timelapse_rgb/DrosophilaEmbryo_GFPHistone_0000.tif", "YXS", (264, 542, 3), 3, 1, None, None),
    ("timelapse_rgb/DrosophilaEmbryo_GFPHistone_0001.tif", "YXS", (264, 542, 3), 3, 1, None, None),
    ("timelapse_rgb/DrosophilaEmbryo_GFPHistone_0002.tif", "YXS", (264, 542, 3), 3, 1, None, None),
]


def _one(refs: list[SourceRef]) -> SourceRef:
    (ref,) = refs
    assert ref.usable, ref.reason
    return ref


@pytest.mark.parametrize(("name", "axes", "shape", "channels", "frames", "um", "given"), TIFFS)
def test_every_tiff_is_what_its_writer_meant(
    shared_data: Data,
    name: str,
    axes: str,
    shape: tuple[int, ...],
    channels: int,
    frames: int,
    um: tuple[float, ...] | None,
    given: str | None,
) -> None:
    path = shared_data("tiff_formats") / name
    ref = _one(inspect_tiff(path, IntakeOptions(axes=given)))
    assert (ref.axes, ref.shape, ref.channels, ref.frames) == (axes, shape, channels, frames)
    spacing = ref.geometry.spacing_mm
    assert spacing == (None if um is None else pytest.approx([1e-3 * value for value in um], rel=1e-5))
    source = pickle.loads(pickle.dumps(TiffSource(ref)))
    stored = tifffile.imread(path)
    assert stored.shape == shape
    turned = np.moveaxis(stored, [axes.index(letter) for letter in axes], range(len(axes)))
    order = [axes.index(letter) for letter in "TCSXYZ" if letter in axes]
    expected = turned.transpose(order).reshape(frames, channels, *source.geometry.shape)
    for frame in range(frames):
        volume = source.read(frame=frame)
        assert str(volume.array.dtype) == ref.dtype
        np.testing.assert_array_equal(volume.array, expected[frame])
    region = tuple(slice(n // 3, n // 3 + max(1, n // 4)) for n in source.geometry.shape)
    part = source.read(region, frames - 1)
    np.testing.assert_array_equal(part.array, expected[(-1, slice(None), *region)])


def test_what_the_files_say_of_time_and_channels(shared_data: Data) -> None:
    root = shared_data("tiff_formats")
    seconds = {"ome_real/TC_BF_cells.ome.tif": 10.0, "ome_real/TZ_nucleus.ome.tif": 180.0}
    for name, *_, given in TIFFS:
        ref = _one(inspect_tiff(root / name, IntakeOptions(axes=given)))
        assert ref.seconds_per_frame == seconds.get(name)
        colour = ref.axes.strip("YX") == "S"
        assert ref.channel_names == (("red", "green", "blue") if colour else ())  # no other file names its channels
        assert ref.levels == ()


def test_the_table_above_is_complete(shared_data: Data) -> None:
    root = shared_data("tiff_formats")
    named = {name for name, *_ in TIFFS}
    left = {path.relative_to(root).as_posix() for path in root.rglob("*.tif*")} - named
    assert left == {f"ome_multifile_master/multifile-Z{number}.ome.tiff" for number in range(2, 6)}


def test_parts_of_a_set_are_read_through_their_first_file(shared_data: Data, tmp_path: Path) -> None:
    folder = shared_data("tiff_formats") / "ome_multifile_master"
    for number in range(2, 6):
        assert inspect_tiff(folder / f"multifile-Z{number}.ome.tiff") == []
    ref = _one(inspect_tiff(folder / "multifile-Z1.ome.tiff"))
    assert [file.name for file in ref.files] == [f"multifile-Z{number}.ome.tiff" for number in range(1, 6)]
    for number in range(1, 6):
        page = tifffile.imread(folder / f"multifile-Z{number}.ome.tiff", is_ome=False)
        np.testing.assert_array_equal(TiffSource(ref).read().array[0, :, :, number - 1], page.T)

    alone = tmp_path / "multifile-Z3.ome.tiff"
    alone.write_bytes((folder / "multifile-Z3.ome.tiff").read_bytes())
    (ref,) = inspect_tiff(alone)
    assert not ref.usable
    assert "first file" in ref.reason
    master = tmp_path / "multifile-Z1.ome.tiff"
    master.write_bytes((folder / "multifile-Z1.ome.tiff").read_bytes())
    (ref,) = inspect_tiff(master)
    assert not ref.usable
    assert "missing" in ref.reason


@pytest.mark.parametrize("name", ["train-volume.tif", "train-labels.tif"])
def test_plain_stacks_are_refused_until_axes_are_given(shared_data: Data, name: str) -> None:
    path = shared_data("isbi2012_membrane") / name
    (ref,) = inspect_tiff(path)
    assert not ref.usable
    assert "--axes" in ref.reason
    ref = _one(inspect_tiff(path, IntakeOptions(axes="IYX")))
    assert (ref.frames, ref.geometry.shape) == (30, (512, 512))
    np.testing.assert_array_equal(TiffSource(ref).read(frame=17).array[0], tifffile.imread(path)[17].T)


@pytest.mark.parametrize(
    "name", ["sct_spinal_cord", "dicom2nifti", "sts_tumour/nifti/CT", "sts_tumour/nifti/PET", "dicom_ct_head/reference"]
)
def test_nifti_files_are_read_as_nibabel_reads_them(shared_data: Data, name: str) -> None:
    files = sorted(shared_data(name).rglob("*.nii.gz"))
    assert files
    for path in files:
        ref = _one(inspect_nifti(path))
        image = nib.load(path)
        volume = NiftiSource(ref).read()
        np.testing.assert_array_equal(volume.array[0], np.asanyarray(image.dataobj).astype(volume.array.dtype))
        np.testing.assert_array_equal(volume.geometry.affine, image.affine)


def test_hippocampus_labels_lie_on_their_images(shared_data: Data) -> None:
    root = shared_data("msd_hippocampus")
    for image in sorted((root / "imagesTr").glob("*.nii.gz"))[::20]:
        label = _one(inspect_nifti(root / "labelsTr" / image.name))
        case = Case(image.name, (_one(inspect_nifti(image)),), label=label)
        assert set(np.unique(case.read_label())) == {0, 1, 2}
        assert case.read_label().shape == case.read().geometry.shape


def test_nrrd_masks_have_the_voxels_that_are_documented(shared_data: Data) -> None:
    root = shared_data("dicom_seg_liver") / "nrrd"
    ref = _one(inspect_itk(root / "liver_seg.nrrd"))
    assert ref.shape == (512, 512, 3)
    assert int((ItkSource(ref).read().array == 1).sum()) == 107098
    assert set(np.unique(ItkSource(_one(inspect_itk(root / "spine_seg.nrrd"))).read().array)) == {0, 2}


def test_nuclei_pictures_and_labels_fit(shared_data: Data) -> None:
    root = shared_data("dsb2018_nuclei")
    for path in sorted((root / "images").glob("*.tif"))[::25]:
        case = Case(path.stem, (_one(inspect_tiff(path)),), label=_one(inspect_tiff(root / "labels" / path.name)))
        np.testing.assert_array_equal(case.read_label(), tifffile.imread(root / "labels" / path.name).T)
