"""Ensembles and cascades over real bundles: the same arithmetic, and the answer says who ran."""

from __future__ import annotations

import asyncio
import datetime
import shutil

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from service.bundle.combination import (
    Cascade,
    Ensemble,
    Stage,
    WeightedMember,
    publish_combination,
)
from service.bundle.decode import decode
from service.bundle.manifest import Decision
from service.bundle.postprocess import weigh
from service.bundle.repository import read_bundle
from service.classifier import Options
from service.combining import CombiningClassifier
from service.errors import ErrorCode, RequestError
from service.http_api import build_http_app
from service.metrics import Metrics
from service.proto import image_classifier_pb2 as messages
from service.proto.image_classifier_pb2_grpc import ImageClassifierStub

BUNDLE = "digits-linear@1"
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def repository(tiny_bundle_repository, tmp_path):
    """A repository of one bundle, to which a test adds combinations."""
    copy = tmp_path / "repository"
    shutil.copytree(tiny_bundle_repository, copy)
    return copy


@pytest.fixture
def image(repository):
    return next(repository.glob("digits-linear/1/golden/*.png")).read_bytes()


@pytest.fixture
def member(repository):
    """Returns the facts of the one bundle as a member."""
    digest = read_bundle(repository / "digits-linear" / "1").digest
    return lambda **facts: {"model": BUNDLE, "digest": digest, **facts}


def publish_ensemble(repository, *members, **facts):
    members = tuple(WeightedMember.model_validate(one) for one in members)
    made = Ensemble(name="both", version=1, created=NOW, members=members, **facts)
    publish_combination(repository, made)


def publish_cascade(repository, *members):
    members = tuple(Stage.model_validate(one) for one in members)
    made = Cascade(name="fast", version=1, created=NOW, members=members)
    publish_combination(repository, made)


@pytest.fixture
async def build(repository, make_settings):
    """Returns a function from settings to a classifier over the repository, as the worker's."""
    built = []

    def make(**given):
        settings = make_settings(model_repository=repository, compute_threads=2, **given)
        built.append(CombiningClassifier.build(settings, Metrics()))
        return built[-1]

    yield make
    for one in built:
        await one.close()


async def refuse(classifier, image, **options):
    with pytest.raises(RequestError) as caught:
        await classifier.classify(image, Options(**options))
    return caught.value.code


async def test_ensemble_answers_with_the_weighted_mean_and_names_its_members(
    repository, build, image, member
):
    publish_ensemble(repository, member(weight=1), member(weight=3, tta="ten_crop"))
    classifier = build()
    plain = await classifier.classify(image, Options(model=BUNDLE))
    crops = await classifier.classify(image, Options(model=BUNDLE, tta="ten_crop"))
    both = await classifier.classify(image, Options(model="both", top_k=3))
    np.testing.assert_allclose(
        both.probabilities, 0.25 * plain.probabilities + 0.75 * crops.probabilities, atol=1e-6
    )
    assert (both.model, both.version, both.views) == ("both", 1, 11)
    assert len(both.predictions) == 3
    assert [(one.model, one.tta) for one in both.members] == [
        ("digits-linear", "none"),
        ("digits-linear", "ten_crop"),
    ]
    assert plain.members == ()


@pytest.fixture
def decodes(monkeypatch):
    """The images that were decoded, in their order."""
    seen = []

    def count(data, *args, **options):
        seen.append(data)
        return decode(data, *args, **options)

    monkeypatch.setattr("service.bundle.preprocess.decode", count)
    return seen


