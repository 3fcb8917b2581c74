"""The classifier over the real tiny bundle: answers, options, deadlines, cancellation, draining."""

from __future__ import annotations

import asyncio
import io
import math

import numpy as np
import pytest
from PIL import Image

from service.bundle.decode import Limits
from service.bundle.preprocess import TTA_POLICIES, prepare
from service.classifier import Classifier, Options
from service.errors import ErrorCode, RequestError
from service.settings import Settings


@pytest.fixture
async def make_classifier(tiny_bundle_repository, metrics):
    made = []

    def make(**given):
        settings = Settings(model_repository=tiny_bundle_repository, **given)
        made.append(Classifier.build(settings, metrics))
        return made[-1]

    yield make
    for classifier in made:
        await classifier.close()


@pytest.fixture
def picture():
    pixels = np.random.default_rng(3).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


async def refusal(classifier, image, **options):
    with pytest.raises(RequestError) as refused:
        await classifier.classify(image, Options(**options))
    return refused.value


@pytest.mark.parametrize("tta", TTA_POLICIES)
async def test_an_answer_is_the_mean_over_the_views_of_the_policy(make_classifier, picture, tta):
    classifier = make_classifier()
    model = classifier._models.find(None)
    views = prepare(picture, model.bundle.manifest.preprocess, tta=tta, limits=Limits()).views
    expected = model.engine.run(views).mean(axis=0)
    answer = await classifier.classify(picture, Options(tta=tta, top_k=10))
    assert answer.views == len(views)
    for prediction in answer.predictions:
        assert prediction.score == pytest.approx(expected[prediction.index], abs=1e-6)
        assert prediction.label == str(prediction.index)
    scores = [prediction.score for prediction in answer.predictions]
    assert scores == sorted(scores, reverse=True)
    assert (answer.width, answer.height, answer.format) == (50, 40, "png")


async def test_top_k_is_clipped_to_the_classes(make_classifier, picture):
    classifier = make_classifier()
    assert len((await classifier.classify(picture, Options())).predictions) == 5
    assert len((await classifier.classify(picture, Options(top_k=10**9))).predictions) == 10
    assert len((await classifier.classify(picture, Options(top_k=1))).predictions) == 1


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"top_k": 0}, ErrorCode.INVALID_ARGUMENT),
        ({"top_k": -1}, ErrorCode.INVALID_ARGUMENT),
        ({"tta": "ninecrop"}, ErrorCode.INVALID_ARGUMENT),
        ({"timeout_ms": math.nan}, ErrorCode.INVALID_ARGUMENT),
        ({"timeout_ms": 0}, ErrorCode.DEADLINE_EXCEEDED),
        ({"timeout_ms": -5}, ErrorCode.DEADLINE_EXCEEDED),
        ({"model": "absent"}, ErrorCode.MODEL_NOT_FOUND),
    ],
)
async def test_an_option_without_meaning_is_refused_before_any_work(make_classifier, options, code):
    assert (await refusal(make_classifier(), b"not even an image", **options)).code is code


async def test_an_endless_timeout_is_bounded(make_classifier, picture):
    answer = await make_classifier().classify(picture, Options(timeout_ms=math.inf))
    assert answer.predictions


async def test_one_bad_image_never_fails_its_neighbours(make_classifier, picture):
    results = await make_classifier().classify_many([picture, b"", picture[:60]], Options())
    assert results[0].predictions
    assert [result.code for result in results[1:]] == [
        ErrorCode.EMPTY_BODY,
        ErrorCode.IMAGE_CORRUPT,
    ]


async def test_wrong_options_of_many_images_are_one_error(make_classifier, picture):
    with pytest.raises(RequestError):
        await make_classifier().classify_many([picture, picture], Options(top_k=0))


class Held:
    """Holds the model of a classifier back until `open` is set."""

    def __init__(self, classifier):
        import threading

        self.open, self.entered, self.batches = threading.Event(), threading.Event(), []
        lane = classifier._models.find(None).lane
        run = lane.run

        def held(views):
            self.entered.set()
            self.batches.append(len(views))
            assert self.open.wait(20)
            return run(views)

        lane.run = held

    async def until_busy(self):
        assert await asyncio.to_thread(self.entered.wait, 20)


