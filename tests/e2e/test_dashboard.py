"""Every line of the dashboard is drawn from what a real Prometheus scrapes off a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from live_prometheus import LivePrometheus

from service.api_keys import KeyRing, KeyScope, make_key, write_keys

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
PANELS = json.loads((ROOT / "compose/grafana/dashboards/fivecrop.json").read_text())["panels"]
NAME = "digits-linear"


@pytest.fixture
def key(tmp_path):
    text, kept = make_key(KeyScope)
    write_keys(tmp_path / "keys.json", KeyRing(keys=(kept,)))
    return text


@pytest.fixture
def server(start_server, growing_repository, tmp_path, key):
    """A server whose canary gets a share of the traffic, and a shadow all of it; beside a GPU."""
    growing_repository.publish(2)
    server = start_server(
        growing_repository.folder,
        api_keys=tmp_path / "keys.json",
        models=f"{NAME}@1",
        environment={"PYTHONPATH": str(ROOT / "tests/tables/gpu_stand_in")},
    ).wait_ready()
    server.headers = {"Authorization": f"Bearer {key}"}
    for path, body in (
        ("labels/stable", {"version": 1}),
        ("labels/canary", {"version": 2}),
        ("split", {"shares": {"canary": 0.5}}),
        ("shadow", {"target": "canary"}),
    ):
        connection = server.connect()
        connection.request("PUT", f"/v1/models/{NAME}/{path}", json.dumps(body), server.headers)
        assert connection.getresponse().status == 200, path
        connection.close()
    return server


@pytest.fixture
def scoring_port(growing_repository, tmp_path, unused_ports):
    """The port of the metrics of a scoring job that has much to do."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(20_000):
        (photos / f"{number}.png").write_bytes(growing_repository.image)
    (port,) = unused_ports(1)
    job = subprocess.Popen(
        [
            *(Path(sys.executable).with_name("fivecrop"), "score", photos, "--workers", "1"),
            *("--model", NAME, "--model-repository", growing_repository.folder),
            *("--out", tmp_path / "scores", "--metrics-address", f"127.0.0.1:{port}"),
        ],
        env={**os.environ, "HOME": str(tmp_path)},
    )
    yield port
    job.terminate()
    job.wait(60)


def test_every_line_shows_something(
    server, scoring_port, growing_repository, key, tmp_path, unused_ports, wait_until
):
    image = growing_repository.image
    drawn = [
        target["expr"].replace("$__rate_interval", "1m")
        for panel in PANELS
        for target in panel["targets"]
    ]
    assert len(drawn) > 25
    (port,) = unused_ports(1)
    targets = [server.http_port, scoring_port]
    with LivePrometheus(tmp_path, port, targets, key=key, with_rules=True) as prometheus:
        # Drift is measured once there are a few answers.
        for _ in range(200):
            server.classify(image, server.headers)
        empty = drawn

        def are_all_drawn():
            nonlocal empty
            server.classify(image, server.headers)
            empty = [one for one in empty if not prometheus.ask(one)]
            return not empty

        try:
            wait_until(are_all_drawn, "each line is drawn", 120)
        except AssertionError as error:
            raise AssertionError(f"nothing is drawn of {empty}") from error
        heat = [panel["targets"][0]["expr"] for panel in PANELS if panel["type"] == "heatmap"]

        def is_hot():
            server.classify(image, server.headers)
            return all(
                any(float(series["value"][1]) > 0 for series in prometheus.ask(one))
                for one in (line.replace("$__rate_interval", "1m") for line in heat)
            )

        wait_until(is_hot, "the heatmaps have heat", 60)
