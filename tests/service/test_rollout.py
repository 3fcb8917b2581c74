"""Changing what serves while it serves: real bundles, real engines, no failed request."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import shutil
import threading
import weakref

import psutil
import pytest
from damaged_graphs import GRAPHS, NOT_TO_BE_RUN, more_memory_than_there_is, put_graph
from machine import WORDS

from service.classifier import Classifier, Options
from service.errors import BundleError, ErrorCode, RequestError
from service.orders import ORDERS_FILE
from service.settings import Settings

NAME = "digits-linear"


@pytest.fixture
async def start(growing_repository, metrics):
    """Returns `start(**settings)`: a classifier over the growing repository."""
    made = []

    async def start(**given):
        settings = Settings(model_repository=growing_repository.folder, **given)
        made.append(await asyncio.to_thread(Classifier.build, settings, metrics))
        return made[-1]

    yield start
    for classifier in made:
        await classifier.close()


async def refusal(awaitable):
    with pytest.raises(RequestError) as refused:
        await awaitable
    return refused.value


async def test_a_newer_version_takes_over_and_the_old_one_is_gone(start, ask, growing_repository):
    classifier = await start()
    assert await ask(classifier) == 1
    growing_repository.publish(2)
    assert await ask(classifier) == 1
    await classifier.rollout.reload(NAME)
    assert await ask(classifier) == 2
    error = await refusal(ask(classifier, f"{NAME}@1"))
    assert error.code is ErrorCode.MODEL_NOT_FOUND


async def test_versions_serve_side_by_side_by_number_and_label(start, ask, growing_repository):
    classifier = await start()
    await classifier.rollout.label(NAME, "stable", 1)
    growing_repository.publish(2)
    growing_repository.publish(3)
    await classifier.rollout.label(NAME, "canary", 2)
    await classifier.rollout.reload(NAME)
    for reference, version in [
        (None, 1),
        (NAME, 1),
        (f"{NAME}@stable", 1),
        (f"{NAME}@canary", 2),
        (f"{NAME}@3", 3),
    ]:
        assert await ask(classifier, reference) == version
    shown = {one.version: one.version_labels for one in classifier.describe_models()}
    assert shown == {1: ("stable",), 2: ("canary",), 3: ()}
    await classifier.rollout.label(NAME, "stable", 3)
    assert await ask(classifier) == 3
    # Nothing but its label kept version 1.
    assert (await refusal(ask(classifier, f"{NAME}@1"))).code is ErrorCode.MODEL_NOT_FOUND
    await classifier.rollout.label(NAME, "canary", None)
    assert (await refusal(ask(classifier, f"{NAME}@canary"))).code is ErrorCode.MODEL_NOT_FOUND


async def test_orders_outlive_the_server(start, ask, growing_repository):
    classifier = await start()
    growing_repository.publish(2)
    await classifier.rollout.label(NAME, "stable", 1)
    again = await start()
    assert await ask(again) == 1
    assert await ask(again, f"{NAME}@2") == 2


async def test_swaps_under_load_fail_no_request_and_mix_no_versions(
    start, ask, growing_repository, metrics
):
    classifier = await start()
    is_over, answered = False, {}

    async def client():
        while not is_over:
            version = await ask(classifier)
            answered[version] = answered.get(version, 0) + 1

    clients = [asyncio.create_task(client()) for _ in range(8)]
    for version in range(2, 8):
        growing_repository.publish(version)
        await classifier.rollout.reload(NAME)
        seen = answered.get(version, 0)
        while answered.get(version, 0) < seen + 20:
            await asyncio.sleep(0)
            assert not any(client.done() for client in clients)
    is_over = True
    await asyncio.gather(*clients)
    assert set(answered) == set(range(1, 8))
    text = metrics.render()[0].decode()
    served = [line for line in text.splitlines() if line.startswith("fivecrop_model_info{")]
    assert [line.endswith(" 1.0") for line in sorted(served)].count(True) == 1


async def test_jobs_of_the_old_version_finish_and_only_then_is_it_free(
    start, ask, growing_repository
):
    classifier = await start(compute_threads=1)
    held, entered = threading.Event(), threading.Event()
    lane = classifier._models.find(None).lane
    run = lane.run

    def hold(views):
        entered.set()
        assert held.wait(20)
        return run(views)

    lane.run = hold
    # One runs, the others are queued.
    early = [asyncio.create_task(ask(classifier)) for _ in range(5)]
    assert await asyncio.to_thread(entered.wait, 20)
    growing_repository.publish(2)
    change = asyncio.create_task(classifier.rollout.reload(NAME))
    while await asyncio.sleep(0.01, classifier._models.find(None).version) == 1:
        pass
    (shown,) = classifier.describe_unavailable()
    assert (shown.version, shown.state) == (1, "draining")
    assert not change.done()
    held.set()
    assert await asyncio.gather(*early) == [1] * 5
    await change
    assert classifier.describe_unavailable() == ()


async def test_a_broken_new_version_keeps_the_old_one_serving_and_shows_why(
    start, ask, growing_repository, metrics, caplog
):
    classifier = await start()
    growing_repository.publish_broken(2)
    for change in (
        classifier.rollout.reload(NAME),
        classifier.rollout.load(NAME, 2),
        classifier.rollout.label(NAME, "canary", 2),
    ):
        error = await refusal(change)
        assert error.code is ErrorCode.MODEL_LOAD_FAILED
        assert str(growing_repository.folder) not in error.detail
    assert await ask(classifier) == 1
    (shown,) = classifier.describe_unavailable()
    assert (shown.version, shown.state) == (2, "failed")
    assert "is not the file that was published" in shown.reason
    counted = 'fivecrop_model_load_failures_total{model="digits-linear@2",reason="bundle"} 3.0'
    assert counted in metrics.render()[0].decode()
    assert "digits-linear@2 is not served" in caplog.text
    # The orders that failed were not written.
    assert not (growing_repository.folder / ORDERS_FILE).exists()
    assert await ask(await start()) == 1


@pytest.mark.parametrize("damage", ["torn", "html", "empty", "gone", *GRAPHS])
async def test_whatever_is_wrong_with_a_new_version_the_old_one_serves(
    start, ask, growing_repository, damage
):
    classifier = await start()
    folder = growing_repository.publish(2)
    manifest = folder / "bundle.json"
    text = manifest.read_text()
    if damage == "gone":
        (folder / "model.onnx").unlink()
    elif damage in GRAPHS:
        put_graph(folder, GRAPHS[damage]((folder / "model.onnx").read_bytes()))
    else:
        manifest.write_text({"torn": text[:300], "html": "<html>", "empty": ""}[damage])
    error = await refusal(classifier.rollout.reload(NAME))
    assert await ask(classifier) == 1
    (shown,) = classifier.describe_unavailable()
    for told in (shown.reason, error.detail):
        assert WORDS.search(told) is None, told


@pytest.mark.parametrize("damage", NOT_TO_BE_RUN)
async def test_a_graph_that_cannot_be_run_does_not_keep_other_models_from_being_followed(
    start, ask, growing_repository, damage, caplog
):
    classifier = await start(default_model=NAME)
    bad = growing_repository.publish(1, name="bad")
    put_graph(bad, NOT_TO_BE_RUN[damage]((bad / "model.onnx").read_bytes()))
    growing_repository.publish(2)
    await classifier.rollout.follow()
    assert await ask(classifier) == 2
    (shown,) = classifier.describe_unavailable()
    assert (shown.name, shown.state) == ("bad", "failed")
    assert "the graph cannot be run" in shown.reason
    # With what ONNX Runtime says of it, or of the shape.
    assert re.search("bad@1 is not served: .* the graph cannot be run: .+", caplog.text)
    # It is looked at again when its files change, and is no news until then.
    caplog.clear()
    await classifier.rollout.follow()
    assert "is not served" not in caplog.text
    growing_repository.publish(1, name="bad")
    await classifier.rollout.follow()
    assert not classifier.describe_unavailable()


async def test_a_graph_that_memory_is_short_for_is_tried_again(
    start, ask, growing_repository, metrics
):
    classifier = await start()
    folder = growing_repository.publish(2)
    put_graph(folder, more_memory_than_there_is((folder / "model.onnx").read_bytes()))
    for tries in (1, 2):
        await classifier.rollout.follow()
        counted = 'fivecrop_model_load_failures_total{model="digits-linear@2",reason="provider"}'
        assert f"{counted} {tries}.0" in metrics.render()[0].decode()
    (shown,) = classifier.describe_unavailable()
    assert shown.reason.endswith("this machine cannot run the graph now")
    assert await ask(classifier) == 1


async def test_a_repository_that_went_away_changes_nothing(start, ask, growing_repository):
    classifier = await start()
    shutil.rmtree(growing_repository.folder)
    with pytest.raises(BundleError):
        await classifier.rollout.follow()
    assert (await refusal(classifier.rollout.reload(NAME))).code is ErrorCode.MODEL_LOAD_FAILED
    assert await ask(classifier) == 1


async def test_an_unloaded_version_is_not_found_until_it_is_loaded_again(
    start, ask, growing_repository
):
    growing_repository.publish(2)
    classifier = await start(version_policy="all")
    await classifier.rollout.unload(NAME, 2)
    assert (await refusal(ask(classifier, f"{NAME}@2"))).code is ErrorCode.MODEL_NOT_FOUND
    assert await ask(classifier) == 1
    await classifier.rollout.reload(NAME)
    assert await ask(classifier) == 1
    await classifier.rollout.unload(NAME, None)
    for reference in (None, NAME, f"{NAME}@1"):
        assert (await refusal(ask(classifier, reference))).code is ErrorCode.MODEL_NOT_FOUND
    assert classifier.is_ready
    await classifier.rollout.load(NAME, None)
    assert await ask(classifier) == 2


async def test_a_server_starts_again_with_everything_unloaded(start, growing_repository):
    await (await start()).rollout.unload(NAME, None)
    classifier = await start()
    assert classifier.describe_models() == []
    await classifier.rollout.load(NAME, 1)
    assert [one.version for one in classifier.describe_models()] == [1]


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("load", ("absent", None)),
        ("load", (NAME, 9)),
        ("load", ("../etc", 1)),
        ("unload", ("absent", None)),
        ("unload", (NAME, 9)),
        ("reload", ("absent",)),
        ("label", (NAME, "canary", 9)),
        ("label", ("absent", "canary", None)),
    ],
)
async def test_what_is_not_there_is_not_found(start, growing_repository, verb, arguments):
    classifier = await start()
    error = await refusal(getattr(classifier.rollout, verb)(*arguments))
    assert error.code is ErrorCode.MODEL_NOT_FOUND
    assert not (growing_repository.folder / ORDERS_FILE).exists()


async def test_a_version_with_a_label_is_not_unloaded_by_itself(start, ask):
    classifier = await start()
    await classifier.rollout.label(NAME, "stable", 1)
    error = await refusal(classifier.rollout.unload(NAME, 1))
    assert error.code is ErrorCode.INVALID_ARGUMENT
    assert "stable" in error.detail
    assert await ask(classifier) == 1


async def test_a_label_that_would_be_a_version_or_a_policy_is_refused(start):
    classifier = await start()
    for label in ("1", "latest", "all", "Up", "x" * 33):
        error = await refusal(classifier.rollout.label(NAME, label, 1))
        assert error.code is ErrorCode.INVALID_ARGUMENT


async def test_a_model_over_the_memory_budget_is_refused_and_the_others_serve(
    start, ask, growing_repository
):
    classifier = await start(model_memory_mib=60)
    growing_repository.publish(2, padding_mib=40)
    error = await refusal(classifier.rollout.load(NAME, 2))
    assert error.code is ErrorCode.MEMORY_EXCEEDED
    assert "MiB" in error.detail
    assert await ask(classifier) == 1
    with pytest.raises(BundleError, match="no bundle"):
        await start(models="absent")


async def test_a_start_over_the_memory_budget_says_so(start, growing_repository):
    from service.errors import MemoryBudgetError

    growing_repository.publish(1, padding_mib=40)
    with pytest.raises(MemoryBudgetError, match="FIVECROP_MODEL_MEMORY_MIB"):
        await start(model_memory_mib=60)


async def test_a_replaced_bundle_of_the_same_version_takes_over(start, growing_repository):
    classifier = await start()
    before = classifier.describe_models()[0].digest
    growing_repository.publish(1, answers_as=4)
    await classifier.rollout.reload(NAME)
    (model,) = classifier.describe_models()
    assert model.digest != before
    answer = await classifier.classify(growing_repository.image, Options(top_k=1))
    assert answer.predictions[0].index == growing_repository.expected_class(4)


async def test_an_unloaded_model_gives_its_session_and_its_memory_back(
    start, ask, growing_repository
):
    growing_repository.publish(2, padding_mib=64)
    classifier = await start(version_policy="all", compute_threads=2)
    await classifier.rollout.unload(NAME, 2)
    process = psutil.Process()
    before = process.memory_info().rss
    for _ in range(3):
        await classifier.rollout.load(NAME, 2)
        # Every thread has run it last.
        await asyncio.gather(*(ask(classifier, f"{NAME}@2") for _ in range(20)))
        session = weakref.ref(classifier._models.find(f"{NAME}@2").engine._session)
        assert process.memory_info().rss > before + 64 * 2**20
        await classifier.rollout.unload(NAME, 2)
        gc.collect()
        assert session() is None
    # One such model takes 135 MiB; what stays is other pages of a heap that was used before.
    assert process.memory_info().rss < before + 48 * 2**20


async def test_orders_of_two_workers_at_once_all_count(start, growing_repository):
    growing_repository.publish(2)
    first, second = await start(), await start()
    await asyncio.gather(
        first.rollout.label(NAME, "stable", 1), second.rollout.label(NAME, "canary", 2)
    )
    orders = json.loads((growing_repository.folder / ORDERS_FILE).read_text())
    assert orders["models"][NAME]["labels"] == {"stable": 1, "canary": 2}
    for classifier in (first, second):
        await classifier.rollout.follow()
        shown = {one.version: one.version_labels for one in classifier.describe_models()}
        assert shown == {1: ("stable",), 2: ("canary",)}
