"""The one way into the gRPC server: an rpc is declared with its access, and admitted or refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Never

import grpc
from grpc.aio import ServicerContext

from service.access import CREDENTIAL_NAMES, Access, AccessControl
from service.errors import ErrorCode, RequestError
from service.grpc_answer import DETAILS_KEY, STATUS, encode_details
from service.grpc_guard import guard
from service.metrics import Metrics
from service.request_id import HEADER, take_request_id
from service.time_limit import TimeLimit

Context = ServicerContext[Any, Any]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """A method of a service, and what it asks of its caller."""

    access: Access
    handler: grpc.RpcMethodHandler[Any, Any]


class GuardedServices(grpc.GenericRpcHandler):
    """All services of a server behind one door; it is the only handler that the server gets.

    A handler and not an interceptor: it costs what the library's own table of methods does, while
    an interceptor costs several coroutines a call.
    """

    def __init__(
        self,
        services: Mapping[str, Mapping[str, Rpc]],
        control: AccessControl,
        metrics: Metrics,
        read_timeout_s: float,
    ) -> None:
        """Takes the rpcs of each service by the service's full name.

        Args:
            services: By its full name, the rpcs of each.
            control: Who may use them.
            metrics: Where refusals are counted.
            read_timeout_s: Longest time for the message of a call that has one.
        """
        limit = TimeLimit(read_timeout_s)
        self._control = control
        self._metrics = metrics
        self.rpcs = {
            f"/{service}/{method}": Rpc(
                access=rpc.access,
                handler=guard(rpc.handler, partial(self._abort, f"/{service}/{method}"), limit),
            )
            for service, methods in services.items()
            for method, rpc in methods.items()
        }

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Returns who answers the call: its rpc, a refusal, or nobody."""
        method = handler_call_details.method
        rpc = self.rpcs.get(method)
        if rpc is None:
            return None
        if self._control.needs_key(rpc.access):
            metadata = handler_call_details.invocation_metadata
            try:
                # Called in the task of the call, so its context is the one that the rpc runs in.
                self._control.admit(
                    rpc.access,
                    [(name, str(value)) for name, value in metadata if name in CREDENTIAL_NAMES],
                )
            except RequestError as error:
                return self._refuse(method, error)
        return rpc.handler

    def _refuse(self, method: str, error: RequestError) -> grpc.RpcMethodHandler[Any, Any]:
        """Returns a handler that aborts at once, without waiting for a message."""

        async def refuse(requests: object, context: Context) -> Never:  # noqa: ARG001
            await self._abort(method, context, error)

        # Whether the method streams is the client's business; the bytes on the wire are the same.
        return grpc.stream_stream_rpc_method_handler(refuse)

    async def _abort(self, method: str, context: Context, error: RequestError) -> Never:
        self._metrics.observe_request(
            transport="grpc", route=method, code=error.code.value, seconds=0.0
        )
        # A call that was opened has its id: the client was promised it, and the access log has it.
        known = context.trailing_metadata() or context.invocation_metadata() or ()
        offered = dict(known).get(HEADER)
        request_id = take_request_id(offered if isinstance(offered, str) else None)
        if error.code is ErrorCode.INTERNAL:
            logger.error("unexpected error, request %s", request_id, exc_info=error.__cause__)
        await context.abort(
            STATUS[error.code],
            error.detail,
            ((HEADER, request_id), (DETAILS_KEY, encode_details(error))),
        )
