"""Capacity on paper: the arithmetic, and that the documentation has its table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.capacity import (
    Cluster,
    Costs,
    bounds,
    find_last_node,
    find_rate,
    make_table,
    straggler_share,
)

COSTS = Costs(cpu_ms=10, image_bytes=100_000, rows_per_second=70_000)


def test_cores_count_until_something_shared_is_used_up():
    cluster = Cluster(cores=8, gets_per_second=5_500)
    assert find_rate(1, COSTS, cluster) == (800, "cores")
    assert find_rate(6, COSTS, cluster) == (4_800, "cores")
    assert find_rate(7, COSTS, cluster) == (5_500, "requests to the store")
    assert find_last_node(COSTS, cluster) == 6


def test_shards_make_the_writer_the_bound_and_jobs_of_their_own_take_that_away():
    shards = Cluster(images_per_get=1_000)
    assert find_rate(1_000, COSTS, shards) == (70_000, "the program that writes")
    assert find_last_node(COSTS, shards) == 87
    apart = Cluster(images_per_get=1_000, is_one_job=False)
    assert find_rate(1_000, COSTS, apart) == (800_000, "cores")


def test_cheap_images_are_bound_by_the_network_of_the_nodes():
    cheap = Costs(cpu_ms=0.1, image_bytes=10e6)
    assert find_rate(1, cheap, Cluster()) == (125, "network of the nodes")
    assert bounds(2, cheap, Cluster())["network of the nodes"] == 250


def test_one_node_waits_for_nobody():
    assert straggler_share(1, 0.1) == 0
    assert straggler_share(64, 0.1) == pytest.approx(0.288, abs=0.001)


def test_the_documentation_has_this_table():
    text = (Path(__file__).parents[2] / "docs/offline-scoring.md").read_text()
    assert make_table() in text
