"""SIGTERM under load fails no request; the same stop without the drain does."""

from __future__ import annotations

import os
import signal

import pytest

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("workers", [1, 2])
def test_drain_under_load_fails_no_request(start_server, traffic, end_in_order, workers):
    server = start_server(drain_s=4, workers=workers).wait_ready()
    with traffic(server) as sent:
        code, _ = end_in_order(server)
        sent.wait_noticed()
    assert sent.failed == {}, sent.errors[:5]
    assert min(sent.answered.values()) > 5
    assert code == 0
    assert "Traceback" not in server.stderr


def test_stop_without_the_drain_fails_requests(start_server, traffic, end_in_order):
    """The control: the same load, balancer and server, only no time to look away."""
    server = start_server(drain_s=0).wait_ready()
    with traffic(server) as sent:
        code, _ = end_in_order(server)
        sent.wait_noticed()
    assert sent.failed["new"] > 0
    assert sent.failed["grpc"] > 0
    assert code == 0


def test_draining_server_says_not_ready_and_still_answers(start_server, wait_until, image):
    server = start_server(drain_s=8).wait_ready()
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.get("/readyz")[0] == 503, "readiness says no")
    assert server.health() == "NOT_SERVING"
    assert server.classify(image)["predictions"]
    assert server.classify_grpc(image).predictions
    assert server.get("/livez")[0] == 200
    assert server.wait_ended() == 0


def test_draining_server_closes_kept_connections(start_server, wait_until, image):
    server = start_server(drain_s=8).wait_ready()
    connection = server.connect()
    connection.request("POST", "/v1/classify", image)
    answer = connection.getresponse()
    answer.read()
    assert answer.headers["connection"] is None
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.get("/readyz")[0] == 503, "readiness says no")
    connection.request("POST", "/v1/classify", image)
    answer = connection.getresponse()
    answer.read()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    connection.close()


def test_second_sigterm_changes_nothing(start_server, wait_until, image):
    server = start_server(drain_s=5).wait_ready()
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.get("/readyz")[0] == 503, "readiness says no")
    server.process.send_signal(signal.SIGTERM)
    assert server.classify(image)["predictions"]
    assert server.wait_ended() == 0


def test_worker_that_hangs_is_killed_at_the_end_of_its_grace(start_server, end_in_order):
    server = start_server(drain_s=0, shutdown_grace_s=0).wait_ready()
    (worker,) = server.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    code, seconds = end_in_order(server)
    assert code == 1
    assert seconds < 60
