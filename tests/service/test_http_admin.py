"""The routes that change what serves: what they ask for and what they answer."""

from __future__ import annotations

import httpx
import pytest
from pydantic import TypeAdapter

from service import http_schema
from service.api_keys import KeyScope
from service.http_api import build_http_app
from service.http_trial import TrialReport

NAME = "digits-linear"
MODEL = f"/v1/models/{NAME}"


@pytest.fixture
async def connect(administered):
    """Returns `connect(*scopes)`: a client of the HTTP edge over the growing repository."""

    async def connect(*scopes):
        return (await administered(*scopes)).http

    return connect


def versions(response):
    assert response.status_code == 200, response.text
    document = TypeAdapter(http_schema.Models).validate_json(response.content)
    return [model["version"] for model in document["models"]]


def check_problem(response, status, code):
    assert (response.status_code, response.json()["code"]) == (status, code), response.text


async def test_a_version_is_rolled_out_step_by_step(connect, growing_repository):
    client = await connect()
    assert versions(await client.put(f"{MODEL}/labels/stable", json={"version": 1})) == [1]
    growing_repository.publish(2)
    assert versions(await client.put(f"{MODEL}/labels/canary", json={"version": 2})) == [1, 2]
    for reference, version in (("", 1), (f"?model={NAME}@canary", 2), (f"?model={NAME}", 1)):
        answer = await client.post(f"/v1/classify{reference}", content=growing_repository.image)
        assert answer.json()["version"] == version
        best = answer.json()["predictions"][0]["index"]
        assert best == growing_repository.expected_class(version)
    assert versions(await client.put(f"{MODEL}/labels/stable", json={"version": 2})) == [2]
    shown = (await client.get(f"{MODEL}@canary")).json()
    assert (shown["version"], shown["version_labels"]) == (2, ["canary", "stable"])
    assert versions(await client.delete(f"{MODEL}/labels/canary")) == [2]
    check_problem(await client.get(f"{MODEL}@canary"), 404, "model_not_found")


async def test_a_split_is_ordered_shown_and_ended(connect, growing_repository):
    client = await connect()
    await client.put(f"{MODEL}/labels/stable", json={"version": 1})
    growing_repository.publish(2)
    await client.put(f"{MODEL}/labels/canary", json={"version": 2})
    answer = await client.put(f"{MODEL}/split", json={"shares": {"canary": 0.5}})
    assert versions(answer) == [1, 2]
    assert answer.json()["trials"] == [
        {
            "name": NAME,
            "split": {"shares": {"canary": 0.5}, "max_error_excess": 0.02},
            "shadow": None,
            "rolled_back": None,
        }
    ]
    seen = {}
    for user in 2 * list(range(20)):
        headers = {"x-sticky-key": f"user {user}"}
        answer = await client.post(
            "/v1/classify", content=growing_repository.image, headers=headers
        )
        assert seen.setdefault(user, answer.json()["version"]) == answer.json()["version"]
    assert set(seen.values()) == {1, 2}
    await client.put(f"{MODEL}/shadow", json={"target": "2", "share": 0.5})
    report = TypeAdapter(TrialReport).validate_json((await client.get(f"{MODEL}/report")).content)
    assert report["trial"]["shadow"] == {"target": "2", "share": 0.5}
    assert sum(one["answered"] for one in report["versions"]) == 40
    await client.delete(f"{MODEL}/shadow")
    answer = await client.delete(f"{MODEL}/split")
    assert (versions(answer), answer.json()["trials"]) == ([1, 2], [])


async def test_load_unload_and_reload_answer_with_what_serves_then(connect, growing_repository):
    client = await connect()
    growing_repository.publish(2)
    assert versions(await client.post(f"{MODEL}/versions/2:load")) == [2]
    assert versions(await client.post(f"{MODEL}/versions/1:load")) == [1, 2]
    assert versions(await client.post(f"{MODEL}/versions/2:unload")) == [1]
    answer = await client.post(f"/v1/classify?model={NAME}@2", content=growing_repository.image)
    check_problem(answer, 404, "model_not_found")
    assert versions(await client.post(f"{MODEL}:load")) == [1, 2]
    growing_repository.publish(3)
    assert versions(await client.post(f"{MODEL}:reload")) == [1, 3]
    assert versions(await client.post(f"{MODEL}:unload")) == []
    check_problem(await client.get(MODEL), 404, "model_not_found")
    answer = await client.post("/v1/classify", content=growing_repository.image)
    check_problem(answer, 404, "model_not_found")


