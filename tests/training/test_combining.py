"""Ensembles and cascades made of bundles: thresholds chosen right, and measured on other images."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.combination import COMBINATION_FILE, read_combination
from service.bundle.repository import list_versions
from training.combination_commands import make_ensemble, tune_cascade
from training.combining import Thresholds
from training.errors import TrainingError

BUNDLE = "digits-linear@1"


def accuracy_at(thresholds, threshold):
    """By the rule itself: under the threshold the last stage answers."""
    goes_on = thresholds.best < threshold
    return np.where(goes_on, thresholds.last_hits, thresholds.first_hits).mean(), goes_on.mean()


images = st.lists(
    st.tuples(st.sampled_from([0.0, 0.3, 0.30000001, 0.5, 0.9, 1.0]), st.booleans(), st.booleans()),
    min_size=1,
    max_size=30,
)


def make_thresholds(rows, first_cost=0.25):
    best, first, last = zip(*rows, strict=True)
    return Thresholds(
        best=np.array(best, np.float32),
        first_hits=np.array(first),
        last_hits=np.array(last),
        first_cost=first_cost,
    )


@given(rows=images)
def test_table_says_of_each_threshold_what_the_rule_gives(rows):
    thresholds = make_thresholds(rows)
    for threshold, accuracy, cost in zip(*thresholds.table(), strict=True):
        expected, share = accuracy_at(thresholds, threshold)
        assert accuracy == pytest.approx(expected)
        assert cost == pytest.approx(0.25 + share)
        assert 0 <= threshold <= 1


@given(rows=images, wanted=st.floats(0, 1))
def test_no_cheaper_threshold_reaches_the_accuracy(rows, wanted):
    thresholds = make_thresholds(rows)
    possible = sorted({0.0, 1.0, *map(float, thresholds.best)})
    shares = [accuracy_at(thresholds, one) for one in possible]
    reaching = [share for accuracy, share in shares if accuracy >= wanted]
    if not reaching:
        with pytest.raises(TrainingError, match="no threshold"):
            thresholds.cheapest(wanted)
        return
    accuracy, share = accuracy_at(thresholds, thresholds.cheapest(wanted))
    assert accuracy >= wanted
    assert share == min(reaching)


@given(rows=images, limit=st.floats(0.25, 1.5))
def test_no_affordable_threshold_is_more_accurate(rows, limit):
    thresholds = make_thresholds(rows)
    possible = sorted({0.0, 1.0, *map(float, thresholds.best)})
    affordable = [
        accuracy
        for accuracy, share in (accuracy_at(thresholds, one) for one in possible)
        if 0.25 + share <= limit
    ]
    accuracy, share = accuracy_at(thresholds, thresholds.most_accurate(limit))
    assert 0.25 + share <= limit + 1e-9
    assert accuracy == pytest.approx(max(affordable))


def test_cost_that_the_first_stage_alone_exceeds_is_refused():
    with pytest.raises(TrainingError, match=r"alone costs 0\.25"):
        make_thresholds([(0.5, True, True)]).most_accurate(0.2)


@pytest.fixture
def run(tiny_bundle_repository, tmp_path):
    """Runs a command over a copy of the tiny repository and 300 labelled digits."""
    import shutil

    repository = tmp_path / "repository"
    shutil.copytree(tiny_bundle_repository, repository)
    data = save_digits(tmp_path / "digits")

    def invoke(command, *arguments):
        shared = ["--repository", str(repository), "--data", str(data), "--json"]
        ended = CliRunner().invoke(command, [*arguments, *shared], catch_exceptions=True)
        if isinstance(ended.exception, TrainingError):
            raise ended.exception
        assert ended.exit_code == 0, ended.output
        return json.loads(ended.stdout)

    invoke.repository = repository
    return invoke


def save_digits(folder, count=300):
    from training.data import load_digits_images

    digits = load_digits_images()
    for index in range(count):
        name = digits.class_names[digits.labels[index]]
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{index}.png").write_bytes(digits.image_bytes(index))
    return folder


def test_cascade_is_published_with_what_it_gives_on_images_that_did_not_choose_it(run):
    made = run(tune_cascade, BUNDLE, f"{BUNDLE}:hflip", "--name", "fast", "--max-cost", "5")
    found = read_combination(run.repository / "fast" / "1")
    first, last = found.manifest.members
    assert (first.tta, last.tta) == ("none", "hflip")
    assert first.escalate_below is not None
    assert made["measured"]["images"] == 150
    # Mirrored digits are no digits, so asking for mirrored views can only harm: it is not done.
    assert made["measured"]["escalated"] < 0.1
    assert made["measured"]["top1"] > 0.85


def test_unreachable_accuracy_is_told_with_what_can_be_reached(run):
    arguments = (BUNDLE, f"{BUNDLE}:hflip", "--name", "fast", "--accuracy", "1.0")
    with pytest.raises(TrainingError, match=r"the best gives 0\.\d+"):
        run(tune_cascade, *arguments)
    assert list_versions(run.repository, COMBINATION_FILE) == {}


def test_ensemble_is_published_with_its_weights_and_accuracy(run):
    made = run(make_ensemble, BUNDLE, f"{BUNDLE}:five_crop", "--name", "both", "--weights", "3,1")
    assert [one["weight"] for one in made["members"]] == [3.0, 1.0]
    assert made["measured"]["images"] == 300
    assert made["measured"]["top1"] > 0.9


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (make_ensemble, (BUNDLE,), "at least two"),
        (make_ensemble, (BUNDLE, BUNDLE), "twice"),
        (make_ensemble, (BUNDLE, f"{BUNDLE}:mirror"), "views are one of"),
        (make_ensemble, (BUNDLE, f"{BUNDLE}:hflip", "--weights", "1"), "as many weights"),
        (make_ensemble, (BUNDLE, f"{BUNDLE}:hflip", "--weights", "1,x"), "not a list"),
        (make_ensemble, (BUNDLE, f"{BUNDLE}:hflip", "--weights", "1,0"), "above 0"),
        (tune_cascade, (BUNDLE, f"{BUNDLE}:hflip"), "either"),
        (tune_cascade, (BUNDLE, f"{BUNDLE}:hflip", "--accuracy", "1", "--max-cost", "1"), "either"),
    ],
)
def test_what_cannot_be_combined_is_refused(run, command, arguments, message):
    with pytest.raises(TrainingError, match=message):
        run(command, *arguments, "--name", "both")
