"""The pages for people, as they lie in `web/`: the playground, and the documentation of the API."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from starlette.routing import Route
from starlette.types import Receive, Scope

from service.access import Access
from service.bundle.preprocess import TTA_POLICIES, View
from service.http_answer import Answer, encode_json
from service.http_edge import Endpoint
from service.settings import Settings

# The pages run nothing but their own scripts and reach nothing but this service.
_POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = ((b"referrer-policy", b"no-referrer"), (b"x-frame-options", b"DENY"))

_FOLDER: Final = Path(__file__).parent / "web"
_MEDIA_TYPES: Final = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}


def page_routes(settings: Settings) -> list[Route]:
    """Returns the routes; they stay out of the OpenAPI document."""
    routes = [
        _page("/docs", "docs.html"),
        *(_page(f"/{name}", name) for name in ("docs.css", "docs.js", "mark.svg")),
    ]
    if not settings.playground:
        # Relative, so that it holds wherever this application is mounted.
        away = Answer(body=b"", status=307, headers=((b"location", b"docs"),))
        return [fixed("/", away), *routes]
    parts = sorted(path.name for path in (_FOLDER / "playground").iterdir())
    return [
        _page("/", "playground.html"),
        # Where clients of KServe v1 are answered, / is theirs.
        _page("/playground", "playground.html"),
        fixed("/playground.json", Answer(body=encode_json(_describe_server(settings)))),
        *(_page(f"/playground/{name}", f"playground/{name}") for name in parts),
        *routes,
    ]


def fixed(path: str, answer: Answer) -> Route:
    """Returns the open route of what is the same for everybody."""

    async def show(scope: Scope, receive: Receive) -> Answer:  # noqa: ARG001
        return answer

    endpoint = Endpoint(show, Access.OPEN)
    return Route(path, endpoint, methods=["GET"], include_in_schema=False)


def _page(path: str, name: str) -> Route:
    file = _FOLDER / name
    page = Answer(
        body=file.read_bytes(),
        media_type=_MEDIA_TYPES[file.suffix],
        headers=_HEADERS,
        content_policy=_POLICY,
    )
    return fixed(path, page)


def _describe_server(settings: Settings) -> dict[str, object]:
    """Returns what the page has to know before anybody gives it a key."""
    return {
        "needs_key": settings.api_keys is not None,
        "grpc_port": settings.grpc_port,
        "has_tls": settings.tls_cert is not None,
        "tta": [
            # Which of the views is the one that `/v1/explain` draws its evidence over.
            {"name": name, "views": len(views), "centre": views.index(View())}
            for name, views in TTA_POLICIES.items()
        ],
        "image_formats": list(settings.image_formats),
        "max_body_bytes": settings.max_body_bytes,
    }
