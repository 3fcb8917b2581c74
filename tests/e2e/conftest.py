"""Real servers, started as an operator starts them, and clients that watch what happens to them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.proto import image_classifier_pb2 as messages
from service.proto import image_classifier_pb2_grpc as stubs

FIVECROP = Path(sys.executable).with_name("fivecrop")
# Only bounds a hang: a start takes 3 s of CPU time, but the machine may be busy with a training.
LIMIT_S = 180.0
CLASSIFY = "/v1/classify"
REPOSITORY = Path(__file__).parents[2]


def wait_for(condition, what, limit_s=LIMIT_S):
    """Returns what `condition` returns once that is true."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {limit_s} s in vain: {what}")


def free_ports(count):
    with contextlib.ExitStack() as stack:
        bound = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in bound:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in bound]


class Address:
    """Where a server is, and short ways to ask it something."""

    def __init__(self, http_port, grpc_port):
        self.http_port, self.grpc_port = http_port, grpc_port

    def connect(self, timeout_s=LIMIT_S):
        return http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=timeout_s)

    def get(self, path):
        """(status, headers, body) of a GET on a connection of its own."""
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", path, headers={"Connection": "close"})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def classify(self, image, headers=None, options=""):
        """The JSON answer over HTTP, on a connection of its own; `options` as in `?top_k=1`."""
        given = {"Connection": "close", **(headers or {})}
        with contextlib.closing(self.connect()) as connection:
            connection.request("POST", CLASSIFY + options, image, given)
            answer = connection.getresponse()
            body = json.loads(answer.read())
            assert answer.status == 200, body
            return body

    @contextlib.contextmanager
    def channel(self):
        # A pool of its own: otherwise channels to one address share a connection, and a worker.
        options = (("grpc.use_local_subchannel_pool", 1),)
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}", options) as channel:
            yield channel

    def classify_grpc(self, image):
        with self.channel() as channel:
            request = messages.ClassifyRequest(image=image)
            return stubs.ImageClassifierStub(channel).Classify(
                request, timeout=LIMIT_S, wait_for_ready=True
            )

    def health(self):
        with self.channel() as channel:
            request = health_pb2.HealthCheckRequest()
            reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=LIMIT_S)
            return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)

    def metric(self, name, **labels):
        """The sum of a metric's samples that have these labels."""
        from prometheus_client.parser import text_string_to_metric_families

        text = self.get("/metrics")[2].decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


