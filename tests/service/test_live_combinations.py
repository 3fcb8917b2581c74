"""Combinations that come, change and go while the server runs, and their members with them."""

from __future__ import annotations

import asyncio
import datetime
import json
import shutil

import numpy as np
import pytest

from service.bundle.combination import (
    COMBINATION_FILE,
    Cascade,
    Ensemble,
    Stage,
    WeightedMember,
    publish_combination,
)
from service.bundle.repository import read_bundle
from service.classification import ExplainOptions
from service.classifier import Options
from service.combining import CombiningClassifier
from service.errors import ErrorCode, RequestError, StartError
from service.explain import METHODS
from service.open_inference_repository import ModelRepository
from service.orders import ModelOrders, Orders
from service.repository_watch import RepositoryWatch

NAME = "digits-linear"
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def repository(growing_repository):
    return growing_repository


@pytest.fixture
async def start(repository, metrics, make_settings):
    """Returns `start(**settings)`: a classifier over the repository, as the worker has it."""
    made = []

    async def start(**given):
        given = {"model_repository": repository.folder, "compute_threads": 2, **given}
        settings = make_settings(**given)
        made.append(await asyncio.to_thread(CombiningClassifier.build, settings, metrics))
        return made[-1]

    yield start
    for one in made:
        await one.close()


def facts_of(repository, version):
    digest = read_bundle(repository.folder / NAME / str(version)).digest
    return {"model": f"{NAME}@{version}", "digest": digest}


def publish_ensemble(repository, *versions, name="both", **facts):
    members = tuple(
        WeightedMember(**facts_of(repository, version), weight=number + 1)
        for number, version in enumerate(versions)
    )
    made = Ensemble(name=name, version=1, created=NOW, members=members, **facts)
    return publish_combination(repository.folder, made)


def publish_cascade(repository, first, last, *, escalate_below=1.0, name="fast"):
    members = (
        Stage(**facts_of(repository, first), escalate_below=escalate_below),
        Stage(**facts_of(repository, last)),
    )
    made = Cascade(name=name, version=1, created=NOW, members=members)
    return publish_combination(repository.folder, made)


async def ask(classifier, repository, model):
    answer = await classifier.classify(repository.image, Options(model=model))
    return answer.model, answer.version, [one.version for one in answer.members]


async def refusal(awaitable):
    with pytest.raises(RequestError) as caught:
        await awaitable
    return caught.value.code


def served(classifier):
    return {f"{one.name}@{one.version}" for one in classifier.describe_models()}


async def test_a_combination_is_loaded_with_its_members_and_takes_them_along(start, repository):
    repository.publish(2)
    classifier = await start()
    publish_ensemble(repository, 1, 2)
    assert await refusal(ask(classifier, repository, "both")) is ErrorCode.MODEL_NOT_FOUND
    await classifier.rollout.load("both", None)
    # The policy serves the newest version alone; version 1 is there for the ensemble.
    assert served(classifier) == {f"{NAME}@1", f"{NAME}@2", "both@1"}
    assert await ask(classifier, repository, "both") == ("both", 1, [1, 2])
    await classifier.rollout.unload("both", None)
    assert served(classifier) == {f"{NAME}@2"}
    assert await refusal(ask(classifier, repository, "both")) is ErrorCode.MODEL_NOT_FOUND


async def test_a_member_of_two_is_kept_for_as_long_as_one_needs_it(start, repository):
    repository.publish(2)
    publish_ensemble(repository, 1, 2)
    publish_cascade(repository, 1, 2)
    classifier = await start()
    for name, others in (("both", {"fast@1", f"{NAME}@1"}), ("fast", set())):
        await classifier.rollout.unload(name, None)
        assert served(classifier) == {f"{NAME}@2", *others}


async def test_a_member_cannot_be_unloaded_under_a_combination(start, repository):
    publish_ensemble(repository, 1, 1)
    classifier = await start()
    for version in (1, None):
        with pytest.raises(RequestError, match="both@1 is made of it"):
            await classifier.rollout.unload(NAME, version)
    triton = ModelRepository(classifier, classifier.rollout)
    assert await refusal(triton.unload(NAME, {})) is ErrorCode.INVALID_ARGUMENT
    assert await ask(classifier, repository, "both") == ("both", 1, [1, 1])
    await classifier.rollout.unload("both", 1)
    await classifier.rollout.unload(NAME, 1)
    assert served(classifier) == set()


