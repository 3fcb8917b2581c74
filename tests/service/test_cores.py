import os

import pytest

from service.cores import count_cores


@pytest.fixture
def many_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)


def test_without_a_quota_every_core_of_the_process_counts(tmp_path, many_cores):
    assert count_cores(tmp_path) == 64


@pytest.mark.parametrize(
    ("content", "cores"), [("200000 100000", 2), ("50000 100000", 1), ("max 100000", 64)]
)
def test_a_cgroup_v2_quota_limits_the_cores(tmp_path, many_cores, content, cores):
    (tmp_path / "cpu.max").write_text(content)
    assert count_cores(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("400000", 4), ("-1", 64)])
def test_a_cgroup_v1_quota_limits_the_cores(tmp_path, many_cores, quota, cores):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    assert count_cores(tmp_path) == cores


def test_a_quota_above_the_cores_adds_none(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    (tmp_path / "cpu.max").write_text("800000 100000")
    assert count_cores(tmp_path) == 2
