"""Advice on data and runs that really have each trouble, and on a healthy control."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from service.cli import main
from training.advice import advise_by_curves, next_larger
from training.advising import advise_recipe, follow
from training.checkpoint import save_weights
from training.config import load_recipe
from training.curves import read_curves
from training.data import load_splits
from training.data_advice import DataFacts, advise_by_data, measure_data
from training.errors import TrainingError
from training.models.registry import build_model
from training.train import train
from training.transfer import LAST, LinearProbe, TransferProbe, probe_transfer
from training.transfer_advice import advise_by_transfer

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "training" / "recipes" / "digits-lenet5.toml"
HISTORIES = Path(__file__).parent / "histories"


def digits(*overrides):
    return load_recipe(DIGITS, ["train.cpu_threads=1", "train.precision=fp32", *overrides])


def topics(found):
    return [one.topic for one in found]


@pytest.fixture(scope="module")
def facts():
    return measure_data(load_splits(digits().data))


# --- curves: histories of runs that were trained so (`histories/record.py`) ----------------------


def from_history(case, recipe):
    return advise_by_curves(recipe, read_curves(HISTORIES / f"{case}.jsonl", classes=10))


def test_a_healthy_run_needs_no_advice():
    assert from_history("healthy", digits()) == ()


@pytest.mark.parametrize(
    ("case", "overrides", "settings"),
    [
        ("lr-noisy", ["optim.lr=0.25"], ["optim.lr=0.05"]),
        ("lr-too-low", ["optim.lr=0.0001"], ["optim.lr=0.0005"]),
        ("needs-longer", ["train.epochs=4"], ["train.epochs=8"]),
        ("underfitting", ["model.dropout=0.5"], ["train.label_smoothing=0.0", "model.dropout=0.0"]),
        ("dead-relus", ["optim.lr=0.05"], ["optim.lr=0.01", 'model.initialisation="he_normal"']),
        (
            "overfitting",
            ["augment.translate_px=0", "train.label_smoothing=0", "optim.weight_decay=0"],
            [
                *("augment.translate_px=2", "augment.rotate_degrees=10"),
                *("optim.weight_decay=0.05", "train.label_smoothing=0.1"),
                *('train.best_by="loss"', "train.early_stop_epochs=8"),
            ],
        ),
        ("wrong-sign", [], []),
        ("unshuffled", [], []),
    ],
)
def test_each_trouble_of_a_run_is_answered_in_the_recipes_own_keys(case, overrides, settings):
    recipe = digits(*overrides)
    first = from_history(case, recipe)[0]
    assert any(sign.isdigit() for sign in first.fact)
    assert list(first.settings) == settings
    follow(recipe, (first,))


def test_what_a_recipe_does_already_is_not_advised_again():
    done = ("augment.rotate_degrees=5", "train.early_stop_epochs=4", "train.label_smoothing=0.2")
    (advice,) = from_history("overfitting", digits(*done))
    assert advice.settings == ()


def test_followed_advice_mends_a_run_that_learns_too_slowly():
    spec = importlib.util.spec_from_file_location("record", HISTORIES / "record.py")
    recorder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recorder)
    before = from_history("lr-too-low", digits("optim.lr=0.0001"))
    recorded = [
        json.loads(line) for line in (HISTORIES / "lr-too-low.jsonl").read_text().splitlines()
    ]
    history, _ = recorder.record("again", "train.epochs=15", *before[0].settings)
    assert history[-1]["validation_loss"] < 0.8 * recorded[-1]["validation_loss"]


def test_a_larger_network_is_the_next_of_its_family():
    assert next_larger("seed:cifar_resnet20") == "seed:cifar_resnet32"
    assert next_larger("torchvision:resnet152") is None
    assert next_larger("timm:nobody") is None


# --- data ----------------------------------------------------------------------------------------


def test_good_data_need_no_advice(facts):
    assert advise_by_data(digits(), facts) == ()
    assert facts.shorter_side == 32
    assert facts.validation_images == 360


def write_folder(folder, counts, *, side=32, low=0, high=256):
    """Noise; each class has a mean of its own."""
    chance = np.random.default_rng(0)
    for number, count in enumerate(counts):
        (folder / f"class{number}").mkdir(parents=True)
        for index in range(count):
            pixels = chance.integers(low, high, (side, side, 3)) // (number + 1)
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(folder / f"class{number}" / f"{index}.png")
    return folder


def of_folder(folder, *overrides):
    source = (
        f'data={{source="folder", train="{folder}", validation_fraction=0.5, loading="memory"}}'
    )
    recipe = digits(source, *overrides)
    return advise_by_data(recipe, measure_data(load_splits(recipe.data)))


def test_uneven_classes_are_seen(tmp_path):
    found = {one.topic: one for one in of_folder(write_folder(tmp_path / "d", [400, 40]))}
    advice = found["class imbalance"]
    assert advice.fact == "'class0' has 200 training images, 'class1' 20, 10.0 times fewer"
    assert advice.settings == ('train.imbalance="logit_adjustment"',)
    even = of_folder(tmp_path / "d", "train.imbalance=balanced_sampling")
    assert "class imbalance" not in topics(even)


def test_few_images_ask_for_weights_that_others_learnt(tmp_path):
    found = of_folder(write_folder(tmp_path / "d", [40, 40]))
    assert topics(found)[0] == "few images"
    assert found[0].fact.startswith("20 training images a class")
    assert topics(found)[-1] == "small validation"
    assert "of 40 validation images" in found[-1].fact
    weights = tmp_path / "weights.safetensors"
    assert "few images" not in topics(of_folder(tmp_path / "d", f"model.weights={weights}"))


def test_images_much_smaller_than_what_is_shown_are_seen(tmp_path):
    write_folder(tmp_path / "d", [300, 300], side=32)
    large = ("input.preprocess.resize.size=256", "input.preprocess.crop={height=224, width=224}")
    (advice,) = (one for one in of_folder(tmp_path / "d", *large) if one.topic == "image size")
    assert "32 px (median), the network is shown 256 px" in advice.fact
    assert "64.0 times less" in advice.advice
    assert advice.settings == (
        "input.preprocess.resize.size=32",
        "input.preprocess.crop={height=28, width=28}",
    )


def test_images_much_larger_than_what_is_shown_are_seen(tmp_path):
    found = of_folder(write_folder(tmp_path / "d", [300, 300], side=100))
    (advice,) = (one for one in found if one.topic == "image size")
    assert "try 64 px, which cost 4 times as much" in advice.advice


def test_colours_that_are_far_from_the_normalisation_are_seen(tmp_path):
    found = of_folder(write_folder(tmp_path / "d", [300, 300], low=200))
    (advice,) = (one for one in found if one.topic == "normalisation")
    mended = follow(digits(), (advice,))[0].input.normalisation
    assert mended.mean == pytest.approx((0.67, 0.67, 0.67), abs=0.02)


# --- transfer ------------------------------------------------------------------------------------


def probe(top1, layer=LAST):
    return LinearProbe(layer=layer, hits=np.arange(500) < 500 * top1)


def depths(early, last, untrained):
    return TransferProbe(
        depths=(probe(early, "stem"), probe(early, "stages.0.1"), probe(last)),
        untrained=probe(untrained),
        images=1000,
        validation_images=500,
    )


@pytest.mark.parametrize(
    ("a_class", "found", "topic", "setting"),
    [
        (20, depths(0.6, 0.8, 0.4), "frozen features", "train.is_feature_cache_on=true"),
        (500, depths(0.6, 0.8, 0.4), "fine-tune", "optim.layer_decay=0.75"),
        (
            20,
            depths(0.8, 0.6, 0.4),
            "later layers",
            'train.unfreeze_after_epochs={"stem" = 30, "stages.0.0" = 30, "stages.0.1" = 30}',
        ),
        (500, depths(0.8, 0.6, 0.4), "everything", "optim.layer_decay=1.0"),
        (20, depths(0.4, 0.4, 0.4), "no use", None),
    ],
)
def test_the_four_quadrants(facts, a_class, found, topic, setting):
    recipe = digits("model.weights=w.safetensors", "model.architecture=seed:cifar_resnet20")
    some = replace(facts, class_sizes=dict.fromkeys(facts.class_sizes, a_class))
    net = build_model("seed:cifar_resnet20", classes=10)
    advice = advise_by_transfer(recipe, some, found, net)
    assert advice.topic == f"transfer: {topic}"
    assert f"{a_class} training images a class" in advice.fact
    assert setting is None or setting in advice.settings
    _, left_out = follow(recipe, (advice,))
    assert left_out == ()


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """LeNet-5 that learnt half of the digits' images."""
    short = ("train.epochs=6", "data.validation_fraction=0.5", "augment.translate_px=0")
    folder = tmp_path_factory.mktemp("learnt") / "run"
    return train(digits(*short), run_dir=folder, is_progress_shown=False)