class Server(Address):
    """One server: its processes and its output."""

    def __init__(self, folder, repository, *, through_bentoml=False, environment=None, **options):
        http_port, grpc_port = free_ports(2)
        given = {
            "model_repository": repository,
            "http_port": http_port,
            "grpc_port": grpc_port,
            **options,
        }
        super().__init__(given["http_port"], given["grpc_port"])
        if through_bentoml:
            environment = {f"FIVECROP_{name.upper()}": str(value) for name, value in given.items()}
            target = ["service.app:Fivecrop", "--working-dir", REPOSITORY]
            address = ["--host", "127.0.0.1", "--port", str(self.http_port)]
            command = [FIVECROP.with_name("bentoml"), "serve", *target, *address]
        else:
            flags = [
                f"--{name.replace('_', '-')}" + (f"={value}" if value is not True else "")
                for name, value in given.items()
            ]
            command = [FIVECROP, "serve", *flags]
        self._stderr = folder / "stderr.txt"
        self._stdout = folder / "stdout.txt"
        self.home = folder / "home"
        self.home.mkdir()
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("FIVECROP_", "BENTOML_"))}
        with self._stderr.open("wb") as errors, self._stdout.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                # Killed as it may be, it leaves nothing outside the folders of the test.
                env={
                    **kept,
                    "HOME": str(self.home),
                    "TMPDIR": str(folder),
                    **(environment or {}),
                },
                stdout=output,
                stderr=errors,
                cwd=folder,
            )

    @property
    def stderr(self):
        return self._stderr.read_text()

    @property
    def stdout(self):
        return self._stdout.read_text()

    def wait_ready(self):
        def is_ready():
            assert self.process.poll() is None, self.stderr
            return "fivecrop is ready" in self.stderr

        wait_for(is_ready, "ready")
        return self

    def wait_ended(self):
        return self.process.wait(LIMIT_S)

    def worker_pids(self):
        return sorted(child.pid for child in psutil.Process(self.process.pid).children())

    def kill_all(self):
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid)
            for member in [family, *family.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
        self.process.wait()


class Traffic:
    """Clients behind a load balancer: they send as long as its last look at /readyz was good.

    Three kinds at once: HTTP with a connection for each request, HTTP over kept connections, gRPC.
    """

    LOOK_EVERY_S = 0.5

    def __init__(self, server, image):
        self._server = server
        self._image = image
        self._is_over = threading.Event()
        self._in_rotation = threading.Event()
        self._in_rotation.set()
        self.answered = Counter()
        self.failed = Counter()
        self.errors = []
        kinds = {"new": self._send_new, "kept": self._send_kept, "grpc": self._send_grpc}
        self._threads = [threading.Thread(target=self._look)]
        for kind, send in kinds.items():
            self._threads += [
                threading.Thread(target=self._repeat, args=(kind, send)) for _ in range(2)
            ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        kinds = ("new", "kept", "grpc")
        wait_for(lambda: all(self.answered[kind] >= 5 for kind in kinds), "traffic")
        return self

    def __exit__(self, *_):
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def wait_noticed(self):
        """Returns when the balancer has seen that the server is not ready, however it ended."""
        wait_for(lambda: not self._in_rotation.is_set(), "the balancer looks away")

    def _look(self):
        while not self._is_over.wait(self.LOOK_EVERY_S):
            try:
                is_ready = self._server.get("/readyz")[0] == 200
            except OSError:
                is_ready = False
            (self._in_rotation.set if is_ready else self._in_rotation.clear)()

    def _repeat(self, kind, send):
        with contextlib.ExitStack() as stack:
            kept = stack.enter_context(contextlib.closing(self._server.connect()))
            channel = stack.enter_context(self._server.channel())
            while not self._is_over.is_set():
                if not self._in_rotation.is_set():
                    self._is_over.wait(0.01)
                    continue
                try:
                    send(kept, channel)
                except (OSError, http.client.HTTPException, grpc.RpcError, AssertionError) as error:
                    self.failed[kind] += 1
                    self.errors.append((kind, repr(error)[:300]))
                    kept.close()
                else:
                    self.answered[kind] += 1

    def _send_new(self, kept, channel):
        self._server.classify(self._image)

    def _send_kept(self, kept, channel):
        kept.request("POST", CLASSIFY, self._image)
        answer = kept.getresponse()
        body = answer.read()
        assert answer.status == 200, body

    def _send_grpc(self, kept, channel):
        request = messages.ClassifyRequest(image=self._image)
        stubs.ImageClassifierStub(channel).Classify(request, timeout=LIMIT_S)


@pytest.fixture(scope="session")
def image(tiny_bundle_repository):
    """The bytes of a real image of the tiny bundle."""
    return next(tiny_bundle_repository.glob("*/1/golden/*.png")).read_bytes()


@pytest.fixture(scope="session")
def find_server():
    """`find_server(http_port, grpc_port)`: asks a server that something else started."""
    return Address


@pytest.fixture(scope="session")
def unused_ports():
    """`unused_ports(count)`: ports that nothing listens on."""
    return free_ports


@pytest.fixture(scope="session")
def make_server():
    """`with make_server(folder, repository, **options) as server:`; nothing of it is left after."""

    @contextlib.contextmanager
    def make(folder, repository, **options):
        server = Server(folder, repository, **options)
        try:
            yield server
        finally:
            server.kill_all()

    return make


@pytest.fixture
def start_server(tmp_path_factory, make_server, tiny_bundle_repository):
    """Starts servers for one test."""
    with contextlib.ExitStack() as stack:

        def start(repository=tiny_bundle_repository, **options):
            folder = tmp_path_factory.mktemp("server")
            return stack.enter_context(make_server(folder, repository, **options))

        yield start


@pytest.fixture(scope="module")
def server(tmp_path_factory, make_server, tiny_bundle_repository):
    """One server for the tests of a module that only ask it things."""
    with make_server(tmp_path_factory.mktemp("server"), tiny_bundle_repository) as server:
        yield server.wait_ready()


@pytest.fixture
def bentoml_client(server):
    """BentoML's own client of the server."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages that BentoML imports
        import bentoml

        client = bentoml.SyncHTTPClient(f"http://127.0.0.1:{server.http_port}")
    with client:
        yield client
    client._temp_dir.cleanup()  # its own `close` leaves it to the garbage collector


@pytest.fixture
def traffic(image):
    """Makes `with traffic(server) as sent:`; see Traffic."""
    return lambda server: Traffic(server, image)


@pytest.fixture(scope="session")
def wait_until():
    """`wait_until(condition, what)`: returns once the condition is true, fails after a while."""
    return wait_for


@pytest.fixture(scope="session")
def end_in_order():
    """Sends SIGTERM and returns the exit code and the seconds it took."""

    def end(server, number=signal.SIGTERM):
        start = time.monotonic()
        server.process.send_signal(number)
        return server.wait_ended(), time.monotonic() - start

    return end
