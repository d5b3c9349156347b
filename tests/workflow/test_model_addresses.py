"""A model can be named by where it lies or by its address in MLflow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from toy_set import Trained

from unet_med.bundle import read_bundle_info
from unet_med.errors import ModelError


@pytest.fixture
def _fresh_mlflow() -> Iterator[None]:
    import mlflow

    mlflow.set_tracking_uri(None)
    yield
    mlflow.set_tracking_uri(None)


@pytest.mark.usefixtures("_fresh_mlflow")
def test_mlflow_addresses_lead_to_the_model_of_the_run(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained.work)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    wanted = read_bundle_info(trained.run).sha256
    assert read_bundle_info("models:/toy@candidate").sha256 == wanted
    assert read_bundle_info("models:/toy/1").sha256 == wanted
    from mlflow.tracking import MlflowClient

    run_id = MlflowClient().get_model_version_by_alias("toy", "candidate").run_id
    assert read_bundle_info(f"runs:/{run_id}/model").sha256 == wanted
    for absent in ("models:/toy@champion", "models:/nobody/1", "runs:/0123/model"):
        with pytest.raises(ModelError, match="MLflow has no such model"):
            read_bundle_info(absent)


@pytest.mark.usefixtures("_fresh_mlflow")
def test_an_address_needs_a_store(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ModelError, match=r"no mlflow\.db"):
        read_bundle_info("models:/toy@candidate")
    assert list(tmp_path.iterdir()) == []
