"""The options of an HTTP request: its query and its deadline header, as text, into `Options`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from service.classifier import Options
from service.errors import ErrorCode, RequestError

NAMES: Final = frozenset({"model", "top_k", "tta", "priority", "coverage"})

_INTEGER = re.compile(r"-?[0-9]{1,10}")
_FRACTION = re.compile(r"[0-9]?\.[0-9]{1,9}")
_NUMBER = re.compile(rb"-?[0-9]{1,15}(\.[0-9]{1,6})?")


def refuse_query(query: bytes) -> None:
    """Passes only an empty query, for the routes that have no options."""
    if query:
        raise _invalid("this path has no query parameters")


def read_options(query: bytes, headers: Mapping[bytes, bytes]) -> Options:
    """Returns the options that the client gave; what it left out keeps its default.

    Raises:
        RequestError: `invalid_argument` for an unknown, repeated or misspelt option. Whether a
            value makes sense is the classifier's to say.
    """
    given: dict[str, Any] = _read_query(query) if query else {}
    if "top_k" in given:
        if not _INTEGER.fullmatch(given["top_k"]):
            raise _invalid("top_k is not a whole number")
        given["top_k"] = int(given["top_k"])
    if "coverage" in given:
        if not _FRACTION.fullmatch(given["coverage"]):
            raise _invalid("coverage is not a number such as 0.9")
        given["coverage"] = float(given["coverage"])
    if (timeout_ms := headers.get(b"x-request-timeout-ms")) is not None:
        if not _NUMBER.fullmatch(timeout_ms):
            raise _invalid("X-Request-Timeout-Ms is not a number of milliseconds")
        given["timeout_ms"] = float(timeout_ms)
    return Options(**given)


def _read_query(query: bytes) -> dict[str, Any]:
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=16
        )
    except ValueError:
        raise _invalid("the query is malformed") from None
    given: dict[str, Any] = dict(pairs)
    if not given.keys() <= NAMES:
        raise _invalid(f"unknown query parameter; known are {', '.join(sorted(NAMES))}")
    if len(given) != len(pairs):
        raise _invalid("a query parameter is given twice")
    return given


def _invalid(detail: str) -> RequestError:
    return RequestError(ErrorCode.INVALID_ARGUMENT, detail)
