"""A new version on a part of the traffic: real bundles, real engines, one event loop."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter

import pytest

from service.classifier import Classifier, Options
from service.errors import ErrorCode, RequestError
from service.orders import ORDERS_FILE
from service.settings import Settings
from service.traffic import STICKY_KEY
from service.traffic_orders import Shadow, Split
from service.trial_gate import Gate

NAME = "digits-linear"


@pytest.fixture
async def start(growing_repository, metrics):
    """Returns `start(**settings)`: a classifier over version 1, stable, and 2, the canary."""
    made = []

    async def start(**given):
        settings = Settings(model_repository=growing_repository.folder, **given)
        classifier = await asyncio.to_thread(Classifier.build, settings, metrics)
        made.append(classifier)
        if len(made) == 1:
            await classifier.rollout.label(NAME, "stable", 1)
            growing_repository.publish(2)
            await classifier.rollout.label(NAME, "canary", 2)
        return classifier

    yield start
    for classifier in made:
        await classifier.close()


async def ask_as(key, ask, *given):
    """`ask` with a sticky key, as the edges set it."""
    token = STICKY_KEY.set(key)
    try:
        return await ask(*given)
    finally:
        STICKY_KEY.reset(token)


def break_version(classifier, version):
    """Lets a version fail on every image from now on."""

    def fail(_views):
        raise RuntimeError("broken")

    model = classifier._models.find(f"{NAME}@{version}")
    model.lane.run = fail


async def until(condition, limit_s=20.0):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


async def test_a_split_is_of_the_requests_that_name_the_model_alone(start, ask):
    classifier = await start()
    await classifier.trials.split(NAME, Split(shares={"canary": 0.5}))
    for reference in (None, NAME):
        seen = Counter([await ask(classifier, reference) for _ in range(100)])
        assert min(seen[1], seen[2]) > 15
    for reference, version in ((f"{NAME}@stable", 1), (f"{NAME}@1", 1), (f"{NAME}@canary", 2)):
        assert {await ask(classifier, reference) for _ in range(20)} == {version}
    await classifier.trials.split(NAME, None)
    assert {await ask(classifier) for _ in range(40)} == {1}


async def test_a_key_gets_one_version_and_so_do_the_images_of_one_request(
    start, ask, growing_repository
):
    classifier = await start()
    await classifier.trials.split(NAME, Split(shares={"canary": 0.5}))
    for user in range(10):
        key = b"%d" % user
        assert len({await ask_as(key, ask, classifier) for _ in range(10)}) == 1
    of_requests = Counter()
    for _ in range(30):
        images = [growing_repository.image] * 4
        many = asyncio.create_task(classifier.classify_many(images, Options()))
        versions = {answer.version for answer in await many}
        assert len(versions) == 1
        of_requests.update(versions)
    assert set(of_requests) == {1, 2}


async def test_a_split_outlives_the_server_and_a_missing_target_leaves_its_share(start, ask):
    classifier = await start()
    await classifier.trials.split(NAME, Split(shares={"canary": 1.0}))
    again = await start()
    assert {await ask(again) for _ in range(10)} == {2}
    await again.rollout.label(NAME, "canary", None)
    assert {await ask(again) for _ in range(10)} == {1}
    await classifier.rollout.follow()
    assert {await ask(classifier) for _ in range(10)} == {1}


async def test_a_version_with_a_share_stays_in_service(start, ask):
    classifier = await start()
    await classifier.rollout.label(NAME, "canary", None)
    await classifier.rollout.load(NAME, 2)
    await classifier.trials.split(NAME, Split(shares={"2": 1.0}))
    await classifier.rollout.reload(NAME)
    assert await ask(classifier) == 2


@pytest.mark.parametrize(
    ("name", "target", "code"),
    [
        (NAME, "nobody", ErrorCode.MODEL_NOT_FOUND),
        (NAME, "9", ErrorCode.MODEL_NOT_FOUND),
        ("absent", "canary", ErrorCode.MODEL_NOT_FOUND),
        (NAME, "stable", ErrorCode.INVALID_ARGUMENT),
    ],
)
async def test_a_share_for_nobody_is_refused_and_nothing_changes(start, name, target, code):
    classifier = await start()
    with pytest.raises(RequestError) as refused:
        await classifier.trials.split(name, Split(shares={target: 0.5}))
    assert refused.value.code is code
    assert classifier.describe_trials() == []


async def test_a_version_that_fails_is_rolled_back_and_everybody_can_see_it(
    start, ask, metrics, growing_repository, caplog
):
    classifier = await start()
    await classifier.trials.split(NAME, Split(shares={"canary": 0.5}))
    break_version(classifier, 2)
    failed = 0
    while classifier.describe_trials()[0].rolled_back is None:
        try:
            await ask(classifier)
        except RequestError:
            failed += 1
    # Not one more while the orders are written.
    assert failed == 10
    # The label goes back, so who asks for it is answered too.
    for reference in (None, f"{NAME}@canary"):
        assert {await ask(classifier, reference) for _ in range(20)} == {1}
    (shown,) = classifier.describe_trials()
    event = shown.rolled_back
    assert (shown.split, event.target, event.version, event.to_version) == (None, "canary", 2, 1)
    assert "requests failed" in event.reason
    await until(lambda: "is rolled back" in caplog.text)
    text = metrics.render()[0].decode()
    assert f'fivecrop_rollbacks_total{{model="{NAME}",version="2"}} 1.0' in text
    orders = json.loads((growing_repository.folder / ORDERS_FILE).read_text())["models"][NAME]
    assert orders["labels"] == {"stable": 1, "canary": 1}


async def test_a_version_that_may_fail_is_not_rolled_back(start, ask):
    classifier = await start()
    await classifier.trials.split(NAME, Split(shares={"canary": 0.5}, max_error_excess=None))
    break_version(classifier, 2)
    failed = 0
    for _ in range(60):
        try:
            await ask(classifier)
        except RequestError:
            failed += 1
    assert failed > 15
    assert classifier.describe_trials()[0].rolled_back is None


async def test_bad_images_of_clients_roll_nothing_back(start):
    classifier = await start()
    await classifier.trials.split(NAME, Split(shares={"canary": 0.5}))
    for _ in range(60):
        with pytest.raises(RequestError):
            await classifier.classify(b"no image", Options())
    assert classifier.describe_trials()[0].rolled_back is None


async def test_a_roll_back_that_comes_late_changes_nothing(start, ask):
    first, second = await start(), None
    await first.trials.split(NAME, Split(shares={"canary": 0.5}))
    second = await start()
    # The first worker moves on while the second still has its old models.
    await first.rollout.label(NAME, "canary", 1)
    second.trials._blame(NAME, "canary", "it failed")
    await until(lambda: not second.trials._rolling_back)
    assert first.trials._orders[NAME].rolled_back is None
    assert second.describe_trials()[0].rolled_back is None


def slow_down(classifier, version, seconds):
    """Lets a version take so long for each batch from now on."""
    lane = classifier._models.find(f"{NAME}@{version}").lane
    run = lane.run

    def sleep_and_run(views):
        time.sleep(seconds)
        return run(views)

    lane.run = sleep_and_run


async def compared(classifier, images):
    """The comparison of version 2 with 1, once so many images were compared or skipped."""
    while True:
        report = await classifier.trials.report(NAME)
        seen = report.tally.compare(1, 2)
        if seen.images + seen.skipped >= images:
            return seen
        await asyncio.sleep(0.01)


async def longest_answer_s(ask, classifier, requests=20):
    longest = 0.0
    for _ in range(requests):
        start = time.monotonic()
        assert await ask(classifier) == 1
        longest = max(longest, time.monotonic() - start)
    return longest


@pytest.mark.parametrize(("answers_as", "agreement"), [(1, 1.0), (2, 0.0)])
async def test_a_shadow_is_compared_and_answers_nobody(
    start, ask, growing_repository, answers_as, agreement
):
    classifier = await start()
    growing_repository.publish(3, answers_as=answers_as)
    await classifier.rollout.label(NAME, "canary", 3)
    await classifier.trials.shadow(NAME, Shadow(target="canary"))
    for _ in range(12):
        assert await ask(classifier) == 1
        await asyncio.sleep(0.01)  # a moment to spare
    seen = (await classifier.trials.report(NAME)).tally.compare(1, 3)
    while seen.images + seen.skipped < 12:
        await asyncio.sleep(0.01)
        seen = (await classifier.trials.report(NAME)).tally.compare(1, 3)
    assert (seen.images, seen.agreement, seen.failed) == (12, agreement, 0)
    assert (seen.score_difference < 0.01) == (agreement == 1.0)
    assert seen.serving_s > 0
    assert seen.shadow_s > 0


async def test_only_a_share_is_asked(start, ask):
    classifier = await start()
    await classifier.trials.shadow(NAME, Shadow(target="canary", share=0.3))
    for _ in range(200):
        await ask(classifier)
    seen = await compared(classifier, 1)
    assert 25 < seen.images + seen.skipped + len(classifier.trials._spare_time._waiting) < 100


async def test_a_very_slow_shadow_delays_no_answer_and_a_share_of_the_batcher_would(start, ask):
    classifier = await start(compute_threads=1)
    slow_down(classifier, 2, 1.0)
    await classifier.trials.shadow(NAME, Shadow(target="canary"))
    assert await longest_answer_s(ask, classifier) < 0.5
    assert (await classifier.trials.report(NAME)).tally.compare(1, 2).skipped > 0
    # The naive control: the same image for the same version, at the lowest priority of the queue.
    await classifier.trials.shadow(NAME, None)
    copy = asyncio.create_task(ask(classifier, f"{NAME}@canary"))
    await asyncio.sleep(0.1)
    assert await longest_answer_s(ask, classifier, requests=1) > 0.5
    await copy


async def test_a_shadow_that_fails_fails_alone_and_is_counted(start, ask):
    classifier = await start()
    break_version(classifier, 2)
    await classifier.trials.shadow(NAME, Shadow(target="canary"))
    assert {await ask(classifier) for _ in range(5)} == {1}
    seen = await compared(classifier, 5)
    assert (seen.failed, seen.agreement) == (5, 0.0)


async def test_a_busy_server_has_no_time_for_a_shadow(start, ask, metrics):
    classifier = await start(compute_threads=1)
    await classifier.trials.shadow(NAME, Shadow(target="canary"))
    spare_time = classifier.trials._spare_time
    spare_time._is_idle = lambda: False
    for _ in range(40):
        await ask(classifier)
    seen = await compared(classifier, 24)
    assert (seen.images, seen.skipped) == (0, 24)
    spare_time._is_idle = lambda: True
    await ask(classifier)
    assert (await compared(classifier, 40)).images > 0


async def test_promotion_wants_numbers_and_then_ends_the_trial(start, ask, growing_repository):
    classifier = await start()
    growing_repository.publish(3, answers_as=1)
    await classifier.rollout.label(NAME, "good", 3)
    await classifier.trials.split(NAME, Split(shares={"good": 0.5}))

    async def refused(**asked):
        with pytest.raises(RequestError) as caught:
            await classifier.trials.promote(NAME, Gate(**asked))
        assert caught.value.code is ErrorCode.PROMOTION_REFUSED
        return caught.value.detail

    assert await refused(target="good") == "0 images were compared, 200 are needed"
    await classifier.trials.shadow(NAME, Shadow(target="canary"))
    for _ in range(8):
        await classifier.classify(growing_repository.image, Options())
    while True:
        seen = (await classifier.trials.report(NAME)).tally
        if sum(one.images for one in seen.comparisons.values()) >= 8:
            break
        await asyncio.sleep(0.01)
    count = seen.compare(1, 2).images
    assert await refused(min_samples=1) == (
        f"versions 1 and 2 agree on 0.00% of {count} images, 90.00% are needed"
    )
    await classifier.trials.promote(NAME, Gate(min_samples=1, min_agreement=0))
    assert classifier.describe_trials() == []
    labels = {one.version: one.version_labels for one in classifier.describe_models()}
    assert labels[2] == ("stable",)
    assert {await ask(classifier) for _ in range(10)} == {2}
