"""What the drop-ins share: clients of other servers, answered in the forms that those know.

Each drop-in is a module of routes and off by default. Their forms are documented by the projects
they come from, so they stay out of our OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from starlette.types import Receive, Scope

from service.classifier import Classification, Classifier, Options
from service.errors import RequestError
from service.http_body import BodyReader
from service.http_client import ClientWatch
from service.http_options import read_options, refuse_query
from service.metrics import Metrics
from service.settings import Settings

# Takes the encoded images out of a body, given its Content-Type and the most there may be.
TakeImages = Callable[[bytes, bytes, int], list[bytes]]


class DropIn:
    """Reads a request's images and has them classified, all of them or none."""

    def __init__(self, classifier: Classifier, metrics: Metrics, settings: Settings) -> None:
        self._classifier = classifier
        self._metrics = metrics
        self._settings = settings
        self._bodies = BodyReader.build(settings)

    async def classify(
        self, scope: Scope, receive: Receive, options: Options, take_images: TakeImages
    ) -> list[Classification]:
        """Returns the answers for the images of the body, in their order.

        Raises:
            RequestError: That of the first image that has no answer: these forms have no place for
                the error of a single one.
        """
        headers = dict(scope["headers"])
        with self._metrics.track_inflight("http"):
            self._classifier.refuse_early(options)
            body = await self._bodies.read(receive, headers)
            content_type = headers.get(b"content-type", b"")
            images = take_images(content_type, body, self._settings.max_request_images)
            with ClientWatch(scope, receive):
                results = await self._classifier.classify_many(images, options)
        answers = []
        for result in results:
            if isinstance(result, RequestError):
                raise result
            answers.append(result)
        return answers


def read_path_options(scope: Scope) -> Options:
    """Returns the options of a route `.../{model}` or `.../{model}/.../{version}`.

    Raises:
        RequestError: `invalid_argument`: these forms know no query.
    """
    refuse_query(scope["query_string"])
    given = read_options(b"", dict(scope["headers"]))
    return replace(given, model=read_reference(scope["path_params"]))


def read_reference(path: Mapping[str, str]) -> str:
    """Returns NAME or NAME@VERSION as the path names it."""
    version = path.get("version")
    return path["model"] if version is None else f"{path['model']}@{version}"
