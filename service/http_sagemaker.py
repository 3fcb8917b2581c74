"""The container contract of Amazon SageMaker: `/ping` and `/invocations`.

Bodies and answers are those of `/v1/classify`. A client of SageMaker cannot send a query; what it
can send is the header of custom attributes, so the options come there: `top_k=3,tta=hflip`.
"""

from __future__ import annotations

from typing import Final

from starlette.routing import Route
from starlette.types import Receive, Scope

from service.access import Access
from service.http_answer import Answer
from service.http_edge import Endpoint, Handler
from service.http_options import refuse_query

_ATTRIBUTES: Final = b"x-amzn-sagemaker-custom-attributes"


class SageMaker:
    """The routes."""

    def __init__(self, classify: Handler, tell_ready: Handler) -> None:
        """Takes the handlers of our own routes."""
        self._classify = classify
        self._tell_ready = tell_ready

    def routes(self) -> list[Route]:
        """Returns the table of routes."""
        return [
            _route("/ping", self._tell_ready, Access.OPEN, "GET"),
            _route("/invocations", self.invoke, Access.INFER, "POST"),
        ]

    async def invoke(self, scope: Scope, receive: Receive) -> Answer:
        """Answers as `/v1/classify` does."""
        refuse_query(scope["query_string"])
        attributes = dict(scope["headers"]).get(_ATTRIBUTES, b"")
        query = attributes.replace(b", ", b",").replace(b",", b"&")
        return await self._classify({**scope, "query_string": query}, receive)


def _route(path: str, answer: Handler, access: Access, method: str) -> Route:
    return Route(path, Endpoint(answer, access), methods=[method], include_in_schema=False)
