"""Shifted images raise the drift of a model, those like validation do not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from service.bundle.manifest import Reference
from service.classifier import Classifier, Options
from service.drift import Drift
from service.settings import Settings
from training.data import load_digits_images, split_stratified

ALERT = 0.25


def measure(drift, answers):
    """Returns the last measurement over (index, score, embedding) of many answers."""
    found = [drift.add(index, score, embedding) for index, score, embedding in answers]
    return next(one for one in reversed(found) if one is not None)


def make_reference(classes=10, embedding=8):
    return Reference(
        predicted_classes=(500,) * classes,
        confidence_histogram=(*(10,) * 10, *(490,) * 10),
        embedding_mean=(0.0,) * embedding,
        embedding_variance=(1.0,) * embedding,
    )


def make_answers(rng, classes=10, favoured=None, low=0.5, moved=0.0):
    for _ in range(1000):
        index = favoured if favoured is not None and rng.random() < 0.3 else rng.integers(classes)
        embedding = rng.normal(moved, 1, (1, 8)).astype(np.float32)
        yield int(index), float(rng.uniform(low, 1)), embedding


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_answers_like_validation_are_near_zero_however_many_classes(classes, seed):
    rng = np.random.default_rng(seed)
    found = measure(Drift(make_reference(classes)), make_answers(rng, classes))
    assert found.predictions < 0.05
    assert found.confidence < 0.1
    assert found.embedding < 0.1


def test_each_kind_of_shift_raises_its_own_measure():
    rng = np.random.default_rng(0)
    favoured = measure(Drift(make_reference()), make_answers(rng, favoured=3))
    assert favoured.predictions > ALERT
    assert favoured.confidence < 0.1
    unsure = measure(Drift(make_reference()), make_answers(rng, low=0.0))
    assert unsure.confidence > ALERT
    assert unsure.predictions < 0.05
    moved = measure(Drift(make_reference()), make_answers(rng, moved=0.5))
    assert moved.embedding == pytest.approx(0.5, abs=0.1)


def test_only_the_latest_thousand_answers_count():
    rng = np.random.default_rng(0)
    drift = Drift(make_reference())
    assert measure(drift, make_answers(rng, favoured=3, low=0.0, moved=1.0)).predictions > ALERT
    found = measure(drift, make_answers(rng))
    assert found.predictions < 0.05
    assert found.confidence < 0.1
    assert found.embedding < 0.1


def test_a_bin_that_validation_never_saw_is_not_infinitely_far():
    reference = Reference(predicted_classes=(500, 0), confidence_histogram=(0,) * 19 + (500,))
    found = measure(Drift(reference), [(1, 0.0, None)] * 50)
    assert np.isfinite([found.predictions, found.confidence]).all()
    assert found.embedding is None


def encode(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def digits():
    """The validation images of the tiny bundle."""
    validation = split_stratified(load_digits_images(), 0.3, seed=0).validation
    return [Image.open(io.BytesIO(validation.image_bytes(one))) for one in range(len(validation))]


SHIFTS = {
    "none": lambda picture: picture,
    "inverted": lambda picture: Image.eval(picture, lambda value: 255 - value),
    "blurred": lambda picture: picture.filter(ImageFilter.GaussianBlur(5)),
    "dark": lambda picture: Image.eval(picture, lambda value: value // 3),
}


@pytest.mark.parametrize("shift", SHIFTS)
async def test_shifted_images_raise_the_metrics_and_others_do_not(
    tiny_bundle_repository, metrics, digits, shift
):
    classifier = Classifier.build(Settings(model_repository=tiny_bundle_repository), metrics)
    try:
        for picture in digits:
            await classifier.classify(encode(SHIFTS[shift](picture.convert("L"))), Options())
    finally:
        await classifier.close()
    shown = {
        line.split("{")[0].removeprefix("fivecrop_drift_")
        + line.partition('of="')[2].partition('"')[0]: float(line.rsplit(" ", 1)[1])
        for line in metrics.render()[0].decode().splitlines()
        if line.startswith("fivecrop_drift_")
    }
    indices = shown["stability_indexpredictions"], shown["stability_indexconfidence"]
    if shift == "none":
        assert max(indices) < 0.1
        assert shown["embedding_distance"] < 0.2
    else:
        assert max(indices) > ALERT
        assert shown["embedding_distance"] > 0.3


async def test_a_model_without_a_reference_is_not_watched(make_tiny_model, make_settings, make_png):
    tiny = make_tiny_model(make_settings())
    (model,) = tiny.classifier._models
    assert model.drift is None
    assert model.watched_outputs() == ()
    answer = await tiny.classifier.classify(make_png((8, 8), (255, 0, 0)), Options())
    assert answer.predictions[0].label == "red"


async def test_an_embedding_that_was_only_watched_is_not_given(
    tiny_bundle_repository, metrics, digits
):
    classifier = Classifier.build(Settings(model_repository=tiny_bundle_repository), metrics)
    try:
        answers = [await classifier.classify(encode(one), Options()) for one in digits[:8]]
        assert [answer.embedding for answer in answers] == [None] * 8
    finally:
        await classifier.close()


async def test_what_images_look_like_is_recorded_for_one_in_eight(
    tiny_bundle_repository, metrics, digits
):
    classifier = Classifier.build(Settings(model_repository=tiny_bundle_repository), metrics)
    try:
        for picture in digits[:17]:
            await classifier.classify(encode(picture), Options())
    finally:
        await classifier.close()
    text = metrics.render()[0].decode()
    assert 'fivecrop_image_pixels_count{format="png",model="digits-linear"} 2.0' in text
    assert 'fivecrop_image_brightness_count{model="digits-linear"} 2.0' in text
