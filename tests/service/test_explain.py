"""The evidence lies where the test put it: a map of the graph, and covering places one by one."""

from __future__ import annotations

import asyncio
import io

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from service.bundle.manifest import Label, Normalisation, Preprocess, Resize, Size
from service.classification import ExplainOptions, Options
from service.classifier import Classifier
from service.errors import ErrorCode, RequestError
from service.http_api import build_http_app
from service.proto import image_classifier_pb2 as messages
from service.proto import image_classifier_pb2_grpc as stubs
from service.settings import Settings
from training.bundle_writer import BundleFacts
from training.data import Dataset
from training.export import ExportOptions, export_network
from training.provenance import describe_provenance

SIDE, SQUARE = 64, 16
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class ColourFinder(nn.Module):
    """Features [N, 3, 8, 8]: how much of each cell is purely red, green or blue."""

    def __init__(self):
        super().__init__()
        self.find = nn.Conv2d(3, 3, kernel_size=1)
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.find.weight.copy_((torch.eye(3) * 1.5 - 0.5).view(3, 3, 1, 1))
            self.find.bias.fill_(-0.4)
            self.head.weight.copy_(torch.eye(3) * 60)
            self.head.bias.zero_()

    def forward(self, images):
        features = nn.functional.avg_pool2d(torch.relu(self.find(images)), 8)
        return self.head(features.mean(dim=(2, 3)))


def draw(**squares):
    """Returns a PNG of grey noise with squares of `colour=(left, top)`."""
    grey = np.random.default_rng(5).integers(80, 170, (SIDE, SIDE, 1), dtype=np.uint8)
    pixels = np.repeat(grey, 3, axis=2)
    for colour, (left, top) in squares.items():
        pixels[top : top + SQUARE, left : left + SQUARE] = COLOURS[colour]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository with the model `colours`, exported with its class activation map."""
    rng = np.random.default_rng(0)
    labels = np.arange(66) % 3
    places = rng.integers(0, SIDE - SQUARE, (66, 2)).tolist()
    images = [draw(**{list(COLOURS)[one]: at}) for one, at in zip(labels, places, strict=True)]
    facts = BundleFacts(
        name="colours",
        architecture="test:colours",
        licence="cc0-1.0",
        preprocess=Preprocess(
            resize=Resize(policy="shorter_side", size=SIDE, interpolation="bilinear"),
            crop=Size(height=SIDE, width=SIDE),
            background=(0, 0, 0),
        ),
        normalisation=Normalisation(mean=(0, 0, 0), std=(1, 1, 1)),
        labels=tuple(Label(name=name) for name in COLOURS),
        provenance=describe_provenance({}, dataset_fingerprint="", seed=0, hardware="test"),
    )
    dataset = Dataset(
        name="squares", split="validation", images=images, labels=labels, class_names=(*COLOURS,)
    )
    folder = tmp_path_factory.mktemp("colours")
    export_network(ColourFinder(), facts, dataset, folder, ExportOptions(is_calibrated=False))
    return folder


@pytest.fixture
async def classifier(repository, metrics):
    made = Classifier.build(Settings(model_repository=repository), metrics)
    yield made
    await made.close()


def mass(evidence, left, top, margin=0):
    """Returns the share of a class's evidence that lies in the cells that a square touches."""
    rows = len(evidence)
    cell = SIDE / rows
    centres = (np.arange(rows) + 0.5) * cell
    reach = cell / 2 + margin

    def touches(start):
        return (centres + reach > start) & (centres - reach < start + SQUARE)

    positive = evidence.clip(0)
    return positive[np.ix_(touches(top), touches(left))].sum() / positive.sum()


PLACES = [(0, 0), (8, 40), (37, 21), (48, 48)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", ["cam", "occlusion"])
async def test_the_mass_of_the_map_lies_on_the_object(classifier, method, place):
    found = await classifier.explain(draw(green=place), ExplainOptions(method=method))
    assert (found.method, found.prediction.label) == (method, "green")
    assert found.evidence.shape == ((8, 8) if method == "cam" else (7, 7))
    # A cover is half a cell wider than its cell on each side.
    margin = 0 if method == "cam" else SIDE / 14
    assert mass(found.evidence, *place, margin) > 0.99
    far = [other for other in PLACES if abs(other[0] - place[0]) + abs(other[1] - place[1]) > 40]
    assert all(mass(found.evidence, *other) < 0.1 for other in far)


@pytest.mark.parametrize("method", ["cam", "occlusion"])
async def test_each_class_has_a_map_of_its_own(classifier, method):
    image = draw(red=(0, 0), blue=(48, 48))
    margin = 0 if method == "cam" else SIDE / 14
    for index, place in ((0, (0, 0)), (2, (48, 48))):
        found = await classifier.explain(image, ExplainOptions(method=method, index=index))
        assert found.prediction.index == index
        assert mass(found.evidence, *place, margin) > 0.99


async def test_the_mean_of_the_map_is_the_logit(classifier):
    image = draw(red=(3, 9), blue=(40, 30))
    means = []
    for index in range(3):
        found = await classifier.explain(image, ExplainOptions(method="cam", index=index))
        means.append(float(found.evidence.mean()))
    weights = np.exp(means)
    answer = await classifier.classify(image, Options(top_k=3))
    scores = {one.index: one.score for one in answer.predictions}
    assert [scores[index] for index in range(3)] == pytest.approx(weights / weights.sum(), abs=1e-5)
    assert found.prediction.score == pytest.approx(scores[2], abs=1e-6)


async def test_explaining_beside_classifying_disturbs_no_answer(classifier):
    image = draw(blue=(20, 20))
    alone = await classifier.classify(image, Options())
    answers = await asyncio.gather(
        *(classifier.classify(image, Options()) for _ in range(20)),
        *(classifier.explain(image, ExplainOptions(method=m)) for m in ("cam", "occlusion") * 3),
    )
    for answer in answers[:20]:
        assert answer.predictions[0].score == pytest.approx(alone.predictions[0].score, abs=1e-6)
    assert {answer.method for answer in answers[20:]} == {"cam", "occlusion"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "gradcam"}, "method must be one of auto, cam, occlusion"),
        ({"index": 3}, "index must be from 0 to 2"),
        ({"index": -1}, "index must be from 0 to 2"),
    ],
)
async def test_what_cannot_be_explained_is_refused(classifier, options, said):
    with pytest.raises(RequestError, match=said) as refused:
        await classifier.explain(draw(red=(0, 0)), ExplainOptions(**options))
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT


async def test_a_model_without_a_map_is_explained_by_covering(tiny_bundle_repository, metrics):
    classifier = Classifier.build(Settings(model_repository=tiny_bundle_repository), metrics)
    try:
        found = await classifier.explain(draw(red=(0, 0)), ExplainOptions())
        assert found.method == "occlusion"
        with pytest.raises(RequestError, match="no class activation map"):
            await classifier.explain(draw(red=(0, 0)), ExplainOptions(method="cam"))
    finally:
        await classifier.close()


async def test_an_explanation_keeps_its_deadline_and_its_place_in_the_queue(repository, metrics):
    settings = Settings(model_repository=repository, max_queue_views=49)
    classifier = Classifier.build(settings, metrics)
    try:
        with pytest.raises(RequestError) as refused:
            await classifier.explain(draw(red=(0, 0)), ExplainOptions(method="occlusion"))
        assert refused.value.code is ErrorCode.OVERLOADED
        with pytest.raises(RequestError) as refused:
            await classifier.explain(draw(red=(0, 0)), ExplainOptions(timeout_ms=0))
        assert refused.value.code is ErrorCode.DEADLINE_EXCEEDED
    finally:
        await classifier.close()


@pytest.fixture
async def edges(classifier, make_settings, metrics, serving_grpc):
    settings = make_settings()
    app = build_http_app(classifier, metrics, settings)
    transport = httpx.ASGITransport(app)
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://fivecrop") as http,
        serving_grpc(classifier, metrics, settings) as serving,
    ):
        yield http, stubs.ImageClassifierStub(serving.channel)


async def test_numbers_are_the_same_over_http_and_grpc(edges):
    http, grpc = edges
    image = draw(green=(8, 40))
    over_http = (await http.put("/v1/explain?method=cam&index=1", content=image)).json()
    assert over_http["prediction"]["label"] == "green"
    assert over_http["image"] == {"width": 64, "height": 64, "format": "png"}
    evidence = over_http["evidence"]
    assert (evidence["height"], evidence["width"]) == (8, 8)
    answer = await grpc.Explain(messages.ExplainRequest(image=image, method="cam", index=1))
    assert (answer.height, answer.width, answer.method) == (8, 8, "cam")
    np.testing.assert_allclose(
        np.array(answer.values).reshape(8, 8), evidence["values"], rtol=1e-6, atol=1e-6
    )
    assert answer.overlay == b""
    assert answer.timings.total_ms > 0


async def test_a_picture_has_its_colour_where_the_object_is(edges):
    http, grpc = edges
    image = draw(green=(8, 40))
    answer = await http.post("/v1/explain", content=image, headers={"Accept": "image/png"})
    assert answer.headers["content-type"] == "image/png"
    assert "total;dur=" in answer.headers["server-timing"]
    with Image.open(io.BytesIO(answer.content)) as opened:
        picture = np.asarray(opened.convert("RGB"), np.int16)
    assert picture.shape == (256, 256, 3)
    saturation = picture.max(axis=2) - picture.min(axis=2)
    inside = saturation[176:208, 48:80]
    assert inside.min() > 50
    assert saturation[:64, 128:].max() == 0
    over_grpc = await grpc.Explain(messages.ExplainRequest(image=image, overlay=True))
    assert over_grpc.overlay == answer.content


@pytest.mark.parametrize(
    ("query", "code"),
    [("index=x", 400), ("top_k=3", 400), ("method=", 400), ("index=7", 400), ("model=no", 404)],
)
async def test_bad_options_are_refused(edges, query, code):
    http, _ = edges
    answer = await http.post(f"/v1/explain?{query}", content=draw(red=(0, 0)))
    assert answer.status_code == code


async def test_one_image_is_explained_at_a_time_in_any_form_of_body(edges):
    http, _ = edges
    image = draw(red=(0, 0))
    one = await http.post("/v1/explain", files=[("image", image)])
    assert one.json()["prediction"]["label"] == "red"
    two = await http.post("/v1/explain", files=[("image", image), ("image", image)])
    assert (two.status_code, two.json()["code"]) == (400, "invalid_argument")
    bad = await http.post("/v1/explain", json={"images": ["***"]})
    assert (bad.status_code, bad.json()["code"]) == (400, "bad_base64")
    text = await http.post("/v1/explain", content=b"no image")
    assert (text.status_code, text.json()["code"]) == (415, "unsupported_media")