async def test_a_new_version_takes_over_and_a_broken_one_does_not(start, repository):
    repository.publish(2)
    publish_ensemble(repository, 1, 2)
    classifier = await start()
    publish_ensemble(repository, 2, 2)
    await classifier.rollout.reload("both")
    assert await ask(classifier, repository, "both") == ("both", 2, [2, 2])
    assert served(classifier) == {f"{NAME}@2", "both@2"}
    broken = publish_ensemble(repository, 1, 1) / COMBINATION_FILE
    broken.write_text(broken.read_text().replace(facts_of(repository, 1)["digest"], "0" * 64))
    error = await refusal(classifier.rollout.load("both", 3))
    assert error is ErrorCode.MODEL_LOAD_FAILED
    await classifier.rollout.follow()
    assert await ask(classifier, repository, "both") == ("both", 2, [2, 2])
    (shown,) = classifier.describe_unavailable()
    assert (shown.name, shown.version, shown.state) == ("both", 3, "failed")
    assert "not the one it was validated with" in shown.reason
    assert await refusal(ask(classifier, repository, "both@3")) is ErrorCode.NOT_READY


async def test_a_member_that_does_not_prove_itself_keeps_the_combination_out(start, repository):
    classifier = await start()
    repository.publish_broken(2)
    publish_cascade(repository, 1, 2)
    await classifier.rollout.follow()
    assert served(classifier) == {f"{NAME}@1"}
    with pytest.raises(RequestError, match="not the file that was published") as caught:
        await classifier.classify(repository.image, Options(model="fast"))
    assert caught.value.code is ErrorCode.NOT_READY
    loads = classifier.rollout._live.metrics.render()[0].decode()
    await classifier.rollout.follow()
    assert classifier.rollout._live.metrics.render()[0].decode() == loads  # tried once


async def test_a_member_replaced_in_place_takes_its_combination_out(start, repository):
    publish_ensemble(repository, 1, 1)
    classifier = await start()
    repository.publish(1, answers_as=3)
    await classifier.rollout.follow({NAME})
    with pytest.raises(RequestError, match="validated with") as caught:
        await classifier.classify(repository.image, Options(model="both"))
    assert caught.value.code is ErrorCode.NOT_READY
    assert served(classifier) == {f"{NAME}@1"}
    publish_ensemble(repository, 1, 1)
    await classifier.rollout.follow({"both"})
    assert await ask(classifier, repository, "both") == ("both", 2, [1, 1])


async def test_what_does_not_fit_the_memory_is_refused(start, repository):
    repository.publish(2, padding_mib=8)
    publish_cascade(repository, 1, 2)
    classifier = await start(models=NAME, version_policy="all", model_memory_mib=16)
    shown = [one.reason for one in classifier.describe_unavailable()]
    assert any("MODEL_MEMORY" in reason for reason in shown)
    with pytest.raises(RequestError, match="name one"):
        await classifier.rollout.load("fast", None)
    assert await refusal(classifier.rollout.load("fast", 1)) is ErrorCode.MEMORY_EXCEEDED
    assert served(classifier) == {f"{NAME}@1"}


async def test_labels_mean_versions_of_combinations_too(start, repository):
    publish_ensemble(repository, 1, 1)
    publish_ensemble(repository, 1, 1, 1)
    classifier = await start()
    assert await ask(classifier, repository, "both") == ("both", 2, [1, 1, 1])
    await classifier.rollout.label("both", "stable", 1)
    for reference in ("both", "both@stable", "both@1"):
        assert await ask(classifier, repository, reference) == ("both", 1, [1, 1])
    assert classifier.describe_model("both@1").version_labels == ("stable",)
    assert served(classifier) == {f"{NAME}@1", "both@1", "both@2"}


@pytest.mark.parametrize("default", ["both", "both@1"])
async def test_a_combination_may_be_the_default(start, repository, default):
    publish_ensemble(repository, 1, 1)
    classifier = await start(default_model=default)
    classifier.refuse_early(Options())
    assert await ask(classifier, repository, None) == ("both", 1, [1, 1])
    assert [one.name for one in classifier.describe_models() if one.is_default] == ["both"]
    several = await classifier.classify_many([repository.image], Options())
    assert several[0].model == "both"
    assert (await classifier.explain(repository.image, ExplainOptions())).model == "both"


async def test_a_default_that_cannot_serve_fails_the_start(start, repository):
    publish_cascade(repository, 1, 1)
    repository.publish(1, answers_as=2)
    with pytest.raises(StartError, match="fast"):
        await start(default_model="fast")


