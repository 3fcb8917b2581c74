"""The routes that change what serves, for holders of a key with the scope `admin` alone."""

from __future__ import annotations

import re
from typing import Annotated, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from starlette.routing import Route
from starlette.types import Receive, Scope
from typing_extensions import TypedDict

from service.access import Access
from service.classifier import Classifier
from service.errors import ErrorCode, RequestError
from service.http_answer import Answer
from service.http_body import BodyReader
from service.http_edge import Endpoint, Handler
from service.http_options import refuse_query
from service.http_results import answer_models
from service.http_trial import answer_report
from service.rollout import Rollout
from service.traffic_orders import Shadow, Split
from service.trial import Trials
from service.trial_gate import Gate

_MAX_BODY_BYTES: Final = 1024
_BODY_TIMEOUT_S: Final = 10.0
_VERSION: Final = re.compile(r"[1-9][0-9]{0,17}")


@with_config(ConfigDict(extra="forbid", strict=True))
class LabelRequest(TypedDict):
    """Which version a label should mean."""

    version: Annotated[int, Field(ge=1)]


Body = TypeVar("Body", bound=BaseModel)

_LABEL_REQUEST: Final = TypeAdapter(LabelRequest)


class AdminApi:
    """Load, unload, reload and label. Each answers, when it is done, as `GET /v1/models` would."""

    def __init__(self, classifier: Classifier, rollout: Rollout, trials: Trials) -> None:
        self._classifier = classifier
        self._rollout = rollout
        self._trials = trials
        self._bodies = BodyReader(max_bytes=_MAX_BODY_BYTES, timeout_s=_BODY_TIMEOUT_S)

    def routes(self) -> list[Route]:
        """Returns the table of routes."""
        version = "/v1/models/{name}/versions/{version}"
        label = "/v1/models/{name}/labels/{label}"
        return [
            _route("POST", "/v1/models/{name}:load", self.load),
            _route("POST", "/v1/models/{name}:unload", self.unload),
            _route("POST", "/v1/models/{name}:reload", self.reload),
            _route("POST", f"{version}:load", self.load),
            _route("POST", f"{version}:unload", self.unload),
            _route("PUT", label, self.set_label),
            _route("DELETE", label, self.remove_label),
            _route("PUT", "/v1/models/{name}/split", self.set_split),
            _route("DELETE", "/v1/models/{name}/split", self.remove_split),
            _route("PUT", "/v1/models/{name}/shadow", self.set_shadow),
            _route("DELETE", "/v1/models/{name}/shadow", self.remove_shadow),
            _route("GET", "/v1/models/{name}/report", self.report),
            _route("POST", "/v1/models/{name}:promote", self.promote),
        ]

    async def load(self, scope: Scope, receive: Receive) -> Answer:
        """Serves a version, or what the policy chooses."""
        await self._refuse_body(scope, receive)
        await self._rollout.load(_name(scope), _version(scope))
        return self._answer(scope)

    async def unload(self, scope: Scope, receive: Receive) -> Answer:
        """Serves a version, or the whole model, no more."""
        await self._refuse_body(scope, receive)
        await self._rollout.unload(_name(scope), _version(scope))
        return self._answer(scope)

    async def reload(self, scope: Scope, receive: Receive) -> Answer:
        """Serves what the repository holds now."""
        await self._refuse_body(scope, receive)
        await self._rollout.reload(_name(scope))
        return self._answer(scope)

    async def set_label(self, scope: Scope, receive: Receive) -> Answer:
        """Lets a label mean a version."""
        body = await self._read(scope, receive)
        try:
            version = _LABEL_REQUEST.validate_json(body)["version"]
        except ValidationError:
            raise RequestError(
                ErrorCode.INVALID_ARGUMENT, 'the body is {"version": N} and nothing else'
            ) from None
        await self._rollout.label(_name(scope), scope["path_params"]["label"], version)
        return self._answer(scope)

    async def remove_label(self, scope: Scope, receive: Receive) -> Answer:
        """Takes a label away."""
        await self._refuse_body(scope, receive)
        await self._rollout.label(_name(scope), scope["path_params"]["label"], None)
        return self._answer(scope)

    async def set_split(self, scope: Scope, receive: Receive) -> Answer:
        """Lets versions answer shares of the requests that name the model alone."""
        body = await self._read(scope, receive)
        await self._trials.split(_name(scope), _parse(Split, body))
        return self._answer(scope)

    async def remove_split(self, scope: Scope, receive: Receive) -> Answer:
        """Lets the stable version answer all of them."""
        await self._refuse_body(scope, receive)
        await self._trials.split(_name(scope), None)
        return self._answer(scope)

    async def set_shadow(self, scope: Scope, receive: Receive) -> Answer:
        """Lets a version be asked a share of those requests too."""
        body = await self._read(scope, receive)
        await self._trials.shadow(_name(scope), _parse(Shadow, body))
        return self._answer(scope)

    async def remove_shadow(self, scope: Scope, receive: Receive) -> Answer:
        """Lets no version be asked besides the one that answers."""
        await self._refuse_body(scope, receive)
        await self._trials.shadow(_name(scope), None)
        return self._answer(scope)

    async def report(self, scope: Scope, receive: Receive) -> Answer:  # noqa: ARG002
        """Tells how the trial of a model goes."""
        refuse_query(scope["query_string"])
        return answer_report(await self._trials.report(_name(scope)))

    async def promote(self, scope: Scope, receive: Receive) -> Answer:
        """Makes a version the stable one, if it passes the gate."""
        body = await self._read(scope, receive)
        await self._trials.promote(_name(scope), _parse(Gate, body or b"{}"))
        return self._answer(scope)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        refuse_query(scope["query_string"])
        return await self._bodies.read(receive, dict(scope["headers"]))

    async def _refuse_body(self, scope: Scope, receive: Receive) -> None:
        if await self._read(scope, receive):
            raise RequestError(ErrorCode.INVALID_ARGUMENT, "this path takes no body")

    def _answer(self, scope: Scope) -> Answer:
        name = _name(scope)
        return answer_models(
            [model for model in self._classifier.describe_models() if model.name == name],
            [one for one in self._classifier.describe_unavailable() if one.name == name],
            [one for one in self._classifier.describe_trials() if one.name == name],
        )


def _route(method: str, path: str, answer: Handler) -> Route:
    return Route(path, Endpoint(answer, Access.ADMIN), methods=[method])


def _name(scope: Scope) -> str:
    name: str = scope["path_params"]["name"]
    return name


def _version(scope: Scope) -> int | None:
    text = scope["path_params"].get("version")
    if text is None:
        return None
    if not _VERSION.fullmatch(text):
        raise RequestError(ErrorCode.MODEL_NOT_FOUND, "no such model or version")
    return int(text)


def _parse(kind: type[Body], body: bytes) -> Body:
    """Returns what the body says, or refuses it for its first fault."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        field = str(fault["loc"][0]) if fault["loc"] else ""
        # A name that is none of ours is the client's, which no answer repeats.
        where = field if field in kind.model_fields else "the body"
        raise RequestError(ErrorCode.INVALID_ARGUMENT, f"{where}: {fault['msg'].lower()}") from None
