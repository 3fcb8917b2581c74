"""`/v1/explain`: an image in, the evidence for a class out, as a picture or as numbers."""

from __future__ import annotations

from starlette.routing import Route
from starlette.types import Receive, Scope

from service import http_schema
from service.access import Access
from service.classification import Explanation, Options
from service.classifier import Classifier
from service.errors import ErrorCode, RequestError
from service.http_answer import Answer, encode_json
from service.http_body import BodyReader, parse_upload
from service.http_client import ClientWatch
from service.http_edge import REQUEST_ID, Endpoint
from service.http_options import read_explain_options
from service.http_results import server_timing
from service.metrics import Metrics
from service.settings import Settings


class HttpExplain:
    """The route, over the same limits as `/v1/classify`."""

    def __init__(self, classifier: Classifier, metrics: Metrics, settings: Settings) -> None:
        self._classifier = classifier
        self._metrics = metrics
        self._bodies = BodyReader.build(settings)

    def routes(self) -> list[Route]:
        """Returns the one route; PUT so that `curl -T` works."""
        return [Route("/v1/explain", Endpoint(self.explain, Access.INFER), methods=["POST", "PUT"])]

    async def explain(self, scope: Scope, receive: Receive) -> Answer:
        """Answers with a PNG where the client accepts one, else with JSON."""
        headers = dict(scope["headers"])
        options = read_explain_options(scope["query_string"], headers)
        with self._metrics.track_inflight("http"):
            self._classifier.refuse_early(
                Options(model=options.model, timeout_ms=options.timeout_ms)
            )
            body = await self._bodies.read(receive, headers)
            image = _take_one(headers.get(b"content-type", b""), body)
            with ClientWatch(scope, receive):
                found = await self._classifier.explain(image, options)
        timing = (server_timing(found.timings),)
        if found.overlay is not None:
            return Answer(
                body=found.overlay, media_type=b"image/png", headers=timing, results=(found,)
            )
        document = _tell(found, scope[REQUEST_ID])
        return Answer(body=encode_json(document), headers=timing, results=(found,))


def _take_one(content_type: bytes, body: bytes) -> bytes:
    """Returns the one image of the body, in any form that `/v1/classify` takes."""
    (image, *others) = parse_upload(content_type, body, max_images=2).images
    if others:
        raise RequestError(ErrorCode.INVALID_ARGUMENT, "one image is explained at a time")
    if isinstance(image, RequestError):
        raise image
    return image


def _tell(found: Explanation, request_id: str) -> http_schema.Explanation:
    height, width = found.evidence.shape
    best = found.prediction
    document: http_schema.Explanation = {
        "request_id": request_id,
        "model": found.model,
        "version": found.version,
        "method": found.method,
        "prediction": {"label": best.label, "index": best.index, "score": best.score},
        "evidence": {"height": height, "width": width, "values": found.evidence.tolist()},
        "image": {"width": found.width, "height": found.height, "format": found.format},
    }
    if found.member is not None:
        document["member"] = found.member
    return document