async def test_only_named_combinations_serve_where_models_are_named(start, repository):
    repository.publish(2)
    publish_ensemble(repository, 1, 2)
    publish_cascade(repository, 1, 2)
    classifier = await start(models="fast")
    assert served(classifier) == {f"{NAME}@1", f"{NAME}@2", "fast@1"}
    repository.publish(1, answers_as=2)
    with pytest.raises(StartError, match="validated with"):
        await start(models="fast")


async def test_a_name_of_bundles_is_none_for_combinations(start, repository):
    folder = publish_ensemble(repository, 1, 1)
    shutil.copytree(folder, repository.folder / NAME / "7")
    classifier = await start()
    shown = {(one.name, one.version): one.reason for one in classifier.describe_unavailable()}
    assert shown == {(NAME, 7): f"{NAME}: bundles have the name already"}
    assert served(classifier) == {f"{NAME}@1", "both@1"}


async def test_a_request_between_two_stages_is_answered_by_the_members_it_began_with(
    start, repository, monkeypatch
):
    """A cascade is unloaded, and its last member with it, while a request waits between stages."""
    repository.publish(2)
    publish_cascade(repository, 2, 1)
    classifier = await start()
    answer, is_between, may_go_on = classifier._answer, asyncio.Event(), asyncio.Event()

    async def pause(model, image, options):
        result = await answer(model, image, options)
        if model.version == 2:
            is_between.set()
            await may_go_on.wait()
        return result

    monkeypatch.setattr(classifier, "_answer", pause)
    asked = asyncio.create_task(ask(classifier, repository, "fast"))
    await is_between.wait()
    unloaded = asyncio.create_task(classifier.rollout.unload("fast", None))
    while served(classifier) != {f"{NAME}@2"}:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)  # time enough to take the member's lane away
    may_go_on.set()
    assert await asked == ("fast", 1, [2, 1])
    await unloaded


async def test_swaps_under_load_fail_no_request(start, repository):
    repository.publish(2)
    publish_cascade(repository, 1, 2)
    classifier = await start(version_policy="latest:1")
    is_over = False
    answers = []

    async def load():
        while not is_over:
            answers.append(await ask(classifier, repository, "fast"))

    clients = [asyncio.ensure_future(load()) for _ in range(4)]
    for first, last in ((2, 1), (1, 1), (2, 2), (1, 2)):
        publish_cascade(repository, first, last)
        await classifier.rollout.reload("fast")
        assert (await ask(classifier, repository, "fast"))[2] == [first, last]
    is_over = True
    await asyncio.gather(*clients)
    assert {members for _, _, members in [(a, b, tuple(c)) for a, b, c in answers]} <= {
        (1, 2),
        (2, 1),
        (1, 1),
        (2, 2),
    }
    assert len(answers) > 10


async def test_a_watched_repository_serves_published_combinations(start, repository, metrics):
    classifier = await start()
    watch = RepositoryWatch(repository.folder, classifier.rollout, metrics, look_every_s=1)
    watch.start()
    publish_ensemble(repository, 1, 1)
    async with asyncio.timeout(20):
        while "both@1" not in served(classifier):
            await asyncio.sleep(0.01)
    await watch.stop()
    assert await ask(classifier, repository, "both") == ("both", 1, [1, 1])


async def test_a_repository_behind_a_url_has_combinations_too(start, repository, tmp_path):
    publish_ensemble(repository, 1, 1)
    classifier = await start(
        model_repository=f"file://{repository.folder}", model_cache=tmp_path / "cache"
    )
    assert await ask(classifier, repository, "both") == ("both", 1, [1, 1])
    publish_ensemble(repository, 1, 1, 1)
    await classifier.rollout.follow()
    assert await ask(classifier, repository, "both") == ("both", 2, [1, 1, 1])


async def test_other_workers_follow(start, repository):
    first, second = await start(), await start()
    publish_ensemble(repository, 1, 1)

    async def tell_others(name, versions):
        await second.rollout.follow({name}, retry=True)
        return second.rollout.versions(name) == list(versions)

    first.rollout.tell_others = tell_others
    await first.rollout.load("both", None)
    assert served(second) == {f"{NAME}@1", "both@1"}
    await first.rollout.unload("both", None)
    assert served(second) == {f"{NAME}@1"}