def test_weights_that_know_the_images_are_told_from_some_that_do_not(learnt, tmp_path):
    recipe = digits(f"model.weights={learnt}", "data.validation_fraction=0.5")
    splits = load_splits(recipe.data)
    few = replace(splits, train=splits.train.subset(range(200)))
    knows = probe_transfer(recipe, few, max_images=600)
    assert knows.is_similar
    assert (knows.images, knows.validation_images) == (200, 600)
    assert [one.layer for one in knows.depths] == ["c1", "c3", LAST]
    assert knows.last.top1 > knows.untrained.top1 + 0.03

    random = build_model("seed:lenet5", classes=10)
    save_weights(tmp_path / "random.safetensors", random.state_dict())
    blank = digits(f"model.weights={tmp_path / 'random.safetensors'}")
    nothing = probe_transfer(blank, few, max_images=600)
    assert not nothing.last.beats(nothing.untrained)
    with pytest.raises(TrainingError, match="needed to tell what transfers"):
        probe_transfer(digits(), splits)


def test_the_command_advises_and_writes_a_recipe_that_trains(learnt, tmp_path):
    written = tmp_path / "advised.json"
    sets = (f"model.weights={learnt}", "data.validation_fraction=0.9", "augment.translate_px=0")
    options = [part for one in sets for part in ("--set", one)]
    done = CliRunner().invoke(
        main, ["advise", str(DIGITS), *options, "--images", "600", "--out", str(written), "--json"]
    )
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)
    # 18 images a class.
    assert found["topic"] == "transfer: frozen features"
    recipe = load_recipe(written, ["train.epochs=3", "train.cpu_threads=1"])
    assert recipe.train.is_feature_cache_on
    run = train(recipe, run_dir=tmp_path / "run", is_progress_shown=False)
    assert json.loads((run / "result.json").read_text())["top1"] > 0.9


