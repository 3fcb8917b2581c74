"""The Open Inference Protocol v2 on top of the classifier, shared by its REST and gRPC edges.

A model has one input, `image`: files, their pixels, or what the model makes of them, told apart by
the datatype. Its output, `probabilities`, is what `/v1/classify` picks its predictions from.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Never

import numpy as np
from numpy.typing import NDArray

from service.bundle.image_source import ImageSource
from service.classifier import Classification, Classifier, ModelDescription, Options
from service.errors import ErrorCode, RequestError
from service.metrics import Metrics
from service.open_inference_messages import (
    InferRequest,
    InferResponse,
    OutputTensor,
    RequestedOutput,
)
from service.open_inference_metadata import (
    INPUT,
    OUTPUT,
    Document,
    describe_config,
    describe_model,
    describe_server,
)
from service.open_inference_repository import ModelRepository
from service.open_inference_statistics import describe_statistics
from service.open_inference_tensors import read_images
from service.settings import Settings

_VERSION = re.compile(r"[0-9]{1,18}")


class OpenInference:
    """Answers what v2 clients ask; each method is what one route and one rpc need.

    Attributes:
        repository: The way to change the models; None when they are fixed.
    """

    def __init__(self, classifier: Classifier, metrics: Metrics, settings: Settings) -> None:
        self._classifier = classifier
        self._metrics = metrics
        self._settings = settings
        rollout = classifier.rollout
        self.repository = None if rollout is None else ModelRepository(classifier, rollout)
        self._server = describe_server(
            has_repository=rollout is not None and settings.api_keys is not None
        )

    def check_ready(self) -> None:
        """Returns while requests should be sent here.

        Raises:
            RequestError: `draining` or `not_ready`.
        """
        if self._classifier.is_draining:
            raise RequestError(ErrorCode.DRAINING, "the service is shutting down")
        if not self._classifier.is_ready:
            raise RequestError(ErrorCode.NOT_READY, "the models are still loading")

    def is_ready(self) -> bool:
        """Whether requests should be sent here."""
        return self._classifier.is_ready

    def is_model_ready(self, model: str, version: str) -> bool:
        """Whether a model can be asked; one that is not served is not ready."""
        try:
            self.find_model(model, version)
        except RequestError:
            return False
        return self.is_ready()

    def find_model(self, model: str, version: str) -> ModelDescription:
        """Returns the model that a client means; an empty version lets the server choose.

        Raises:
            RequestError: `model_not_found`.
        """
        return self._classifier.describe_model(_refer(model, version))

    def list_names(self) -> list[str]:
        """Returns the name of every served model, once."""
        return sorted({model.name for model in self._classifier.describe_models()})

    def describe_server(self) -> Document:
        """Returns the server's name, version and the extensions that work."""
        return self._server

    def describe_model(self, model: str, version: str) -> Document:
        """Returns inputs, outputs and versions: the asked one, or all that are served.

        Raises:
            RequestError: `model_not_found`.
        """
        found = self.find_model(model, version)
        versions = [found.version] if version else self._list_versions(found.name)
        return describe_model(found, versions, takes_pixels=self._takes_pixels(found))

    def describe_config(self, model: str, version: str) -> Document:
        """Returns the model configuration, as Triton has it.

        Raises:
            RequestError: `model_not_found`.
        """
        found = self.find_model(model, version)
        return describe_config(
            found,
            self._list_versions(found.name),
            max_request_images=self._settings.max_request_images,
            takes_pixels=self._takes_pixels(found),
        )

    async def read_statistics(self, model: str, version: str) -> Document:
        """Returns the statistics of a version, of all of a model's, or, without a name, of all.

        Raises:
            RequestError: `model_not_found`.
        """
        models = self._classifier.describe_models()
        if model:
            found = self.find_model(model, version)
            models = [one for one in models if one.name == found.name]
            if version:
                models = [one for one in models if one.version == found.version]
        samples = await asyncio.to_thread(self._metrics.read_samples)
        return describe_statistics(models, samples)

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answers all images of a request, or none: the protocol has no error for a part of it.

        Raises:
            RequestError: What is wrong with the request, or with its first bad image.
        """
        if len(request.inputs) != 1 or request.inputs[0].name != INPUT:
            _refuse(f"a model has exactly one input, {INPUT}")
        images = read_images(request.inputs[0], max_images=self._settings.max_request_images)
        output = _choose_output(request)
        options = Options(
            model=_refer(request.model, request.version),
            top_k=max(1, output.classes),
            timeout_ms=request.timeout_ms,
            priority=request.priority,
        )
        results = await self._classify(images, options)
        return InferResponse(
            model=results[0].model,
            version=results[0].version,
            id=request.id,
            outputs=(_make_output(output, results),),
            results=results,
        )

    def _takes_pixels(self, model: ModelDescription) -> bool:
        return model.name in self._settings.pixel_models

    def _list_versions(self, model: str) -> list[int]:
        every = self._classifier.describe_models()
        return sorted(one.version for one in every if one.name == model)

    async def _classify(self, images: list[ImageSource], options: Options) -> list[Classification]:
        if len(images) == 1:
            return [await self._classifier.classify(images[0], options)]
        results = []
        for item, result in enumerate(await self._classifier.classify_many(images, options)):
            if isinstance(result, RequestError):
                raise RequestError(
                    result.code,
                    f"image {item}: {result.detail}",
                    retry_after_s=result.retry_after_s,
                )
            results.append(result)
        return results


def _refer(name: str, version: str) -> str:
    if not version:
        return name
    if not _VERSION.fullmatch(version):
        raise RequestError(ErrorCode.MODEL_NOT_FOUND, "a version is a number")
    return f"{name}@{int(version)}"


def _choose_output(request: InferRequest) -> RequestedOutput:
    if not request.outputs:
        return RequestedOutput(name=OUTPUT, is_binary=request.has_binary_outputs)
    if len(request.outputs) != 1 or request.outputs[0].name != OUTPUT:
        _refuse(f"a model has exactly one output, {OUTPUT}")
    return request.outputs[0]


def _make_output(output: RequestedOutput, results: Sequence[Classification]) -> OutputTensor:
    values: NDArray[np.float32] | list[bytes]
    if output.classes:
        values = [text for result in results for text in _name_classes(result)]
        shape = (len(results), len(results[0].predictions))
    else:
        values = np.stack([result.probabilities for result in results])
        shape = values.shape
    return OutputTensor(
        name=OUTPUT,
        datatype="BYTES" if output.classes else "FP32",
        shape=shape,
        values=values,
        is_binary=output.is_binary,
    )


def _name_classes(result: Classification) -> list[bytes]:
    """Returns `VALUE:INDEX:LABEL` of each prediction, as Triton writes it.

    Clients split at the colons, so a colon in a label becomes a space.
    """
    return [
        f"{one.score:f}:{one.index}:{one.label.replace(':', ' ')}".encode()
        for one in result.predictions
    ]


def _refuse(detail: str) -> Never:
    raise RequestError(ErrorCode.INVALID_ARGUMENT, detail)
