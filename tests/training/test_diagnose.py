from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from service.cli import main
from training.curves import read_curves
from training.diagnose import diagnose
from training.probe import ReluWatch

FOLDER = Path(__file__).parent / "histories"
# All that is to be found in each recorded run, and nothing else.
EXPECTED = {
    "healthy": [],
    "overfitting": ["overfitting"],
    "underfitting": ["underfitting"],
    "needs-longer": ["needs longer"],
    "lr-too-high": ["learning rate too high", "dead ReLUs"],
    "lr-noisy": ["learning rate too high"],
    "lr-diverges": ["learning rate too high", "dead ReLUs"],
    "lr-too-low": ["learning rate too low"],
    "not-learning": ["not learning"],
    "wrong-sign": ["wrong sign"],
    # Unlearning one class for the next costs units their life.
    "unshuffled": ["unshuffled data", "dead ReLUs"],
    "unrepresentative": ["unrepresentative validation"],
    "easy-validation": ["needs longer", "unrepresentative validation"],
    "small-validation": ["validation too small"],
    "dead-relus": ["dead ReLUs", "not learning"],
}


def curves_of(case):
    return read_curves(FOLDER / f"{case}.jsonl", classes=10)


def names_of(curves):
    return [one.name for one in diagnose(curves)]


@pytest.mark.parametrize("case", EXPECTED)
def test_a_recorded_run_shows_what_was_wrong_with_it(case):
    assert names_of(curves_of(case)) == EXPECTED[case]


def test_every_case_is_recorded_and_expected():
    assert {path.stem for path in FOLDER.glob("*.jsonl")} == set(EXPECTED)


def test_every_finding_has_evidence_with_a_number_and_advice():
    found = [one for case in EXPECTED for one in diagnose(curves_of(case))]
    assert all(any(sign.isdigit() for sign in one.evidence) for one in found)
    assert all(len(one.advice) > 20 for one in found)


@pytest.fixture(scope="module")
def recorder():
    spec = importlib.util.spec_from_file_location("record", FOLDER / "record.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", ["wrong-sign", "not-learning", "unshuffled"])
def test_a_run_trained_just_now_shows_it_too(recorder, case, tmp_path):
    history, images = recorder.CASES[case]()
    path = tmp_path / "history.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in history))
    assert names_of(read_curves(path, classes=10, validation_images=images)) == EXPECTED[case]


def test_a_better_validation_is_no_wonder_where_training_is_augmented():
    curves = replace(curves_of("easy-validation"), is_training_plain=False)
    assert "unrepresentative validation" not in names_of(curves)


def test_a_loss_that_is_no_number_is_a_high_rate():
    curves = curves_of("healthy")
    loss = curves.train_loss.copy()
    loss[5:] = np.nan
    assert names_of(replace(curves, train_loss=loss, loss_parts=None))[0] == (
        "learning rate too high"
    )


@pytest.mark.parametrize("epochs", [0, 1, 2, 3])
@pytest.mark.parametrize("case", EXPECTED)
def test_a_short_history_is_no_failure(case, epochs):
    curves = curves_of(case)
    short = {
        key: getattr(curves, key)[:epochs]
        for key in ("train_loss", "train_top1", "validation_loss", "validation_top1", "loss_parts")
    }
    found = diagnose(replace(curves, **short, dead_relus=None))
    assert epochs > 1 or found == ()


def run(*arguments):
    return CliRunner().invoke(main, ["diagnose", *map(str, arguments)])


def test_the_command_tells_what_is_seen_and_what_to_try():
    done = run(FOLDER / "overfitting.jsonl", "--classes", "10")
    assert done.exit_code == 0
    assert done.stdout.startswith("overfitting\n  seen: validation loss is least in epoch 13")
    assert "  try:  more images or augmentation" in done.stdout
    (found,) = json.loads(run(FOLDER / "overfitting.jsonl", "--classes", 10, "--json").stdout)
    assert found["name"] == "overfitting"
    assert (
        "nothing wrong is seen in 25 epochs"
        in run(FOLDER / "healthy.jsonl", "--classes", 10).stdout
    )


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ('{"epoch": 1}\n', ("--classes", 10), "not every line has a number train_loss"),
        ("", ("--classes", 10), "no epoch is recorded there"),
        ("{\n", ("--classes", 10), "history.jsonl"),
        ("[1]\n", ("--classes", 10), "not every line has a number"),
        (
            '{"train_loss": 1, "train_top1": 0, "validation_loss": 1, "validation_top1": 0}\n',
            (),
            "say how many --classes there are",
        ),
    ],
)
def test_what_is_no_history_is_refused_in_one_line(tmp_path, text, options, message):
    path = tmp_path / "history.jsonl"
    path.write_text(text)
    done = run(path, *options)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_dead_units_are_counted_however_the_relu_is_called():
    with torch.no_grad():
        x = torch.tensor([[1.0, -1.0, 0.5, 0.0], [2.0, -3.0, -1.0, -1.0]])
        for call in (nn.ReLU(), nn.ReLU(inplace=True), torch.relu, nn.functional.relu):
            with ReluWatch() as watch:
                call(x.clone())
            assert watch.dead_share == 0.5
        with ReluWatch() as watch:
            # A channel fires when any place of any image does.
            nn.functional.relu(torch.tensor([[[[-1.0, 1.0]], [[-1.0, -1.0]]]]))
            nn.functional.relu(x)
        assert watch.dead_share == pytest.approx(3 / 6)
        with ReluWatch() as watch:
            nn.functional.gelu(x)
        assert watch.dead_share is None
