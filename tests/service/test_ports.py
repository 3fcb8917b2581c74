"""Ports are taken before anything starts, and taken for good."""

from __future__ import annotations

import contextlib
import socket

import pytest

from service.errors import StartError
from service.ports import Ports


def free_ports():
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def take(workers=1, ports=None, host="127.0.0.1"):
    http, grpc = ports or free_ports()
    return Ports(host, http=http, grpc=grpc, workers=workers)


def listen(port, option=None):
    listener = socket.socket()
    if option is not None:
        listener.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def test_connections_wait_in_the_http_socket_until_a_worker_accepts():
    with take() as ports, socket.create_connection(ports.http.getsockname(), timeout=5):
        accepted, _ = ports.http.accept()
        accepted.close()


def test_claim_on_the_grpc_port_lets_workers_in_and_nobody_else():
    http, grpc = free_ports()
    with take(2, (http, grpc)):
        listen(grpc, socket.SO_REUSEPORT).close()  # as each worker does
        with pytest.raises(OSError, match="in use"):
            listen(grpc, socket.SO_REUSEADDR)
        with pytest.raises(StartError, match="cannot listen for gRPC"):
            take(2, (free_ports()[0], grpc))


@pytest.mark.parametrize("option", [None, socket.SO_REUSEADDR, socket.SO_REUSEPORT])
@pytest.mark.parametrize("workers", [1, 2])
def test_grpc_port_that_somebody_listens_on_is_refused_however_they_share_it(option, workers):
    http, grpc = free_ports()
    with (
        contextlib.closing(listen(grpc, option)),
        pytest.raises(StartError, match=f"gRPC on 127.0.0.1:{grpc}: Address already in use"),
    ):
        take(workers, (http, grpc))


def test_refused_port_gives_the_other_one_back():
    http, grpc = free_ports()
    with contextlib.closing(listen(grpc)), pytest.raises(StartError):
        take(1, (http, grpc))
    take(1, (http, grpc)).close()


def test_unknown_host_is_one_clear_line():
    with pytest.raises(StartError, match=r"cannot listen for HTTP on no\.such\.host\.invalid"):
        take(host="no.such.host.invalid")


def test_name_of_this_host_is_looked_up():
    take(host="localhost").close()