async def test_a_failed_load_is_a_conflict_and_shown_with_its_reason(connect, growing_repository):
    client = await connect()
    growing_repository.publish_broken(2)
    answer = await client.post(f"{MODEL}/versions/2:load")
    check_problem(answer, 409, "model_load_failed")
    shown = (await client.get("/v1/models")).json()
    assert [model["version"] for model in shown["models"]] == [1]
    (failed,) = shown["unavailable"]
    assert (failed["name"], failed["version"], failed["state"]) == (NAME, 2, "failed")
    assert failed["reason"] in answer.json()["detail"]
    assert str(growing_repository.folder) not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/models/absent:load", b"", 404, "model_not_found"),
        ("POST", "/v1/models/..%2fetc:load", b"", 404, "not_found"),
        ("POST", f"{MODEL}/versions/9:load", b"", 404, "model_not_found"),
        ("POST", f"{MODEL}/versions/01:load", b"", 404, "model_not_found"),
        ("POST", f"{MODEL}/versions/-1:unload", b"", 404, "model_not_found"),
        ("POST", f"{MODEL}/versions/{'9' * 30}:load", b"", 404, "model_not_found"),
        ("POST", f"{MODEL}:load", b"{}", 400, "invalid_argument"),
        ("POST", f"{MODEL}:load?force=1", b"", 400, "invalid_argument"),
        ("POST", f"{MODEL}:load", b"x" * 2000, 413, "body_too_large"),
        ("POST", f"{MODEL}:explode", b"", 405, "method_not_allowed"),
        ("PUT", f"{MODEL}/labels/latest", b'{"version": 1}', 400, "invalid_argument"),
        ("PUT", f"{MODEL}/labels/canary", b'{"version": 9}', 404, "model_not_found"),
        ("PUT", f"{MODEL}/labels/canary", b'{"version": true}', 400, "invalid_argument"),
        ("PUT", f"{MODEL}/labels/canary", b'{"version": "1"}', 400, "invalid_argument"),
        ("PUT", f"{MODEL}/labels/canary", b'{"version": 1, "x": 2}', 400, "invalid_argument"),
        ("PUT", f"{MODEL}/labels/canary", b'{"version": 0}', 400, "invalid_argument"),
        ("PUT", f"{MODEL}/labels/canary", b"[" * 1000, 400, "invalid_argument"),
        ("PUT", f"{MODEL}/labels/canary", b"", 400, "invalid_argument"),
        ("GET", f"{MODEL}/labels/canary", b"", 405, "method_not_allowed"),
        ("PUT", f"{MODEL}/split", b'{"shares": {"canary": 0.5}}', 404, "model_not_found"),
        ("PUT", f"{MODEL}/split", b'{"shares": {"stable": 0.5}}', 400, "invalid_argument"),
        ("PUT", f"{MODEL}/split", b'{"shares": {"1": 0.6, "2": 0.6}}', 400, "invalid_argument"),
        ("PUT", f"{MODEL}/split", b'{"shares": {"1": -0.1}}', 400, "invalid_argument"),
        ("PUT", f"{MODEL}/split", b'{"shares": {"1": NaN}}', 400, "invalid_argument"),
        ("PUT", f"{MODEL}/split", b'{"shares": {"../x": 0.1}}', 400, "invalid_argument"),
        ("PUT", f"{MODEL}/split", b'{"shares": {}}', 400, "invalid_argument"),
        ("PUT", f"{MODEL}/split", b'{"shares": {"1": 0.1}, "x": 1}', 400, "invalid_argument"),
        ("PUT", f"{MODEL}/split", b"[" * 1000, 400, "invalid_argument"),
        ("PUT", "/v1/models/absent/split", b'{"shares": {"1": 0.5}}', 404, "model_not_found"),
        ("DELETE", "/v1/models/absent/split", b"", 404, "model_not_found"),
        ("PUT", f"{MODEL}/shadow", b'{"target": "canary"}', 404, "model_not_found"),
        ("PUT", f"{MODEL}/shadow", b'{"target": "1", "share": 2}', 400, "invalid_argument"),
        ("PUT", f"{MODEL}/shadow", b'{"share": 0.5}', 400, "invalid_argument"),
        ("GET", "/v1/models/absent/report", b"", 404, "model_not_found"),
        ("GET", f"{MODEL}/report?x=1", b"", 400, "invalid_argument"),
        ("POST", f"{MODEL}:promote", b"", 404, "model_not_found"),
        ("POST", f"{MODEL}:promote", b'{"target": "1"}', 409, "promotion_refused"),
        ("POST", f"{MODEL}:promote", b'{"min_samples": -1}', 400, "invalid_argument"),
    ],
)
async def test_a_bad_request_is_refused_with_its_code_and_changes_nothing(
    connect, method, path, body, status, code
):
    client = await connect()
    check_problem(await client.request(method, path, content=body), status, code)
    assert versions(await client.get("/v1/models")) == [1]


async def test_a_key_without_the_scope_changes_nothing(connect):
    client = await connect(KeyScope.INFER, KeyScope.METRICS)
    for method, path in [
        ("POST", f"{MODEL}:load"),
        ("POST", f"{MODEL}:unload"),
        ("POST", f"{MODEL}:reload"),
        ("POST", f"{MODEL}/versions/1:load"),
        ("POST", f"{MODEL}/versions/1:unload"),
        ("PUT", f"{MODEL}/labels/stable"),
        ("DELETE", f"{MODEL}/labels/stable"),
        ("PUT", f"{MODEL}/split"),
        ("DELETE", f"{MODEL}/split"),
        ("PUT", f"{MODEL}/shadow"),
        ("DELETE", f"{MODEL}/shadow"),
        ("GET", f"{MODEL}/report"),
        ("POST", f"{MODEL}:promote"),
    ]:
        check_problem(await client.request(method, path), 403, "forbidden")
    assert versions(await client.get("/v1/models")) == [1]


async def test_without_keys_nobody_changes_anything(stub_classifier, metrics, make_settings):
    app = build_http_app(stub_classifier, metrics, make_settings())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        check_problem(await client.post("/v1/models/toy:unload"), 403, "forbidden")
