"""fivecrop.v1.ImageClassifier: messages in, one call of the classifier, messages out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import grpc

from service.access import Access
from service.classification import Classification, ExplainOptions, Explanation, Options
from service.classifier import Classifier
from service.errors import ErrorCode, RequestError
from service.grpc_access import Rpc
from service.grpc_answer import (
    encode_classification,
    encode_error,
    encode_explanation,
    encode_model,
)
from service.grpc_call import Answers, Call, Calls, Context, time_left_ms
from service.intake import Intake
from service.metrics import Metrics
from service.proto import image_classifier_pb2 as messages
from service.settings import Settings
from service.url_guard import refuse_url

if TYPE_CHECKING:
    from service.tracing import Tracing

SERVICE_NAME: Final = "fivecrop.v1.ImageClassifier"
_OPTIONS: Final = ("model", "top_k", "tta", "priority", "coverage", "embedding")


class ImageClassifier:
    """The servicer: each method is one call of the classifier."""

    def __init__(
        self,
        classifier: Classifier,
        metrics: Metrics,
        settings: Settings,
        intake: Intake,
        tracing: Tracing | None = None,
    ) -> None:
        self._classifier = classifier
        self._settings = settings
        self._intake = intake
        self._calls = Calls(SERVICE_NAME, metrics, settings, tracing)

    def rpcs(self) -> dict[str, Rpc]:
        """Returns the methods of this service, and what each asks of its caller."""
        return {
            "Classify": Rpc(
                access=Access.INFER,
                handler=grpc.unary_unary_rpc_method_handler(
                    self.classify,
                    messages.ClassifyRequest.FromString,
                    messages.ClassifyResponse.SerializeToString,
                ),
            ),
            "ClassifyStream": Rpc(
                access=Access.INFER,
                handler=grpc.stream_stream_rpc_method_handler(
                    self.classify_stream,
                    messages.ClassifyStreamRequest.FromString,
                    messages.ClassifyStreamResponse.SerializeToString,
                ),
            ),
            "Explain": Rpc(
                access=Access.INFER,
                handler=grpc.unary_unary_rpc_method_handler(
                    self.explain,
                    messages.ExplainRequest.FromString,
                    messages.ExplainResponse.SerializeToString,
                ),
            ),
            "Models": Rpc(
                access=Access.INFER,
                handler=grpc.unary_unary_rpc_method_handler(
                    self.list_models,
                    messages.ModelsRequest.FromString,
                    messages.ModelsResponse.SerializeToString,
                ),
            ),
        }

    async def classify(
        self, request: messages.ClassifyRequest, context: Context
    ) -> messages.ClassifyResponse:
        """Answers one image."""
        call = self._calls.open(context, "Classify")
        work = self._classify(request, call.timeout_ms)
        result = await self._calls.answer(call, context, work)
        return encode_classification(result, call.request_id)

    async def classify_stream(
        self, requests: AsyncIterator[messages.ClassifyStreamRequest], context: Context
    ) -> None:
        """Answers images as they finish; reads no further ahead than it may work at once."""
        call = self._calls.open(context, "ClassifyStream")
        await self._calls.stream(call, context, partial(self._answer_all, requests, context, call))

    async def _answer_all(
        self,
        requests: AsyncIterator[messages.ClassifyStreamRequest],
        context: Context,
        call: Call,
        answers: Answers,
    ) -> None:
        slots = asyncio.Semaphore(self._settings.max_request_images)

        async def answer(request: messages.ClassifyStreamRequest) -> None:
            try:
                response = await self._answer_item(request, context, call)
                del request  # a client that reads no answers shall not hold its images here
                await answers.write(response)
            finally:
                slots.release()

        async with asyncio.TaskGroup() as group:
            async for request in requests:
                await slots.acquire()
                group.create_task(answer(request))

    async def explain(
        self, request: messages.ExplainRequest, context: Context
    ) -> messages.ExplainResponse:
        """Answers where in one image the evidence lies."""
        call = self._calls.open(context, "Explain")
        work = self._explain(request, call.timeout_ms)
        found = await self._calls.answer(call, context, work)
        return encode_explanation(found, call.request_id)

    async def list_models(
        self, request: messages.ModelsRequest, context: Context
    ) -> messages.ModelsResponse:
        """Answers with every served model."""
        del request  # it has no fields
        call = self._calls.open(context, "Models")
        models = await self._calls.answer(call, context, self._describe_models())
        return messages.ModelsResponse(models=models)

    async def _answer_item(
        self, item: messages.ClassifyStreamRequest, context: Context, call: Call
    ) -> messages.ClassifyStreamResponse:
        timeout_ms = item.timeout_ms if item.HasField("timeout_ms") else None
        if (left_ms := time_left_ms(context)) is not None:
            timeout_ms = min(left_ms, timeout_ms if timeout_ms is not None else left_ms)
        try:
            result = await self._calls.measure(call, self._classify(item.request, timeout_ms))
        except RequestError as error:
            return messages.ClassifyStreamResponse(id=item.id, error=encode_error(error))
        response = encode_classification(result, call.request_id)
        return messages.ClassifyStreamResponse(id=item.id, response=response)

    async def _classify(
        self, request: messages.ClassifyRequest, timeout_ms: float | None
    ) -> Classification:
        image = self._take_image(request)
        given = _read_fields(request, _OPTIONS)
        options = Options(**given, timeout_ms=timeout_ms)
        with self._intake.admit() as held:
            held.add(len(image))
            return await self._classifier.classify(image, options)

    async def _explain(
        self, request: messages.ExplainRequest, timeout_ms: float | None
    ) -> Explanation:
        image = self._take_image(request)
        given = _read_fields(request, ("model", "index", "method"))
        options = ExplainOptions(**given, timeout_ms=timeout_ms, has_overlay=request.overlay)
        with self._intake.admit() as held:
            held.add(len(image))
            return await self._classifier.explain(image, options)

    def _take_image(self, request: messages.ClassifyRequest | messages.ExplainRequest) -> bytes:
        """Returns the image of a message; each look at its field would copy it."""
        image = request.image
        limit = self._settings.max_body_bytes
        if len(image) > limit:
            raise RequestError(ErrorCode.BODY_TOO_LARGE, f"the image is larger than {limit} bytes")
        refuse_url(image)
        return image

    async def _describe_models(self) -> list[messages.Model]:
        return [encode_model(model) for model in self._classifier.describe_models()]


def _read_fields(request: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Returns the optional fields that the client set."""
    return {name: getattr(request, name) for name in names if request.HasField(name)}
