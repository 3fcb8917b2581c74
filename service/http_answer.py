"""What HTTP answers: status codes, JSON bodies, problem documents, headers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Literal

from starlette.types import Message

from service import http_schema
from service.access_log import Result
from service.errors import ErrorCode, RequestError

STATUS: Final[dict[ErrorCode, int]] = {
    ErrorCode.INVALID_ARGUMENT: 400,
    ErrorCode.BAD_JSON: 400,
    ErrorCode.BAD_BASE64: 400,
    ErrorCode.EMPTY_BODY: 400,
    ErrorCode.URL_NOT_ALLOWED: 400,
    ErrorCode.UNAUTHENTICATED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.MODEL_NOT_FOUND: 404,
    ErrorCode.MODEL_LOAD_FAILED: 409,
    ErrorCode.MEMORY_EXCEEDED: 409,
    ErrorCode.PROMOTION_REFUSED: 409,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.METHOD_NOT_ALLOWED: 405,
    ErrorCode.REQUEST_TIMEOUT: 408,
    ErrorCode.BODY_TOO_LARGE: 413,
    ErrorCode.IMAGE_TOO_LARGE: 413,
    ErrorCode.UNSUPPORTED_MEDIA: 415,
    ErrorCode.UNSUPPORTED_ENCODING: 415,
    ErrorCode.IMAGE_CORRUPT: 422,
    ErrorCode.IMAGE_TOO_COMPLEX: 422,
    ErrorCode.UNSUPPORTED_CODEC: 422,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.HEADERS_TOO_LARGE: 431,
    ErrorCode.OVERLOADED: 503,
    ErrorCode.NOT_READY: 503,
    ErrorCode.DRAINING: 503,
    ErrorCode.DEADLINE_EXCEEDED: 504,
    ErrorCode.INFERENCE_FAILED: 500,
    ErrorCode.NONFINITE_OUTPUT: 500,
    ErrorCode.INTERNAL: 500,
}

# The rest of these requests is never read, so their connection cannot carry another one.
CLOSING: Final = frozenset({ErrorCode.BODY_TOO_LARGE, ErrorCode.REQUEST_TIMEOUT})

# Where clients of other servers look for the text of an error.
ErrorKey = Literal["error", "message"]

_RETRIABLE_STATUS: Final = frozenset({429, 503})

# json.dumps makes one of these for every call.
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One whole response; every body of this service is small and in memory.

    `results` is what became of the request's images, for the access log.
    """

    body: bytes
    media_type: bytes = b"application/json"
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()
    results: Sequence[Result] = ()
    # What a browser may do with it as a page; an answer that is none, nothing.
    content_policy: bytes = b"default-src 'none'; frame-ancestors 'none'"

    def start_message(self, request_id: str) -> Message:
        """Returns the ASGI message that opens the response."""
        return {
            "type": "http.response.start",
            "status": self.status,
            "headers": [
                (b"content-type", self.media_type),
                (b"content-length", b"%d" % len(self.body)),
                (b"x-request-id", request_id.encode("ascii")),
                (b"x-content-type-options", b"nosniff"),
                (b"content-security-policy", self.content_policy),
                *self.headers,
            ],
        }


def encode_json(document: object) -> bytes:
    """Returns compact UTF-8 JSON; raises ValueError rather than write NaN, which is not JSON."""
    return _ENCODER.encode(document).encode()


def retry_after_s(error: RequestError) -> int:
    """Returns the whole seconds of `Retry-After`: rounded up, at least 1."""
    return max(1, math.ceil(error.retry_after_s or 1))


def answer_problem(
    error: RequestError,
    request_id: str,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    error_key: ErrorKey | None = None,
) -> Answer:
    """Returns the RFC 9457 problem document of an error, its detail also under `error_key`."""
    status = STATUS[error.code]
    document: http_schema.Problem = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": error.code,
        "detail": error.detail,
        "request_id": request_id,
    }
    if error_key is not None:
        document[error_key] = error.detail
    if status in _RETRIABLE_STATUS:
        headers = (*headers, (b"retry-after", b"%d" % retry_after_s(error)))
    if error.code is ErrorCode.UNAUTHENTICATED:
        headers = (*headers, (b"www-authenticate", b"Bearer"))
    if error.code in CLOSING:
        headers = (*headers, (b"connection", b"close"))
    return Answer(
        body=encode_json(document),
        media_type=b"application/problem+json",
        status=status,
        headers=headers,
    )
