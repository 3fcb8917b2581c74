import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.checkpoint import load_weights
from training.config import load_recipe
from training.data import decode_views, load_splits
from training.errors import TrainingError
from training.loading import split_views
from training.models.normalise import Normalise
from training.train import default_run_dir, train
from training.trained_run import load_run
from training.validation import evaluate_views

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
SHORT = (
    "train.epochs=2.5",
    "train.batch_size=256",
    "train.cpu_threads=1",
    "train.precision=fp32",
)


class KilledError(Exception):
    pass


def digits_recipe(*overrides):
    return load_recipe(RECIPES / "digits-lenet5.toml", [*SHORT, *overrides])


def run(recipe, run_dir, **options):
    return train(recipe, run_dir=run_dir, is_progress_shown=False, **options)


def kill_at(step):
    def on_step(done):
        if done == step:
            raise KilledError

    return on_step


def read_history(run_dir):
    return [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    recipe = digits_recipe()
    return run(recipe, default_run_dir(recipe, tmp_path_factory.mktemp("runs")))


def test_a_run_leaves_its_recipe_history_weights_result_and_curves(finished):
    assert finished.name == "digits-lenet5-0"
    assert {path.name for path in finished.iterdir()} == {
        "recipe.json",
        "run.json",
        "history.jsonl",
        "resume.pt",
        "last.safetensors",
        "best.safetensors",
        "result.json",
        "curves.png",
    }
    assert load_recipe(finished / "recipe.json") == digits_recipe()
    with Image.open(finished / "curves.png") as plot:
        assert plot.width > 800


def test_a_fractional_last_epoch_ends_at_the_exact_step(finished):
    history = read_history(finished)
    steps_per_epoch = 1437 // 256
    assert [record["step"] for record in history] == [5, 10, 13]
    assert history[-1]["epoch"] == pytest.approx(13 / steps_per_epoch)
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_run_facts_name_data_hardware_and_libraries(finished):
    facts = load_run(finished).facts
    assert facts["class_names"] == list("0123456789")
    assert facts["data"]["train"]["images"] == 1437
    assert len(facts["data"]["validation"]["fingerprint"]) == 64
    assert facts["precision"] == "fp32"
    assert facts["libraries"]["torch"] == torch.__version__.partition("+")[0]


def test_a_loaded_run_measures_as_its_result_says(finished):
    loaded = load_run(finished)
    assert not loaded.net.training
    assert loaded.class_names == tuple("0123456789")
    validation = load_splits(loaded.recipe.data).validation
    measured = evaluate_views(
        loaded.net,
        Normalise(loaded.recipe.input.normalisation),
        split_views(decode_views(validation, loaded.recipe.input.preprocess), validation.labels),
    )
    result = json.loads((finished / "result.json").read_text())
    assert measured.top1 == result["top1"]
    assert measured.loss == pytest.approx(result["loss"], rel=1e-5)
    assert result["validation_images"] == measured.images == 360


@pytest.mark.parametrize("average", ["none", "ema", "lookahead"])
def test_a_killed_run_resumes_to_the_very_same_weights(tmp_path, average):
    # Dropout draws from the global generator, whose state has to come back too.
    recipe = digits_recipe(
        f"average.kind={average}",
        "average.every_steps=2",
        "augment.flip=random",
        "model.architecture=timm:test_resnet",
        "model.options.drop_rate=0.5",
        "train.epochs=2",
        "train.batch_size=480",
    )
    whole = run(recipe, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(recipe, tmp_path / "killed", on_step=kill_at(3))
    assert not (tmp_path / "killed" / "result.json").exists()
    resumed = run(recipe, tmp_path / "killed", resume=True)
    for name in ("last.safetensors", "best.safetensors"):
        first, second = load_weights(whole / name), load_weights(resumed / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    timeless = [
        [{k: v for k, v in record.items() if "second" not in k} for record in read_history(where)]
        for where in (whole, resumed)
    ]
    assert timeless[0] == timeless[1]


def test_resuming_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path, finished):
    with pytest.raises(KilledError):
        run(digits_recipe(), tmp_path / "run", on_step=kill_at(2))
    resumed = run(digits_recipe(), tmp_path / "run", resume=True)
    first = load_weights(finished / "last.safetensors")
    second = load_weights(resumed / "last.safetensors")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_another_seed_gives_other_weights(tmp_path, finished):
    other = run(digits_recipe("seed=1"), tmp_path / "run")
    first = load_weights(finished / "last.safetensors")
    second = load_weights(other / "last.safetensors")
    assert not torch.equal(first["head.weight"], second["head.weight"])


def test_a_finished_run_is_never_overwritten(finished):
    with pytest.raises(TrainingError, match="holds a run already"):
        run(digits_recipe(), finished)


def test_a_run_does_not_resume_under_another_recipe(finished):
    with pytest.raises(TrainingError, match="started with another recipe"):
        run(digits_recipe("optim.lr=0.1"), finished, resume=True)


def test_a_damaged_checkpoint_is_told_in_one_line(tmp_path):
    with pytest.raises(KilledError):
        run(digits_recipe(), tmp_path / "run", on_step=kill_at(6))
    (tmp_path / "run" / "resume.pt").write_bytes(b"cut short")
    with pytest.raises(TrainingError, match=r"resume\.pt: no checkpoint"):
        run(digits_recipe(), tmp_path / "run", resume=True)


def test_a_checkpoint_of_another_version_is_told_in_one_line(tmp_path):
    with pytest.raises(KilledError):
        run(digits_recipe(), tmp_path / "run", on_step=kill_at(6))
    path = tmp_path / "run" / "resume.pt"
    state = torch.load(path, weights_only=True)
    del state["scaler"]
    torch.save(state, path)
    with pytest.raises(TrainingError, match=r"resume\.pt: written by another version.*scaler"):
        run(digits_recipe(), tmp_path / "run", resume=True)


def test_a_diverging_loss_stops_the_run(tmp_path):
    recipe = digits_recipe("optim.name=sgd", "optim.lr=1e30", "optim.warmup_fraction=0")
    with pytest.raises(TrainingError, match="the loss became"):
        run(recipe, tmp_path / "run")


def test_frozen_parameters_stop_moving(tmp_path):
    recipe = digits_recipe(
        'train.freeze_after_epochs={"c1.weight" = 1, "c3.bias" = 0}', "average.kind=none"
    )
    with pytest.raises(KilledError):
        run(recipe, tmp_path / "run", on_step=kill_at(6))
    after_one_epoch = load_weights(tmp_path / "run" / "last.safetensors")
    at_the_end = load_weights(run(recipe, tmp_path / "run", resume=True) / "last.safetensors")
    moved = {key for key in at_the_end if not torch.equal(at_the_end[key], after_one_epoch[key])}
    assert at_the_end.keys() - moved == {"c1.weight", "c3.bias"}


def test_a_parameter_to_freeze_must_exist(tmp_path):
    recipe = digits_recipe('train.freeze_after_epochs={"whiten.bias" = 1}')
    with pytest.raises(TrainingError, match=r"no parameter whiten\.bias"):
        run(recipe, tmp_path / "run")


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="batch_size 2000 is more than the 1437 images"):
        run(digits_recipe("train.batch_size=2000"), tmp_path / "run")


def test_a_gpu_that_is_not_there_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(TrainingError, match="finds no GPU"):
        run(digits_recipe(), tmp_path / "run", device="cuda")


@pytest.mark.parametrize("what", ["run.json", "last.safetensors"])
def test_loading_what_is_no_run_names_the_missing_file(tmp_path, finished, what):
    import shutil

    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / what).unlink()
    with pytest.raises(TrainingError, match=what):
        load_run(tmp_path / "run")


def test_flip_averaging_averages_probabilities(finished):
    loaded = load_run(finished)
    views = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    normalise = Normalise(loaded.recipe.input.normalisation)
    labels = np.array([0, 1, 2, 3])
    with torch.no_grad():
        scores = [
            loaded.net(normalise(torch.from_numpy(shown.copy()))).softmax(dim=1)
            for shown in (views, views[:, :, ::-1])
        ]
    mean = (scores[0] + scores[1]) / 2
    expected = -mean[torch.arange(4), torch.from_numpy(labels)].log().mean()
    measured = evaluate_views(
        loaded.net, normalise, split_views(views, labels), is_flip_averaged=True
    )
    assert measured.loss == pytest.approx(float(expected), rel=1e-5)
