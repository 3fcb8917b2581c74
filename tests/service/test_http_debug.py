"""What an administrator sees of the settings, and nobody else."""

from __future__ import annotations

import httpx
import pytest

from service.access import AccessControl
from service.api_keys import KeyFile, KeyRing, KeyScope, make_key, write_keys
from service.http_api import build_http_app
from service.http_debug import mask_secrets
from service.settings import Settings


@pytest.fixture
def make_client(tmp_path, stub_classifier, metrics, make_settings):
    """Returns a function from settings to a client with an administrator's key."""
    text, kept = make_key([KeyScope.ADMIN])
    path = tmp_path / "keys.json"
    write_keys(path, KeyRing(keys=(kept,)))

    def make(**given):
        settings = make_settings(api_keys=path, **given)
        control = AccessControl(KeyFile(path))
        app = build_http_app(stub_classifier, metrics, settings, control)
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://fivecrop",
            headers={"x-api-key": text},
        )

    return make


async def test_administrator_sees_every_setting_with_its_secrets_masked(make_client):
    endpoint = "https://user:secret@collector:4318/v1/traces?token=secret"
    async with make_client(traces_endpoint=endpoint, max_queue_views=7) as client:
        response = await client.get("/debug/config")
        assert "/debug/config" in (await client.get("/openapi.json")).json()["paths"]
    shown = response.json()
    assert shown["settings"].keys() == Settings.model_fields.keys()
    assert shown["settings"]["max_queue_views"] == 7
    assert shown["settings"]["traces_endpoint"] == "https://***@collector:4318/v1/traces?***"
    assert shown["log_level"] in {"debug", "info", "warning", "error"}
    assert "secret" not in response.text


async def test_nobody_sees_settings_without_a_key_for_it(make_client, http_client):
    async with make_client() as client:
        response = await client.get("/debug/config", headers={"x-api-key": "fivecrop_x"})
        assert response.json()["code"] == "unauthenticated"
    response = await http_client.get("/debug/config")
    assert response.json()["code"] == "not_found"  # a server without keys has no administrators


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@bucket/models?region=x", "s3://***@bucket/models?***"),
        ("https://host/path", "https://host/path"),
        ("/a/path?no", "/a/path?***"),
        ("a@b", "a@b"),
        ("https://one:1@h,https://two:2@h", "https://***@h,https://***@h"),
    ],
)
def test_what_urls_carry_for_credentials_is_masked(text, shown):
    assert mask_secrets(text) == shown
