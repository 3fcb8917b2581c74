"""Live workers, as their files in the folder of shared metrics tell."""

from __future__ import annotations

from service.live_workers import (
    WorkersCollector,
    count_started_workers,
    forget_worker,
    list_live_workers,
)


def make_files(folder, pid):
    for kind in ("counter", "histogram", "gauge_livesum", "gauge_livemax"):
        (folder / f"{kind}_{pid}.db").touch()


def test_dead_worker_leaves_the_list_and_its_counts_stay(tmp_path):
    make_files(tmp_path, 12)
    make_files(tmp_path, 345)
    assert list_live_workers(tmp_path) == [12, 345]
    forget_worker(tmp_path, 12)
    assert list_live_workers(tmp_path) == [345]
    assert (tmp_path / "counter_12.db").exists()
    assert (tmp_path / "histogram_12.db").exists()


def test_collector_looks_at_each_scrape(tmp_path):
    collector = WorkersCollector(2, lambda: count_started_workers(tmp_path))

    def collect():
        return {metric.name: metric.samples[0].value for metric in collector.collect()}

    assert collect() == {
        "fivecrop_workers_configured": 2,
        "fivecrop_worker_starts": 0,
    }
    make_files(tmp_path, 12)
    make_files(tmp_path, 345)
    forget_worker(tmp_path, 12)
    assert collect()["fivecrop_worker_starts"] == 2
