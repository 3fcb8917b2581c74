"""Thresholds, groups and label sets say the same over HTTP and gRPC."""

from __future__ import annotations

import io

import httpx
import pytest
from PIL import Image

from service.http_api import build_http_app
from service.proto import image_classifier_pb2 as messages
from service.proto import image_classifier_pb2_grpc as stubs

DECISION = {
    "abstain_below": 0.9,
    "reference": {"coverage": 0.8, "accuracy": 0.95},
    "roll_up": {"coverage": 0.5, "accuracy": 0.99},
    "conformal": [
        {
            "tta": "none",
            "images": 100,
            "levels": [
                {
                    "coverage": 0.9,
                    "min_score": 0.3,
                    "measured_coverage": 0.91,
                    "mean_labels": 1.5,
                }
            ],
        }
    ],
}
FACTS = {
    "groups": [{"name": "warm"}],
    "labels": [{"name": "red", "parent": 0}, {"name": "green", "parent": 0}, {"name": "blue"}],
    "decision": DECISION,
}


@pytest.fixture
def yellowish():
    """A picture with 60 % red, 36 % green and 4 % blue."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (250, 150, 17)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
async def edges(make_tiny_model, make_settings, metrics, serving_grpc):
    """An HTTP client and a gRPC stub of the same classifier."""
    settings = make_settings()
    classifier = make_tiny_model(settings, **FACTS).classifier
    app = build_http_app(classifier, metrics, settings)
    transport = httpx.ASGITransport(app)
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://fivecrop") as http,
        serving_grpc(classifier, metrics, settings) as serving,
    ):
        yield http, stubs.ImageClassifierStub(serving.channel)


async def test_an_abstained_answer_names_its_threshold_and_a_group(edges, yellowish):
    http, grpc = edges
    over_http = (await http.post("/v1/classify", content=yellowish)).json()
    assert over_http["abstained"] is True
    assert over_http["decision"] == {"abstain_below": 0.9, "coverage": 0.8, "accuracy": 0.95}
    assert over_http["group"]["label"] == "warm"
    assert "label_set" not in over_http
    answer = await grpc.Classify(messages.ClassifyRequest(image=yellowish))
    assert answer.abstained
    assert answer.decision.abstain_below == 0.9
    assert (answer.decision.coverage, answer.decision.accuracy) == (0.8, 0.95)
    assert (answer.group.label, answer.group.score) == ("warm", over_http["group"]["score"])
    assert not answer.HasField("label_set")


async def test_a_coverage_gives_the_same_set_over_both(edges, yellowish):
    http, grpc = edges
    over_http = await http.post("/v1/classify?coverage=0.9&top_k=1", content=yellowish)
    found = over_http.json()["label_set"]
    assert found["coverage"] == 0.9
    assert [one["label"] for one in found["predictions"]] == ["red", "green"]
    answer = await grpc.Classify(messages.ClassifyRequest(image=yellowish, coverage=0.9))
    same = [
        {"label": one.label, "index": one.index, "score": one.score}
        for one in answer.label_set.predictions
    ]
    assert same == found["predictions"]
    assert answer.label_set.coverage == 0.9


@pytest.mark.parametrize("coverage", ["", "x", "nan", "1e-1", "2.5", "0", "-0.9", "0.95", "9"])
async def test_a_coverage_that_means_nothing_is_refused(edges, yellowish, coverage):
    http, _ = edges
    answer = await http.post(f"/v1/classify?coverage={coverage}", content=yellowish)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument")


async def test_a_model_tells_what_its_thresholds_gave(edges):
    http, grpc = edges
    (over_http,) = (await http.get("/v1/models")).json()["models"]
    assert over_http["decision"] == {"abstain_below": 0.9, "coverage": 0.8, "accuracy": 0.95}
    assert over_http["roll_up"] == {"coverage": 0.5, "accuracy": 0.99}
    level = {"coverage": 0.9, "measured_coverage": 0.91, "mean_labels": 1.5}
    assert over_http["label_sets"] == [{"tta": "none", "levels": [level]}]
    (model,) = (await grpc.Models(messages.ModelsRequest())).models
    assert (model.decision.coverage, model.roll_up.accuracy) == (0.8, 0.99)
    (sets,) = model.label_sets
    assert (sets.tta, sets.levels[0].mean_labels) == ("none", 1.5)
