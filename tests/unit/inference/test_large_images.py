"""Images that are read region by region: the same labels as of those in memory, rows by rows, with a way to go on."""

from __future__ import annotations

import numpy as np
import pytest
from large_images import WatchedSource, picture

from unet_med.bundle import load_bundle
from unet_med.geometry import Geometry
from unet_med.inference.outputs import RowProgress
from unet_med.inference.predictor import Predictor
from unet_med.inference.quality.evidence import CaseEvidence
from unet_med.volume import Volume, lazily

pytestmark = pytest.mark.usefixtures("one_thread")


class _InterruptedError(Exception):
    pass


@pytest.fixture
def small_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that a test image has many."""
    monkeypatch.setattr("unet_med.volume._BAND_BYTES", 2**12)
    monkeypatch.setattr("unet_med.inference.rows.CHUNK_VALUES", 2**11)


@pytest.mark.usefixtures("small_bands")
@pytest.mark.parametrize(
    ("dims", "shape", "changes"),
    [
        (2, (150, 90), {}),
        (2, (90, 150), {"preprocess__normalisation": [{"scheme": "percentile"}], "preprocess__crop_to_nonzero": True}),
        (3, (30, 24, 40), {}),
        (2, (40, 36, 9), {}),
    ],
)
def test_labels_are_those_of_the_image_in_memory(tiny_bundle, dims, shape, changes) -> None:
    predictor = Predictor([load_bundle(tiny_bundle(dims=dims, **changes))], "cpu")
    source = WatchedSource(picture(shape))
    evidence, usual = CaseEvidence(predictor.labels), CaseEvidence(predictor.labels)
    found = predictor.predict(lazily(source), evidence=evidence)
    expected = predictor.predict(Volume(source.array, source.geometry), evidence=usual)
    assert np.array_equal(found.labels, expected.labels)
    assert len(np.unique(expected.labels)) == 3
    assert found.windows == expected.windows
    assert max(source.reads) <= source.array.size / 3  # never read as a whole
    for one, other in zip(evidence.features()[0].values(), usual.features()[0].values(), strict=True):
        assert one["expected_dice"] == pytest.approx(other["expected_dice"], rel=1e-4)


def test_another_pixel_size_is_resampled_alike(tiny_bundle, monkeypatch) -> None:
    monkeypatch.setattr("unet_med.volume._BAND_BYTES", 2**12)
    predictor = Predictor([load_bundle(tiny_bundle(dims=2, preprocess__spacing_mm=[1.5, 1.5]))], "cpu")
    source = WatchedSource(picture((150, 90)))
    geometry = Geometry.from_spacing((150, 90), (1.0, 1.0))
    found = predictor.predict(Volume(lazily(source).array, geometry))
    expected = predictor.predict(Volume(source.array, geometry))
    assert np.mean(found.labels != expected.labels) < 1e-4


@pytest.mark.usefixtures("small_bands")
@pytest.mark.parametrize("changes", [{}, {"preprocess__spacing_mm": [1.5, 1.5]}])
@pytest.mark.parametrize("stops_after", [0.1, 0.5, 0.95])
def test_an_interrupted_prediction_goes_on_in_the_middle(tiny_bundle, stops_after, changes) -> None:
    predictor = Predictor([load_bundle(tiny_bundle(dims=2, **changes))], "cpu")
    geometry = Geometry.from_spacing((60, 150), (1.0, 1.0))
    volume = Volume(lazily(WatchedSource(picture((60, 150)))).array, geometry)
    expected = predictor.predict(volume)
    labels = np.full((60, 150), 255, dtype=np.uint8)

    def stop(done: int) -> None:
        if done >= stops_after * 150:
            raise _InterruptedError

    progress = RowProgress(tell=stop)
    with pytest.raises(_InterruptedError):
        predictor.predict(volume, out=labels, progress=progress)
    assert (labels[:, progress.done :] == 255).all()
    assert np.array_equal(labels[:, : progress.done], expected.labels[:, : progress.done])
    rest = predictor.predict(volume, out=labels, progress=RowProgress(progress.done, progress.along))
    assert np.array_equal(labels, expected.labels)
    assert rest.windows < expected.windows * (1.4 - stops_after)
