"""Maps of objects on disk."""

import numpy as np
import pytest

from unet_med.errors import InputRefusedError
from unet_med.inference.maps_store import MapStore
from unet_med.instances.maps import ObjectMaps


def _maps(shape, seed=0):
    rng = np.random.default_rng(seed)
    return ObjectMaps.from_logits(3.0 * rng.standard_normal((5, *shape)).astype(np.float32))


@pytest.mark.parametrize("shape", [(700, 530), (70, 33, 65)])
def test_what_is_written_in_rows_is_read_in_any_region(tmp_path, shape):
    maps = _maps(shape)
    store = MapStore.create(tmp_path / "maps", maps.channels, shape)
    for start in range(0, shape[-1], 48):
        rows = (slice(None),) * (len(shape) - 1) + (slice(start, min(start + 48, shape[-1])),)
        store.write(rows, ObjectMaps(maps.classes[:, *rows], maps.border[rows], maps.distance[rows]))
    again = MapStore.open(tmp_path / "maps")
    region = tuple(slice(n // 3, n // 3 + 30) for n in shape)
    found = again.read(region)
    assert (again.shape, again.channels) == (shape, 5)
    assert np.array_equal(again.read_stored(), maps.stored())
    for name in ("classes", "border", "distance"):
        wanted = getattr(maps, name)[(..., *region)]
        assert np.abs(getattr(found, name) - wanted).max() <= 0.5 / 255 + 1e-6


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(InputRefusedError, match="missing or damaged"):
        MapStore.open(tmp_path / "nothing")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "zarr.json").write_text("{}")
    with pytest.raises(InputRefusedError, match="missing or damaged"):
        MapStore.open(tmp_path / "text")
