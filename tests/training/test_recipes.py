"""Every recipe that is shipped loads, and takes a step on images of its own kind."""

from __future__ import annotations

import io
import math
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from training.checkpoint import load_json, load_weights, save_weights
from training.config import load_recipe
from training.curves import read_history
from training.errors import TrainingError
from training.models.registry import build_model
from training.train import train

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "training" / "recipes").glob("*.toml"))
EXPERIMENTS = ROOT / "training" / "recipes" / "experiments"
STUDIES = tomllib.loads((EXPERIMENTS / "studies.toml").read_text())
ARMS = [(name, arm) for name, study in STUDIES.items() for arm in study["arms"]]
# An epoch is a step.
STEP = ("train.epochs=1", "train.batch_size=4", "train.cpu_threads=1", "train.precision=fp32")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """1,000 classes, as ImageNet has, in folders: a crop of scikit-learn's photographs each."""
    root = tmp_path_factory.mktemp("imagenet")
    chance = np.random.default_rng(0)
    pictures = [Image.fromarray(one) for one in load_sample_images().images]
    for split, count in (("train", 1000), ("val", 1000)):
        for number in range(count):
            left, top = (int(one) for one in chance.integers(0, 300, 2))
            crop = pictures[number % 2].crop((left, top, left + 64, top + 64))
            (root / split / f"n{number:08}").mkdir(parents=True)
            buffer = io.BytesIO()
            crop.save(buffer, "JPEG")
            (root / split / f"n{number:08}" / "1.jpg").write_bytes(buffer.getvalue())
    return root


def of_photographs(root, *, images=8):
    return (
        f'data={{source="folder", train="{root}/train", validation="{root}/val", '
        f'loading="stream", decode_workers=0, validation_images={images}}}'
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_is_named_as_its_file(path):
    assert load_recipe(path).name == path.stem
    header = path.read_text().partition("\n\nname")[0]
    assert header.startswith("# ")
    assert f"training/recipes/{path.name}" in header


@pytest.mark.parametrize(("name", "arm"), ARMS)
def test_every_arm_of_a_study_is_a_recipe_of_its_own(name, arm):
    study = STUDIES[name]
    settings = [*study.get("settings", []), *study["arms"][arm]]
    recipe = load_recipe(EXPERIMENTS / study["recipe"], settings)
    others = [
        load_recipe(EXPERIMENTS / study["recipe"], [*study.get("settings", []), *changes])
        for other, changes in study["arms"].items()
        if other != arm
    ]
    assert recipe not in others


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["resnet50", "mobilenet-v2", "efficientnet-b0"])
def test_imagenet_recipes_take_a_step_on_a_thousand_classes(name, photographs, tmp_path):
    path = ROOT / "training" / "recipes" / f"imagenet-{name}.toml"
    small = ("input.preprocess.resize.size=64", "input.preprocess.crop={height=64, width=64}")
    steps = (*STEP[1:], "train.epochs=0.005")
    recipe = load_recipe(path, [*steps, *small, of_photographs(photographs)])
    run = train(recipe, run_dir=tmp_path / "run", is_progress_shown=False)
    (record,) = read_history(run / "history.jsonl")
    assert record["step"] == 2
    assert math.isfinite(record["train_loss"])
    assert load_json(run / "run.json")["data"]["validation"]["images"] == 8


@pytest.mark.parametrize("name", ["airbench", "resnet20", "resnet9", "wrn16-4"])
def test_the_cifar_nets_take_a_step(name, photographs, tmp_path):
    path = ROOT / "training" / "recipes" / f"cifar10-{name}.toml"
    source = of_photographs(photographs).replace("stream", "memory")
    recipe = load_recipe(path, [*STEP[1:], "train.epochs=0.004", source])
    run = train(recipe, run_dir=tmp_path / "run", is_progress_shown=False)
    assert read_history(run / "history.jsonl")[0]["step"] == 1


