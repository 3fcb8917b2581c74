"""The two ports of a server, taken before any worker starts."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Self

from service.errors import StartError

_BACKLOG = 2048


class Ports:
    """Holds the HTTP socket that all workers accept from, and a claim on the gRPC port.

    HTTP: one listening socket, inherited. While a worker is replaced, new connections wait in it.
    gRPC: its library cannot inherit a socket. Several workers listen on one each with SO_REUSEPORT,
    which would also let a second server in unnoticed, so the port is claimed here.
    """

    def __init__(self, host: str, *, http: int, grpc: int, workers: int) -> None:
        """Takes both ports.

        Args:
            host: Name or address to listen on.
            http: Port of HTTP.
            grpc: Port of gRPC.
            workers: Processes that will listen; one alone shares its gRPC port with nobody.

        Raises:
            StartError: A port is in use, or the address is not one of this machine.
        """
        self._held: list[socket.socket] = []
        try:
            self.http = self._hold(_bind(host, http, "HTTP", socket.SO_REUSEADDR))
            self.http.listen(_BACKLOG)
            # Refused when anything listens there, be it with SO_REUSEPORT.
            _bind(host, grpc, "gRPC", socket.SO_REUSEADDR).close()
            if workers > 1:
                self._hold(_bind(host, grpc, "gRPC", socket.SO_REUSEPORT))
        except BaseException:
            self.close()
            raise

    def _hold(self, bound: socket.socket) -> socket.socket:
        self._held.append(bound)
        return bound

    def close(self) -> None:
        """Gives both up; workers keep accepting from their own copies until they close those."""
        for held in self._held:
            held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def reachable_host(host: str) -> str:
    """Returns an address that reaches, from this machine, what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _bind(host: str, port: int, protocol: str, option: int) -> socket.socket:
    bound: socket.socket | None = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, option, 1)
        bound.bind(address)
    except OSError as error:
        if bound is not None:
            bound.close()
        raise StartError(
            f"cannot listen for {protocol} on {host}:{port}: {error.strerror}"
        ) from error
    return bound