async def test_a_deadline_answers_its_caller_even_while_the_engine_hangs(make_classifier, picture):
    classifier = make_classifier(compute_threads=1)
    held = Held(classifier)
    try:
        error = await refusal(classifier, picture, timeout_ms=30)
        assert error.code is ErrorCode.DEADLINE_EXCEEDED
    finally:
        held.open.set()


async def test_an_expired_request_is_never_executed(make_classifier, picture, metrics):
    classifier = make_classifier(compute_threads=1)
    held = Held(classifier)
    first = asyncio.create_task(classifier.classify(picture, Options()))
    await held.until_busy()
    error = await refusal(classifier, picture, timeout_ms=20)
    assert error.code is ErrorCode.DEADLINE_EXCEEDED
    held.open.set()
    await first
    await classifier.close()
    assert held.batches == [1]
    assert 'rejected_total{reason="expired"} 1.0' in metrics.render()[0].decode()


async def test_a_cancelled_request_does_not_disturb_its_batch(make_classifier, picture, metrics):
    classifier = make_classifier(compute_threads=1)
    held = Held(classifier)
    first = asyncio.create_task(classifier.classify(picture, Options()))
    await held.until_busy()
    others = [asyncio.create_task(classifier.classify(picture, Options())) for _ in range(3)]
    await asyncio.sleep(0)
    others[1].cancel()
    await asyncio.sleep(0)  # the cancellation arrives before the batch can be formed
    held.open.set()
    answers = await asyncio.gather(first, *others, return_exceptions=True)
    assert isinstance(answers[2], asyncio.CancelledError)
    kept = [answers[index].predictions for index in (0, 1, 3)]
    assert kept[0] == kept[1] == kept[2]
    await classifier.close()
    assert sum(held.batches) == 3
    assert 'rejected_total{reason="cancelled"} 1.0' in metrics.render()[0].decode()


async def test_a_full_queue_refuses_at_once_and_recovers(make_classifier, picture):
    classifier = make_classifier(compute_threads=1, max_queue_views=2)
    held = Held(classifier)
    waiting = [asyncio.create_task(classifier.classify(picture, Options())) for _ in range(2)]
    await held.until_busy()
    error = await refusal(classifier, picture)
    assert error.code is ErrorCode.OVERLOADED
    assert error.retry_after_s is not None
    held.open.set()
    await asyncio.gather(*waiting)
    assert (await classifier.classify(picture, Options())).predictions


async def test_images_that_cost_much_to_decode_fill_the_queue_sooner(make_classifier):
    def png(side):
        file = io.BytesIO()
        Image.new("RGB", (side, side)).save(file, "PNG")
        return file.getvalue()

    # The naive control, a queue bounded in views alone, has room for 512 of either.
    classifier = make_classifier(compute_threads=1, max_queue_decode_s=0.04)
    held = Held(classifier)
    first = asyncio.create_task(classifier.classify(png(8), Options()))
    await held.until_busy()
    large = [asyncio.create_task(classifier.classify(png(1500), Options())) for _ in range(3)]
    small = [asyncio.create_task(classifier.classify(png(8), Options())) for _ in range(3)]
    await asyncio.sleep(0)
    held.open.set()
    answers = await asyncio.gather(first, *large, *small, return_exceptions=True)
    codes = [getattr(answer, "code", "ok") for answer in answers]
    assert codes == ["ok", "ok", "overloaded", "overloaded", "ok", "ok", "ok"]


async def test_a_cancelled_request_gives_its_room_back_while_the_engine_is_busy(
    make_classifier, picture
):
    classifier = make_classifier(compute_threads=1, max_queue_views=2)
    held = Held(classifier)
    first = asyncio.create_task(classifier.classify(picture, Options()))
    await held.until_busy()
    left = asyncio.create_task(classifier.classify(picture, Options()))
    await asyncio.sleep(0)
    assert (await refusal(classifier, picture)).code is ErrorCode.OVERLOADED
    left.cancel()
    await asyncio.sleep(0)
    stays = asyncio.create_task(classifier.classify(picture, Options()))
    await asyncio.sleep(0)
    held.open.set()
    assert (await first).predictions == (await stays).predictions