async def test_an_order_that_keeps_a_member_out_keeps_the_combination_out(start, repository):
    publish_ensemble(repository, 1, 1)
    orders = Orders(models={NAME: ModelOrders(is_unloaded=True)})
    (repository.folder / ".orders.json").write_text(orders.model_dump_json())
    classifier = await start()
    with pytest.raises(RequestError, match=f"its member {NAME}@1 does not serve"):
        await classifier.classify(repository.image, Options(model="both"))
    await classifier.rollout.load(NAME, None)
    assert await ask(classifier, repository, "both") == ("both", 1, [1, 1])


async def test_combinations_take_no_part_in_splits(start, repository):
    publish_ensemble(repository, 1, 1)
    publish_ensemble(repository, 1, 1, 1)
    classifier = await start(version_policy="all")
    with pytest.raises(RequestError, match="takes no part in splits"):
        await classifier.trials.report("both")


async def test_the_index_of_triton_lists_them(start, repository):
    publish_ensemble(repository, 1, 1)
    classifier = await start()
    triton = ModelRepository(classifier, classifier.rollout)
    ready = {"version": "1", "state": "READY", "reason": ""}
    assert await triton.index(ready_only=False) == [
        {"name": "both", **ready},
        {"name": NAME, **ready},
    ]
    await triton.unload("both", {})
    assert [one["state"] for one in await triton.index(ready_only=False)] == [
        "UNAVAILABLE",
        "READY",
    ]


# ---- explanations ----


@pytest.mark.parametrize("method", METHODS)
async def test_a_cascade_is_explained_by_the_member_that_decides(start, repository, method):
    repository.publish(2)
    for escalate_below, version in ((0.0, 1), (1.0, 2)):
        publish_cascade(repository, 1, 2, escalate_below=escalate_below, name=f"fast{version}")
        model = f"fast{version}"
        classifier = await start()
        if method == "cam" and not classifier._models.find(NAME).bundle.manifest.has_output("cam"):
            asked = classifier.explain(repository.image, ExplainOptions(model=model, method=method))
            assert await refusal(asked) is ErrorCode.INVALID_ARGUMENT
            continue
        found = await classifier.explain(
            repository.image, ExplainOptions(model=model, method=method)
        )
        own = await classifier.explain(
            repository.image, ExplainOptions(model=f"{NAME}@{version}", method=method)
        )
        assert (found.model, found.version) == (model, 1)
        assert (found.member, own.member) == (f"{NAME}@{version}", None)
        assert found.prediction == own.prediction
        np.testing.assert_array_equal(found.evidence, own.evidence)


async def test_an_ensemble_is_explained_by_the_member_that_says_most_for_the_class(
    start, repository
):
    repository.publish(2)
    publish_ensemble(repository, 1, 2)  # weights 1 and 2
    classifier = await start()
    answer = await classifier.classify(repository.image, Options(model="both", top_k=10))
    for index in range(10):
        found = await classifier.explain(
            repository.image, ExplainOptions(model="both", index=index)
        )
        parts = [
            weight
            * (
                await classifier.classify(repository.image, Options(model=f"{NAME}@{version}"))
            ).probabilities[index]
            for version, weight in ((1, 1), (2, 2))
        ]
        assert found.member == f"{NAME}@{1 + int(np.argmax(parts))}"
        assert found.prediction.score == pytest.approx(float(answer.probabilities[index]))
    wrong = classifier.explain(repository.image, ExplainOptions(model="both", index=10))
    assert await refusal(wrong) is ErrorCode.INVALID_ARGUMENT
    late = classifier.explain(repository.image, ExplainOptions(model="both", timeout_ms=0.0))
    assert await refusal(late) is ErrorCode.DEADLINE_EXCEEDED


# ---- over the edges ----


async def test_routes_load_explain_and_unload_combinations(administered, repository):
    publish_ensemble(repository, 1, 1)
    client = (await administered()).http
    loaded = await client.post("/v1/models/both:load")
    assert loaded.status_code == 200, loaded.text
    (shown,) = loaded.json()["models"]
    assert (shown["kind"], shown["members"]) == ("ensemble", [f"{NAME}@1"] * 2)
    refused = await client.post(f"/v1/models/{NAME}:unload")
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_argument")
    explained = await client.post("/v1/explain?model=both", content=repository.image)
    assert json.loads(explained.content)["member"] == f"{NAME}@1"
    assert (await client.post("/v1/models/both:unload")).status_code == 200
    gone = await client.post("/v1/classify?model=both", content=repository.image)
    assert gone.json()["code"] == "model_not_found"
