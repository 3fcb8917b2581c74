"""Awaits with one limit: the late ones end, the others notice nothing."""

from __future__ import annotations

import asyncio

import pytest

from service.time_limit import TimeLimit

SHORT_S = 0.05


async def wait_within(limit, seconds):
    with limit.start():
        await asyncio.sleep(seconds)
    return "done"


async def test_what_is_late_is_cancelled_and_what_is_not_is_not():
    limit = TimeLimit(0.3)
    started = asyncio.get_running_loop().time()
    late = [asyncio.create_task(wait_within(limit, 60)) for _ in range(3)]
    assert await wait_within(limit, 0) == "done"
    await asyncio.sleep(0.1)
    later = asyncio.create_task(wait_within(limit, 60))
    for task in late:
        with pytest.raises(TimeoutError):
            await task
    assert asyncio.get_running_loop().time() - started >= 0.3
    assert not later.done()
    with pytest.raises(TimeoutError):
        await later
    assert 0.4 <= asyncio.get_running_loop().time() - started < 30


async def test_one_timer_serves_all():
    loop = asyncio.get_running_loop()
    made = []
    call_at = loop.call_at
    loop.call_at = lambda *given, **options: made.append(given) or call_at(*given, **options)
    try:
        limit = TimeLimit(60)
        for _ in range(100):
            with limit.start():
                pass
    finally:
        del loop.call_at
    assert len(made) == 1


async def test_a_limit_can_be_used_again_after_it_ran_out():
    limit = TimeLimit(SHORT_S)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await wait_within(limit, 60)
        await asyncio.sleep(2 * SHORT_S)
        assert await wait_within(limit, 0) == "done"


async def test_a_task_that_is_cancelled_by_others_stays_cancelled():
    task = asyncio.create_task(wait_within(TimeLimit(60), 60))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async def cancel_both_ways():
        with limit.start():
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                asyncio.current_task().cancel()
                raise

    limit = TimeLimit(SHORT_S)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(cancel_both_ways())


async def test_an_error_of_the_body_is_not_hidden():
    limit = TimeLimit(60)
    with pytest.raises(KeyError), limit.start():
        raise KeyError
