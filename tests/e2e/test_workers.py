"""Several workers: shared ports, merged metrics, and no worker's death is the server's."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import grpc
import psutil
import pytest

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def pair(tmp_path_factory, make_server, tiny_bundle_repository):
    """A server of two workers that nobody hurts."""
    with make_server(tmp_path_factory.mktemp("pair"), tiny_bundle_repository, workers=2) as server:
        yield server.wait_ready()


def _counted_by(server, pid):
    """Requests that one worker alone counted, from its own file of the shared metrics."""
    from prometheus_client.multiprocess import MultiProcessCollector

    folder = psutil.Process(pid).environ()["PROMETHEUS_MULTIPROC_DIR"]
    merged = MultiProcessCollector.merge([f"{folder}/counter_{pid}.db"], accumulate=False)
    return sum(
        sample.value
        for family in merged
        for sample in family.samples
        if sample.name == "fivecrop_requests_total"
        and sample.labels["route"].lower().endswith("classify")
    )


def test_metrics_are_those_of_all_workers_whoever_answers(pair, image, wait_until):
    def everyone_answered():
        pair.classify(image)
        pair.classify_grpc(image)
        return all(_counted_by(pair, pid) > 3 for pid in pair.worker_pids())

    wait_until(everyone_answered, "both workers get connections")
    total = sum(_counted_by(pair, pid) for pid in pair.worker_pids())
    scrapes = {
        pair.metric("fivecrop_requests_total", route="/v1/classify")
        + pair.metric("fivecrop_requests_total", route="/fivecrop.v1.ImageClassifier/Classify")
        for _ in range(6)
    }
    assert scrapes == {total}
    # The control: what one worker alone would have shown.
    assert all(_counted_by(pair, pid) < total for pid in pair.worker_pids())


def test_gauges_of_workers_are_not_added_where_a_sum_means_nothing(pair):
    assert pair.metric("fivecrop_model_info", model="digits-linear") == 1
    assert pair.metric("fivecrop_workers_configured") == 2
    assert pair.metric("fivecrop_workers_alive") == 2


def test_killed_worker_takes_nobody_down_and_comes_back(start_server, traffic, wait_until, image):
    server = start_server(workers=2, drain_s=0).wait_ready()
    first, second = server.worker_pids()
    with traffic(server) as sent:
        os.kill(first, signal.SIGKILL)
        before = sum(sent.answered.values())
        # The other worker answers while the first is away.
        wait_until(lambda: sum(sent.answered.values()) > before + 50, "answers go on")
        wait_until(lambda: len(server.worker_pids()) == 2, "a new worker")
        assert second in server.worker_pids()
        wait_until(lambda: server.metric("fivecrop_workers_alive") == 2, "it serves")
    # What the dead worker had in hand is lost: at most one request a client, and one more of gRPC
    # clients, which may send it before they see their connection end.
    assert sum(sent.failed.values()) <= 8, sent.errors[:20]
    assert server.metric("fivecrop_model_info", model="digits-linear") == 1


def test_a_killed_worker_stops_to_listen_before_its_connections_end(pair):
    """gRPC clients that reconnect find the other worker; Linux closes high numbers first."""
    pid = pair.worker_pids()[0]
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            grpc.channel_ready_future(stack.enter_context(pair.channel())).result(timeout=60)
        files = [
            one
            for one in psutil.Process(pid).net_connections("tcp")
            if one.laddr.port == pair.grpc_port
        ]
    listening = [one.fd for one in files if one.status == psutil.CONN_LISTEN]
    connected = [one.fd for one in files if one.status == psutil.CONN_ESTABLISHED]
    assert listening
    assert connected
    assert min(listening) > max(connected)


def test_counts_of_a_dead_worker_stay_and_its_live_gauges_go(start_server, wait_until, image):
    server = start_server(workers=2, drain_s=0).wait_ready()
    for _ in range(20):
        server.classify(image)
    counted = server.metric("fivecrop_requests_total", route="/v1/classify")
    assert counted == 20
    dead = server.worker_pids()[0]
    folder = psutil.Process(dead).environ()["PROMETHEUS_MULTIPROC_DIR"]
    os.kill(dead, signal.SIGKILL)
    wait_until(
        lambda: list(Path(folder).glob(f"gauge_live*_{dead}.db")) == [],
        "its gauges are forgotten",
    )
    assert server.metric("fivecrop_requests_total", route="/v1/classify") == counted


def test_only_worker_killed_makes_new_connections_wait_not_fail(start_server, image):
    server = start_server(drain_s=0).wait_ready()
    (worker,) = server.worker_pids()
    os.kill(worker, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(worker)] if psutil.pid_exists(worker) else [], timeout=10)
    assert server.classify(image)["model"] == "digits-linear"
    assert server.worker_pids() != [worker]


def test_folder_of_the_server_goes_with_it(start_server, end_in_order):
    server = start_server(workers=2, drain_s=0).wait_ready()
    folder = psutil.Process(server.worker_pids()[0]).environ()["PROMETHEUS_MULTIPROC_DIR"]
    code, _ = end_in_order(server)
    assert code == 0
    assert not Path(folder).exists()


def test_workers_capture_into_one_folder_and_write_the_rest_at_their_end(
    start_server, image, end_in_order, wait_until, tmp_path
):
    import pyarrow.parquet as pq

    folder = tmp_path / "captured"
    server = start_server(
        workers=2, drain_s=0, capture_folder=folder, capture_share=1, capture_part_s=1
    ).wait_ready()
    ids = [f"request-{number}" for number in range(40)]
    for name in ids:
        server.classify(image, {"x-request-id": name})
    wait_until(
        lambda: server.metric("fivecrop_capture_images_total", result="written") == 40, "written"
    )
    assert server.metric("fivecrop_capture_bytes") > 0
    server.classify(image, {"x-request-id": "last"})
    assert end_in_order(server)[0] == 0
    parts = list(folder.glob("digits-linear@1/*.parquet"))
    assert len(parts) >= 3
    rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
    assert sorted(row["request_id"] for row in rows) == sorted([*ids, "last"])
