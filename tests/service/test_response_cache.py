"""The response cache: what comes again is not computed again, and nothing stale is answered."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from service.classifier import Options
from service.errors import ErrorCode, RequestError
from service.models import Models

_SERIES = 'fivecrop_cache_requests_total{{model="tiny",result="{}",version="1"}}'
RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def make_cached(make_tiny_model, make_settings):
    """Returns a function from settings to a `TinyModel` whose classifier remembers."""

    def make(**given):
        settings = make_settings(response_cache_bytes=given.pop("size", 1_000_000), **given)
        return make_tiny_model(settings)

    return make


@pytest.fixture
def read_metrics(metrics):
    """Returns a function that reads how often the cache hit, missed and shared, and its size."""

    def read():
        lines = dict(
            line.rsplit(" ", 1)
            for line in metrics.render()[0].decode().splitlines()
            if line.startswith("fivecrop_cache")
        )
        counts = {
            result: float(lines.get(_SERIES.format(result), 0))
            for result in ("hit", "miss", "shared")
        }
        return counts, float(lines["fivecrop_cache_bytes"])

    return read


async def test_an_image_that_comes_again_is_not_computed_again(make_cached, make_png, read_metrics):
    tiny = make_cached()
    image = make_png((8, 8), RED)
    first = await tiny.classifier.classify(image, Options())
    second = await tiny.classifier.classify(image, Options(timeout_ms=5000))
    assert tiny.batches == [1]
    assert dataclasses.replace(second, timings=first.timings) == first
    assert second.timings.infer_s == 0
    assert read_metrics()[0] == {"hit": 1, "miss": 1, "shared": 0}


@pytest.mark.parametrize("change", [{"top_k": 1}, {"tta": "hflip"}])
async def test_other_options_are_another_question(make_cached, make_png, change):
    tiny = make_cached()
    image = make_png((8, 8), RED)
    await tiny.classifier.classify(image, Options())
    await tiny.classifier.classify(image, Options(**change))
    assert len(tiny.batches) == 2


async def test_another_image_is_another_question(make_cached, make_png):
    tiny = make_cached()
    red = await tiny.classifier.classify(make_png((8, 8), RED), Options())
    blue = await tiny.classifier.classify(make_png((8, 8), BLUE), Options())
    assert [one.predictions[0].label for one in (red, blue)] == ["red", "blue"]


async def test_equal_questions_at_once_are_asked_once(make_cached, make_png, read_metrics):
    tiny = make_cached()
    tiny.gate.clear()
    asked = [
        asyncio.create_task(tiny.classifier.classify(make_png((8, 8), RED), Options()))
        for _ in range(20)
    ]
    while not tiny.waiting:
        await asyncio.sleep(0)
    tiny.gate.set()
    answers = await asyncio.gather(*asked)
    assert tiny.batches == [1]
    assert {answer.predictions for answer in answers} == {answers[0].predictions}
    assert read_metrics()[0] == {"hit": 0, "miss": 1, "shared": 19}


async def test_who_leaves_does_not_take_the_answer_of_the_others(make_cached, make_png):
    tiny = make_cached()
    tiny.gate.clear()
    image = make_png((8, 8), RED)
    first, second = (
        asyncio.create_task(tiny.classifier.classify(image, Options())) for _ in range(2)
    )
    while not tiny.waiting:
        await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    tiny.gate.set()
    assert (await second).predictions[0].label == "red"


async def test_when_all_leave_the_work_is_dropped(make_cached, make_png, metrics):
    tiny = make_cached()
    tiny.gate.clear()
    blocking = [
        asyncio.create_task(tiny.classifier.classify(make_png((8, 8), (0, 0, n)), Options()))
        for n in range(2)
    ]
    while tiny.waiting < 2:
        await asyncio.sleep(0)
    image = make_png((8, 8), RED)
    asked = [asyncio.create_task(tiny.classifier.classify(image, Options())) for _ in range(3)]
    await asyncio.sleep(0)
    for one in asked:
        one.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    await asyncio.sleep(0)
    tiny.gate.set()
    await asyncio.gather(*blocking)
    assert sum(tiny.batches) == 2
    assert (await tiny.classifier.classify(image, Options())).predictions[0].label == "red"


async def test_who_comes_while_all_others_leave_is_not_sent_away_with_them(make_cached, make_png):
    tiny = make_cached()
    tiny.gate.clear()
    image = make_png((8, 8), RED)
    leaving = asyncio.create_task(tiny.classifier.classify(image, Options()))
    while not tiny.waiting:
        await asyncio.sleep(0)
    leaving.cancel()
    coming = []
    for _ in range(8):  # one at each step of the leaving
        coming.append(asyncio.create_task(tiny.classifier.classify(image, Options())))
        await asyncio.sleep(0)
    assert leaving.cancelled()
    tiny.gate.set()
    for answer in await asyncio.gather(*coming):
        assert answer.predictions[0].label == "red"


async def test_errors_are_shared_but_not_remembered(make_cached, make_png, read_metrics):
    tiny = make_cached()
    for _ in range(2):
        with pytest.raises(RequestError) as refused:
            await tiny.classifier.classify(b"\xff\xd8\xff no image", Options())
        assert refused.value.code is ErrorCode.IMAGE_CORRUPT
    assert read_metrics() == ({"hit": 0, "miss": 2, "shared": 0}, 0)


async def test_each_keeps_its_own_deadline(make_cached, make_png):
    tiny = make_cached()
    tiny.gate.clear()
    image = make_png((8, 8), RED)
    hasty = asyncio.create_task(tiny.classifier.classify(image, Options(timeout_ms=150)))
    while not tiny.waiting:
        await asyncio.sleep(0)
    patient = asyncio.create_task(tiny.classifier.classify(image, Options(timeout_ms=30_000)))
    hastier = asyncio.create_task(tiny.classifier.classify(image, Options(timeout_ms=20)))
    for late in (hastier, hasty):
        with pytest.raises(RequestError) as refused:
            await late
        assert refused.value.code is ErrorCode.DEADLINE_EXCEEDED
    tiny.gate.set()
    # The one that it had joined was too late; it asked again.
    assert (await patient).predictions[0].label == "red"


async def test_the_least_recently_used_answers_make_room(make_cached, make_png, read_metrics):
    tiny = make_cached(size=10_000)
    images = [make_png((8, 8), (0, 0, n)) for n in range(6)]
    for image in (*images[:3], images[0], *images[3:5]):
        await tiny.classifier.classify(image, Options())
    computed = len(tiny.batches)
    assert computed == 5
    assert 0 < read_metrics()[1] <= 10_000
    await tiny.classifier.classify(images[0], Options())
    assert len(tiny.batches) == computed
    await tiny.classifier.classify(images[1], Options())
    assert len(tiny.batches) == computed + 1


async def test_an_answer_larger_than_the_cache_is_not_kept(make_cached, make_png, read_metrics):
    tiny = make_cached(size=100)
    for _ in range(2):
        await tiny.classifier.classify(make_png((8, 8), RED), Options())
    assert len(tiny.batches) == 2
    assert read_metrics()[1] == 0


async def test_a_model_that_was_loaded_again_is_asked_again(make_cached, make_png):
    tiny = make_cached()
    image = make_png((8, 8), RED)
    await tiny.classifier.classify(image, Options())
    (model,) = tiny.classifier._models
    again = dataclasses.replace(model)
    assert again.bundle.digest == model.bundle.digest
    tiny.classifier._models = Models([again], None)
    await tiny.classifier.classify(image, Options())
    assert len(tiny.batches) == 2
    tiny.classifier._models = Models([], None)
    with pytest.raises(RequestError):
        await tiny.classifier.classify(image, Options())


async def test_without_the_setting_nothing_is_remembered(make_tiny_model, make_settings, make_png):
    tiny = make_tiny_model(make_settings())
    assert tiny.classifier._cache is None
    for _ in range(2):
        await tiny.classifier.classify(make_png((8, 8), RED), Options())
    assert len(tiny.batches) == 2