def test_the_command_reads_a_run_and_refuses_another_suffix(learnt):
    done = CliRunner().invoke(main, ["advise", str(learnt), "--no-transfer"])
    assert done.exit_code == 0, done.output
    assert "seen: 90 training images a class" in done.stdout
    assert CliRunner().invoke(main, ["advise", str(DIGITS), "--out", "x.toml"]).exit_code == 2


def test_the_commands_of_the_guide(learnt, tmp_path):
    guide = (ROOT / "docs" / "train.md").read_text()
    lines = [
        line.split() for line in guide.splitlines() if line.startswith(".venv/bin/fivecrop ad")
    ]
    assert [line[2] for line in lines] == [str(DIGITS.relative_to(ROOT)), "runs/digits-lenet5-0"]
    written = tmp_path / "advised.json"
    done = CliRunner().invoke(main, ["advise", str(DIGITS), "--out", str(written)])
    assert (done.exit_code, done.stdout) == (0, "nothing to change is seen\n"), done.output
    assert load_recipe(written) == load_recipe(DIGITS)
    done = CliRunner().invoke(main, ["advise", str(learnt)])
    assert done.exit_code == 0, done.output


def test_two_pieces_of_advice_on_one_key_are_not_both_followed(facts):
    high = from_history("lr-too-high", digits("optim.lr=0.5"))
    assert topics(high) == ["learning rate too high", "dead ReLUs"]
    recipe, left_out = follow(digits("optim.lr=0.5"), high)
    assert recipe.optim.lr == 0.1
    assert left_out == ("optim.lr=0.1",)
    assert isinstance(facts, DataFacts)
    assert advise_recipe(digits()) == ()
