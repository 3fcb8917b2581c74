from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from service.bundle.repository import read_bundle, resolve
from service.cli import main
from training.data import load_digits_images, split_stratified
from training.evaluate import evaluate_bundle, open_bundle
from training.evaluation_commands import _STUDIES
from training.images import sample_places
from training.measurement import Request, count_images, measure
from training.studies import STUDIES, run_study
from training.worst_images import find_mistakes


@pytest.fixture(scope="module")
def bundle(tiny_bundle_repository):
    return read_bundle(resolve(tiny_bundle_repository, "digits-linear"))


@pytest.fixture(scope="module")
def validation():
    return split_stratified(load_digits_images(), 0.3, seed=0).validation


@pytest.fixture(scope="module")
def some(validation):
    return validation.subset(range(30))


def study_of(name, bundle, images):
    return run_study(name, open_bundle(bundle), images, bundle.manifest.preprocess)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_begins_with_what_evaluation_measures(name, bundle, some):
    study = study_of(name, bundle, some)
    plain = evaluate_bundle(bundle, some)
    for line in study.lines:
        first = line.points[0]
        assert first.same == 1
        if name in ("tta", "size", "corruption"):
            assert first.top1 == plain.top1
    assert all(0 <= point.top1_interval[0] <= point.top1 for point in study.lines[0].points)


def test_each_augmentation_has_the_accuracy_that_evaluation_gives(bundle, some):
    (line,) = study_of("tta", bundle, some).lines
    by_policy = {point.label.partition(",")[0]: point.top1 for point in line.points}
    assert by_policy["hflip"] == evaluate_bundle(bundle, some, tta="hflip").top1
    assert by_policy["ten_crop"] == evaluate_bundle(bundle, some, tta="ten_crop").top1


def test_a_linear_classifier_knows_digits_neither_turned_nor_tiny(bundle, some):
    (rotation,) = study_of("rotation", bundle, some).lines
    by_angle = {point.value: point.top1 for point in rotation.points}
    assert by_angle[0] > 0.8
    assert by_angle[90] < 0.5
    assert by_angle[345] > by_angle[270]
    assert len(by_angle) == 24
    (size,) = study_of("size", bundle, some).lines
    assert size.points[-1].value == 4
    assert size.points[-1].top1 < 0.8 < size.points[1].top1


def test_the_same_sample_is_taken_each_time(validation):
    places = sample_places(validation, 50)
    assert places == sample_places(validation, 50) == sorted(set(places))
    assert len(places) == 50
    assert sample_places(validation, 10**9) == list(range(len(validation)))


def test_progress_ends_where_it_was_said_to(bundle, validation):
    request = Request(images=40, studies=("corruption", "flip"), study_images=10)
    done = []
    measure(bundle, validation, request, done.append)
    assert sum(done) == count_images(bundle, validation, request) == 40 + 26 * 10 + 4 * 10


def test_mistakes_are_ordered_by_how_little_they_give_the_label():
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.99, 0.01], [0.3, 0.7]], np.float32)
    found = find_mistakes(probabilities, np.array([1, 0, 1, 1]), ("cat", "dog"), 5)
    assert [one.image for one in found] == [2, 0, 1]
    assert (found[0].label, found[0].predicted) == ("dog", "cat")
    assert found[0].predicted_score == pytest.approx(0.99)


def test_mistakes_are_named_by_their_place_in_all_of_the_data(bundle, validation):
    measured = measure(bundle, validation, Request(images=200))
    assert measured.mistakes
    everything = measure(bundle, validation, Request())
    known = {one.image: one for one in everything.mistakes}
    assert all(known.get(one.image, one).label == one.label for one in measured.mistakes)
    for one in measured.mistakes:
        assert validation.class_names[validation.labels[one.image]] == one.label


def test_the_command_knows_every_study():
    assert _STUDIES == STUDIES


def test_the_command_writes_numbers_and_pictures(tiny_bundle_repository, validation, tmp_path):
    data = tmp_path / "data"
    for index in range(300):
        folder = data / validation.class_names[validation.labels[index]]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(validation.image_bytes(index))
    out = tmp_path / "deep" / "out"
    command = ["evaluate", "digits-linear", "--repository", str(tiny_bundle_repository)]
    command += ["--data", str(data), "--study", "all", "--study-images", "12", "--out", str(out)]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert "Brier" in done.stdout
    assert "Common corruptions, 12 images" in done.stdout
    written = json.loads((out / "evaluation.json").read_text())
    assert written["images"] == 300
    assert [study["name"] for study in written["studies"]] == list(STUDIES)
    assert len(written["worst"]) == sum(
        row for index, rows in enumerate(written["matrix"]) for row in rows
    ) - sum(rows[index] for index, rows in enumerate(written["matrix"]))
    for name in ("reliability", "confusion", "worst", *STUDIES):
        with Image.open(out / f"{name}.png") as image:
            assert image.width > 300
            assert len(image.convert("RGB").getcolors(10**6)) > 10


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tiny_bundle_repository, tmp_path):
    digits = load_digits_images()
    data = tmp_path / "data"
    for index in range(20):
        folder = data / digits.class_names[digits.labels[index]]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(digits.image_bytes(index))
    (tmp_path / "file").write_text("")
    command = ["evaluate", "digits-linear", "--repository", str(tiny_bundle_repository)]
    command += ["--data", str(data), "--out", str(tmp_path / "file" / "out")]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2
    assert "cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1
