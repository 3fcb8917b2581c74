"""grpc.health.v1: whether this process should get requests, on demand and as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc
from grpc.aio import ServicerContext
from grpc_health.v1 import health_pb2

from service.access import Access
from service.grpc_access import Rpc

SERVICE_NAME: Final = "grpc.health.v1.Health"

Context = ServicerContext[Any, Any]


class Health:
    """Answers Check and Watch from `is_serving` itself, so that no copy of it can be out of date.

    The reference implementation keeps a copy for each service, and its Watch streams never end:
    a graceful stop would always wait for its whole grace period.
    """

    def __init__(self, is_serving: Callable[[], bool], services: frozenset[str]) -> None:
        """Makes the servicer.

        Args:
            is_serving: Whether requests should be sent here.
            services: Names that can be asked for; the empty one, for the process, is added.
        """
        self._is_serving = is_serving
        self._services = services | {""}
        self._is_withdrawn = False
        self._is_closed = False
        self._changed = asyncio.Event()

    def rpcs(self) -> dict[str, Rpc]:
        """Returns the methods of this service; probes have no keys."""
        read, write = (
            health_pb2.HealthCheckRequest.FromString,
            health_pb2.HealthCheckResponse.SerializeToString,
        )
        return {
            "Check": Rpc(
                access=Access.OPEN,
                handler=grpc.unary_unary_rpc_method_handler(self.check, read, write),
            ),
            "Watch": Rpc(
                access=Access.OPEN,
                handler=grpc.unary_stream_rpc_method_handler(self.watch, read, write),
            ),
        }

    def set_not_serving(self) -> None:
        """Tells everybody NOT_SERVING from now on, whatever `is_serving` says."""
        self._is_withdrawn = True
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """Tells every watcher NOT_SERVING and ends its stream."""
        self._is_closed = True
        self.set_not_serving()

    async def check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Returns SERVING or NOT_SERVING; aborts with NOT_FOUND for an unknown service."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """Writes the status now and at each change; SERVICE_UNKNOWN for an unknown service."""
        told = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            if self._is_closed:
                return
            # Taken before the look, so that a change during the write is not missed.
            await changed.wait()

    def _status(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        if service not in self._services:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        if self._is_withdrawn or not self._is_serving():
            return health_pb2.HealthCheckResponse.NOT_SERVING
        return health_pb2.HealthCheckResponse.SERVING
