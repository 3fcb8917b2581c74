"""inference.GRPCInferenceService: the gRPC edge of the Open Inference Protocol v2."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.json_format import ParseDict

from service.access import Access
from service.errors import RequestError
from service.grpc_access import Rpc
from service.grpc_call import Answers, Call, Calls, Context, time_left_ms
from service.grpc_infer import decode_request, encode_response
from service.grpc_repository import GrpcRepository
from service.intake import Intake
from service.metrics import Metrics
from service.open_inference import OpenInference
from service.open_inference_messages import InferResponse
from service.open_inference_parameters import TELL_LAST
from service.proto import open_inference_pb2 as messages
from service.settings import Settings

if TYPE_CHECKING:
    from service.tracing import Tracing

SERVICE_NAME: Final = "inference.GRPCInferenceService"

# Where it is told what `TELL_LAST` asks for.
_IS_LAST: Final = "triton_final_response"
# With this in its metadata a client asks that an error ends the stream with its status.
_END_BY_ERROR: Final = "triton_grpc_error"

_Answer = Callable[[Any, Call], Awaitable[Any]]


class GrpcOpenInference:
    """The servicer: each method is one call of what REST shares with it."""

    def __init__(
        self,
        open_inference: OpenInference,
        metrics: Metrics,
        settings: Settings,
        intake: Intake,
        tracing: Tracing | None = None,
    ) -> None:
        self._open_inference = open_inference
        self._settings = settings
        self._intake = intake
        self._calls = Calls(SERVICE_NAME, metrics, settings, tracing)

    def rpcs(self) -> dict[str, Rpc]:
        """Returns the methods of this service, and what each asks of its caller."""
        unary: dict[str, _Answer] = {
            "ServerLive": self._tell_live,
            "ServerReady": self._tell_ready,
            "ModelReady": self._tell_model_ready,
            "ServerMetadata": self._show_server,
            "ModelMetadata": self._show_model,
            "ModelConfig": self._show_config,
            "ModelStatistics": self._show_statistics,
        }
        # Probes have no keys; without one of an administrator nobody changes the models.
        access = dict.fromkeys(("ServerLive", "ServerReady"), Access.OPEN)
        if (repository := self._open_inference.repository) is not None:
            ordered = GrpcRepository(repository).answers()
            access |= dict.fromkeys(ordered, Access.ADMIN)
            unary |= ordered
        infer = grpc.unary_unary_rpc_method_handler(
            self.infer,
            messages.ModelInferRequest.FromString,
            messages.ModelInferResponse.SerializeToString,
        )
        stream = grpc.stream_stream_rpc_method_handler(
            self.infer_stream,
            messages.ModelInferRequest.FromString,
            messages.ModelStreamInferResponse.SerializeToString,
        )
        return {
            **{
                name: Rpc(
                    access=access.get(name, Access.INFER),
                    handler=self._answer_by(name, answer),
                )
                for name, answer in unary.items()
            },
            "ModelInfer": Rpc(access=Access.INFER, handler=infer),
            "ModelStreamInfer": Rpc(access=Access.INFER, handler=stream),
        }

    async def infer(
        self, request: messages.ModelInferRequest, context: Context
    ) -> messages.ModelInferResponse:
        """Answers the images of one request."""
        call = self._calls.open(context, "ModelInfer")
        work = self._answer_within(request, call.timeout_ms)
        return encode_response(await self._calls.answer(call, context, work))

    async def infer_stream(
        self, requests: AsyncIterator[messages.ModelInferRequest], context: Context
    ) -> None:
        """Answers requests side by side, in their order; reads no further than it may work on."""
        call = self._calls.open(context, "ModelStreamInfer")
        metadata = context.invocation_metadata() or ()
        ends_by_error = any(key == _END_BY_ERROR and value == "true" for key, value in metadata)
        work = partial(self._answer_all, requests, context, call, ends_by_error)
        await self._calls.stream(call, context, work)

    async def _answer_all(
        self,
        requests: AsyncIterator[messages.ModelInferRequest],
        context: Context,
        call: Call,
        ends_by_error: bool,
        answers: Answers,
    ) -> None:
        pending = asyncio.Queue[asyncio.Task[Any] | None](self._settings.max_request_images)

        async def read(group: asyncio.TaskGroup) -> None:
            async for request in requests:
                answer = self._answer_item(request, context, call, ends_by_error)
                await pending.put(group.create_task(answer))
            await pending.put(None)

        async with asyncio.TaskGroup() as group:
            group.create_task(read(group))
            while (task := await pending.get()) is not None:
                await answers.write(await task)

    def _answer_by(self, name: str, answer: _Answer) -> grpc.RpcMethodHandler[Any, Any]:
        async def respond(request: Any, context: Context) -> Any:
            call = self._calls.open(context, name)
            return await self._calls.answer(call, context, answer(request, call))

        return grpc.unary_unary_rpc_method_handler(
            respond,
            getattr(messages, f"{name}Request").FromString,
            getattr(messages, f"{name}Response").SerializeToString,
        )

    async def _answer_item(
        self,
        request: messages.ModelInferRequest,
        context: Context,
        call: Call,
        ends_by_error: bool,
    ) -> messages.ModelStreamInferResponse:
        tells_last = TELL_LAST in request.parameters and request.parameters[TELL_LAST].bool_param
        try:
            work = self._answer_within(request, time_left_ms(context))
            response = encode_response(await self._calls.measure(call, work))
        except RequestError as error:
            if ends_by_error:
                raise
            response = messages.ModelInferResponse(id=request.id)
            response.parameters["error_code"].string_param = error.code.value
            return messages.ModelStreamInferResponse(
                error_message=error.detail, infer_response=response
            )
        if tells_last:
            response.parameters[_IS_LAST].bool_param = True
        return messages.ModelStreamInferResponse(infer_response=response)

    async def _answer_within(
        self, request: messages.ModelInferRequest, timeout_ms: float | None
    ) -> InferResponse:
        with self._intake.admit() as held:
            held.add(request.ByteSize())
            return await self._open_inference.infer(decode_request(request, timeout_ms))

    async def _tell_live(self, _request: Any, _call: Call) -> messages.ServerLiveResponse:
        return messages.ServerLiveResponse(live=True)

    async def _tell_ready(self, _request: Any, _call: Call) -> messages.ServerReadyResponse:
        return messages.ServerReadyResponse(ready=self._open_inference.is_ready())

    async def _tell_model_ready(
        self, request: messages.ModelReadyRequest, _call: Call
    ) -> messages.ModelReadyResponse:
        is_ready = self._open_inference.is_model_ready(request.name, request.version)
        return messages.ModelReadyResponse(ready=is_ready)

    async def _show_server(self, _request: Any, _call: Call) -> messages.ServerMetadataResponse:
        document = self._open_inference.describe_server()
        return ParseDict(document, messages.ServerMetadataResponse())

    async def _show_model(
        self, request: messages.ModelMetadataRequest, _call: Call
    ) -> messages.ModelMetadataResponse:
        document = self._open_inference.describe_model(request.name, request.version)
        return ParseDict(document, messages.ModelMetadataResponse())

    async def _show_config(
        self, request: messages.ModelConfigRequest, _call: Call
    ) -> messages.ModelConfigResponse:
        document = self._open_inference.describe_config(request.name, request.version)
        return ParseDict({"config": document}, messages.ModelConfigResponse())

    async def _show_statistics(
        self, request: messages.ModelStatisticsRequest, _call: Call
    ) -> messages.ModelStatisticsResponse:
        document = await self._open_inference.read_statistics(request.name, request.version)
        return ParseDict(document, messages.ModelStatisticsResponse())
