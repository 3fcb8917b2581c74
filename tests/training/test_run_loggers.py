"""What TensorBoard and MLflow are told of real runs, read back by their own libraries."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from documents import ROOT, documented

from service.cli import main
from training import run_loggers
from training.config import load_recipe
from training.curves import read_history
from training.run_loggers import open_loggers
from training.train import train

DIGITS = ROOT / "training/recipes/digits-lenet5.toml"
SHORT = ("train.epochs=2", "train.batch_size=128", "train.cpu_threads=1", "train.precision=fp32")


def run_command(run_dir, *options):
    sets = [part for one in SHORT for part in ("--set", one)]
    command = ["train", str(DIGITS), *sets, "--run-dir", str(run_dir), "--quiet", *options]
    return CliRunner().invoke(main, command)


def scalars(run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    return {
        name: [(one.step, one.value) for one in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def history(run_dir):
    return read_history(run_dir / "history.jsonl")


def told(records, name):
    return [(one["step"], pytest.approx(one[name], rel=1e-5)) for one in records]


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A tracking store of MLflow's in a folder, which it takes when told to."""
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    return mlflow.MlflowClient


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_both_are_told_of_every_epoch_by_one_option_each(tmp_path, store):
    run_dir = tmp_path / "run"
    _, recipe, *options = documented("docs/train.md", "train .*--log-to")
    assert recipe == str(DIGITS.relative_to(ROOT))
    done = run_command(run_dir, *options)
    assert done.exit_code == 0, done.output
    records = history(run_dir)
    assert len(records) == 2
    curves = scalars(run_dir)
    for name in ("train_loss", "validation_loss", "validation_top1", "lr_factor"):
        assert curves[name] == told(records, name)

    client = store()
    run_id = (run_dir / "mlflow-run.txt").read_text().strip()
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.lr"] == "0.004"
    metric = client.get_metric_history(run_id, "validation_top1")
    assert [(one.step, one.value) for one in metric] == told(records, "validation_top1")


def test_without_the_option_nothing_is_written(tmp_path):
    run_dir = train(load_recipe(DIGITS, SHORT), run_dir=tmp_path / "run", is_progress_shown=False)
    assert not (run_dir / "tensorboard").exists()
    assert not (tmp_path / "mlruns").exists()
    with open_loggers((), load_recipe(DIGITS), run_dir) as log:
        assert log is None


def test_a_resumed_run_strikes_out_what_came_after_its_checkpoint(tmp_path):
    recipe = load_recipe(DIGITS, SHORT)
    with open_loggers(["tensorboard"], recipe, tmp_path) as log:
        for step in (10, 20, 30):
            log({"step": step, "epoch": step / 10, "train_loss": 1.0})
    with open_loggers(["tensorboard"], recipe, tmp_path) as log:
        log({"step": 20, "epoch": 2.0, "train_loss": 0.5, "dead_relus": None, "parts": [1]})
    assert scalars(tmp_path) == {
        "epoch": [(10, 1.0), (20, 2.0)],
        "train_loss": [(10, 1), (20, 0.5)],
    }


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_resumed_run_goes_on_in_the_run_of_mlflow_that_it_began(tmp_path, store):
    recipe, run_dir = load_recipe(DIGITS, SHORT), tmp_path / "run"
    run_dir.mkdir()

    def fail():
        with open_loggers(["mlflow"], recipe, run_dir) as log:
            log({"step": 1, "train_loss": 1.0})
            log({"no step": 1})

    with pytest.raises(KeyError, match="step"):
        fail()
    run_id = (run_dir / "mlflow-run.txt").read_text().strip()
    assert store().get_run(run_id).info.status == "FAILED"
    with open_loggers(["mlflow"], recipe, run_dir) as log:
        log({"step": 2, "train_loss": 0.5})
    client = store()
    assert client.get_run(run_id).info.status == "FINISHED"
    found = client.get_metric_history(run_id, "train_loss")
    assert [(one.step, one.value) for one in found] == [(1, 1.0), (2, 0.5)]


def test_a_package_that_is_missing_is_named_before_training_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(run_loggers, "find_spec", lambda name: None)
    done = run_command(tmp_path / "run", "--log-to", "mlflow")
    assert done.exit_code == 2
    assert "mlflow is not installed; the extra `mlflow` has it" in done.stderr
    assert not (tmp_path / "run").exists()


def test_mlflow_without_an_address_is_refused_before_training_starts(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = run_command(tmp_path / "run", "--log-to", "mlflow")
    assert done.exit_code == 2
    assert "mlflow needs MLFLOW_TRACKING_URI" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_store_that_fails_is_given_up_and_training_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with open_loggers(["mlflow"], load_recipe(DIGITS), tmp_path) as log:
        log({"step": 1, "train_loss": 1.0})
        log({"step": 2, "train_loss": 1.0})
    assert [
        one.getMessage().split(":")[0]
        for one in caplog.records
        if "mlflow" in one.name or one.name == run_loggers.__name__
    ] == ["mlflow is told no more"]
