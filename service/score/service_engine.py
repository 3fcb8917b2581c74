"""Scores through a running service: the same rows, on somebody else's machine."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final

from service.score.chunker import Chunker, Stretch
from service.score.entry import Entry
from service.score.errors import JobFailed, ScoreError
from service.score.messages import Ready, Spent
from service.score.options import ScoreOptions
from service.score.pool import Scored
from service.score.row import Row, Stamp, answered_row, failed_row
from service.score.storage import Reader, ReadError
from service.score.transport import (
    Busy,
    Connect,
    ImageAnswer,
    ImageRefused,
    Question,
    ServedModel,
    Transport,
)

DEFAULT_CONCURRENCY: Final = 16
# A service that refuses everything, or is gone, for so long ends the job.
_PATIENCE_S: Final = 300.0
_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 30.0
_STRETCH: Final = 8
_STOP_S: Final = 2.0


class ServiceEngine:
    """Asks a service for each image, several at a time.

    Attributes:
        stamp: The model that answers, as the service describes it.
        size: How many images at a time.
        patience_s: How long a service may refuse or be gone.
    """

    def __init__(self, options: ScoreOptions, max_bytes: int, connect: Connect) -> None:
        """Asks the service about the model.

        Args:
            options: Where the service is, the model, and what the rows have; `workers` is how many
                images at a time.
            max_bytes: Images of more are not sent.
            connect: Opens the way to the service.

        Raises:
            ScoreError: It does not answer, or does not serve the model.
        """
        assert options.url is not None
        self._url, self._key = options.url, options.key
        self._options = options
        self._connect = connect
        self._reader = Reader(max_bytes)
        self._local = threading.local()
        self._transports: list[Transport] = []
        self._is_closing = threading.Event()
        self.patience_s = _PATIENCE_S
        served = self._find_model()
        self.stamp = Stamp(model=served.name, version=served.version, bundle_digest=served.digest)
        self._ready = Ready(provider=served.provider, variant=served.variant)
        self._classes = served.classes
        self._question = Question(
            model=f"{served.name}@{served.version}",
            # Every class with its score is the probabilities, only sorted.
            top_k=served.classes if options.probabilities else options.top_k,
            tta=options.tta,
            embedding=options.embedding,
        )
        self.size = options.workers or DEFAULT_CONCURRENCY
        self._threads = ThreadPoolExecutor(self.size, thread_name_prefix="fivecrop-ask")

    def wait_ready(self) -> Ready:
        """Returns where the model runs."""
        return self._ready

    def run(self, chunker: Chunker, should_stop: Callable[[], bool]) -> Iterator[Scored]:
        """Yields what was scored, in the order of the input, until its end or a stop.

        Raises:
            JobFailed: The service is gone, or refuses, for too long or for good.
        """
        order: deque[tuple[Stretch, list[Future[tuple[Row, Spent]]]]] = deque()
        has_more = True
        while True:
            is_stopping = should_stop()
            while has_more and not is_stopping and len(order) * _STRETCH < 2 * self.size:
                stretch = chunker.take(_STRETCH)
                if stretch is None:
                    has_more = False
                else:
                    asked = [self._threads.submit(self._score, one) for one in stretch.entries]
                    order.append((stretch, asked))
            if not order:
                return
            stretch, asked = order[0]
            done, waiting = wait(asked, timeout=_STOP_S if is_stopping else 0.2)
            if not waiting:
                order.popleft()
                scored = [one.result() for one in asked]
                spent = sum((spent for _, spent in scored), Spent())
                yield Scored(stretch, [row for row, _ in scored], spent)
            elif is_stopping:
                return
            for one in done:
                one.result()  # raises what must end the job

    def close(self) -> None:
        """Ends the threads; images that are still being asked about are given up."""
        self._is_closing.set()
        for transport in self._transports:
            transport.interrupt()
        self._threads.shutdown(cancel_futures=True)
        for transport in self._transports:
            transport.close()

    def _find_model(self) -> ServedModel:
        transport = self._connect(self._url, self._key)
        try:
            models = transport.models()
        except (Busy, JobFailed) as error:
            raise ScoreError(f"{self._url}: {error}") from error
        finally:
            transport.close()
        name, _, version = self._options.model.partition("@")
        served = [one for one in models if one.name == name and version in ("", str(one.version))]
        if not served:
            known = ", ".join(f"{one.name}@{one.version}" for one in models) or "none"
            raise ScoreError(
                f"{self._url} does not serve {self._options.model!r}; there is {known}"
            )
        return max(served, key=lambda one: one.version)

    def _score(self, entry: Entry) -> tuple[Row, Spent]:
        started = time.perf_counter()
        try:
            data = self._reader.read(entry)
        except ReadError as error:
            return failed_row(entry, error.code), Spent()
        read_s = time.perf_counter() - started
        try:
            answer = self._classify(data)
            row, spent = self._row(entry, answer), answer.spent
        except ImageRefused as refused:
            row, spent = failed_row(entry, refused.code), Spent()
        if self._options.sha256:
            row.sha256 = hashlib.sha256(data).hexdigest()
        return row, Spent(read_s=read_s) + spent

    def _classify(self, data: bytes) -> ImageAnswer:
        """Returns the answer, having waited for a service that is busy or gone.

        Raises:
            ImageRefused: There is none for this image.
            JobFailed: The service refuses, or does so for too long.
        """
        gives_up_at = time.monotonic() + self.patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return self._transport().classify(data, self._question)
            except Busy as busy:
                wanted_s = pause_s if busy.retry_after_s is None else busy.retry_after_s
                wanted_s = min(_LONGEST_PAUSE_S, max(0.0, wanted_s))
                told = str(busy)
            except JobFailed as error:
                raise JobFailed(f"{self._url}: {error}") from error
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            if time.monotonic() + wanted_s > gives_up_at:
                raise JobFailed(f"{self._url}: {told}, for {self.patience_s:.0f} s")
            # Spread, so that those who were refused together do not come back together.
            if self._is_closing.wait(wanted_s * random.uniform(1.0, 1.3)):
                raise JobFailed("stopped")

    def _transport(self) -> Transport:
        """Returns the connection of this thread."""
        found: Transport | None = getattr(self._local, "transport", None)
        if found is None:
            found = self._local.transport = self._connect(self._url, self._key)
            self._transports.append(found)
        return found

    def _row(self, entry: Entry, answer: ImageAnswer) -> Row:
        top = answer.predictions[: self._options.top_k]
        least = self._options.min_score
        is_sure = not answer.abstained if least is None else top[0].score >= least
        row = answered_row(entry, top, is_sure=is_sure)
        row.width, row.height, row.format = answer.width, answer.height, answer.format
        row.embedding = answer.embedding
        if self._options.probabilities:
            row.probabilities = [0.0] * self._classes
            for one in answer.predictions:
                row.probabilities[one.index] = one.score
        return row
