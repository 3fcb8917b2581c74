"""The REST edge of the Open Inference Protocol v2: routes of its clients, and nothing else."""

from __future__ import annotations

from starlette.routing import Route
from starlette.types import Receive, Scope

from service.access import Access
from service.http_answer import Answer, encode_json
from service.http_body import BodyReader
from service.http_client import ClientWatch
from service.http_content_encoding import decode_body
from service.http_edge import Endpoint, Handler
from service.http_infer import answer_infer, parse_infer
from service.http_repository import HttpRepository
from service.metrics import Metrics
from service.open_inference import OpenInference
from service.settings import Settings


class HttpOpenInference:
    """The routes under `/v2`."""

    def __init__(self, open_inference: OpenInference, metrics: Metrics, settings: Settings) -> None:
        self._open_inference = open_inference
        self._metrics = metrics
        self._bodies = BodyReader.build(settings)
        self._max_body_bytes = settings.max_body_bytes

    def routes(self) -> list[Route]:
        """Returns the table of routes; the model's come with and without its version."""
        model = "/v2/models/{name}"
        repository = self._open_inference.repository
        return [
            # Before the model of that name, as Triton has it.
            _route("/v2/models/stats", self.show_statistics, Access.INFER, "GET"),
            *(
                _route(f"{prefix}{path}", answer, Access.INFER, method)
                for path, answer, method in (
                    ("/infer", self.infer, "POST"),
                    ("/ready", self.tell_model_ready, "GET"),
                    ("/config", self.show_config, "GET"),
                    ("/stats", self.show_statistics, "GET"),
                    ("", self.show_model, "GET"),
                )
                for prefix in (model, f"{model}/versions/{{version}}")
            ),
            _route("/v2/health/live", self.tell_live, Access.OPEN, "GET"),
            _route("/v2/health/ready", self.tell_ready, Access.OPEN, "GET"),
            _route("/v2/models", self.list_models, Access.INFER, "GET"),
            _route("/v2", self.show_server, Access.INFER, "GET"),
            *([] if repository is None else HttpRepository(repository).routes()),
        ]

    async def infer(self, scope: Scope, receive: Receive) -> Answer:
        """Answers with the output of a model for the images of the body."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        encoding = headers.pop(b"content-encoding", b"identity")
        with self._metrics.track_inflight("http"):
            body = await self._bodies.read(receive, headers)
            body = await decode_body(body, encoding, max_bytes=self._max_body_bytes)
            request = parse_infer(headers, body, **_name_model(scope))
            with ClientWatch(scope, receive):
                return answer_infer(await self._open_inference.infer(request))

    async def show_server(self, scope: Scope, receive: Receive) -> Answer:  # noqa: ARG002
        """Answers with the name, version and extensions of the server."""
        return Answer(body=encode_json(self._open_inference.describe_server()))

    async def list_models(self, scope: Scope, receive: Receive) -> Answer:  # noqa: ARG002
        """Answers with the names of the models, as KServe does."""
        return Answer(body=encode_json({"models": self._open_inference.list_names()}))

    async def show_model(self, scope: Scope, receive: Receive) -> Answer:  # noqa: ARG002
        """Answers with the inputs, outputs and versions of a model."""
        return Answer(body=encode_json(self._open_inference.describe_model(**_name_model(scope))))

    async def show_config(self, scope: Scope, receive: Receive) -> Answer:  # noqa: ARG002
        """Answers with the configuration of a model."""
        return Answer(body=encode_json(self._open_inference.describe_config(**_name_model(scope))))

    async def show_statistics(self, scope: Scope, receive: Receive) -> Answer:  # noqa: ARG002
        """Answers with what was counted of a version, a model, or all models."""
        statistics = await self._open_inference.read_statistics(**_name_model(scope))
        return Answer(body=encode_json(statistics))

    async def tell_live(self, scope: Scope, receive: Receive) -> Answer:  # noqa: ARG002
        """Answers whenever the event loop runs."""
        return Answer(body=encode_json({"live": True}))

    async def tell_ready(self, scope: Scope, receive: Receive) -> Answer:  # noqa: ARG002
        """Answers 200 while requests should be sent here, else 503."""
        self._open_inference.check_ready()
        return Answer(body=encode_json({"ready": True}))

    async def tell_model_ready(self, scope: Scope, receive: Receive) -> Answer:  # noqa: ARG002
        """Answers 200 when the model can be asked, else 404 or 503."""
        model = self._open_inference.find_model(**_name_model(scope))
        self._open_inference.check_ready()
        return Answer(body=encode_json({"name": model.name, "ready": True}))


def _route(path: str, answer: Handler, access: Access, method: str) -> Route:
    return Route(path, Endpoint(answer, access, error_key="error"), methods=[method])


def _name_model(scope: Scope) -> dict[str, str]:
    parameters = scope["path_params"]
    return {"model": parameters.get("name", ""), "version": parameters.get("version", "")}
