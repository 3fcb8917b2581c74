"""The HTTP edge: bytes in, one call of the classifier, JSON out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketClose

from service import http_schema
from service.access import Access, AccessControl
from service.classifier import Classifier
from service.errors import ErrorCode, RequestError
from service.http_admin import AdminApi
from service.http_answer import STATUS, Answer, encode_json
from service.http_body import BodyReader, parse_upload
from service.http_client import ClientWatch
from service.http_debug import DebugApi
from service.http_edge import REQUEST_ID, Endpoint, Handler, HttpEdge
from service.http_explain import HttpExplain
from service.http_open_inference import HttpOpenInference
from service.http_options import read_options, refuse_query
from service.http_pages import fixed, page_routes
from service.http_results import (
    answer_card,
    answer_labels,
    answer_model,
    answer_models,
    answer_several,
    answer_single,
)
from service.http_sagemaker import SageMaker
from service.http_tfserving import TfServing
from service.http_torchserve import TorchServe
from service.intake import Intake
from service.metrics import Metrics
from service.open_inference import OpenInference
from service.openapi import build_openapi
from service.openapi_admin import describe_admin_paths
from service.settings import Settings

if TYPE_CHECKING:
    from service.tracing import Tracing

__all__ = ["STATUS", "build_http_app"]


def build_http_app(
    classifier: Classifier,
    metrics: Metrics,
    settings: Settings,
    control: AccessControl | None = None,
    client_schema: Mapping[str, Any] | None = None,
    tracing: Tracing | None = None,
) -> HttpEdge:
    """Returns the ASGI application of all HTTP routes; it owns no state and needs no lifespan.

    Args:
        classifier: Answers.
        metrics: Counts.
        settings: Of the server.
        control: Decides who may do what; without it the server knows no keys.
        client_schema: What BentoML's own client asks for before its first request.
        tracing: Makes spans; None makes none.
    """
    api = HttpApi(classifier, metrics, settings)
    open_inference = HttpOpenInference(
        OpenInference(classifier, metrics, settings), metrics, settings
    )
    routes = [*api.routes(), *open_inference.routes()]
    if client_schema is not None:
        routes.append(fixed("/schema.json", Answer(body=encode_json(client_schema))))
    router = Router(routes, redirect_slashes=False, default=_refuse_unknown_path)
    return HttpEdge(
        router,
        metrics,
        control or AccessControl(None),
        Intake.build(settings, metrics),
        has_access_log=settings.access_log,
        sticky_header=settings.sticky_header,
        tracing=tracing,
    )


class HttpApi:
    """The routes. Each one returns an `Answer` or raises `RequestError`; the edge does the rest."""

    def __init__(self, classifier: Classifier, metrics: Metrics, settings: Settings) -> None:
        self._classifier = classifier
        self._metrics = metrics
        self._settings = settings
        self._bodies = BodyReader.build(settings)
        rollout, trials = classifier.rollout, classifier.trials
        self._admin = None
        if rollout is not None and trials is not None:
            self._admin = AdminApi(classifier, rollout, trials)
        access = {
            route.path: route.endpoint.access
            for route in self.routes()
            if isinstance(route.endpoint, Endpoint)
        }
        admin = {} if self._admin is None else describe_admin_paths()
        self._openapi = Answer(body=encode_json(build_openapi(settings, access, admin)))

    def routes(self) -> list[Route]:
        """Returns the table of routes; those for people stay out of the OpenAPI document."""
        admin = [] if self._admin is None else self._admin.routes()
        return [
            *admin,
            Route("/v1/classify", Endpoint(self.classify, Access.INFER), methods=["POST", "PUT"]),
            *HttpExplain(self._classifier, self._metrics, self._settings).routes(),
            *self._drop_ins(),
            _get("/v1/models", self.list_models, Access.INFER),
            _get("/v1/models/{name}", self.show_model, Access.INFER),
            _get("/v1/models/{name}/labels", self.show_labels, Access.INFER),
            _get("/v1/models/{name}/card", self.show_card, Access.INFER),
            # Probes have no keys, and a browser sends none when it opens a page.
            _get("/livez", self.tell_alive, Access.OPEN),
            _get("/readyz", self.tell_ready, Access.OPEN),
            _get("/metrics", self.render_metrics, Access.METRICS),
            *DebugApi(self._settings).routes(),
            _get("/openapi.json", self.show_openapi, Access.OPEN),
            *page_routes(self._settings),
        ]

    def _drop_ins(self) -> list[Route]:
        """Returns the routes of the drop-ins that are on; of a path that two have, the first's."""
        parts = self._classifier, self._metrics, self._settings
        routes: list[Route] = []
        if self._settings.torchserve:
            routes += TorchServe(*parts).routes()
        if self._settings.tfserving:
            routes += TfServing(*parts).routes()
        if self._settings.sagemaker:
            routes += SageMaker(self.classify, self.tell_ready).routes()
        return routes

    async def classify(self, scope: Scope, receive: Receive) -> Answer:
        """Answers with the predictions for the image, or the images, of the body."""
        headers = dict(scope["headers"])
        options = read_options(scope["query_string"], headers)
        with self._metrics.track_inflight("http"):
            self._classifier.refuse_early(options)
            body = await self._bodies.read(receive, headers)
            upload = parse_upload(
                headers.get(b"content-type", b""),
                body,
                max_images=self._settings.max_request_images,
            )
            with ClientWatch(scope, receive):
                good = [image for image in upload.images if isinstance(image, bytes)]
                if upload.is_single:
                    result = await self._classifier.classify(good[0], options)
                    return answer_single(result, scope[REQUEST_ID])
                answers = iter(await self._classifier.classify_many(good, options))
                return answer_several(
                    [
                        next(answers) if isinstance(image, bytes) else image
                        for image in upload.images
                    ],
                    scope[REQUEST_ID],
                )

    async def list_models(self, scope: Scope, receive: Receive) -> Answer:  # noqa: ARG002
        """Answers with every served model."""
        refuse_query(scope["query_string"])
        return answer_models(
            self._classifier.describe_models(),
            self._classifier.describe_unavailable(),
            self._classifier.describe_trials(),
        )

    async def show_model(self, scope: Scope, receive: Receive) -> Answer:  # noqa: ARG002
        """Answers with one model."""
        refuse_query(scope["query_string"])
        model = self._classifier.describe_model(scope["path_params"]["name"])
        return answer_model(model)

    async def show_labels(self, scope: Scope, receive: Receive) -> Answer:  # noqa: ARG002
        """Answers with the labels of one model."""
        refuse_query(scope["query_string"])
        model = self._classifier.describe_model(scope["path_params"]["name"])
        return answer_labels(model)

    async def show_card(self, scope: Scope, receive: Receive) -> Answer:  # noqa: ARG002
        """Answers with the model card of one model."""
        refuse_query(scope["query_string"])
        return answer_card(self._classifier.describe_model(scope["path_params"]["name"]))

    async def tell_alive(self, scope: Scope, receive: Receive) -> Answer:  # noqa: ARG002
        """Answers while the event loop runs and no thread hangs; nothing else is asked, on purpose.

        A load, a full queue or a missing model is nothing that a restart would heal.
        """
        if self._classifier.is_stuck:
            raise RequestError(ErrorCode.NOT_READY, "a decoder or a model hangs")
        document: http_schema.Alive = {"status": "alive"}
        return Answer(body=encode_json(document))

    async def tell_ready(self, scope: Scope, receive: Receive) -> Answer:  # noqa: ARG002
        """Answers 200 while requests should be sent here, else 503."""
        if self._classifier.is_draining:
            raise RequestError(ErrorCode.DRAINING, "the service is shutting down")
        if not self._classifier.is_ready:
            raise RequestError(ErrorCode.NOT_READY, "the models are still loading")
        document: http_schema.Ready = {"status": "ready"}
        return Answer(body=encode_json(document))

    async def render_metrics(self, scope: Scope, receive: Receive) -> Answer:  # noqa: ARG002
        """Answers with the metrics of all workers, in the format that the scraper prefers."""
        accept = dict(scope["headers"]).get(b"accept", b"")
        body, media_type = self._metrics.render(accept.decode("latin-1"))
        return Answer(body=body, media_type=media_type.encode("ascii"))

    async def show_openapi(self, scope: Scope, receive: Receive) -> Answer:  # noqa: ARG002
        """Answers with the description of this API."""
        return self._openapi


def _get(path: str, answer: Handler, access: Access) -> Route:
    # Starlette takes an endpoint that is no function to answer every method, unless told.
    return Route(path, Endpoint(answer, access), methods=["GET"])


async def _refuse_unknown_path(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await WebSocketClose()(scope, receive, send)
        return
    raise RequestError(ErrorCode.NOT_FOUND, "there is nothing at this path")
