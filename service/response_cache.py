"""Answers that were given before, by what was asked; equal questions at once are asked once."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import replace
from functools import partial
from typing import Final

from service.bundle.image_source import AskedImage, digest_source
from service.classification import Classification, Options, Timings, late
from service.errors import ErrorCode, RequestError
from service.metrics import CacheResult, Metrics
from service.model import Model
from service.priority import Priority
from service.settings import Settings

Ask = Callable[[AskedImage, Options], Awaitable[Classification]]

# What an answer costs besides its arrays: measured with `sys.getsizeof` over one of five classes.
_ANSWER_BYTES: Final = 2_500
_PREDICTION_BYTES: Final = 200


class ResponseCache:
    """A bounded memory of answers; the least recently used go first. For one event loop."""

    def __init__(self, max_bytes: int, default_timeout_ms: float, metrics: Metrics) -> None:
        """Makes an empty cache.

        Args:
            max_bytes: Of the answers that are kept, roughly.
            default_timeout_ms: Of a request that sets no deadline.
            metrics: Where hits and misses are counted.
        """
        self._default_timeout_ms = default_timeout_ms
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._answers: OrderedDict[Hashable, tuple[Classification, int]] = OrderedDict()
        self._flights: dict[Hashable, _Flight] = {}
        self._bytes = 0

    @classmethod
    def build(cls, settings: Settings, metrics: Metrics) -> ResponseCache | None:
        """Returns the cache that the settings ask for, or None when they ask for none."""
        if not settings.response_cache_bytes:
            return None
        return cls(settings.response_cache_bytes, settings.default_timeout_ms, metrics)

    async def answer(
        self, model: Model, image: AskedImage, options: Options, ask: Ask
    ) -> Classification:
        """Returns the answer for one encoded image, from memory if it was given before.

        The key is the SHA-256 of the encoded bytes, what was asked, and the load of the model: one
        that was loaded again is another one. A request that joins another keeps its own deadline;
        when that of the other passes first, it asks itself.

        Raises:
            RequestError: As `Classifier.classify`.
        """
        start = time.monotonic()
        _, timeout_s = options.check(self._default_timeout_ms)
        question = replace(options, model=None, timeout_ms=None, priority=Priority.NORMAL)
        key = (model.load, digest_source(image), question)
        try:
            async with asyncio.timeout(timeout_s):
                answer, was_asked_before = await self._get(
                    key, lambda: ask(image, options), count=partial(self._count, model, start)
                )
        except TimeoutError:
            raise late() from None
        except RequestError as error:
            left_ms = (start + timeout_s - time.monotonic()) * 1000
            if error.code is not ErrorCode.DEADLINE_EXCEEDED or left_ms <= 0:
                raise
            return await ask(image, replace(options, timeout_ms=left_ms))
        if not was_asked_before:
            return answer
        best = answer.predictions[0]
        self._metrics.observe_prediction(answer.model, answer.version, best.label, best.score)
        total_s = time.monotonic() - start
        timings = Timings(decode_s=0, queue_s=total_s, infer_s=0, total_s=total_s)
        return replace(answer, timings=timings)

    async def _get(
        self,
        key: Hashable,
        ask: Callable[[], Awaitable[Classification]],
        *,
        count: Callable[[CacheResult], None],
    ) -> tuple[Classification, bool]:
        """Returns the answer for `key` and whether another request had asked for it.

        `ask` is called when nobody asks it already. Whoever joins gets the same answer, or the same
        error; when all of them are cancelled, so is what they wait for. Errors are not kept.
        """
        if (found := self._answers.get(key)) is not None:
            self._answers.move_to_end(key)
            count("hit")
            return found[0], True
        flight = self._flights.get(key)
        # One that everybody left is being cancelled, which takes the loop a few steps.
        is_first = flight is None or flight.is_abandoned
        count("miss" if is_first else "shared")
        if flight is None or flight.is_abandoned:
            flight = self._flights[key] = _Flight(asyncio.ensure_future(ask()))
            flight.answer.add_done_callback(partial(self._land, key, flight))
        return await flight.join(), not is_first

    def _count(self, model: Model, start: float, result: CacheResult) -> None:
        seconds = time.monotonic() - start
        self._metrics.count_cache(model.name, model.version, result, seconds)

    def _land(self, key: Hashable, flight: _Flight, answer: asyncio.Future[Classification]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        # Asking for the exception also keeps asyncio from reporting it as unseen.
        if not answer.cancelled() and answer.exception() is None:
            self._keep(key, answer.result())

    def _keep(self, key: Hashable, answer: Classification) -> None:
        size = _count_bytes(answer)
        if size > self._max_bytes:
            return
        self._answers[key] = answer, size
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, (_, freed) = self._answers.popitem(last=False)
            self._bytes -= freed
        self._metrics.set_cache_bytes(self._bytes)


class _Flight:
    """A question that is being asked, and how many wait for its answer."""

    __slots__ = ("_waiting", "answer", "is_abandoned")

    def __init__(self, answer: asyncio.Future[Classification]) -> None:
        self.answer = answer
        self.is_abandoned = False
        self._waiting = 0

    async def join(self) -> Classification:
        self._waiting += 1
        try:
            return await asyncio.shield(self.answer)
        finally:
            self._waiting -= 1
            if self._waiting == 0:
                self.is_abandoned = True
                self.answer.cancel()


def _count_bytes(answer: Classification) -> int:
    arrays = answer.probabilities.nbytes
    if answer.embedding is not None:
        arrays += answer.embedding.nbytes
    arrays += sum(map(len, answer.view_pngs))
    shown = len(answer.predictions)
    if answer.label_set is not None:
        shown += len(answer.label_set.predictions)
    return _ANSWER_BYTES + arrays + shown * _PREDICTION_BYTES
