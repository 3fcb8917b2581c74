"""The JSON of a request, read more strictly and within tighter bounds than `json` does alone."""

from __future__ import annotations

import json
from typing import NoReturn

from service.errors import ErrorCode, RequestError
from service.http_multipart import wrong_count


def parse_json(body: bytes, *, max_brackets: int, max_items: int) -> object:
    """Returns the document of a body that holds images.

    Args:
        body: As `load_json`.
        max_brackets: As `load_json`.
        max_items: Images; each may come with two commas, of which a data: URI holds one.

    Raises:
        RequestError: `bad_json`, or `invalid_argument` for too many items.
    """
    return load_json(
        body,
        max_brackets=max_brackets,
        max_commas=2 * max_items,
        too_many=wrong_count(max_items),
    )


def load_json(body: bytes, *, max_brackets: int, max_commas: int, too_many: RequestError) -> object:
    """Returns the document of a body.

    Counting first costs a millisecond and bounds the parser, which would turn ten megabytes of
    brackets or commas into gigabytes of objects.

    Args:
        body: UTF-8, without duplicate keys, NaN or Infinity.
        max_brackets: Objects and lists, nested or not.
        max_commas: Those inside strings count too.
        too_many: What more commas are answered with.

    Raises:
        RequestError: `bad_json`, or `too_many`.
    """
    if body.count(b"[") + body.count(b"{") > max_brackets:
        raise RequestError(ErrorCode.BAD_JSON, "the JSON document is nested too deeply")
    if body.count(b",") > max_commas:
        raise too_many
    try:
        return json.loads(
            body.decode("utf-8"), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse
        )
    except (ValueError, RecursionError):
        raise RequestError(ErrorCode.BAD_JSON, "the body is not a JSON document") from None


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("duplicate key")
    return document


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
