"""Bodies that clients compressed, unfolded no further than a body may be large."""

from __future__ import annotations

import asyncio
import zlib
from typing import Final

from service.errors import ErrorCode, RequestError

# zlib's window sizes that stand for a format (zlib.h, inflateInit2): gzip or zlib by its header.
# HTTP's `deflate` is the zlib format (RFC 9110, section 8.4.1.2).
_ANY_HEADER: Final = 32 + zlib.MAX_WBITS


async def decode_body(body: bytes, encoding: bytes, *, max_bytes: int) -> bytes:
    """Returns the body as it was before its Content-Encoding, which is gzip, deflate or identity.

    Raises:
        RequestError: `unsupported_encoding`; `body_too_large` when it unfolds to more than
            `max_bytes`; `invalid_argument` when it is damaged.
    """
    encoding = encoding.strip().lower()
    if encoding in (b"", b"identity"):
        return body
    if encoding not in (b"gzip", b"deflate"):
        raise RequestError(
            ErrorCode.UNSUPPORTED_ENCODING, "Content-Encoding is gzip, deflate or identity"
        )
    # zlib lets other threads run meanwhile.
    return await asyncio.to_thread(_unfold, body, max_bytes)


def _unfold(body: bytes, max_bytes: int) -> bytes:
    decoder = zlib.decompressobj(_ANY_HEADER)
    try:
        unfolded = decoder.decompress(body, max_bytes + 1)
    except zlib.error:
        raise _damaged() from None
    if len(unfolded) > max_bytes:
        raise RequestError(
            ErrorCode.BODY_TOO_LARGE, f"the body unfolds to more than {max_bytes} bytes"
        )
    if not decoder.eof or decoder.unused_data:
        raise _damaged()
    return unfolded


def _damaged() -> RequestError:
    return RequestError(ErrorCode.INVALID_ARGUMENT, "the compressed body is damaged")
