"""The predict API of TensorFlow Serving and KServe v1: `/v1/models/{model}` and `...:predict`.

An instance is an encoded image: `{"b64": "..."}`, or that under one name of the client's choice,
as models with named inputs have it. Rows of pixels are refused: this service decodes and resizes
itself, so that what was validated is what is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from starlette.routing import Route
from starlette.types import Receive, Scope

from service.access import Access
from service.classifier import Classification, Classifier, ModelDescription
from service.errors import ErrorCode, RequestError
from service.http_answer import Answer, encode_json
from service.http_body import decode_base64
from service.http_drop_in import DropIn, read_path_options, read_reference
from service.http_edge import Endpoint, Handler
from service.http_json import parse_json
from service.http_multipart import wrong_count
from service.http_options import refuse_query
from service.http_results import describe_work
from service.metrics import Metrics
from service.settings import Settings

# The document, the list, and for each image two objects.
_OUTER_BRACKETS: Final = 2
_BRACKETS_AN_IMAGE: Final = 2


class TfServing:
    """The routes. They answer `GET /v1/models/{model}` and `GET /` in place of our own."""

    def __init__(self, classifier: Classifier, metrics: Metrics, settings: Settings) -> None:
        self._classifier = classifier
        self._images = DropIn(classifier, metrics, settings)

    def routes(self) -> list[Route]:
        """Returns the table of routes, which must come before our own."""
        version = "/v1/models/{model}/versions/{version}"
        return [
            _route("/v1/models/{model}:predict", self.predict, "POST"),
            _route(f"{version}:predict", self.predict, "POST"),
            _route(version, self.show_status, "GET"),
            _route("/v1/models/{model}", self.show_status, "GET"),
            _route("/", self.tell_alive, "GET", Access.OPEN),
        ]

    async def tell_alive(self, scope: Scope, receive: Receive) -> Answer:  # noqa: ARG002
        """Answers as KServe's root does, which its client asks whether the server is live."""
        return Answer(body=encode_json({"status": "alive"}))

    async def show_status(self, scope: Scope, receive: Receive) -> Answer:  # noqa: ARG002
        """Answers with the state of a model's versions: TensorFlow Serving's keys and KServe's."""
        refuse_query(scope["query_string"])
        path = scope["path_params"]
        found = self._classifier.describe_model(read_reference(path))
        versions = [found]
        if "version" not in path:
            every = self._classifier.describe_models()
            versions = [one for one in every if one.name == found.name]
        return Answer(
            body=encode_json(
                {
                    "name": found.name,
                    "ready": found.state == "ready",
                    "model_version_status": [_tell_state(one) for one in versions],
                }
            )
        )

    async def predict(self, scope: Scope, receive: Receive) -> Answer:
        """Answers with the class and every probability of each image."""
        options = read_path_options(scope)
        answers = await self._images.classify(scope, receive, options, _take_images)
        document = {"predictions": [_tell(answer) for answer in answers]}
        headers = describe_work(answers)
        return Answer(body=encode_json(document), headers=headers, results=answers)


def _tell_state(model: ModelDescription) -> dict[str, object]:
    return {
        "version": str(model.version),
        "state": "AVAILABLE" if model.state == "ready" else "LOADING",
        "status": {"error_code": "OK", "error_message": ""},
    }


def _tell(answer: Classification) -> dict[str, object]:
    """Returns the outputs as TensorFlow's classifiers name them, and the label."""
    best = answer.predictions[0]
    return {
        "classes": best.index,
        "label": best.label,
        "probabilities": answer.probabilities.tolist(),
    }


def _take_images(content_type: bytes, body: bytes, max_images: int) -> list[bytes]:  # noqa: ARG001
    """Returns the images of `{"instances": [...], "signature_name"?: S}`, whatever its type."""
    brackets = _OUTER_BRACKETS + _BRACKETS_AN_IMAGE * max_images
    document = parse_json(body, max_brackets=brackets, max_items=max_images)
    if not isinstance(document, dict):
        raise RequestError(ErrorCode.BAD_JSON, "the JSON document is not an object")
    instances = document.pop("instances", None)
    signature = document.pop("signature_name", "serving_default")
    if not isinstance(instances, list) or not isinstance(signature, str) or document:
        raise _invalid('the object has the key "instances", a list, and may have "signature_name"')
    if not 1 <= len(instances) <= max_images:
        raise wrong_count(max_images)
    return _decode(instances)


def _decode(instances: Sequence[object]) -> list[bytes]:
    texts = []
    for instance in instances:
        if isinstance(instance, dict) and len(instance) == 1 and "b64" not in instance:
            (instance,) = instance.values()
        if not isinstance(instance, dict) or instance.keys() != {"b64"}:
            raise _invalid('an instance is {"b64": IMAGE}, or that under one name')
        if not isinstance(instance["b64"], str):
            raise _invalid("an image is a base64 string")
        texts.append(instance["b64"])
    return [decode_base64(text) for text in texts]


def _invalid(detail: str) -> RequestError:
    return RequestError(ErrorCode.INVALID_ARGUMENT, detail)


def _route(path: str, answer: Handler, method: str, access: Access = Access.INFER) -> Route:
    endpoint = Endpoint(answer, access, error_key="error")
    return Route(path, endpoint, methods=[method], include_in_schema=False)
