"""TorchServe's inference API, for its clients: `/ping` and `/predictions/{model}[/{version}]`."""

from __future__ import annotations

import re
from typing import Final

from starlette.routing import Route
from starlette.types import Receive, Scope

from service.access import Access
from service.classifier import Classifier
from service.http_answer import Answer, encode_json
from service.http_drop_in import DropIn, read_path_options
from service.http_edge import Endpoint, Handler
from service.http_multipart import parse_multipart
from service.http_results import describe_work
from service.metrics import Metrics
from service.settings import Settings
from service.url_guard import refuse_url

_FIELDS: Final = frozenset({b"data", b"body"})
# TorchServe's own versions read "1.0".
_WHOLE_VERSION: Final = re.compile(r"([0-9]+)\.0")


class TorchServe:
    """The routes."""

    def __init__(self, classifier: Classifier, metrics: Metrics, settings: Settings) -> None:
        self._classifier = classifier
        self._images = DropIn(classifier, metrics, settings)

    def routes(self) -> list[Route]:
        """Returns the table of routes."""
        return [
            _route("/ping", self.ping, Access.OPEN, "GET"),
            _route("/predictions/{model}", self.predict, Access.INFER, "POST", "PUT"),
            _route("/predictions/{model}/{version}", self.predict, Access.INFER, "POST", "PUT"),
        ]

    async def ping(self, scope: Scope, receive: Receive) -> Answer:  # noqa: ARG002
        """Answers 200 while requests should be sent here, else 503."""
        if self._classifier.is_ready:
            return Answer(body=encode_json({"status": "Healthy"}))
        return Answer(body=encode_json({"status": "Unhealthy"}), status=503)

    async def predict(self, scope: Scope, receive: Receive) -> Answer:
        """Answers with the five best labels and their probabilities, best first."""
        path = scope["path_params"]
        if whole := _WHOLE_VERSION.fullmatch(path.get("version", "")):
            path["version"] = whole[1]
        options = read_path_options(scope)
        (answer,) = await self._images.classify(scope, receive, options, _take_image)
        scores: dict[str, float] = {}
        for one in answer.predictions:
            # Labels may repeat (ImageNet has two cranes); of each the better score stays.
            scores.setdefault(one.label, one.score)
        headers = describe_work((answer,))
        return Answer(body=encode_json(scores), headers=headers, results=(answer,))


def _take_image(content_type: bytes, body: bytes, max_images: int) -> list[bytes]:  # noqa: ARG001
    if content_type.lower().startswith(b"multipart/form-data"):
        (body,) = parse_multipart(content_type, body, max_images=1, fields=_FIELDS)
    refuse_url(body)
    return [body]


def _route(path: str, answer: Handler, access: Access, *methods: str) -> Route:
    endpoint = Endpoint(answer, access, error_key="message")
    return Route(path, endpoint, methods=methods, include_in_schema=False)
