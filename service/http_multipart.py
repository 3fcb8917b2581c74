"""Reads the image files of a multipart/form-data body (RFC 7578) that is wholly in memory.

Starlette's own form parser spools each file through a temporary one and a thread; these bodies are
small and already here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import ErrorCode, RequestError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELDS: Final = frozenset({b"image", b"file"})


def parse_multipart(
    content_type: bytes, body: bytes, *, max_images: int, fields: frozenset[bytes] = FIELDS
) -> tuple[bytes, ...]:
    """Returns the files of the named fields, in their order.

    Raises:
        RequestError: `invalid_argument` for a body without boundary, end, or files, with another
            field or too many files.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise _invalid("the Content-Type names no multipart boundary")
    if body.count(b"\r\n--" + boundary) > max_images + 1:
        # The parser walks through each boundary in Python: two million would take seconds.
        raise wrong_count(max_images)
    form = _Form(max_images, fields)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise _invalid("the multipart body is malformed") from None
    if not form.is_complete:
        raise _invalid("the multipart body ends too early")
    if not form.images:
        raise _invalid(f"the form has no file field named {_name(fields)}")
    return tuple(form.images)


def wrong_count(max_images: int) -> RequestError:
    """Returns the refusal of a request with no image or more than `max_images`."""
    return _invalid(f"one request has between 1 and {max_images} images")


def _name(fields: frozenset[bytes]) -> str:
    return b" or ".join(sorted(fields)).decode("ascii")


def _invalid(detail: str) -> RequestError:
    return RequestError(ErrorCode.INVALID_ARGUMENT, detail)


class _Form:
    """Collects files from the parser's callbacks."""

    def __init__(self, max_images: int, fields: frozenset[bytes]) -> None:
        self.images: list[bytes] = []
        self.is_complete = False
        self._max_images = max_images
        self._fields = fields
        self._name = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._file = bytearray()

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_name,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._check_field,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.images) == self._max_images:
            raise wrong_count(self._max_images)
        self._disposition = b""
        self._file = bytearray()

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def _check_field(self) -> None:
        if parse_options_header(self._disposition)[1].get(b"name") not in self._fields:
            names = _name(self._fields)
            raise _invalid(f"a form field is not named {names}; options go in the URL")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        # `data` is not always the body: the parser also hands back what looked like a boundary.
        self._file += memoryview(data)[start:end]

    def _end_part(self) -> None:
        self.images.append(bytes(self._file))

    def _end(self) -> None:
        self.is_complete = True
