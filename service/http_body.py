"""The body of an HTTP request: read within its limits, taken apart into encoded images."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Self, TypeVar

from starlette.types import Receive

from service.errors import ErrorCode, RequestError
from service.http_client import ClientLeftError
from service.http_json import parse_json
from service.http_multipart import parse_multipart, wrong_count
from service.settings import Settings
from service.time_limit import TimeLimit
from service.url_guard import refuse_url

# Real documents nest one list in one object; far more can only be meant to cost parsing time.
_MAX_BRACKETS: Final = 64

T = TypeVar("T")

_CONTENT_LENGTH = re.compile(rb"[0-9]{1,18}")
_DATA_URI = re.compile(r"data:[^,;]{0,100};base64,", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """The images of one request, still encoded; `is_single` when it can hold only one.

    An item of several may be an error in its own right, which is not its neighbours' concern.
    """

    images: tuple[bytes | RequestError, ...]
    is_single: bool


class BodyReader:
    """Reads bodies whole, within a limit of bytes and one of time. For one event loop."""

    def __init__(self, *, max_bytes: int, timeout_s: float) -> None:
        self._max_bytes = max_bytes
        self._limit = TimeLimit(timeout_s)

    @classmethod
    def build(cls, settings: Settings) -> Self:
        """Returns a reader for the routes that take images."""
        return cls(max_bytes=settings.max_body_bytes, timeout_s=settings.request_read_timeout_s)

    async def read(self, receive: Receive, headers: Mapping[bytes, bytes]) -> bytes:
        """Returns the whole body, having read at most one message more than `max_bytes` of it.

        Raises:
            RequestError: `body_too_large` (before reading, when the length is declared),
                `request_timeout`, `unsupported_encoding`, `invalid_argument`.
            ClientLeftError: The connection ended before the body did.
        """
        _check_head(headers, self._max_bytes)
        try:
            with self._limit.start():
                return await _read_chunks(receive, self._max_bytes)
        except TimeoutError:
            raise RequestError(
                ErrorCode.REQUEST_TIMEOUT, "the body did not arrive in time"
            ) from None


def _check_head(headers: Mapping[bytes, bytes], max_bytes: int) -> None:
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        # Images are compressed already, and a compressed body could unfold to any size.
        raise RequestError(ErrorCode.UNSUPPORTED_ENCODING, "send the body without Content-Encoding")
    if b"content-length" in headers and b"transfer-encoding" in headers:
        # Two servers in a row may disagree where it ends (RFC 9112, section 6.3): smuggling.
        raise RequestError(ErrorCode.INVALID_ARGUMENT, "the length of the body is ambiguous")
    declared = headers.get(b"content-length", b"0")
    if not _CONTENT_LENGTH.fullmatch(declared):
        raise RequestError(ErrorCode.INVALID_ARGUMENT, "Content-Length is not a number of bytes")
    if int(declared) > max_bytes:
        raise _too_large(max_bytes)


async def _read_chunks(receive: Receive, max_bytes: int) -> bytes:
    # One growing buffer and not a list: a body may come as millions of one-byte chunks.
    buffer = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        chunk: bytes = message.get("body", b"")
        if len(buffer) + len(chunk) > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            return bytes(buffer + chunk) if buffer else chunk
        buffer += chunk


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(ErrorCode.BODY_TOO_LARGE, f"the body is larger than {max_bytes} bytes")


def parse_upload(content_type: bytes, body: bytes, *, max_images: int) -> Upload:
    """Returns the images of a body: one raw, or those of a form, or those of a JSON document.

    Any other content type is taken as a raw image, because `curl -T` sends none and a client's
    claim proves nothing: the bytes themselves are looked at later.

    Raises:
        RequestError: `bad_json`, `invalid_argument`; `bad_base64` or `url_not_allowed` for a
            single image, which among several would be that item's error.
    """
    kind = content_type.partition(b";")[0].strip().lower()
    if kind == b"multipart/form-data":
        files = parse_multipart(content_type, body, max_images=max_images)
        return Upload(images=tuple(_try(_check, file) for file in files), is_single=False)
    if kind == b"application/json":
        texts, is_single = _parse_document(body, max_images)
        if is_single:
            return Upload(images=(decode_base64(texts[0]),), is_single=True)
        return Upload(images=tuple(_try(decode_base64, text) for text in texts), is_single=False)
    return Upload(images=(_check(body),), is_single=True)


def _try(read: Callable[[T], bytes], item: T) -> bytes | RequestError:
    try:
        return read(item)
    except RequestError as error:
        return error


def _check(image: bytes) -> bytes:
    refuse_url(image)
    return image


def _parse_document(body: bytes, max_images: int) -> tuple[list[str], bool]:
    """Returns the strings of `{"image": S}` or `{"images": [S, ...]}`, and whether it was one."""
    document = parse_json(body, max_brackets=_MAX_BRACKETS, max_items=max_images)
    if not isinstance(document, dict):
        raise RequestError(ErrorCode.BAD_JSON, "the JSON document is not an object")
    if document.keys() == {"image"}:
        texts, is_single = [document["image"]], True
    elif document.keys() == {"images"}:
        texts, is_single = document["images"], False
    else:
        raise RequestError(
            ErrorCode.INVALID_ARGUMENT, 'the object has one key: "image" or "images"'
        )
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RequestError(
            ErrorCode.INVALID_ARGUMENT, 'an image is a base64 string; "images" is a list of them'
        )
    if not 1 <= len(texts) <= max_images:
        raise wrong_count(max_images)
    return texts, is_single


def decode_base64(text: str) -> bytes:
    """Returns the image in standard base64, alone or as a `data:...;base64,` URI.

    Raises:
        RequestError: `bad_base64`, `url_not_allowed`.
    """
    refuse_url(text[:16].encode("utf-8", "replace"))
    prefix = _DATA_URI.match(text)
    try:
        image = base64.b64decode(text[prefix.end() :] if prefix else text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(ErrorCode.BAD_BASE64, "the image is not base64") from None
    return _check(image)
