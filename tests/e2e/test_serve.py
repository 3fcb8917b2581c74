"""A server as its users meet it: where it says it is, and that every way in gives one answer."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess

import psutil
import pytest

pytestmark = pytest.mark.e2e


def test_start_ends_with_one_line_that_says_where_everything_is(server):
    line = server.stderr.strip().splitlines()[-1]
    http = f"http://127.0.0.1:{server.http_port}"
    assert line == (
        f"fivecrop is ready: HTTP {http}/v1/classify  gRPC 127.0.0.1:{server.grpc_port}"
        f"  docs {http}/docs  metrics {http}/metrics"
    )


def test_server_is_ready_when_it_says_so_and_not_a_moment_later(start_server):
    server = start_server().wait_ready()
    assert server.get("/readyz")[0] == 200
    assert server.health() == "SERVING"


def test_standard_output_and_home_folder_are_left_alone(server):
    assert server.stdout == ""
    assert "bentoml" not in server.stderr
    assert list(server.home.iterdir()) == []  # nor a device id of ONNX Runtime


def test_http_grpc_and_bentoml_client_give_the_same_answer(server, bentoml_client, image):
    over_http = server.classify(image)
    over_grpc = server.classify_grpc(image)
    over_bentoml = bentoml_client.classify(image)
    assert len(over_http["predictions"]) == 5
    assert over_bentoml["predictions"] == over_http["predictions"]
    assert over_bentoml["model"] == over_http["model"] == over_grpc.model == "digits-linear"
    assert [
        {"label": one.label, "index": one.index, "score": one.score}
        for one in over_grpc.predictions
    ] == over_http["predictions"]


def test_bentoml_client_gets_our_error_and_not_a_server_error(bentoml_client):
    with pytest.raises(Exception, match="unsupported_media") as caught:
        bentoml_client.classify(b"not an image at all")
    assert caught.value.error_code == 415


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/livez", "application/json"),
        ("/readyz", "application/json"),
        ("/metrics", "text/plain"),
        ("/openapi.json", "application/json"),
        ("/docs", "text/html"),
    ],
)
def test_our_routes_win_over_those_of_bentoml(server, path, kind):
    status, headers, body = server.get(path)
    assert status == 200
    assert headers["content-type"].startswith(kind)
    assert "x-request-id" in headers  # BentoML's own routes have none
    assert b"bentoml_service" not in body


def test_only_the_schema_that_its_client_reads_is_left_of_bentoml(server):
    schema = json.loads(server.get("/schema.json")[2])
    assert [route["route"] for route in schema["routes"]] == ["/v1/classify"]
    for path in ("/docs.json", "/healthz", "/static_content/index.css"):
        status, headers, _ = server.get(path)
        assert (status, headers["content-type"]) == (404, "application/problem+json")


def test_live_metrics_pass_promtool(server, image):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: scripts/install-system-packages.sh prometheus")
    server.classify(image)
    server.classify_grpc(image)
    scrape = server.get("/metrics")[2]
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=scrape, capture_output=True, check=False
    )
    # promtool calls the units of the usual process metrics into question on some versions.
    complaints = (checked.stdout + checked.stderr).decode().splitlines()
    assert [line for line in complaints if not line.startswith("process_")] == []


def test_keyboard_interrupt_ends_the_server_without_the_drain_wait(start_server, end_in_order):
    server = start_server(drain_s=600).wait_ready()
    code, _ = end_in_order(server, signal.SIGINT)
    assert code == 0
    assert "Traceback" not in server.stderr


def test_workers_do_not_outlive_a_killed_supervisor(start_server, wait_until):
    server = start_server(drain_s=0).wait_ready()
    (worker,) = server.worker_pids()
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not psutil.pid_exists(worker), "the worker ends")


def test_bentoml_can_serve_it_without_us(start_server, wait_until, image):
    server = start_server(through_bentoml=True, drain_s=0)
    wait_until(lambda: _is_ready(server), "bentoml serve is ready")
    assert server.classify(image)["model"] == server.classify_grpc(image).model


def _is_ready(server):
    assert server.process.poll() is None, server.stderr + server.stdout
    try:
        return server.get("/readyz")[0] == 200
    except OSError:
        return False
