"""A server of several workers over a repository behind a URL: one copy for all, within a size."""

from __future__ import annotations

import os
import signal

import pytest

pytestmark = pytest.mark.e2e
NAME = "digits-linear"


def test_workers_share_one_cache_of_a_bucket_and_follow_it(
    bucket, growing_repository, start_server, wait_until, end_in_order
):
    server = start_server(
        "s3://models/live",
        workers=2,
        drain_s=0,
        model_watch=True,
        model_poll_s=0.5,
        model_cache_mib=1,
    ).wait_ready()
    cache = server.home / ".cache" / "fivecrop"
    image, versions = growing_repository.image, []

    def everybody_answers(version):
        # A connection each: the system deals them out among the workers.
        versions.append({server.classify(image)["version"] for _ in range(12)})
        return versions[-1] == {version}

    def cached():
        found = [path for path in cache.glob(f"*/{NAME}/*") if len(path.parts[-3]) == 64]
        return sorted(int(path.name) for path in found)

    assert everybody_answers(1)
    assert cached() == [1]
    assert server.stderr.count("fetched digits-linear@1") == 1
    for version in (2, 3, 4):
        # As large as the cache: nothing but what serves has room beside it.
        growing_repository.publish(version, padding_mib=1)
        bucket(version)
        wait_until(lambda version=version: everybody_answers(version), f"version {version}")
        assert server.stderr.count(f"fetched digits-linear@{version}") == 1
        freed = f"{NAME}@{version - 1} is drained and freed"
        wait_until(lambda freed=freed: server.stderr.count(freed) == 2, freed)
    assert cached() == [3, 4]  # the one before was in hand when this one came
    # A worker that starts anew takes it from there.
    first, second = server.worker_pids()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: {*server.worker_pids()} - {first, second}, "a new worker")
    wait_until(lambda: server.stderr.count("digits-linear@4 serves") == 3, "it serves")
    wait_until(lambda: server.metric("fivecrop_workers_alive") == 2, "it is counted")
    assert everybody_answers(4)
    assert server.stderr.count("fetched digits-linear@4") == 1
    assert end_in_order(server)[0] == 0
