"""The rate limit on a clock of the test's own, and where it is asked."""

from __future__ import annotations

import asyncio
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service import rate_limit
from service.access import CALLER
from service.classifier import Classifier, Options
from service.errors import ErrorCode, RequestError
from service.rate_limit import RateLimit
from service.settings import Settings


def test_a_silent_client_has_its_burst_and_then_its_rate():
    limit = RateLimit(units_per_s=10, burst_units=3)
    assert [limit.take("a", 1, 100.0) for _ in range(3)] == [0, 0, 0]
    assert limit.take("a", 1, 100.0) == pytest.approx(0.1)
    assert limit.take("a", 1, 100.1) == 0
    assert limit.take("a", 1, 100.1) > 0


def test_clients_do_not_share():
    limit = RateLimit(units_per_s=1, burst_units=1)
    assert limit.take("a", 1, 0.0) == 0
    assert limit.take("a", 1, 0.0) > 0
    assert limit.take("b", 1, 0.0) == 0


def test_what_is_larger_than_a_burst_passes_once_and_is_waited_off():
    limit = RateLimit(units_per_s=1, burst_units=2)
    assert limit.take("a", 10, 0.0) == 0
    assert limit.take("a", 1, 0.0) == pytest.approx(9.0)
    assert limit.take("a", 1, 9.0) == 0


def test_a_refusal_costs_nothing():
    limit = RateLimit(units_per_s=1, burst_units=1)
    limit.take("a", 1, 0.0)
    waits = [limit.take("a", 1, 0.5) for _ in range(1000)]
    assert waits == [pytest.approx(0.5)] * 1000


def test_clients_are_forgotten_when_they_have_everything_again(monkeypatch):
    limit = RateLimit(units_per_s=1, burst_units=1)
    for number in range(1000):
        limit.take(f"client {number}", 1, 10.0 * number)
    assert len(limit._used_up_at) <= 3
    monkeypatch.setattr(rate_limit, "_MAX_CLIENTS", 50)
    for number in range(1000):
        limit.take(f"other {number}", 1, 10_000.0)
    assert len(limit._used_up_at) <= 51


@given(
    steps=st.lists(st.tuples(st.floats(0, 3), st.floats(0.1, 4)), min_size=1, max_size=60),
    rate=st.floats(0.5, 50),
    burst=st.floats(1, 20),
)
def test_nobody_ever_gets_more_than_burst_and_rate(steps, rate, burst):
    limit = RateLimit(units_per_s=rate, burst_units=burst)
    now, taken = 0.0, 0.0
    for gap, units in steps:
        now += gap
        wait_s = limit.take("a", units, now)
        if wait_s == 0:
            taken += units
            assert taken <= burst + rate * now + max(0.0, units - burst) + 1e-3 * len(steps)
        else:
            assert 0 < wait_s <= (taken + units) / rate + 1e-6
    # The wait that it says is enough.
    if wait_s := limit.take("a", 1.0, now):
        assert limit.take("a", 1.0, now + wait_s + 1e-6) == 0


def png(side):
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
async def limited(tiny_bundle_repository, metrics):
    settings = Settings(
        model_repository=tiny_bundle_repository, rate_limit_per_s=0.1, rate_limit_burst=4
    )
    classifier = Classifier.build(settings, metrics)
    yield classifier
    await classifier.close()


async def ask(classifier, caller, image, **options):
    async def call():
        CALLER.set(caller)
        return await classifier.classify(image, Options(**options))

    try:
        await asyncio.create_task(call())
    except RequestError as error:
        return error
    return None


async def test_each_key_has_its_own_limit_and_callers_without_one_have_none(limited, metrics):
    image = png(8)
    assert [await ask(limited, "a", image) for _ in range(4)] == [None] * 4
    refused = await ask(limited, "a", image)
    assert refused.code is ErrorCode.RATE_LIMITED
    assert 1 < refused.retry_after_s <= 10
    assert await ask(limited, "b", image) is None
    assert [await ask(limited, None, image) for _ in range(6)] == [None] * 6
    assert 'rejected_total{reason="rate_limited"} 1.0' in metrics.render()[0].decode()


async def test_views_and_large_images_count_as_more(limited):
    assert await ask(limited, "a", png(8), tta="hflip") is None
    assert await ask(limited, "a", png(8), tta="hflip") is None
    assert await ask(limited, "a", png(8)) is not None
    assert await ask(limited, "b", png(2000)) is None  # 42 ms of decoding by its header
    assert await ask(limited, "b", png(8)) is not None