async def test_ensemble_decodes_an_image_once_and_answers_with_the_same_bits(
    repository, build, image, member, decodes
):
    ways = ("none", "ten_crop", "none")
    weights = (1, 3, 2)
    publish_ensemble(
        repository, *(member(weight=w, tta=tta) for w, tta in zip(weights, ways, strict=True))
    )
    classifier = build()
    lane = classifier._models.find(BUNDLE).lane
    decodes.clear()
    together = [await classifier.classify(image, Options(model="both")) for _ in range(5)]
    assert len(decodes) == 5
    assert lane.decode_slowness == 1.0  # learns nothing from what was shared
    decodes.clear()
    alone = [await classifier.classify(image, Options(model=BUNDLE, tta=tta)) for tta in ways]
    assert len(decodes) == 3
    assert lane.decode_slowness != 1.0
    expected = weigh([one.probabilities for one in alone], weights)
    for answer in together:
        np.testing.assert_array_equal(answer.probabilities, expected)
        assert (answer.width, answer.height, answer.format) == (32, 32, "png")


@pytest.mark.parametrize(
    ("later", "times"), [("none", 1), ("hflip", 2)], ids=["the same way", "another way"]
)
async def test_stage_of_a_cascade_decodes_only_what_no_earlier_one_made(
    repository, build, image, member, decodes, later, times
):
    publish_cascade(repository, member(escalate_below=1.0), member(tta=later))
    classifier = build()
    decodes.clear()
    answer = await classifier.classify(image, Options(model="fast"))
    assert len(answer.members) == 2
    assert len(decodes) == times
    alone = await classifier.classify(image, Options(model=BUNDLE, tta=later))
    np.testing.assert_array_equal(answer.probabilities, alone.probabilities)


async def test_ensemble_decides_by_its_own_threshold(repository, build, image, member):
    decision = Decision(abstain_below=1.0)
    publish_ensemble(repository, member(), member(tta="hflip"), decision=decision)
    answer = await build().classify(image, Options(model="both@1"))
    assert answer.verdict.abstained
    assert answer.verdict.threshold == 1.0


@pytest.mark.parametrize(("threshold", "ran"), [(0.0, ["none"]), (1.0, ["none", "hflip"])])
async def test_cascade_asks_the_next_stage_only_when_the_first_is_not_sure(
    repository, build, image, member, threshold, ran
):
    publish_cascade(repository, member(escalate_below=threshold), member(tta="hflip"))
    classifier = build()
    answer = await classifier.classify(image, Options(model="fast"))
    assert [one.tta for one in answer.members] == ran
    last = await classifier.classify(image, Options(model=BUNDLE, tta=ran[-1]))
    assert answer.predictions == last.predictions
    assert answer.model == "fast"
    assert answer.views == len(answer.members) * (len(answer.members) + 1) // 2


async def test_several_images_escalate_one_by_one(repository, build, image, member):
    publish_cascade(repository, member(escalate_below=0.0), member(tta="hflip"))
    results = await build().classify_many([image, b"hello", image], Options(model="fast"))
    assert [getattr(one, "model", one) for one in (results[0], results[2])] == ["fast", "fast"]
    assert results[1].code is ErrorCode.UNSUPPORTED_MEDIA


@pytest.mark.parametrize("name", ["both", "fast"])
async def test_bad_file_gets_its_code_through_a_combination(
    repository, build, image, member, name, hostile_image
):
    publish_ensemble(repository, member(), member(tta="hflip"))
    publish_cascade(repository, member(escalate_below=1.0), member(tta="hflip"))
    classifier = build()
    data, code = hostile_image
    assert await refuse(classifier, data, model=name) is code


async def test_combination_refuses_what_it_cannot_be_asked(repository, build, image, member):
    publish_ensemble(repository, member(), member(tta="hflip"))
    classifier = build()
    for options, code in (
        ({"tta": "hflip"}, ErrorCode.INVALID_ARGUMENT),
        ({"coverage": 0.9}, ErrorCode.INVALID_ARGUMENT),
        ({"embedding": True}, ErrorCode.INVALID_ARGUMENT),
        ({"top_k": 0}, ErrorCode.INVALID_ARGUMENT),
        ({"timeout_ms": -1.0}, ErrorCode.DEADLINE_EXCEEDED),
    ):
        assert await refuse(classifier, image, model="both", **options) is code
    assert await refuse(classifier, image, model="both@2") is ErrorCode.MODEL_NOT_FOUND
    with pytest.raises(RequestError, match="views itself"):
        await classifier.classify_many([image], Options(model="both", tta="hflip"))


