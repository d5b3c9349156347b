"""A volume in, labels on its own grid out; memory that runs out; models that do not belong together."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
import torch

from unet_med.bundle import Bundle, load_bundle
from unet_med.errors import InputRefusedError, MachineError, ModelError
from unet_med.geometry import Geometry, reorient
from unet_med.inference.chances import label_chances
from unet_med.inference.predictor import Predictor
from unet_med.labels import LabelMap
from unet_med.volume import Volume

pytestmark = pytest.mark.usefixtures("one_thread")


def _volume(shape: tuple[int, ...] = (20, 17, 11), channels: int = 1, seed: int = 0) -> Volume:
    array = np.random.default_rng(seed).normal(100, 20, (channels, *shape)).astype(np.float32)
    return Volume(array, Geometry.from_spacing(shape, (1.0, 0.8, 2.5)[: len(shape)]))


def _expected(volume: Volume) -> np.ndarray:
    z = (volume.array[0] - volume.array[0].mean()) / volume.array[0].std()
    return np.where(z > 0, 1, np.where(z < -1.5, 2, 0))


@pytest.mark.parametrize("mirror", [None, True])
def test_labels_are_those_of_the_model(tiny_bundle, mirror: bool | None) -> None:
    volume = _volume()
    prediction = Predictor([load_bundle(tiny_bundle())], "cpu", mirror=mirror).predict(volume)
    assert prediction.labels.dtype == np.uint8
    assert prediction.notes == []
    assert np.mean(prediction.labels != _expected(volume)) < 1e-3


def test_every_axis_order_and_flip_gets_the_same_labels(tiny_bundle) -> None:
    predictor = Predictor([load_bundle(tiny_bundle())], "cpu")
    volume = _volume((9, 12, 7))
    expected = predictor.predict(volume).labels
    for order, flips in product(permutations(range(3)), product([False, True], repeat=3)):
        stored = Volume(
            np.ascontiguousarray(reorient(volume.array, order, flips)), volume.geometry.reoriented(order, flips)
        )
        labels = predictor.predict(stored).labels
        assert np.array_equal(labels, reorient(expected, order, flips)), (order, flips)


def test_another_spacing_is_resampled_and_restored(tiny_bundle) -> None:
    predictor = Predictor([load_bundle(tiny_bundle(preprocess__spacing_mm=[1.0, 1.0, 1.0]))], "cpu")
    shape = (24, 20, 10)
    x = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None, None]
    volume = Volume(np.broadcast_to(x, shape)[None].copy(), Geometry.from_spacing(shape, (0.5, 1.0, 2.0)))
    labels = predictor.predict(volume).labels
    assert labels.shape == shape
    assert (labels[13:] == 1).all()
    assert (labels[:11] != 1).all()


def test_logits_of_several_models_are_averaged(tiny_bundle) -> None:
    one = load_bundle(tiny_bundle("one"))
    volume = _volume()
    opposite = {key: value.clone() for key, value in one.state.items()}
    opposite["heads.0.weight"][1, 0] = -3.0
    other = Bundle(one.config, one.labels, one.channels, opposite, {}, "other")
    labels = Predictor([one, other], "cpu").predict(volume).labels
    z = (volume.array[0] - volume.array[0].mean()) / volume.array[0].std()
    assert (labels[(z > 0.01)] == 0).all()  # 1 - 3 < 0


def test_a_2d_model_labels_a_volume_slice_by_slice(tiny_bundle) -> None:
    predictor = Predictor([load_bundle(tiny_bundle(dims=2))], "cpu")
    volume = _volume((18, 21, 5))
    assert np.mean(predictor.predict(volume).labels != _expected(volume)) < 1e-3
    picture = _volume((18, 21))
    assert np.mean(predictor.predict(picture).labels != _expected(picture)) < 1e-3


def test_a_classic_network_with_context(tiny_bundle) -> None:
    bundle = load_bundle(tiny_bundle(dims=2))
    config = bundle.config.replacing(
        {
            "network.style": "classic",
            "network.norm": "none",
            "network.activation": "relu",
            "network.downsampling": "maxpool",
            "network.upsampling": "transposed",
        }
    )
    from unet_med.networks import build_network

    torch.manual_seed(0)
    state = build_network(config.network, 2, 1, 3).state_dict()
    labels = (
        Predictor([Bundle(config, bundle.labels, ("c0",), state, {}, "c")], "cpu").predict(_volume((30, 19))).labels
    )
    assert labels.shape == (30, 19)


def test_overlapping_regions_are_painted_from_outside_inwards(tiny_bundle) -> None:
    bundle = load_bundle(tiny_bundle())
    config = bundle.config.replacing({"regions": {"whole": [1, 2], "core": [2]}})
    from unet_med.bundle import labels_of

    state = {key: value.clone() for key, value in bundle.state.items()}
    state["heads.0.weight"] = state["heads.0.weight"][:2].clone() * 0
    state["heads.0.weight"][0, 0] = 1.0
    state["heads.0.weight"][1, 0] = 1.0
    state["heads.0.bias"] = torch.tensor([0.0, -1.0])
    volume = _volume()
    predictor = Predictor([Bundle(config, labels_of(config), ("c0",), state, {}, "r")], "cpu")
    z = (volume.array[0] - volume.array[0].mean()) / volume.array[0].std()
    expected = np.where(z > 1, 2, np.where(z > 0, 1, 0))
    assert np.mean(predictor.predict(volume).labels != expected) < 1e-3


@pytest.mark.parametrize(("made", "given"), [(1, 3), (2, 1)])
def test_another_number_of_channels_is_refused(tiny_bundle, made: int, given: int) -> None:
    predictor = Predictor([load_bundle(tiny_bundle(channels=made))], "cpu")
    with pytest.raises(ModelError, match=rf"made for {made} channels?, the image has {given}"):
        predictor.predict(_volume(channels=given))


def test_a_picture_is_no_input_of_a_3d_model(tiny_bundle) -> None:
    with pytest.raises(InputRefusedError, match="made for volumes"):
        Predictor([load_bundle(tiny_bundle())], "cpu").predict(_volume((16, 16)))


def test_a_constant_image_is_refused(tiny_bundle) -> None:
    volume = Volume(np.ones((1, 8, 8, 8), dtype=np.float32), Geometry.from_spacing((8, 8, 8), (1, 1, 1)))
    with pytest.raises(InputRefusedError, match="same value"):
        Predictor([load_bundle(tiny_bundle())], "cpu").predict(volume)


def test_models_of_different_tasks_are_not_averaged(tiny_bundle) -> None:
    one = load_bundle(tiny_bundle("one"))
    with pytest.raises(ModelError, match="channels"):
        Predictor([one, load_bundle(tiny_bundle("two", channels=2))], "cpu")
    other = load_bundle(tiny_bundle("three", labels={"background": 0, "left": 1, "right": 2}))
    with pytest.raises(ModelError, match="different labels"):
        Predictor([one, other], "cpu")
    with pytest.raises(ModelError, match="no model"):
        Predictor([], "cpu")


def test_mirroring_without_mirrored_training_is_noted(tiny_bundle) -> None:
    bundle = load_bundle(tiny_bundle(augment__mirror_axes=[]))
    assert "no effect" in Predictor([bundle], "cpu", mirror=True).predict(_volume()).notes[0]
    assert Predictor([bundle], "cpu").predict(_volume()).notes == []


class _Starving:
    """Runs out of memory above a number of voxels in one forward pass."""

    def __init__(self, network: torch.nn.Module, voxels: int, error: Exception) -> None:
        self.network, self.voxels, self.error = network, voxels, error
        self.head = network.head
        self.seen: list[tuple[int, ...]] = []

    def features(self, batch: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(batch.shape))
        if batch.numel() > self.voxels:
            raise self.error
        return self.network.features(batch)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_takes_smaller_batches_then_smaller_windows(
    tiny_bundle, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    predictor = Predictor([load_bundle(tiny_bundle(dims=2))], "cpu")
    volume = _volume((40, 33))
    starving = _Starving(predictor._models[0].network, 8 * 8, error)
    monkeypatch.setattr(predictor, "_models", [replace(predictor._models[0], network=starving)])
    prediction = predictor.predict(volume)
    tried = list(dict.fromkeys((shape[0], shape[-1]) for shape in starving.seen))
    assert tried[:4] == [(4, 16), (2, 16), (1, 16), (1, 8)]
    assert "windows of 8x8" in prediction.notes[0]
    assert np.mean(prediction.labels != _expected(volume)) < 1e-3


def test_out_of_memory_ends_at_the_smallest_window(tiny_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor([load_bundle(tiny_bundle())], "cpu")
    starving = _Starving(predictor._models[0].network, 0, MemoryError())
    monkeypatch.setattr(predictor, "_models", [replace(predictor._models[0], network=starving)])
    with pytest.raises(MachineError, match="smallest window"):
        predictor.predict(_volume())


def test_other_errors_of_the_network_are_not_hidden(tiny_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor([load_bundle(tiny_bundle())], "cpu")
    starving = _Starving(predictor._models[0].network, 0, RuntimeError("mat1 and mat2 shapes"))
    monkeypatch.setattr(predictor, "_models", [replace(predictor._models[0], network=starving)])
    with pytest.raises(RuntimeError, match="mat1"):
        predictor.predict(_volume())


def test_a_memory_budget_shrinks_windows_beforehand(tiny_bundle) -> None:
    predictor = Predictor([load_bundle(tiny_bundle())], "cpu", memory_gb=1e-4)
    prediction = predictor.predict(_volume())
    assert "--memory-gb" in prediction.notes[0]
    assert np.mean(prediction.labels != _expected(_volume())) < 1e-3


def test_weights_that_are_not_finite_are_refused(tiny_bundle) -> None:
    bundle = load_bundle(tiny_bundle())
    bundle.state["heads.0.bias"][0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        Predictor([bundle], "cpu").predict(_volume())


def test_rows_are_labelled_in_chunks(tiny_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = _volume()
    predictor = Predictor([load_bundle(tiny_bundle(preprocess__spacing_mm=[1.3, 0.9, 2.0]))], "cpu")
    whole = predictor.predict(volume, probabilities=True)
    monkeypatch.setattr("unet_med.inference.rows.CHUNK_VALUES", 1000)
    chunks = predictor.predict(volume, probabilities=True)
    np.testing.assert_array_equal(chunks.labels, whole.labels)
    np.testing.assert_allclose(chunks.probabilities, whole.probabilities, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_are_written_where_the_caller_wants_them(tiny_bundle, dtype: type) -> None:
    volume = _volume()
    predictor = Predictor([load_bundle(tiny_bundle())], "cpu")
    out = np.full(volume.geometry.shape[::-1], 9, dtype=dtype).T
    prediction = predictor.predict(volume, out=out)
    assert prediction.labels is out
    np.testing.assert_array_equal(out, predictor.predict(volume).labels)


def test_what_computed_is_told(tiny_bundle) -> None:
    bundles = [load_bundle(tiny_bundle("one")), load_bundle(tiny_bundle("two"))]
    prediction = Predictor(bundles, "cpu").predict(_volume((40, 17, 11)))
    assert prediction.engine.split()[0] in ("torch", "openvino")
    assert prediction.engine_why
    assert prediction.windows == 2 * Predictor(bundles[:1], "cpu").predict(_volume((40, 17, 11))).windows
    assert prediction.windows_skipped == 0


def test_many_labels_are_blended_as_features(tiny_bundle) -> None:
    """More labels than features: the same labels as by blending logits."""
    labels = {"background": 0} | {f"part {n}": n for n in range(1, 7)}
    bundle = load_bundle(tiny_bundle(labels=labels, training__precision="fp32"))
    state = {name: value.clone() for name, value in bundle.state.items()}
    generator = torch.Generator().manual_seed(0)
    for name in ("heads.0.weight", "heads.0.bias"):
        shape = (7, *state[name].shape[1:])
        state[name] = torch.randn(shape, generator=generator)
    bundle = Bundle(bundle.config, bundle.labels, bundle.channels, state, {}, "many")
    predictor = Predictor([bundle], "cpu", mirror=True)
    assert predictor._models[0].blends_features
    volume = _volume((25, 18, 11))
    found = predictor.predict(volume, probabilities=True)
    for model in predictor._models:
        model.blends_features = False
        model.engines.clear()
    plain = predictor.predict(volume, probabilities=True)
    np.testing.assert_allclose(found.probabilities, plain.probabilities, atol=1e-5)
    assert np.mean(found.labels != plain.labels) < 1e-4
    assert len(np.unique(found.labels)) > 2


def test_probabilities_are_the_softmax_of_averaged_logits(tiny_bundle) -> None:
    volume = _volume()
    bundles = [load_bundle(tiny_bundle("one")), load_bundle(tiny_bundle("two"))]
    assert Predictor(bundles[:1], "cpu").predict(volume).probabilities is None
    alone = Predictor(bundles[:1], "cpu").predict(volume, probabilities=True)
    found = alone.probabilities
    assert found is not None
    assert (found.shape, found.dtype) == ((2, *volume.geometry.shape), np.float32)
    z = (volume.array[0] - volume.array[0].mean()) / volume.array[0].std()
    powers = np.exp(np.stack([np.zeros_like(z), np.maximum(z, 0), np.maximum(-z - 1.5, 0)]))
    np.testing.assert_allclose(found, (powers / powers.sum(axis=0))[1:], atol=2e-2)
    together = Predictor(bundles, "cpu").predict(volume, probabilities=True)
    assert together.probabilities is not None
    np.testing.assert_allclose(together.probabilities, found, atol=1e-5)
    np.testing.assert_array_equal(together.labels, alone.labels)


def test_what_is_left_of_a_region_belongs_to_its_own_label() -> None:
    label_map = LabelMap.from_names({"a": 1, "b": 2, "c": 3}, {"whole": [1, 2, 3], "core": [2, 3], "inner": [3]})
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)) * 3
    whole, core, inner = logits.sigmoid().numpy()
    found = label_chances(logits.clone(), label_map)
    np.testing.assert_allclose(found[2], inner, atol=1e-6)
    np.testing.assert_allclose(found[1], core * (1 - inner), atol=1e-6)
    np.testing.assert_allclose(found[0], whole * (1 - core) * (1 - inner), atol=1e-6)
    assert found.sum(axis=0).max() <= 1 + 1e-6


def test_what_was_cleaned_away_is_not_likely(tiny_bundle) -> None:
    bundle = load_bundle(tiny_bundle(postprocess__minimum_voxels=10**6))
    prediction = Predictor([bundle], "cpu").predict(_volume(), probabilities=True)
    assert not prediction.labels.any()
    assert prediction.probabilities is not None
    assert prediction.probabilities[0].max() < 0.5


def test_what_was_filled_is_certain(tiny_bundle) -> None:
    array = np.zeros((1, 20, 20, 20), np.float32)
    array[0, 4:16, 4:16, 4:16] = 10.0
    array[0, 8:12, 8:12, 8:12] = 0.0
    volume = Volume(array, Geometry.from_spacing((20, 20, 20), (1.0, 1.0, 1.0)))
    bundle = load_bundle(tiny_bundle(postprocess__fill_holes=["bright"]))
    prediction = Predictor([bundle], "cpu").predict(volume, probabilities=True)
    assert (prediction.labels[8:12, 8:12, 8:12] == 1).all()
    assert prediction.probabilities is not None
    assert (prediction.probabilities[0, 8:12, 8:12, 8:12] == 1.0).all()


def test_empty_windows_are_skipped_by_one_model_alone(tiny_bundle) -> None:
    bounds = {"schema": 1, "window": [16, 16, 16], "low": [-9.0], "high": [9.0], "spread": [0.0]}
    meta = {"empty_windows": {"rule": bounds}}
    volume = _volume((40, 17, 11))
    volume.array[0, :20] = 100.0
    one = load_bundle(tiny_bundle("one", meta=meta))
    alone = Predictor([one], "cpu").predict(volume)
    assert alone.windows_skipped > 0
    plain = Predictor([load_bundle(tiny_bundle("two"))], "cpu").predict(volume)
    assert plain.windows_skipped == 0
    np.testing.assert_array_equal(alone.labels[20:], plain.labels[20:])
    assert Predictor([one, load_bundle(tiny_bundle("two"))], "cpu").predict(volume).windows_skipped == 0
    switched_off = load_bundle(tiny_bundle("off", meta=meta, inference__skip_empty=False))
    assert Predictor([switched_off], "cpu").predict(volume).windows_skipped == 0
