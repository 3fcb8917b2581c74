"""The routes under `/v2/repository`, for holders of a key with the scope `admin` alone."""

from __future__ import annotations

from typing import Any, Final

from starlette.routing import Route
from starlette.types import Receive, Scope

from service.access import Access
from service.errors import ErrorCode, RequestError
from service.http_answer import Answer, encode_json
from service.http_body import BodyReader
from service.http_edge import Endpoint, Handler
from service.http_json import load_json
from service.open_inference_parameters import read_flag
from service.open_inference_repository import ModelRepository

_MAX_BODY_BYTES: Final = 64 * 1024
_BODY_TIMEOUT_S: Final = 10.0
_MAX_JSON_BRACKETS: Final = 64
_MAX_JSON_VALUES: Final = 256


class HttpRepository:
    """Index, load and unload, as Triton answers them."""

    def __init__(self, repository: ModelRepository) -> None:
        self._repository = repository
        self._bodies = BodyReader(max_bytes=_MAX_BODY_BYTES, timeout_s=_BODY_TIMEOUT_S)

    def routes(self) -> list[Route]:
        """Returns the table of routes."""
        model = "/v2/repository/models/{name}"
        return [
            _route("/v2/repository/index", self.index),
            _route(f"{model}/load", self.load),
            _route(f"{model}/unload", self.unload),
        ]

    async def index(self, scope: Scope, receive: Receive) -> Answer:
        """Answers with every model of the repository, or with those that serve."""
        ready_only = read_flag(await self._read(scope, receive), "ready", False)
        return Answer(body=encode_json(await self._repository.index(ready_only=ready_only)))

    async def load(self, scope: Scope, receive: Receive) -> Answer:
        """Answers, with nothing, when the model serves."""
        parameters = _parameters(await self._read(scope, receive))
        await self._repository.load(scope["path_params"]["name"], parameters)
        return Answer(body=b"")

    async def unload(self, scope: Scope, receive: Receive) -> Answer:
        """Answers, with nothing, when no request finds the model any more."""
        parameters = _parameters(await self._read(scope, receive))
        await self._repository.unload(scope["path_params"]["name"], parameters)
        return Answer(body=b"")

    async def _read(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        """Returns the document of the body; no body is an empty one."""
        body = await self._bodies.read(receive, dict(scope["headers"]))
        if not body:
            return {}
        too_many = RequestError(ErrorCode.INVALID_ARGUMENT, "there are too many values")
        document = load_json(
            body, max_brackets=_MAX_JSON_BRACKETS, max_commas=_MAX_JSON_VALUES, too_many=too_many
        )
        if not isinstance(document, dict):
            raise RequestError(ErrorCode.INVALID_ARGUMENT, "the body is an object")
        return document


def _route(path: str, answer: Handler) -> Route:
    return Route(path, Endpoint(answer, Access.ADMIN, error_key="error"), methods=["POST"])


def _parameters(document: dict[str, Any]) -> dict[str, Any]:
    parameters = document.get("parameters", {})
    if not isinstance(parameters, dict):
        raise RequestError(ErrorCode.INVALID_ARGUMENT, "parameters is an object")
    return parameters