@pytest.mark.parametrize("change", [{"digest": "0" * 64}, {"model": "digits-linear@2"}])
async def test_member_that_is_not_the_validated_one_means_not_ready(
    repository, build, image, member, change
):
    publish_cascade(repository, member(escalate_below=0.5), member(**change, tta="hflip"))
    classifier = build()
    assert await refuse(classifier, image, model="fast") is ErrorCode.NOT_READY
    assert [one.name for one in classifier.describe_models()] == ["digits-linear"]
    assert (await classifier.classify(image, Options(model=BUNDLE))).model == "digits-linear"


async def test_full_queue_refuses_a_combination_before_its_image_is_read(
    repository, build, image, member
):
    publish_ensemble(repository, member(), member(tta="hflip"))
    classifier = build(max_queue_views=1)
    classifier.refuse_early(Options(model="both"))
    asked = [
        asyncio.ensure_future(classifier.classify(image, Options(model=BUNDLE))) for _ in range(2)
    ]
    await asyncio.sleep(0)
    with pytest.raises(RequestError) as caught:
        classifier.refuse_early(Options(model="both"))
    assert caught.value.code is ErrorCode.OVERLOADED
    await asyncio.gather(*asked, return_exceptions=True)


async def test_combination_is_described_as_what_it_is(repository, build, member):
    publish_ensemble(repository, member(), member(tta="hflip"))
    classifier = build()
    bundle, both = classifier.describe_models()
    assert (bundle.kind, bundle.members) == ("bundle", ())
    assert (both.kind, both.members) == ("ensemble", (BUNDLE, BUNDLE))
    assert classifier.describe_model("both@1") == classifier.describe_model("both") == both
    assert both.labels == bundle.labels
    assert both.digest != bundle.digest


async def test_cancelled_ensemble_leaves_nothing_in_the_queue(repository, build, image, member):
    publish_ensemble(repository, member(), member(tta="ten_crop"))
    classifier = build()
    asked = [
        asyncio.ensure_future(classifier.classify(image, Options(model="both"))) for _ in range(8)
    ]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for one in asked:
        one.cancel()
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in results)
    assert (await classifier.classify(image, Options(model="both"))).model == "both"


async def test_both_edges_say_which_members_ran(
    repository, build, image, member, metrics, make_settings, serving_grpc
):
    publish_cascade(repository, member(escalate_below=1.0), member(tta="hflip"))
    classifier, settings = build(), make_settings()
    app = build_http_app(classifier, metrics, settings)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://fivecrop")
    async with client, serving_grpc(classifier, metrics, settings) as served:
        over_http = (await client.post("/v1/classify?model=fast", content=image)).json()
        described = (await client.get("/v1/models/fast")).json()
        over_grpc = await ImageClassifierStub(served.channel).Classify(
            messages.ClassifyRequest(image=image, model="fast")
        )
    ran = [
        {name: getattr(one, name) for name in ("model", "version", "tta", "label", "score")}
        for one in over_grpc.members
    ]
    assert over_http["members"] == ran
    assert [one["tta"] for one in ran] == ["none", "hflip"]
    assert (described["kind"], described["members"]) == ("cascade", [BUNDLE, BUNDLE])


async def test_an_image_is_captured_once_for_the_combination_that_answered(
    repository, build, image, member, tmp_path
):
    publish_ensemble(repository, member(), member(tta="ten_crop"))
    classifier = build(capture_folder=tmp_path / "captured", capture_share=1.0)
    await classifier.classify(image, Options(model="both"))
    await classifier.classify(image, Options(model=BUNDLE))
    await classifier.close()
    parts = sorted((tmp_path / "captured").glob("*/*.parquet"))
    assert [path.parent.name for path in parts] == ["both@1", BUNDLE]
    assert [pq.read_table(path).num_rows for path in parts] == [1, 1]
