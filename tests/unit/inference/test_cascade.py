"""Prediction of a cascade: the second stage sees what the first one found, and nothing else is held."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from unet_med.bundle import Bundle, labels_of, load_bundle, load_bundles, read_bundle_info, save_bundle, save_ensemble
from unet_med.errors import ModelError
from unet_med.geometry import Geometry
from unet_med.inference.predictor import Predictor
from unet_med.inference.stream import ArrayRows, WindowStream, finished_rows
from unet_med.inference.tiling import window_axes
from unet_med.networks import build_network
from unet_med.transforms.preprocess import Preprocessor
from unet_med.volume import Volume

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE, SPACING = (30, 26, 22), (1.0, 0.8, 1.5)
LOW_MM = [2.0, 2.0, 3.0]


@pytest.fixture
def volume() -> Volume:
    rng = np.random.default_rng(3)
    coarse = rng.normal(100, 20, [-(-n // 4) for n in SHAPE])
    array = np.kron(coarse, np.ones((4, 4, 4)))[tuple(slice(n) for n in SHAPE)]
    return Volume(array[None].astype(np.float32), Geometry.from_spacing(SHAPE, SPACING))


@pytest.fixture
def cascade(tiny_bundle: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Returns a maker of cascades whose second stage says what the first one said, or has random weights."""

    def make(name: str = "cascade", believes: bool = True, **changes: object) -> Path:
        low = [tiny_bundle(f"{name}_low{number}", preprocess__spacing_mm=LOW_MM) for number in (0, 1)]
        shifted = load_bundle(low[1])
        state = {key: value.clone() for key, value in shifted.state.items()}
        state["heads.0.bias"][1] -= 0.4
        save_bundle(low[1], shifted.config, state, shifted.meta)
        config = load_bundle(tiny_bundle(f"{name}_plain", **changes)).config.replacing({"cascade.spacing_mm": LOW_MM})
        torch.manual_seed(5)
        network = build_network(config.network, 3, 1 + config.prior_channels, labels_of(config).outputs)
        state = dict(network.state_dict())
        if believes:
            known = load_bundle(f"{tmp_path}/{name}_plain").state
            state = {key: known[key].clone() for key in state}
            first = torch.zeros(2, 3, 3, 3, 3)
            first[0, 1, 1, 1, 1] = first[1, 2, 1, 1, 1] = 1.0
            state["encoder.0.0.0.weight"], state["encoder.0.0.0.bias"] = first, torch.zeros(2)
        meta = {"training": {"n_cases": 3, "fold": "fold_0", "case_sha256": []}}
        save_bundle(tmp_path / name, config, state, meta, low)
        return tmp_path / name

    return make


def naive_one_hot(mask: np.ndarray, labels: int) -> np.ndarray:
    return np.stack([np.where(mask == label, 1, 0) for label in range(1, labels + 1)]).astype(np.float32)


def test_a_second_stage_that_believes_the_first_says_the_same(cascade, volume: Volume) -> None:
    bundle = load_bundle(cascade())
    found = Predictor([bundle], "cpu").predict(volume)
    low = Predictor(bundle.low, "cpu").predict(volume)
    assert len(np.unique(low.labels)) == 3
    assert np.array_equal(found.labels, low.labels)
    assert found.windows > low.windows > 0


@pytest.mark.parametrize("spacing", [None, [1.2, 1.1, 1.3]])
def test_windows_see_the_image_and_the_resampled_mask_of_both_models(
    cascade, volume: Volume, spacing: list[float] | None
) -> None:
    bundle = load_bundle(cascade(believes=False, preprocess__spacing_mm=spacing, training__precision="fp32"))
    found = Predictor([bundle], "cpu").predict(volume, probabilities=True)
    low = Predictor(bundle.low, "cpu").predict(volume).labels
    preprocessor = Preprocessor(bundle.config)
    prepared = preprocessor.prepare(volume)
    whole = np.concatenate([prepared.array, naive_one_hot(preprocessor.prepare_label(low, prepared), 2)])
    network = bundle.network()
    axes = window_axes(prepared.geometry.shape, (16, 16, 16), 0.5, 0.125, (0, 0, 0))
    stream = WindowStream(ArrayRows(whole), axes, 0, network, 3, 3)
    logits = torch.cat([rows.clone() for _, _, rows in finished_rows(stream)], dim=1)
    back = torch.nn.functional.interpolate(logits[None], SHAPE, mode="trilinear", align_corners=False)[0]
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities, torch.softmax(back, 0)[1:].numpy(), atol=1e-4)
    assert np.mean(found.labels != back.argmax(0).numpy()) < 1e-3


