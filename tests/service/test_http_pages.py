"""The pages for people: what they may do, what they know, and how they are switched off."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from urllib.parse import urljoin

import httpx
import numpy as np
import pytest
from PIL import Image

from service import http_pages
from service.bundle.preprocess import TTA_POLICIES, View, prepare
from service.bundle.repository import read_bundle
from service.classifier import Classifier
from service.errors import ErrorCode
from service.http_api import build_http_app

WEB = Path(http_pages.__file__).parent / "web"
SVG = "http://www.w3.org/2000/svg"  # a name, not an address
FILES = sorted(path for path in WEB.rglob("*") if path.is_file())


@pytest.fixture
def open_pages(stub_classifier, metrics, make_settings):
    """`open_pages(**settings)`: a client of a service with these settings."""

    def make(**settings):
        app = build_http_app(stub_classifier, metrics, make_settings(**settings))
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://fivecrop")

    return make


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
async def test_a_page_runs_no_text_as_code_and_reaches_nothing_but_this_service(open_pages, file):
    text = file.read_text()
    assert "://" not in text.replace(SVG, "")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    if file.suffix == ".html":
        assert not re.search(r"<script>|<style|\sstyle=|\son\w+=", text)
    path = file.relative_to(WEB).as_posix()
    address = {"playground.html": "/", "docs.html": "/docs"}.get(path, f"/{path}")
    async with open_pages() as client:
        response = await client.get(address)
    assert response.status_code == 200
    assert response.text == text
    assert "default-src 'none'; script-src 'self';" in response.headers["content-security-policy"]


async def test_every_file_that_a_page_names_is_there(open_pages):
    async with open_pages() as client:
        for page in ("/", "/docs"):
            text = (await client.get(page)).text
            named = re.findall(r"(?:src|href)=\"([^#\"]+)\"", text)
            assert named
            for name in named:
                assert (await client.get(urljoin(page, name))).status_code == 200, name
    for script in (WEB / "playground").glob("*.js"):
        for name in re.findall(r"from \"\./([\w.]+)\"", script.read_text()):
            assert (WEB / "playground" / name).is_file(), name


async def test_the_page_knows_the_server_without_a_key(open_pages, tmp_path):
    keys = tmp_path / "keys.json"
    for settings, needs_key in (({}, False), ({"api_keys": keys}, True)):
        async with open_pages(grpc_port=4242, **settings) as client:
            told = (await client.get("/playground.json")).json()
        assert told["needs_key"] is needs_key
        assert told["grpc_port"] == 4242
        assert {one["name"]: one["views"] for one in told["tta"]} == {
            name: len(views) for name, views in TTA_POLICIES.items()
        }
        for one in told["tta"]:
            assert TTA_POLICIES[one["name"]][one["centre"]] == View()


async def test_switched_off_nothing_of_the_playground_is_there(open_pages):
    async with open_pages(playground=False) as client:
        front = await client.get("/", follow_redirects=True)
        assert front.url.path == "/docs"
        for path in ("/playground", "/playground.json", "/playground/page.js"):
            assert (await client.get(path)).json()["code"] == "not_found"


def test_the_page_has_advice_for_every_error_code():
    text = (WEB / "playground/problems.js").read_text()
    table = text.split("export const ADVICE = {")[1].split("};")[0]
    assert set(re.findall(r"^  (\w+): \[", table, re.M)) == set(ErrorCode)


def lying_noise():
    """A JPEG of noise whose EXIF says that the camera was held upright."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    return file.getvalue()


async def test_the_views_of_an_answer_are_what_the_network_saw(
    tiny_bundle_repository, make_settings, metrics
):
    settings = make_settings(model_repository=tiny_bundle_repository)
    classifier = Classifier.build(settings, metrics)
    transport = httpx.ASGITransport(build_http_app(classifier, metrics, settings))
    image = lying_noise()
    preprocess = read_bundle(tiny_bundle_repository / "digits-linear/1").manifest.preprocess
    async with httpx.AsyncClient(transport=transport, base_url="http://fivecrop") as client:
        for tta, policy in TTA_POLICIES.items():
            answer = await client.post(f"/v1/classify?views=true&tta={tta}", content=image)
            shown = [
                np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
                for png in answer.json()["views"]
            ]
            seen = prepare(image, preprocess, tta=tta, limits=settings.image_limits()).views
            assert len(shown) == len(policy)
            np.testing.assert_array_equal(shown, seen)
        for query in ("", "?views=false"):
            answer = await client.post(f"/v1/classify{query}", content=image)
            assert "views" not in answer.json()
        bad = await client.post("/v1/classify?views=yes", content=image)
        assert bad.json()["code"] == "invalid_argument"
    await classifier.close()


async def test_a_model_card_is_the_one_of_the_bundle(
    tiny_bundle_repository, make_settings, metrics
):
    settings = make_settings(model_repository=tiny_bundle_repository)
    classifier = Classifier.build(settings, metrics)
    transport = httpx.ASGITransport(build_http_app(classifier, metrics, settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://fivecrop") as client:
        answer = await client.get("/v1/models/digits-linear@1/card")
        unknown = await client.get("/v1/models/nobody/card")
        queried = await client.get("/v1/models/digits-linear/card?page=2")
    assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
    assert answer.text == (tiny_bundle_repository / "digits-linear/1/MODEL_CARD.md").read_text()
    assert unknown.json()["code"] == "model_not_found"
    assert queried.json()["code"] == "invalid_argument"
    await classifier.close()


async def test_a_model_without_a_card_says_so(open_pages):
    async with open_pages() as client:
        answer = await client.get("/v1/models/toy/card")
    assert (answer.status_code, answer.json()["detail"]) == (404, "this model has no card")
