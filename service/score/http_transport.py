"""A service that is asked over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from typing import Any, Final
from urllib.parse import urlencode

from service.bundle.postprocess import Prediction
from service.score.errors import JobFailed
from service.score.messages import Spent
from service.score.transport import (
    ANSWER_S,
    CONNECT_S,
    Busy,
    ImageAnswer,
    Question,
    ServedModel,
    judge,
    split_address,
)

# Of something in front of the service, which does not speak its language.
_BUSY: Final = frozenset({429, 502, 503, 504})
_TIMING = re.compile(r"(\w+);dur=([0-9.]+)")

_Headers = http.client.HTTPMessage


class HttpTransport:
    """One connection that is kept."""

    def __init__(self, url: str, key: str | None) -> None:
        """Connects with the first question; ScoreError when the URL is no address."""
        parts = split_address(url)
        is_tls = parts.scheme == "https"
        kind = http.client.HTTPSConnection if is_tls else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=CONNECT_S)
        self._prefix = parts.path.rstrip("/")
        # Told what it is, the service does not look whether a body might be JSON.
        self._headers = {"Content-Type": "application/octet-stream"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"

    def models(self) -> list[ServedModel]:
        """Returns what the service has; raises Busy, or JobFailed when it refuses."""
        document, _ = self._ask("GET", "/v1/models", None)
        names = ServedModel.__dataclass_fields__
        try:
            return [
                ServedModel(**{name: one[name] for name in names}) for one in document["models"]
            ]
        except (KeyError, TypeError) as error:
            raise JobFailed("answers, but not as fivecrop does") from error

    def classify(self, image: bytes, question: Question) -> ImageAnswer:
        """Returns the answer; raises Busy, ImageRefused, or JobFailed when there is no use."""
        asked: dict[str, object] = {
            "model": question.model,
            "top_k": question.top_k,
            "tta": question.tta,
            "priority": "low",
        }
        if question.embedding:
            asked["embedding"] = "true"
        answer, headers = self._ask("POST", f"/v1/classify?{urlencode(asked)}", image)
        return ImageAnswer(
            predictions=[Prediction(**one) for one in answer["predictions"]],
            abstained=answer["abstained"],
            embedding=answer.get("embedding"),
            spent=_read_timing(headers),
            **answer["image"],
        )

    def interrupt(self) -> None:
        """Makes another thread that waits for an answer raise Busy."""
        if (connected := self._connection.sock) is not None:
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Lets go of the connection, when no thread uses it."""
        self._connection.close()

    def _ask(self, method: str, path: str, body: bytes | None) -> tuple[dict[str, Any], _Headers]:
        """Returns the JSON of an answer that is one, with its headers."""
        connection = self._connection
        try:
            if connection.sock is None:
                connection.connect()
            connection.sock.settimeout(ANSWER_S if body is not None else CONNECT_S)
            connection.request(method, self._prefix + path, body, self._headers)
            answer = connection.getresponse()
            status, headers, content = answer.status, answer.headers, answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()  # the next question connects again
            raise Busy(f"does not answer: {error or type(error).__name__}") from error
        document = _parse(content)
        if status == 200 and document is not None:
            return document, headers
        retry_after_s = _read_retry_after(headers)
        if document is not None and "code" in document:
            raise judge(document["code"], str(document.get("detail", status)), retry_after_s)
        if status in _BUSY:
            raise Busy(f"answers {status}", retry_after_s)
        raise JobFailed(f"answers {status}, but not as fivecrop does")


def _parse(content: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(content)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _read_retry_after(headers: _Headers) -> float | None:
    try:
        return float(headers.get("Retry-After", ""))
    except ValueError:
        return None


def _read_timing(headers: _Headers) -> Spent:
    found = {
        name: float(value) for name, value in _TIMING.findall(headers.get("Server-Timing", ""))
    }
    return Spent(decode_s=found.get("decode", 0) / 1000, infer_s=found.get("infer", 0) / 1000)
