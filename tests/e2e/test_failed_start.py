"""A server that cannot start says why in one line and ends; it does not try for ever."""

from __future__ import annotations

import contextlib
import resource
import shutil
import socket
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

# Of CPU time, because the clock on the wall belongs to whoever else uses the machine.
LIMIT_S = 30.0


def _cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture
def assert_fails(start_server):
    """Starts a server and asserts that it ends with this one line, exit code 2, in time."""

    def check(text, **options):
        before = _cpu_seconds()
        server = start_server(**options)
        assert server.wait_ended() == 2
        assert _cpu_seconds() - before < LIMIT_S
        lines = [line for line in server.stderr.splitlines() if " INFO " not in line]
        assert len(lines) == 1, server.stderr
        assert lines[0].startswith("fivecrop: error: ")
        assert text in lines[0]
        assert server.stdout == ""

    return check


@pytest.fixture
def spoilt_repository(tiny_bundle_repository, tmp_path):
    """A copy of the repository with one flipped bit in the middle of the weights."""
    repository = tmp_path / "spoilt"
    shutil.copytree(tiny_bundle_repository, repository)
    (model,) = repository.glob("*/1/model.onnx")
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    return repository


@contextlib.contextmanager
def _listening(*, shared):
    with socket.socket() as other:
        if shared:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_unknown_setting(assert_fails):
    assert_fails("unknown setting FIVECROP_PROVIDR", environment={"FIVECROP_PROVIDR": "cpu"})


def test_impossible_setting(assert_fails):
    assert_fails("FIVECROP_WORKERS", workers=0)


@pytest.mark.parametrize("workers", [1, 2])
def test_bundle_with_one_flipped_bit(assert_fails, spoilt_repository, workers):
    assert_fails("model.onnx", repository=spoilt_repository, workers=workers)


def test_no_repository(assert_fails, tmp_path):
    assert_fails("No such file or directory", repository=tmp_path / "absent")


def test_empty_repository(assert_fails, tmp_path):
    assert_fails("no bundle", repository=tmp_path)


def test_unknown_model(assert_fails):
    assert_fails("no bundle 'resnet'", model="resnet")


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_gpu_that_is_required_and_absent(assert_fails):
    assert_fails("cuda", require_gpu=True)


def test_http_port_in_use(assert_fails):
    with _listening(shared=False) as port:
        assert_fails("cannot listen for HTTP on 127.0.0.1", http_port=port)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("shared", [False, True])
def test_grpc_port_in_use(assert_fails, shared, workers):
    """Also by somebody who would share it: that is how a second server would steal requests."""
    with _listening(shared=shared) as port:
        assert_fails("cannot listen for gRPC on 127.0.0.1", grpc_port=port, workers=workers)


def test_one_port_for_both(assert_fails):
    with _listening(shared=False) as port:
        pass
    assert_fails("cannot listen for gRPC", http_port=port, grpc_port=port)


def test_address_of_another_machine(assert_fails):
    assert_fails("cannot listen for HTTP on 192.0.2.1", host="192.0.2.1")


def test_second_server_leaves_the_first_alone(start_server, assert_fails, image):
    first = start_server(workers=2).wait_ready()
    assert_fails("in use", http_port=first.http_port)
    assert_fails("in use", grpc_port=first.grpc_port)
    assert first.classify(image)["predictions"]
