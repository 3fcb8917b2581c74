"""A new version on a part of the traffic of a server with two workers."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter

import psutil
import pytest
from PIL import Image

from service.api_keys import KeyRing, KeyScope, make_key, write_keys
from service.service_client import ServiceClient

pytestmark = pytest.mark.e2e
NAME = "digits-linear"


@pytest.fixture
def on_trial(growing_repository, start_server, tmp_path, wait_until):
    """A server of two workers; half of the traffic goes to a version that fails on white images."""
    key, kept = make_key(KeyScope)
    write_keys(tmp_path / "keys.json", KeyRing(keys=(kept,)))
    server = start_server(
        growing_repository.folder, workers=2, drain_s=0, api_keys=tmp_path / "keys.json"
    ).wait_ready()
    server.admin = ServiceClient(f"http://127.0.0.1:{server.http_port}", key)
    server.key = key
    server.admin.ask("PUT", f"/v1/models/{NAME}/labels/stable", {"version": 1})
    growing_repository.publish(2, fails_on_white=True)
    server.admin.ask("PUT", f"/v1/models/{NAME}/labels/canary", {"version": 2})
    server.admin.ask("PUT", f"/v1/models/{NAME}/split", {"shares": {"canary": 0.5}})
    return server


def ask(server, image, **headers):
    """(status, version) of a request on a connection of its own, so of any worker."""
    headers = {"Authorization": f"Bearer {server.key}", "Connection": "close", **headers}
    with contextlib.closing(server.connect()) as connection:
        connection.request("POST", f"/v1/classify?model={NAME}", image, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()).get("version")


def counted_by(pid):
    """Requests under the split that one worker alone counted, by version and result."""
    from prometheus_client.multiprocess import MultiProcessCollector

    folder = psutil.Process(pid).environ()["PROMETHEUS_MULTIPROC_DIR"]
    merged = MultiProcessCollector.merge([f"{folder}/counter_{pid}.db"], accumulate=False)
    return {
        (sample.labels["version"], sample.labels["result"]): int(sample.value)
        for family in merged
        for sample in family.samples
        if sample.name == "fivecrop_split_requests_total"
    }


def white():
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (255, 255, 255)).save(file, "PNG")
    return file.getvalue()


def test_every_worker_splits_the_traffic_alike(on_trial, growing_repository, wait_until):
    image, seen = growing_repository.image, Counter()

    def both_answered():
        status, version = ask(on_trial, image)
        assert status == 200
        seen[version] += 1
        counts = [counted_by(pid) for pid in on_trial.worker_pids()]
        return all(min(one.get((v, "ok"), 0) for v in "12") > 10 for one in counts)

    wait_until(both_answered, "each worker has sent images to each version")
    assert 0.3 < seen[2] / seen.total() < 0.7
    for user in range(6):
        versions = {ask(on_trial, image, **{"X-Sticky-Key": f"user {user}"}) for _ in range(8)}
        assert len(versions) == 1


def test_a_version_that_fails_is_taken_back_by_all_workers_at_once(
    on_trial, growing_repository, wait_until
):
    ended = Counter()

    def is_rolled_back():
        ended[ask(on_trial, white())[0]] += 1
        return on_trial.stderr.count("is rolled back") > 0

    wait_until(is_rolled_back, "the canary is rolled back")
    # Each worker judges by what it has seen itself: at most ten failures of each, and some on the
    # way while the orders are written.
    assert 10 <= ended[500] <= 40, ended
    before = [counted_by(pid).get(("2", "failed"), 0) for pid in on_trial.worker_pids()]
    for _ in range(60):
        assert ask(on_trial, white()) == (200, 1)
    assert [counted_by(pid).get(("2", "failed"), 0) for pid in on_trial.worker_pids()] == before
    (trial,) = on_trial.admin.ask("GET", "/v1/models")["trials"]
    assert trial["split"] is None
    assert (trial["rolled_back"]["version"], trial["rolled_back"]["to_version"]) == (2, 1)
    orders = json.loads((growing_repository.folder / ".orders.json").read_text())
    assert orders["models"][NAME]["labels"] == {"stable": 1, "canary": 1}
    assert on_trial.stderr.count("is rolled back") == 1
    report = on_trial.admin.ask("GET", f"/v1/models/{NAME}/report")
    failed = {one["version"]: one["failed"] for one in report["versions"]}
    assert failed == {1: 0, 2: ended[500]}