async def test_an_expired_request_gives_its_room_back_while_the_engine_is_busy(
    make_classifier, picture
):
    classifier = make_classifier(compute_threads=1, max_queue_views=2)
    held = Held(classifier)
    first = asyncio.create_task(classifier.classify(picture, Options()))
    await held.until_busy()
    late = await refusal(classifier, picture, timeout_ms=20)
    assert late.code is ErrorCode.DEADLINE_EXCEEDED
    stays = asyncio.create_task(classifier.classify(picture, Options()))
    await asyncio.sleep(0)
    held.open.set()
    assert (await first).predictions == (await stays).predictions


async def test_draining_looks_not_ready_and_still_answers(make_classifier, picture):
    classifier = make_classifier()
    assert classifier.is_ready
    classifier.start_drain()
    assert not classifier.is_ready
    assert classifier.is_draining
    assert (await classifier.classify(picture, Options())).predictions
    await classifier.close()
    assert (await refusal(classifier, picture)).code is ErrorCode.DRAINING


async def test_output_that_is_not_a_number_is_an_error_of_that_image_alone(
    make_classifier, picture
):
    classifier = make_classifier()
    lane = classifier._models.find(None).lane
    run = lane.run
    lane.run = lambda views: run(views) * np.float32(np.nan)
    assert (await refusal(classifier, picture)).code is ErrorCode.NONFINITE_OUTPUT
    lane.run = run
    assert (await classifier.classify(picture, Options())).predictions


async def test_models_are_described_without_opening_files(make_classifier):
    classifier = make_classifier()
    (description,) = classifier.describe_models()
    assert description.provider == "cpu"
    assert description.variant == "fp32"
    assert description.is_default
    assert description == classifier.describe_model("digits-linear")
    assert description.labels == tuple("0123456789")


async def test_a_coverage_adds_the_labels_that_reach_the_calibrated_score(make_classifier, picture):
    classifier = make_classifier()
    decision = classifier.describe_model("digits-linear").decision
    (calibrated,) = decision.conformal
    answer = await classifier.classify(picture, Options(top_k=10, coverage=0.9))
    level = next(one for one in calibrated.levels if one.coverage == 0.9)
    reaching = [one for one in answer.predictions if one.score >= level.min_score]
    assert answer.label_set.predictions == tuple(reaching or answer.predictions[:1])
    assert answer.label_set.coverage == 0.9
    assert (await classifier.classify(picture, Options())).label_set is None


@pytest.mark.parametrize(
    "options", [{"coverage": 0.9, "tta": "hflip"}, {"coverage": 0.9999}, {"coverage": 1.5}]
)
async def test_a_coverage_that_was_not_calibrated_is_refused_before_any_work(
    make_classifier, options
):
    classifier = make_classifier()
    refused = await refusal(classifier, b"not even looked at", **options)
    assert refused.code is ErrorCode.INVALID_ARGUMENT


async def test_an_answer_carries_the_threshold_and_what_it_gave(make_classifier, picture, metrics):
    classifier = make_classifier()
    decision = classifier.describe_model("digits-linear").decision
    answer = await classifier.classify(picture, Options())
    assert answer.verdict.threshold == decision.abstain_below
    assert answer.reference == decision.reference
    assert answer.verdict.abstained == (answer.predictions[0].score < decision.abstain_below)
    counted = b'fivecrop_abstained_total{model="digits-linear",version="1"}' in metrics.render()[0]
    assert counted == answer.verdict.abstained


async def test_an_embedding_is_the_mean_over_the_views_and_given_only_when_asked(
    make_classifier, picture
):
    classifier = make_classifier()
    model = classifier._models.find(None)
    views = prepare(picture, model.bundle.manifest.preprocess, tta="hflip", limits=Limits()).views
    (expected,) = model.engine.run_outputs(views, ["embedding"])
    answers = await asyncio.gather(
        classifier.classify(picture, Options(tta="hflip", embedding=True)),
        classifier.classify(picture, Options(tta="hflip")),
    )
    np.testing.assert_allclose(answers[0].embedding, expected.mean(axis=0), atol=1e-6)
    assert answers[1].embedding is None
    assert answers[0].predictions == answers[1].predictions


async def test_a_model_without_an_embedding_says_so(make_tiny_model, make_settings, picture):
    classifier = make_tiny_model(make_settings()).classifier
    refused = await refusal(classifier, picture, embedding=True)
    assert refused.code is ErrorCode.INVALID_ARGUMENT
    assert "has no embedding" in refused.detail
