"""From the event loop to the batcher's threads and back: one awaitable for each job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Never

from service.batcher import Batcher
from service.classification import late
from service.job import Job, Outcome
from service.lane import Lane
from service.priority import Priority
from service.rate_limit import Allowances


async def dispatch(
    batcher: Batcher, draft: Callable[..., Job], allowances: Allowances | None
) -> tuple[Job, Outcome]:
    """Returns a job and what became of it, given all of it but its `finish`.

    It is taken from the allowance of its key. When the caller is cancelled it is dropped before it
    runs.

    Raises:
        RequestError: The job was refused, failed, or had no answer at its deadline.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Outcome] = loop.create_future()
    job = draft(finish=partial(_settle_soon, loop, answer))
    now = time.monotonic()
    if allowances is not None:
        allowances.take(job, now)
    batcher.submit(job)
    # Its caller is told at the deadline, not at its turn, and its place in the queue is free.
    timer = loop.call_later(job.deadline - now, _expire, batcher, job, answer)
    try:
        return job, await answer
    except asyncio.CancelledError:
        job.is_cancelled = True
        batcher.withdraw(job)
        raise
    finally:
        timer.cancel()


def _expire(batcher: Batcher, job: Job, answer: asyncio.Future[Outcome]) -> None:
    batcher.withdraw(job)
    _settle(answer, late())


def _settle(answer: asyncio.Future[Outcome], outcome: Outcome | Exception) -> None:
    if answer.done():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


def _settle_soon(
    loop: asyncio.AbstractEventLoop,
    answer: asyncio.Future[Outcome],
    outcome: Outcome | Exception,
) -> None:
    """Hands a worker thread's outcome to the event loop."""
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(_settle, answer, outcome)


def draft_unread(lane: Lane, views: int, deadline: float, priority: Priority) -> Job:
    """Returns the job of an image that nothing was read of: it is judged and never runs."""
    return Job(
        lane=lane,
        prepare=_not_to_be_run,
        view_count=views,
        encoded_bytes=0,
        deadline=deadline,
        finish=_not_to_be_run,
        priority=priority,
    )


def _not_to_be_run(*_: object) -> Never:
    raise AssertionError("a job that is only judged never runs")
