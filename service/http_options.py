"""The options of an HTTP request: its query and its deadline header, as text, into `Options`."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from service.classification import ExplainOptions, Options
from service.errors import ErrorCode, RequestError

NAMES: Final = frozenset({"model", "top_k", "tta", "priority", "coverage", "embedding", "views"})
EXPLAIN_NAMES: Final = frozenset({"model", "index", "method"})

_INTEGER = re.compile(r"-?[0-9]{1,10}")
_FRACTION = re.compile(r"[0-9]?\.[0-9]{1,9}")
_NUMBER = re.compile(rb"-?[0-9]{1,15}(\.[0-9]{1,6})?")


def refuse_query(query: bytes) -> None:
    """Passes only an empty query, for the routes that have no options."""
    if query:
        raise _invalid("this path has no query parameters")


def read_explain_options(query: bytes, headers: Mapping[bytes, bytes]) -> ExplainOptions:
    """Returns what the client wants explained; it gets a picture when it accepts `image/png`.

    Raises:
        RequestError: As for `read_options`.
    """
    given = _read_query(query, EXPLAIN_NAMES) if query else {}
    if "index" in given:
        given["index"] = _read_integer("index", given["index"])
    _read_timeout(headers, given)
    accept = headers.get(b"accept", b"").lower()
    return ExplainOptions(**given, has_overlay=b"image/png" in accept)


def read_options(query: bytes, headers: Mapping[bytes, bytes]) -> Options:
    """Returns the options that the client gave; what it left out keeps its default.

    Raises:
        RequestError: `invalid_argument` for an unknown, repeated or misspelt option. Whether a
            value makes sense is the classifier's to say.
    """
    given = _read_query(query, NAMES) if query else {}
    if "top_k" in given:
        given["top_k"] = _read_integer("top_k", given["top_k"])
    if "coverage" in given:
        if not _FRACTION.fullmatch(given["coverage"]):
            raise _invalid("coverage is not a number such as 0.9")
        given["coverage"] = float(given["coverage"])
    if "embedding" in given:
        given["embedding"] = _read_boolean("embedding", given["embedding"])
    if "views" in given:
        given["has_views"] = _read_boolean("views", given.pop("views"))
    _read_timeout(headers, given)
    return Options(**given)


def _read_integer(name: str, text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise _invalid(f"{name} is not a whole number of up to ten digits")
    return int(text)


def _read_boolean(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise _invalid(f"{name} is true or false")
    return text == "true"


def _read_timeout(headers: Mapping[bytes, bytes], given: dict[str, Any]) -> None:
    if (timeout_ms := headers.get(b"x-request-timeout-ms")) is not None:
        if not _NUMBER.fullmatch(timeout_ms):
            raise _invalid("X-Request-Timeout-Ms is not a number of milliseconds")
        given["timeout_ms"] = float(timeout_ms)
        # The client waits while it sends its body, too.
        given["asked_at"] = time.monotonic()


def _read_query(query: bytes, names: frozenset[str]) -> dict[str, Any]:
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=16
        )
    except ValueError:
        raise _invalid("the query is malformed") from None
    given: dict[str, Any] = dict(pairs)
    if not given.keys() <= names:
        raise _invalid(f"unknown query parameter; known are {', '.join(sorted(names))}")
    if len(given) != len(pairs):
        raise _invalid("a query parameter is given twice")
    return given


def _invalid(detail: str) -> RequestError:
    return RequestError(ErrorCode.INVALID_ARGUMENT, detail)