@pytest.mark.parametrize("arm", STUDIES["transfer-100"]["arms"])
def test_the_transfer_study_takes_a_step(arm, photographs, tmp_path):
    """With weights of the published names, which a classifier for 1,000 classes came with."""
    weights = build_model("seed:squeezenet1_1", classes=1000).state_dict()
    save_weights(tmp_path / "weights.safetensors", weights)
    source = of_photographs(photographs).replace("stream", "memory")
    changes = [
        f"model.weights={tmp_path}/weights.safetensors" if one.startswith("model.weights") else one
        for one in STUDIES["transfer-100"]["arms"][arm]
    ]
    recipe = load_recipe(EXPERIMENTS / "transfer.toml", [*STEP, *changes, source])
    recipe = replace(recipe, train=replace(recipe.train, epochs=0.004))
    run = train(recipe, run_dir=tmp_path / "run", is_progress_shown=False)
    learnt = load_weights(run / "last.safetensors")
    is_kept = bool((learnt["features.0.weight"] == weights["features.0.weight"]).all())
    assert is_kept == (arm == "frozen features")
    assert learnt["head.weight"].shape == (1000, 512)


@pytest.mark.parametrize(("name", "arm"), [one for one in ARMS if "transfer" not in one[0]])
def test_every_other_arm_takes_a_step(name, arm, photographs, tmp_path):
    study = STUDIES[name]
    settings = [*study.get("settings", []), *study["arms"][arm], *STEP[1:]]
    if name == "degradation":  # of CIFAR-10, which is not in the repository
        settings.append(of_photographs(photographs).replace("stream", "memory"))
    recipe = load_recipe(EXPERIMENTS / study["recipe"], settings)
    recipe = replace(recipe, train=replace(recipe.train, epochs=0.003))
    run = train(recipe, run_dir=tmp_path / "run", is_progress_shown=False)
    (record,) = read_history(run / "history.jsonl")
    assert record["step"] == 1
    assert math.isfinite(record["train_loss"])


def test_so_many_images_as_are_asked_for_are_taken_of_every_class(photographs):
    digits = ROOT / "training" / "recipes" / "digits-lenet5.toml"
    from training.data import load_splits

    some = load_splits(load_recipe(digits, ["data.train_images=100"]).data)
    assert np.bincount(some.train.labels).tolist() == [10] * 10
    assert len(some.validation) == 360
    again = load_splits(load_recipe(digits, ["data.train_images=100"]).data)
    assert some.train.fingerprint == again.train.fingerprint
    other = ["data.train_images=100", "data.split_seed=1"]
    assert load_splits(load_recipe(digits, other).data).train.fingerprint != (
        some.train.fingerprint
    )
    with pytest.raises(TrainingError, match="no training image of"):
        load_splits(load_recipe(digits, ["data.train_images=5"]).data)
    with pytest.raises(TrainingError, match="has 1437 images, 5000 are asked for"):
        load_splits(load_recipe(digits, ["data.train_images=5000"]).data)


@pytest.mark.e2e
def test_the_runner_of_studies_writes_table_and_picture_and_runs_nothing_twice(tmp_path):
    (tmp_path / "tiny.toml").write_text((EXPERIMENTS / "regularisation.toml").read_text())
    (tmp_path / "studies.toml").write_text(
        '[tiny]\ntitle = "Tiny"\nrecipe = "tiny.toml"\nseeds = [0, 1]\nminutes = 1\n'
        'settings = ["train.epochs=2"]\n[tiny.arms]\n"nothing" = []\n'
        '"smooth" = ["train.label_smoothing=0.1"]\n'
    )
    document = tmp_path / "experiments.md"
    document.write_text("# Experiments\n")
    options = ["--studies", tmp_path / "studies.toml", "--runs", tmp_path / "runs"]
    command = [sys.executable, ROOT / "scripts" / "run-experiments", *options]

    def run():
        done = subprocess.run(
            [*command, "--document", document], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return document.read_text()

    text = run()
    assert text.count("\n## Tiny\n") == 1
    assert text.count("\n| nothing | ") == text.count("\n| smooth | ") == 1
    assert " ± " in text
    assert (tmp_path / "experiment-tiny.png").stat().st_size > 1000
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.pt")}
    assert len(kept) == 4
    assert run() == text
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.pt")}
