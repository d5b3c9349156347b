"""What a run leaves in MLflow, read back through MLflow's own client."""

from __future__ import annotations

import getpass
import json
import logging
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from unet_med.config import PipelineConfig, Tracking
from unet_med.errors import UsageError
from unet_med.training import tracking as module
from unet_med.training.tracking import MlflowTracker, NullTracker, open_tracker, review_lines

DIGEST = "ab12" * 16
FINAL = {"final/dice/mean": 0.884, "final/dice/anterior": 0.891, "hd95_mm/mean": 1.25, "broken": float("nan")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for the module: making it costs seconds. The name has a blank, as a user's may."""
    return tmp_path_factory.mktemp("all runs")


@pytest.fixture(scope="module")
def tracking(folder: Path) -> Tracking:
    return Tracking(store=f"sqlite:///{(folder / 'mlflow.db').as_posix()}")


@pytest.fixture(scope="module")
def config(tracking: Tracking) -> PipelineConfig:
    config = PipelineConfig(
        name="hippocampus", dims=3, channels=("MR",), labels={"background": 0, "anterior": 1}, tracking=tracking
    )
    return config.replacing({"sampling.patch_voxels": [40, 56, 40], "training.epochs": 3})


def start(tracker: Any, config: PipelineConfig, **tags: str) -> None:
    tracker.start(
        config.to_yaml(),
        config.model_dump(mode="json"),
        {"sampling.patch_voxels": "the organ | fits"},
        {"digest": DIGEST, "training_cases": 7},
        {"task": "semantic", "fold": "fold0", "seed": 0, **tags},
    )


def picture(value: int = 200) -> np.ndarray:
    return np.full((20, 30, 3), value, np.uint8)


def dress(folder: Path) -> bool:
    (folder / "MLmodel").write_text("flavors: {pytorch: {}}")
    return True


def make_bundle(folder: Path) -> Path:
    bundle = folder / "bundle"
    bundle.mkdir()
    (bundle / "bundle.json").write_text('{"schema_version": 1}')
    (bundle / "model.safetensors").write_bytes(b"weights")
    return bundle


@pytest.fixture(scope="module")
def finished(config: PipelineConfig, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> MlflowTracker:
    """A whole run."""
    tracker = open_tracker(config.tracking, "hippocampus", "hippocampus-fold0", None)
    assert isinstance(tracker, MlflowTracker)
    start(tracker, config, git_revision="abc123")
    for epoch in (1, 2, 3):
        tracker.epoch(epoch, {"train/loss": 1 / epoch, "val/dice/anterior": 0.3 * epoch, "val/dice/émotion": 0.1})
        tracker.overlay("overlay/0 case-1a2b3c4d", picture(), epoch)
    tracker.cases([{"case": "case-1a2b3c4d", "dice": np.float32(0.5)}, {"case": "case-2", "hd95_mm": float("inf")}])
    tracker.picture("scores/confusion", picture())
    tracker.version = tracker.bundle(make_bundle(tmp_path_factory.mktemp("run")), "hippo campus", FINAL, dress)
    tracker.finish("FINISHED")
    return tracker


def client(tracker: MlflowTracker) -> Any:
    return tracker._client


def artifact(tracker: MlflowTracker, name: str) -> str:
    return Path(client(tracker).download_artifacts(tracker.run_id, name)).read_text(encoding="utf-8")


def test_importing_the_tracker_does_not_import_mlflow() -> None:
    code = "import sys, unet_med.training.tracking, unet_med.workflows.ui; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_disabled_tracker_records_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = open_tracker(Tracking(enabled=False), "e", "r", None)
    start(tracker, PipelineConfig(name="a"))
    tracker.epoch(1, {"train/loss": 1.0})
    tracker.overlay("o", picture(), 1)
    tracker.cases([{"case": "c"}])
    assert tracker.bundle(tmp_path, "name", {}) is None
    tracker.finish("FINISHED")
    assert isinstance(tracker, NullTracker)
    assert review_lines(Tracking(enabled=False), tracker) == []
    assert list(tmp_path.iterdir()) == []


def test_one_point_per_epoch_for_every_metric(finished: MlflowTracker) -> None:
    history = client(finished).get_metric_history(finished.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert "val/dice/_motion" in client(finished).get_run(finished.run_id).data.metrics


def test_final_scores_stand_alone_at_step_0(finished: MlflowTracker) -> None:
    metrics = client(finished).get_run(finished.run_id).data.metrics
    assert metrics["final/dice/mean"] == 0.884
    assert metrics["final/hd95_mm/mean"] == 1.25
    assert "final/broken" not in metrics
    assert [p.step for p in client(finished).get_metric_history(finished.run_id, "final/dice/mean")] == [0]


def test_parameters_are_the_choices_and_the_yaml_is_the_whole_pipeline(
    finished: MlflowTracker, config: PipelineConfig
) -> None:
    params = client(finished).get_run(finished.run_id).data.params
    assert params["sampling.patch_voxels"] == "[40, 56, 40]"
    assert params["loss.kind"] == "dice_focal"
    assert params["training.epochs"] == "3"
    assert "augment.noise_probability" not in params  # the default
    stored = PipelineConfig.model_validate(yaml.safe_load(artifact(finished, "pipeline.yaml")))
    assert stored == config.replacing({"tracking.store": "sqlite:///mlflow.db"})


def test_the_plan_says_what_was_chosen_and_why(finished: MlflowTracker) -> None:
    assert "| sampling.patch_voxels | [40, 56, 40] | the organ \\| fits |" in artifact(finished, "plan.md")


def test_the_data_are_an_input_known_by_their_content(finished: MlflowTracker) -> None:
    (entry,) = client(finished).get_run(finished.run_id).inputs.dataset_inputs
    assert entry.dataset.digest == DIGEST[:12]
    assert json.loads(entry.dataset.source) == {"sha256": DIGEST}
    assert json.loads(entry.dataset.profile) == {"training_cases": 7}


def test_overlays_have_a_step_and_the_last_ones_a_sheet(finished: MlflowTracker) -> None:
    names = [entry.path for entry in client(finished).list_artifacts(finished.run_id, "images")]
    full = [name for name in names if name.endswith(".png")]
    assert sorted(name.split("+step+")[1].split("+")[0] for name in full) == ["1", "2", "3"]
    assert all(name.startswith("images/overlay~0 case-1a2b3c4d+") for name in full)
    assert "overlays.png" in [entry.path for entry in client(finished).list_artifacts(finished.run_id)]


def test_a_picture_without_a_course_lies_where_it_is_told(finished: MlflowTracker) -> None:
    path = Path(client(finished).download_artifacts(finished.run_id, "scores/confusion.png"))
    assert np.asarray(Image.open(path)).shape == (20, 30, 3)


def test_the_bundle_is_dressed_for_the_tools_of_mlflow(finished: MlflowTracker) -> None:
    found = [entry.path for entry in client(finished).list_artifacts(finished.run_id, "model")]
    assert {"model/MLmodel", "model/bundle.json", "model/model.safetensors"} <= set(found)
    (told,) = json.loads(client(finished).get_run(finished.run_id).data.tags["mlflow.log-model.history"])
    assert told == {"flavors": {"pytorch": {}}, "run_id": finished.run_id, "artifact_path": "model"}
    assert not any(folder.exists() for folder in finished._scratch)


def test_a_run_is_found_by_task_data_seed_and_revision(finished: MlflowTracker) -> None:
    wanted = f"tags.task = 'semantic' and tags.data_digest = '{DIGEST}' and tags.seed = '0'"
    for revision, count in (("abc123", 1), ("abc124", 0)):
        query = f"{wanted} and tags.git_revision = '{revision}'"
        assert len(client(finished).search_runs([finished.experiment_id], query)) == count
    assert client(finished).get_run(finished.run_id).data.tags["mlflow.source.git.commit"] == "abc123"


def test_the_table_of_cases_is_one_that_mlflow_loads(finished: MlflowTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", finished.store.uri)
    table = json.loads(artifact(finished, "cases.json"))
    assert table == {
        "columns": ["case", "dice", "hd95_mm"],
        "data": [["case-1a2b3c4d", 0.5, None], ["case-2", None, None]],
    }
    loaded = client(finished).load_table(finished.experiment_id, "cases.json", [finished.run_id])
    assert list(loaded["case"]) == ["case-1a2b3c4d", "case-2"]


def test_the_registered_candidate_can_be_fetched(finished: MlflowTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", finished.store.uri)

    assert finished.version == "models:/hippo_campus/1"
    found = mlflow.artifacts.download_artifacts("models:/hippo_campus@candidate")
    assert (Path(found) / "model.safetensors").read_bytes() == b"weights"
    tags = client(finished).get_model_version("hippo_campus", "1").tags
    assert tags["final/dice/mean"] == "0.8840"
    assert tags["data_digest"] == DIGEST


def test_a_second_bundle_becomes_the_candidate(finished: MlflowTracker, config: PipelineConfig, tmp_path: Path) -> None:
    tracker = open_tracker(config.tracking, "hippocampus", "again", None)
    assert tracker.bundle(make_bundle(tmp_path), "hippo campus", {}) == "models:/hippo_campus/2"
    assert tracker.bundle(tmp_path / "bundle", None, {}) is None
    tracker.finish("FINISHED")
    assert client(finished).get_model_version_by_alias("hippo_campus", "candidate").version == 2


def test_the_description_explains_the_run(finished: MlflowTracker) -> None:
    run = client(finished).get_run(finished.run_id)
    note = run.data.tags["mlflow.note.content"]
    first, *_ = note.splitlines()
    assert first == "**Dice 0.884** on held-out cases (anterior 0.891)."
    assert "Semantic segmentation of anterior (3-D, MR)" in note
    assert "unet-med predict models:/hippo_campus/1 FOLDER OUT" in note
    assert "- training cases: 7" in note
    assert run.info.run_name == "Dice 0.884, hippocampus-fold0"
    assert run.info.status == "FINISHED"


def test_a_resumed_run_is_the_same_run_without_doubles(config: PipelineConfig) -> None:
    first = open_tracker(config.tracking, "hippocampus", "stopped", None)
    start(first, config)
    for epoch in (1, 2):
        first.epoch(epoch, {"train/loss": 1.0, "learning_rate": 0.1})
    first.overlay("overlay/0", picture(), 2)
    first.finish("KILLED")
    again = open_tracker(config.tracking, "hippocampus", "ignored", first.run_id)
    assert isinstance(again, MlflowTracker)
    assert client(again).get_run(first.run_id).info.status == "RUNNING"
    start(again, config)
    for epoch in (1, 2, 3):
        again.epoch(epoch, {"train/loss": 1.0, "learning_rate": 0.1})
        again.overlay("overlay/0", picture(), epoch)
    again.epoch(4, {"final/dice/mean": 0.5})
    again.epoch(4, {"final/dice/mean": 0.5})
    again.finish("FINISHED")
    run = client(again).get_run(first.run_id)
    steps = [point.step for point in client(again).get_metric_history(first.run_id, "train/loss")]
    assert (again.run_id, steps) == (first.run_id, [1, 2, 3])
    assert len(client(again).get_metric_history(first.run_id, "final/dice/mean")) == 1
    assert len(run.inputs.dataset_inputs) == 1
    pictures = [e.path for e in client(again).list_artifacts(first.run_id, "images") if e.path.endswith(".png")]
    assert len(pictures) == 3  # 2 once, and 1 and 3


def test_a_run_that_is_gone_goes_on_as_a_new_one(config: PipelineConfig, caplog: pytest.LogCaptureFixture) -> None:
    tracker = open_tracker(config.tracking, "hippocampus", "r", "0" * 32)
    assert tracker.run_id not in (None, "0" * 32)
    assert "no longer in the MLflow store" in caplog.text
    tracker.finish("FINISHED")


def test_folds_are_children_of_their_cross_validation(config: PipelineConfig) -> None:
    parent = open_tracker(config.tracking, "hippocampus", "cv", None)
    child = open_tracker(config.tracking, "hippocampus", "fold1", None, parent_run_id=parent.run_id)
    assert isinstance(child, MlflowTracker)
    assert client(child).get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id
    child.finish("FINISHED")
    parent.finish("FAILED")


def test_no_person_and_no_place_goes_in(finished: MlflowTracker, folder: Path) -> None:
    """The folder of the artifacts, which MLflow's database needs, is the only path; it is taken out before looking."""
    located = {
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
    }
    places = {str(folder), str(Path.cwd()), str(Path.home()), sys.argv[0]} - {"/"}
    private = {place for place in places if Path(place).is_absolute()}  # a worker of the tests was started with -c
    user = getpass.getuser()
    database = sqlite3.connect(folder / "mlflow.db")
    tables = [row[0] for row in database.execute("select name from sqlite_master where type = 'table'")]
    values = []
    for table in tables:
        columns = [row[1] for row in database.execute(f"pragma table_info({table})")]
        kept = [column for column in columns if (table, column) not in located]
        for row in database.execute(f"select {', '.join(chr(34) + column + chr(34) for column in kept)} from {table}"):
            values += [str(value) for value in row]
    database.close()
    texts = values + [
        path.read_bytes().decode("latin-1") for path in (folder / "mlartifacts").rglob("*") if path.is_file()
    ]
    names = [path.name for path in (folder / "mlartifacts").rglob("*")]
    assert len(values) > 100
    assert not [text for text in texts + names if any(place in text for place in private)]
    assert user not in values
    tags = client(finished).get_run(finished.run_id).data.tags
    assert (tags["mlflow.user"], tags["mlflow.source.name"]) == ("unet-med", "unet-med")


def test_a_store_with_a_password_is_not_recorded() -> None:
    text = PipelineConfig(name="a", tracking=Tracking(store="https://jane:secret@server/")).to_yaml()
    assert "secret" not in module._without_store(text)
    assert PipelineConfig.model_validate(yaml.safe_load(module._without_store(text))) == PipelineConfig(name="a")


def test_review_lines_are_exact(
    finished: MlflowTracker, tracking: Tracking, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = review_lines(tracking, finished)
    assert lines[1] == f"  mlflow ui --backend-store-uri 'sqlite:///{folder}/mlflow.db'"
    address = f"http://127.0.0.1:5000/#/experiments/{finished.experiment_id}"
    assert lines[2] == f"  runs: {address}?workflowType=machine_learning"
    assert lines[3] == f"  this run: {address}/runs/{finished.run_id}?workflowType=machine_learning"
    assert len(lines) == 4
    monkeypatch.chdir(folder)
    assert "plain 'mlflow ui' shows the same" in review_lines(Tracking(), finished)[4]
    (folder / "mlruns" / "0").mkdir(parents=True)
    (folder / "mlruns" / "0" / "meta.yaml").touch()
    assert "mlflow migrate-filestore" in review_lines(Tracking(), finished)[4]
    server = review_lines(Tracking(store="https://jane:secret@server:8080/x/"), finished)
    assert f"  runs: https://server:8080/x/#/experiments/{finished.experiment_id}" in server[1]


def test_a_leftover_file_store_is_warned_about(
    config: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mlruns" / "123").mkdir(parents=True)
    (tmp_path / "mlruns" / "123" / "meta.yaml").touch()
    monkeypatch.chdir(tmp_path)
    open_tracker(config.tracking, "hippocampus", "r", None).finish("FINISHED")
    assert "migrate-filestore" in caplog.text


def test_an_experiment_that_was_deleted_is_not_revived(config: PipelineConfig, finished: MlflowTracker) -> None:
    client(finished).delete_experiment(client(finished).create_experiment("gone"))
    with pytest.raises(UsageError, match=r"was deleted in MLflow.*give another name"):
        open_tracker(config.tracking, "gone", "r", None)


def test_artifacts_behind_a_server_are_refused_early(config: PipelineConfig, finished: MlflowTracker) -> None:
    client(finished).create_experiment("served", artifact_location="mlflow-artifacts:/7")
    with pytest.raises(UsageError, match="behind an MLflow server"):
        open_tracker(config.tracking, "served", "r", None)


def test_a_file_that_is_no_database_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database, and long enough to be looked at" * 30)
    with pytest.raises(UsageError, match="cannot be opened") as caught:
        open_tracker(Tracking(store=f"sqlite:///{tmp_path / 'mlflow.db'}"), "e", "r", None)
    assert str(tmp_path) not in str(caught.value)


def test_a_locked_database_does_not_stop_training(
    config: PipelineConfig, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.store.db.utils as mlflow_database

    tracker = open_tracker(config.tracking, "hippocampus", "locked", None)
    assert isinstance(tracker, MlflowTracker)
    text = mlflow_database.sql.text  # MLflow waits 20 s for a lock; here 0.2 s
    monkeypatch.setattr(mlflow_database.sql, "text", lambda query: text(query.replace("20000", "200")))
    lock = sqlite3.connect(folder / "mlflow.db", isolation_level=None)
    lock.execute("begin exclusive")
    with caplog.at_level(logging.WARNING):
        tracker.epoch(1, {"train/loss": 3.0})
        tracker.epoch(2, {"train/loss": 2.0})
    lock.execute("rollback")
    lock.close()
    assert caplog.text.count("does not answer") == 1
    assert str(folder) not in caplog.text
    tracker.finish("FINISHED")
    history = client(tracker).get_metric_history(tracker.run_id, "train/loss")
    assert [point.value for point in history] == [3.0, 2.0]