def test_slabs_are_those_of_the_whole(cascade, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the image is cut into slabs and windows into rows, labels are the same."""
    bundle = load_bundle(cascade(believes=False, preprocess__spacing_mm=[1.2, 1.1, 1.3]))
    predictor = Predictor([bundle], "cpu")
    model, mask = predictor._models[0], np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    prepared = model.with_prior(model.preprocessor.prepare(volume), mask)
    assert prepared.prior is not None
    whole = np.concatenate([prepared.array, naive_one_hot(np.asarray(prepared.prior.mask), 2)])
    for axis, size in enumerate(prepared.geometry.shape):
        for start, stop in ((0, 5), (5, 6), (6, size)):
            rows = prepared.slab(axis, start, stop).numpy()
            np.testing.assert_allclose(rows, whole.take(range(start, stop), axis + 1), atol=1e-5)
    expected = predictor.predict(volume).labels
    monkeypatch.setattr("unet_med.inference.rows.CHUNK_VALUES", 7)
    assert np.array_equal(predictor.predict(volume).labels, expected)


def test_labels_that_the_first_stage_wrote_are_no_longer_shared(cascade, volume: Volume) -> None:
    """The array for the result holds the first stage's labels for a while: the second stage keeps a copy."""
    predictor = Predictor([load_bundle(cascade())], "cpu")
    model, mask = predictor._models[0], np.ones(SHAPE, dtype=np.uint8)
    prepared = model.with_prior(model.preprocessor.prepare(volume), mask)
    mask[...] = 0
    assert prepared.prior is not None
    assert (prepared.prior.mask == 1).all()


def test_mirroring_reaches_both_stages(cascade, volume: Volume) -> None:
    bundle = load_bundle(cascade())
    plain, mirrored = (Predictor([bundle], "cpu", mirror=mirror).predict(volume) for mirror in (False, True))
    assert np.array_equal(mirrored.labels, Predictor(bundle.low, "cpu", mirror=True).predict(volume).labels)
    assert mirrored.windows == plain.windows
    assert "openvino" in mirrored.engine or "torch" in mirrored.engine


# ---- bundles --------------------------------------------------------------------------------------------------------


def test_its_bundle_holds_its_first_stage(cascade, tmp_path: Path) -> None:
    info = read_bundle_info(cascade())
    assert [one.folder.name for one in info.low] == ["low_0", "low_1"]
    bundle = load_bundle(info.folder)
    assert [one.sha256 for one in bundle.low] == [one.sha256 for one in info.low]
    assert [one.sha256 for one in bundle.low] == [load_bundle(tmp_path / f"cascade_low{n}").sha256 for n in (0, 1)]


def test_a_first_stage_that_was_changed_or_lost_is_found(cascade, tmp_path: Path) -> None:
    folder = cascade()
    other = load_bundle(folder / "low_0")
    state = {key: value + 1 for key, value in other.state.items()}
    (folder / "low_0" / "model.safetensors").unlink()  # a link to the model that it was made of
    save_bundle(folder / "low_0", other.config, state, other.meta)
    with pytest.raises(ModelError, match="damaged"):
        load_bundle(folder)
    for file in (folder / "low_1").iterdir():
        file.unlink()
    with pytest.raises(ModelError, match="damaged"):
        load_bundle(folder)


def test_stages_that_do_not_belong_together_are_refused(cascade, tiny_bundle, tmp_path: Path) -> None:
    folder = cascade()
    bundle, plain = load_bundle(folder), tiny_bundle("other")
    with pytest.raises(ModelError, match="a cascade a first stage"):
        save_bundle(tmp_path / "x", bundle.config, bundle.state, {})
    with pytest.raises(ModelError, match="two stages"):
        save_bundle(tmp_path / "x", bundle.config, bundle.state, {}, [folder])
    with pytest.raises(ModelError, match="two stages"):
        save_bundle(tmp_path / "x", load_bundle(plain).config, load_bundle(plain).state, {}, [plain])
    renamed = load_bundle(plain).config.replacing({"labels": {"background": 0, "a": 1, "b": 2}})
    save_bundle(tmp_path / "renamed", renamed, load_bundle(plain).state, {})
    with pytest.raises(ModelError, match="labels or channels"):
        save_bundle(tmp_path / "x", bundle.config, bundle.state, {}, [tmp_path / "renamed"])


def test_an_ensemble_of_cascades_and_others(cascade, tiny_bundle, volume: Volume, tmp_path: Path) -> None:
    first, second, plain = cascade("first"), cascade("second", believes=False), tiny_bundle("alone")
    config = load_bundle(plain).config
    save_ensemble(tmp_path / "RUN", {"fold_0": first, "fold_1": second, "fold_2": plain}, config, {})
    bundles = load_bundles(tmp_path / "RUN")
    assert [len(bundle.low) for bundle in bundles] == [2, 2, 0]
    found = Predictor(bundles, "cpu").predict(volume)
    apart = Predictor([*load_bundles(first), *load_bundles(second), *load_bundles(plain)], "cpu").predict(volume)
    assert np.array_equal(found.labels, apart.labels)
    (tmp_path / "RUN" / "fold_1" / "low_0" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="missing"):
        load_bundles(tmp_path / "RUN")


def test_loaded_stages_are_plain_data(cascade) -> None:
    bundle = load_bundle(cascade())
    assert isinstance(bundle.low, tuple)
    assert all(isinstance(one, Bundle) and not one.low for one in bundle.low)
