"""Scores through a running service over HTTP: the same rows, on somebody else's machine."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from service.score.chunker import Chunker, Stretch
from service.score.entry import Entry
from service.score.errors import JobFailed, ScoreError
from service.score.options import ScoreOptions
from service.score.pool import Scored
from service.score.row import ABSTAINED, OK, Row, Stamp, printable
from service.score.scorer import Spent, failed_row
from service.score.storage import Reader, ReadError
from service.score.worker import Ready

DEFAULT_CONCURRENCY: Final = 16
_CONNECT_S, _ANSWER_S = 10.0, 60.0
# 429 and 503 say when to come back, 504 that it was too much at once.
_BUSY: Final = frozenset({429, 503, 504})
# These are about the job, not about an image.
_FATAL: Final = frozenset({401, 403, 404, 405})
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
        patience_s: How long a service may refuse or be gone.
    """

    def __init__(self, url: str, options: ScoreOptions, key: str | None, max_bytes: int) -> None:
        """Asks the service about the model.

        Args:
            url: Of the service, http:// or https://.
            options: The model, and what the rows have; `workers` is how many images at a time.
            key: API key, if the service wants one.
            max_bytes: Images of more are not sent.

        Raises:
            ScoreError: It does not answer, or does not serve the model.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ScoreError(f"{url} is not an http:// or https:// address")
        self._url = url.rstrip("/")
        self._parts = parts
        self._options = options
        # Told what it is, the service does not look whether a body might be JSON.
        self._headers = {"Content-Type": "application/octet-stream"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._reader = Reader(max_bytes)
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []
        self._is_closing = threading.Event()
        self.patience_s = _PATIENCE_S
        described = self._find_model()
        self.stamp = Stamp(
            model=described["name"],
            version=described["version"],
            bundle_digest=described["digest"],
        )
        self._ready = Ready(provider=described["provider"], variant=described["variant"])
        self._classes: int = described["classes"]
        self._path = self._make_path()
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
        order: deque[tuple[Stretch, list[Future[Row]]]] = deque()
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
                yield Scored(stretch, [one.result() for one in asked], Spent())
            elif is_stopping:
                return
            for one in done:
                one.result()  # raises what must end the job

    def close(self) -> None:
        """Ends the threads; images that are still being asked about are given up."""
        self._is_closing.set()
        for connection in self._connections:
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)  # wakes who waits for an answer
        self._threads.shutdown(cancel_futures=True)
        for connection in self._connections:
            connection.close()

    def _find_model(self) -> dict[str, Any]:
        name, _, version = self._options.model.partition("@")
        try:
            status, _, body = self._ask("GET", "/v1/models", None, _CONNECT_S)
            answer = json.loads(body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ScoreError(
                f"{self._url} does not answer: {error or type(error).__name__}"
            ) from error
        finally:
            self._hang_up()
        if status != 200:
            raise ScoreError(
                f"{self._url}: {answer.get('detail', f'the service answers {status}')}"
            )
        served: list[dict[str, Any]] = [
            one
            for one in answer["models"]
            if one["name"] == name and version in ("", str(one["version"]))
        ]
        if not served:
            known = ", ".join(f"{one['name']}@{one['version']}" for one in answer["models"])
            raise ScoreError(f"{self._url} does not serve {self._options.model!r}; it has {known}")
        return max(served, key=lambda one: int(one["version"]))

    def _make_path(self) -> str:
        options = self._options
        asked: dict[str, object] = {
            "model": f"{self.stamp.model}@{self.stamp.version}",
            # Every class with its score is the probabilities, only sorted.
            "top_k": self._classes if options.probabilities else options.top_k,
            "tta": options.tta,
            "priority": "low",
        }
        if options.embedding:
            asked["embedding"] = "true"
        return f"/v1/classify?{urlencode(asked)}"

    def _score(self, entry: Entry) -> Row:
        try:
            data = self._reader.read(entry)
        except ReadError as error:
            return failed_row(entry, error.code)
        answer = self._classify(data)
        digest = hashlib.sha256(data).hexdigest() if self._options.sha256 else None
        row = failed_row(entry, answer["code"]) if "code" in answer else self._row(entry, answer)
        row.sha256 = digest
        return row

    def _classify(self, data: bytes) -> dict[str, Any]:
        """Returns the answer, or the problem document of an image that has none."""
        gives_up_at = time.monotonic() + self.patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                status, headers, body = self._ask("POST", self._path, data, _ANSWER_S)
            except (OSError, http.client.HTTPException) as error:
                self._hang_up()
                told, wanted_s = f"does not answer: {error or type(error).__name__}", pause_s
            else:
                if status not in _BUSY:
                    answer: dict[str, Any] = json.loads(body)
                    if status in _FATAL:
                        raise JobFailed(f"{self._url}: {answer.get('detail', status)}")
                    return answer
                told = f"answers {status}"
                wanted_s = _retry_after_s(headers, pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            if time.monotonic() + wanted_s > gives_up_at:
                raise JobFailed(f"{self._url} {told}, for {self.patience_s:.0f} s")
            if self._is_closing.wait(wanted_s * random.uniform(1.0, 1.3)):
                raise JobFailed("stopped")

    def _row(self, entry: Entry, answer: dict[str, Any]) -> Row:
        top = answer["predictions"][: self._options.top_k]
        best = top[0]
        least = self._options.min_score
        is_sure = not answer["abstained"] if least is None else best["score"] >= least
        image = answer["image"]
        row = Row(
            id=entry.position,
            path=printable(entry.path),
            status=OK if is_sure else ABSTAINED,
            label=best["label"],
            index=best["index"],
            score=best["score"],
            top_labels=[one["label"] for one in top],
            top_indices=[one["index"] for one in top],
            top_scores=[one["score"] for one in top],
            width=image["width"],
            height=image["height"],
            format=image["format"],
            embedding=answer["embedding"] if self._options.embedding else None,
        )
        if self._options.probabilities:
            row.probabilities = [0.0] * self._classes
            for one in answer["predictions"]:
                row.probabilities[one["index"]] = one["score"]
        return row

    def _ask(
        self, method: str, path: str, body: bytes | None, timeout_s: float
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            is_tls = self._parts.scheme == "https"
            kind = http.client.HTTPSConnection if is_tls else http.client.HTTPConnection
            connection = kind(self._parts.hostname or "", self._parts.port, timeout=timeout_s)
            self._local.connection = connection
            self._connections.append(connection)
        connection.request(method, self._parts.path.rstrip("/") + path, body, self._headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()

    def _hang_up(self) -> None:
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._connections.remove(connection)
            self._local.connection = None


def _retry_after_s(headers: http.client.HTTPMessage, otherwise_s: float) -> float:
    try:
        return min(_LONGEST_PAUSE_S, max(0.0, float(headers.get("Retry-After", ""))))
    except ValueError:
        return otherwise_s
