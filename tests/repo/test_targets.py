"""Which targets of an overload are met, by the rounds that were measured."""

from __future__ import annotations

import pytest

from benchmarks.targets import check_overload

GOOD = {"goodput_ratio": 0.95, "rejects": 9, "reject_p99_ms": 40.0, "recovery_s": 1.0}


def missed(*parts):
    found = check_overload([{"factor": 10.0, **GOOD, **part} for part in parts])
    return [target.name for target in found if not target.is_met]


def test_rounds_that_hold_miss_nothing():
    targets = check_overload([{"factor": factor, **GOOD} for factor in (2.0, 10.0, 2.0)])
    assert [target.is_met for target in targets] == [True] * 6
    assert "goodput over the peak, 2 times offered" in {target.name for target in targets}


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ({"goodput_ratio": 0.79}, "goodput over the peak, 10 times offered"),
        ({"factor": 2.0, "goodput_ratio": 0.89}, "goodput over the peak, 2 times offered"),
        ({"reject_p99_ms": 50.1}, "p99 of rejects, 10 times offered"),
        ({"recovery_s": 5.1}, "recovery after 10 times"),
    ],
)
def test_each_target_can_be_missed(part, name):
    assert missed(part) == [name]


def test_the_median_of_the_rounds_counts():
    assert not missed({"goodput_ratio": 0.7}, {}, {})
    assert missed({"goodput_ratio": 0.7}, {"goodput_ratio": 0.7}, {})


def test_nothing_refused_is_no_target_met():
    assert len(check_overload([{"factor": 10.0, **GOOD, "rejects": 0}])) == 2
