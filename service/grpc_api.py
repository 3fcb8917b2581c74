"""The gRPC edge: one server for our service, the Open Inference Protocol, health, reflection."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from service.access import Access, AccessControl
from service.classifier import Classifier
from service.errors import StartError
from service.file_numbers import closed_first
from service.grpc_access import GuardedServices, Rpc
from service.grpc_answer import STATUS
from service.grpc_health import SERVICE_NAME as HEALTH_NAME
from service.grpc_health import Health
from service.grpc_open_inference import SERVICE_NAME as OPEN_INFERENCE_NAME
from service.grpc_open_inference import GrpcOpenInference
from service.grpc_servicer import SERVICE_NAME, ImageClassifier
from service.intake import Intake
from service.metrics import Metrics
from service.open_inference import OpenInference
from service.settings import Settings
from service.tls import TlsFiles, make_grpc_credentials

if TYPE_CHECKING:
    from service.tracing import Tracing

__all__ = ["SERVICE_NAME", "STATUS", "GrpcServer"]

# A message holds an image and little else. With room for a little more than the largest image, one
# that is just too large is refused by us, with its code; far larger ones by the library.
_MESSAGE_SLACK_BYTES: Final = 64 * 1024
_MAX_STREAMS_PER_CONNECTION: Final = 1024
_SHORTEST_PING_INTERVAL_MS: Final = 10_000
_IDENTITY_ONLY: Final = 1


class GrpcServer:
    """The server of all gRPC services: start, look unready, stop."""

    def __init__(
        self,
        classifier: Classifier,
        metrics: Metrics,
        settings: Settings,
        control: AccessControl | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """Makes a server that listens to nothing yet; without `control` it knows no keys."""
        self._settings = settings
        open_inference = OpenInference(classifier, metrics, settings)
        # One for both: the bounds are those of the protocol.
        parts = metrics, settings, Intake.build(settings, metrics), tracing
        services = {
            SERVICE_NAME: ImageClassifier(classifier, *parts).rpcs(),
            OPEN_INFERENCE_NAME: GrpcOpenInference(open_inference, *parts).rpcs(),
        }
        self._health = Health(lambda: classifier.is_ready, frozenset(services))
        services |= {
            HEALTH_NAME: self._health.rpcs(),
        }
        services[reflection.SERVICE_NAME] = _reflect([*services, reflection.SERVICE_NAME])
        self._services = GuardedServices(
            services,
            control or AccessControl(None),
            metrics,
            read_timeout_s=settings.request_read_timeout_s,
        )
        self._server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """Starts to answer and returns the port.

        Raises:
            StartError: The port is taken, the address is not this machine's, or the certificate
                cannot be used.
        """
        server = grpc.aio.server(options=self._options())
        server.add_generic_rpc_handlers((self._services,))
        host = self._settings.host
        address = f"{f'[{host}]' if ':' in host else host}:{self._settings.grpc_port}"
        files = TlsFiles.of(self._settings)
        credentials = None if files is None else make_grpc_credentials(files)
        try:
            # Without another worker there is none that clients could go to.
            with closed_first() if self._settings.workers > 1 else nullcontext():
                if credentials is None:
                    port = server.add_insecure_port(address)
                else:
                    port = server.add_secure_port(address, credentials)
        except RuntimeError:
            raise StartError(
                f"gRPC cannot listen on {address}: the port is in use or the address is not ours"
            ) from None
        await server.start()
        self._server = server
        return port

    def set_not_serving(self) -> None:
        """Tells health checks and watchers NOT_SERVING, for good; calls are still answered."""
        self._health.set_not_serving()

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, lets those in flight finish for `grace_s`, then cancels the rest."""
        self._health.close()
        if self._server is not None:
            await self._server.stop(grace_s)

    def _options(self) -> list[tuple[str, int]]:
        write_timeout_ms = round(self._settings.write_timeout_s * 1000)
        return [
            # Workers share the port. Alone, a port in use is an error and not a shared one.
            ("grpc.so_reuseport", int(self._settings.workers > 1)),
            (
                "grpc.max_receive_message_length",
                self._settings.max_body_bytes + _MESSAGE_SLACK_BYTES,
            ),
            # A connection that does not get as far as HTTP/2.
            ("grpc.server_handshake_timeout_ms", round(self._settings.header_timeout_s * 1000)),
            ("grpc.max_concurrent_streams", _MAX_STREAMS_PER_CONNECTION),
            # Images are compressed already, and a compressed message could unfold to any size.
            ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
            # A client that answers no ping reads nothing: what it holds is given back.
            ("grpc.keepalive_time_ms", write_timeout_ms),
            ("grpc.keepalive_timeout_ms", write_timeout_ms),
            *self._age_options(),
            # Idle connections may be kept alive, as load balancers do, but not by a flood.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", _SHORTEST_PING_INTERVAL_MS),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", _SHORTEST_PING_INTERVAL_MS),
        ]

    def _age_options(self) -> list[tuple[str, int]]:
        age_s = self._settings.grpc_max_connection_age_s
        if age_s is None:
            return []
        return [
            ("grpc.max_connection_age_ms", round(age_s * 1000)),
            ("grpc.max_connection_age_grace_ms", round(self._settings.write_timeout_s * 1000)),
        ]


def _reflect(services: Sequence[str]) -> dict[str, Rpc]:
    """Returns the reflection service, which describes all services to whoever may use one."""
    servicer = reflection.aio.ReflectionServicer(services)
    return {
        "ServerReflectionInfo": Rpc(
            access=Access.INFER,
            handler=grpc.stream_stream_rpc_method_handler(
                servicer.ServerReflectionInfo,
                reflection_pb2.ServerReflectionRequest.FromString,
                reflection_pb2.ServerReflectionResponse.SerializeToString,
            ),
        )
    }
