"""Images of one request, decoded in waves."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.image_source import PixelImage, estimate_prepare_s
from service.classification import Options
from service.errors import ErrorCode, RequestError
from service.request_images import _TOGETHER_S, ask_each, make_waves

costs_of_images = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=32)


@given(costs_of_images, st.floats(1e-6, 2.0))
def test_waves_hold_to_the_budget_and_to_what_may_be_side_by_side(costs, budget_s):
    waves = make_waves(costs, budget_s)
    chosen = [is_fitting for wave in waves for is_fitting in wave]
    assert len(chosen) == len(costs)
    assert chosen[0]
    spent = [cost for cost, is_fitting in zip(costs, chosen, strict=True) if is_fitting]
    assert len(spent) == 1 or sum(spent) <= budget_s * (1 + 1e-9)
    left = iter(costs)
    for wave in waves:
        together = [cost for is_fitting, cost in zip(wave, left, strict=False) if is_fitting]
        assert len(together) <= 1 or sum(together) <= _TOGETHER_S * (1 + 1e-9)


def pixels(megapixels):
    return PixelImage(content=bytes(megapixels * 3_000_000), width=1000, height=megapixels * 1000)


def ask_all(ask, images, *, timeout_s=5.0):
    work = ask_each(
        ask, images, Options(), timeout_s=timeout_s, budget_s=10.0, max_pixels=40_000_000
    )
    return asyncio.run(work)


@pytest.mark.parametrize(("megapixels", "side_by_side"), [(1, 8), (20, 2), (40, 1)])
def test_large_images_are_not_decoded_side_by_side(megapixels, side_by_side):
    image = pixels(megapixels)
    at_work = most = 0

    async def ask(_image, _options):
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.001)
        at_work -= 1
        return "answer"

    assert estimate_prepare_s(image, 40_000_000) == pytest.approx(megapixels * 4.5e-3, abs=1e-3)
    assert ask_all(ask, [image] * 8) == ["answer"] * 8
    assert most == side_by_side


def test_a_later_wave_has_what_is_left_of_the_time(monkeypatch):
    now_s = 0.0
    monkeypatch.setattr("service.request_images.time", SimpleNamespace(monotonic=lambda: now_s))
    asked_ms = []

    async def ask(_image, options):
        nonlocal now_s
        asked_ms.append(options.timeout_ms)
        if options.timeout_ms is not None and options.timeout_ms <= 0:
            raise RequestError(ErrorCode.DEADLINE_EXCEEDED, "late")
        now_s += 0.0625
        return "answer"

    *answers, late = ask_all(ask, [pixels(40)] * 3, timeout_s=0.125)
    assert answers == ["answer"] * 2
    assert late.code is ErrorCode.DEADLINE_EXCEEDED
    assert asked_ms == [None, 62.5, 0.0]


def test_a_fault_of_ours_is_raised():
    async def ask(_image, _options):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask_all(ask, [pixels(1)])
