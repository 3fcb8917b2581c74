"""The refusal of URLs in the place of images: the service never fetches anything for a client."""

from __future__ import annotations

from service.errors import ErrorCode, RequestError

_SCHEMES = (b"http://", b"https://", b"ftp://", b"file:", b"gopher:")
_LONGEST = max(map(len, _SCHEMES))


def refuse_url(image: bytes) -> None:
    """Passes anything but a URL; no image format begins like one.

    Raises:
        RequestError: `url_not_allowed`.
    """
    if image[:_LONGEST].lower().startswith(_SCHEMES):
        raise RequestError(
            ErrorCode.URL_NOT_ALLOWED, "send the image itself; URLs are never fetched"
        )
