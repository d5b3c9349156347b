"""MONAI's Decathlon readers and the manifest agree."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data import NibabelReader, load_decathlon_datalist, load_decathlon_properties

from unet_med.io.discover import discover
from unet_med.manifest import BuildOptions, build_manifest, load_manifest, save_manifest


def write_set(folder: Path) -> None:
    random = np.random.default_rng(0)
    affine = np.diag([-1.5, 1.0, 2.0, 1.0])
    for place in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / place).mkdir(parents=True)
    for number in range(4):
        for channel in range(2):
            values = random.normal(size=(5, 6, 7)).astype(np.float32)
            nib.save(nib.Nifti1Image(values, affine), folder / f"imagesTr/c{number}_{channel:04d}.nii.gz")
        label = random.integers(0, 3, (5, 6, 7)).astype(np.uint8)
        nib.save(nib.Nifti1Image(label, affine), folder / f"labelsTr/c{number}.nii.gz")
    nib.save(nib.Nifti1Image(values, affine), folder / "imagesTs/t_0000.nii.gz")
    nib.save(nib.Nifti1Image(values, affine), folder / "imagesTs/t_0001.nii.gz")


def test_monai_reads_the_manifest(tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    path = tmp_path / "m.json"
    save_manifest(
        build_manifest(tmp_path / "set", discover(tmp_path / "set"), BuildOptions(folds=2), "s").manifest, path
    )
    manifest = load_manifest(path)
    training = load_decathlon_datalist(path, data_list_key="training")
    assert len(training) == 4
    reader = NibabelReader()
    for item, case in zip(training, manifest.training, strict=True):
        assert item["fold"] == case.fold
        image, meta = reader.get_data(reader.read(item["image"]))
        np.testing.assert_array_equal(image, case.case.read().array)
        np.testing.assert_allclose(np.asarray(meta["affine"]), case.case.geometry.affine)
        label, _ = reader.get_data(reader.read(item["label"]))
        np.testing.assert_array_equal(label, case.case.read_label())
    assert len(load_decathlon_datalist(path, data_list_key="test")) == 1


def test_monai_reads_the_properties(tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    path = tmp_path / "m.json"
    save_manifest(build_manifest(tmp_path / "set", discover(tmp_path / "set"), BuildOptions(), "s").manifest, path)
    keys = ("name", "description", "licence", "tensorImageSize", "modality", "labels", "numTraining", "numTest")
    properties = load_decathlon_properties(path, keys)
    assert properties["labels"] == {"0": "background", "1": "label_1", "2": "label_2"}
    assert (properties["numTraining"], properties["numTest"], properties["tensorImageSize"]) == (4, 1, "3D")
    assert set(properties["modality"]) == {"0", "1"}
