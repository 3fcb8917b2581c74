"""Whose turn it is while traffic is split, and when a version has failed too often."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.error_watch import ErrorWatch
from service.traffic import Branch, Traffic

KEYS = [f"user {number}".encode() for number in range(4000)]


def split(metrics, **shares):
    """Traffic over these shares; the rest goes to the stable version."""
    shares["stable"] = 1 - sum(shares.values())
    return Traffic(
        [
            Branch(target=name, model=SimpleNamespace(name="m", version=1), share=share)
            for name, share in shares.items()
            if share > 0
        ],
        metrics,
    )


def count(traffic, keys):
    counts = dict.fromkeys((branch.target for branch in traffic.branches), 0)
    for key in keys:
        counts[traffic.choose(key).target] += 1
    return counts


@pytest.mark.parametrize("keys", [[None] * len(KEYS), KEYS])
@pytest.mark.parametrize("shares", [{"canary": 0.1}, {"canary": 0.2, "other": 0.5}, {"canary": 1}])
def test_shares_are_kept_by_chance_and_by_key(metrics, shares, keys):
    counts = count(split(metrics, **shares), keys)
    for target, share in shares.items():
        # Five standard deviations: one run in a million and a half fails by chance.
        spread = 5 * (share * (1 - share) * len(keys)) ** 0.5
        assert counts[target] == pytest.approx(share * len(keys), abs=spread + 1e-9)


def test_a_key_stays_and_a_growing_share_only_takes(metrics):
    before = [split(metrics, canary=0.1).choose(key).target for key in KEYS]
    assert before == [split(metrics, canary=0.1).choose(key).target for key in KEYS]
    after = [split(metrics, canary=0.3).choose(key).target for key in KEYS]
    moved = {(old, new) for old, new in zip(before, after, strict=True) if old != new}
    assert moved == {("stable", "canary")}


def test_other_people_try_what_is_new_of_another_model(metrics):
    chosen = []
    for name in ("a", "b"):
        model = SimpleNamespace(name=name, version=1)
        traffic = Traffic(
            [
                Branch(target="canary", model=model, share=0.5),
                Branch(target="", model=model, share=0.5),
            ],
            metrics,
        )
        chosen.append([traffic.choose(key).target for key in KEYS])
    same = sum(a == b for a, b in zip(*chosen, strict=True))
    assert same == pytest.approx(len(KEYS) / 2, abs=200)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def blamed():
    return []


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watch(blamed, clock):
    return ErrorWatch(0.02, lambda *words: blamed.append(words), clock)


def feed(watch, target, ok, failed):
    for number in range(ok + failed):
        watch.note(target, is_failure=number >= ok)


def test_a_version_that_only_fails_is_blamed_after_ten_requests(watch, blamed):
    feed(watch, "", 90, 0)
    feed(watch, "canary", 0, 9)
    assert blamed == []
    feed(watch, "canary", 0, 1)
    said = "10 of 10 requests failed, 0 of 90 of the stable version"
    assert blamed == [("canary", said)]


def test_who_fails_as_often_as_the_stable_version_is_not_blamed(watch, blamed):
    feed(watch, "", 500, 500)
    feed(watch, "canary", 50, 50)
    assert blamed == []


def test_a_single_failure_is_no_proof(watch, blamed):
    feed(watch, "", 1000, 0)
    feed(watch, "canary", 30, 1)
    assert blamed == []


def test_what_happened_more_than_a_minute_ago_is_forgotten(watch, blamed, clock):
    feed(watch, "canary", 0, 9)
    clock.now = 61.0
    feed(watch, "canary", 0, 9)
    assert blamed == []


@given(
    stable=st.tuples(st.integers(0, 300), st.integers(0, 300)),
    canary=st.tuples(st.integers(0, 300), st.integers(0, 300)),
)
def test_nobody_is_blamed_whose_rate_is_within_the_excess(stable, canary):
    blamed = []
    watch = ErrorWatch(0.02, lambda *words: blamed.append(words), lambda: 0.0)
    feed(watch, "", *stable)
    # Failures last, so that the final rate is the worst of the run.
    feed(watch, "canary", *canary)
    rates = [failed / max(1, ok + failed) for ok, failed in (stable, canary)]
    if rates[1] <= rates[0] + 0.02:
        assert not blamed
