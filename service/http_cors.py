"""Pages of other origins that may call the service from a browser; by default none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

_METHODS: Final = ("GET", "POST", "PUT")
_READABLE_HEADERS: Final = ("X-Request-Id", "Server-Timing", "Retry-After")


def allow_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Returns the application for pages of these origins too; `*` is any.

    Cookies are never allowed. A page may send any header: what it may do is for its key to say.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=_METHODS,
        allow_headers=("*",),
        expose_headers=_READABLE_HEADERS,
    )
