"""The workers of a job on a Ray cluster, or on a Ray of this machine: actors in place of processes.

The job itself, its order, its parts and its resume are those of `service.score.job`; a node that
dies is a worker that dies.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from service.bundle.repository import read_bundle, verify_files
from service.engine import has_provider
from service.errors import FivecropError
from service.score.errors import ScoreError
from service.score.messages import Answer, Chunk, Ready, Refused, Setup, Spent
from service.score.pool import POLL_S, Link, Worker, WorkerPool
from service.score.scorer import Scorer
from service.score.storage import Reader, tell
from service.settings import ProviderChoice, Settings

_CONNECT_S: Final = 10.0
# How HTTP/2 begins, and the type of the frame that it is answered with (RFC 9113, 3.4).
# Said by hand, because the package imports no gRPC.
_HELLO: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_SETTINGS: Final = b"\4"
# Ray tries 20 times for 40 s to join a cluster at HOST:PORT; so it is once for 15 s.
_IMPATIENT: Final = {"RAY_gcs_server_port_wait_time_s": "1", "RAY_py_gcs_connect_timeout_s": "5"}
# Until the first actor of a cluster can begin; nodes may have to be started for it.
_FIRST_READY_S: Final = 300.0
_READS: Final = 16


class Scoring:
    """A worker as an actor: what `service.score.worker` is as a process."""

    def __init__(self, setup: Setup, files: dict[str, bytes], place: str) -> None:
        """Writes the bundle to a folder of the node.

        Args:
            setup: Of the job.
            files: Of the bundle, by their names in it.
            place: NAME/VERSION.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="fivecrop-")
        folder = Path(self._folder.name) / place
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        self._setup = replace(setup, bundle_folder=folder)
        self._scorer: Scorer | None = None
        self._reader = Reader(setup.settings.max_body_bytes)
        self._reads = ThreadPoolExecutor(_READS)

    def begin(self, golden: slice) -> Ready | Refused:
        """Returns whether the worker can begin."""
        try:
            bundle = read_bundle(self._setup.bundle_folder)
            verify_files(bundle)
            self._scorer = Scorer(bundle, self._setup.options, self._setup.settings)
            self._scorer.prove(golden)
        except FivecropError as error:
            return Refused(" ".join(str(error).split()))
        scorer = self._scorer
        return Ready(provider=scorer.engine.provider, variant=scorer.variant.precision)

    def score(self, chunk: Chunk) -> Answer:
        """Returns the rows of a chunk; its images are read ahead."""
        assert self._scorer is not None
        scorer, scorer.spent = self._scorer, Spent()
        reads = [self._reads.submit(self._reader.read, entry) for entry in chunk.entries]
        rows = [
            scorer.score_read(entry, read) for entry, read in zip(chunk.entries, reads, strict=True)
        ]
        return Answer(chunk.number, rows, scorer.spent)


class RayLink:
    """An actor: what is sent becomes a call, what is received its result."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray = ray
        self._actor = actor
        self.calls: deque[Any] = deque()

    def send(self, message: Setup | Chunk) -> None:
        """Calls the actor."""
        call = (
            self._actor.begin.remote(message.golden)
            if isinstance(message, Setup)
            else self._actor.score.remote(message)
        )
        self.calls.append(call)

    def recv(self) -> Ready | Refused | Answer:
        """Returns the result of the earliest call; an actor answers in the order of its calls."""
        try:
            said: Ready | Refused | Answer = self._ray.get(self.calls.popleft())
        except (self._ray.exceptions.RayError, IndexError) as error:
            raise EOFError(tell(error)) from error
        return said

    def close(self) -> None:
        """Ends the actor."""
        self._ray.kill(self._actor)

    def tell_death(self) -> str:
        """Returns that it is an actor."""
        return "an actor of the Ray cluster"


class RayPool(WorkerPool):
    """Workers that are actors: one a GPU of the cluster, or a CPU, unless told otherwise."""

    def __init__(self, setup: Setup, address: str | None) -> None:
        """Connects to the cluster, or starts a Ray of this machine.

        Args:
            setup: Of the job.
            address: `ray://HOST:PORT` or HOST:PORT of a cluster; None is this machine.

        Raises:
            ScoreError: Ray is not installed, or the cluster does not answer.
        """
        if address is not None:
            for name, value in _IMPATIENT.items():
                os.environ.setdefault(name, value)
        self._ray = _import_ray()
        if address is not None:
            _check_address(address)
        _connect(self._ray, address)
        folder = setup.bundle_folder
        place = f"{folder.parent.name}/{folder.name}"
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        there_is = self._ray.cluster_resources()
        gpus, cpus = int(there_is.get("GPU", 0)), int(there_is.get("CPU", 0))
        takes_gpu = gpus > 0 and self._wants_gpu(setup.settings)
        # An actor sees its own GPU alone, so the index is 0 there, and none if it asks for none.
        kind = self._ray.remote(num_cpus=1, num_gpus=int(takes_gpu))(Scoring)
        self._make_actor = partial(kind.remote, setup, self._ray.put(files), place)
        count = setup.options.workers or max(1, gpus if takes_gpu else cpus)
        super().__init__(setup, [self.open_link() for _ in range(count)])

    def _wants_gpu(self, settings: Settings) -> bool:
        """Whether the workers can use the GPUs; of `auto` only a node that has one knows."""
        if settings.require_gpu or settings.provider is not ProviderChoice.AUTO:
            return settings.require_gpu or settings.provider is ProviderChoice.CUDA
        ask = self._ray.remote(num_cpus=0, num_gpus=1)(has_provider)
        try:
            return bool(self._ray.get(ask.remote("cuda"), timeout=_FIRST_READY_S))
        except self._ray.exceptions.RayError as error:
            raise ScoreError(f"no GPU of the Ray cluster answers: {tell(error)}") from error

    def open_link(self) -> Link:
        """Makes an actor; it begins when the cluster has room for it."""
        return RayLink(self._ray, self._make_actor())

    def share_golden(self, index: int) -> slice:  # noqa: ARG002
        """Returns all of them: the job begins with whichever actor is first, on any node."""
        return slice(None)

    def wait_ready(self) -> Ready:
        """Waits until the first worker can begin; the others come to help when they can.

        Raises:
            ScoreError: None can begin, or none has for too long.
        """
        ends = time.monotonic() + _FIRST_READY_S
        while time.monotonic() < ends:
            for worker in self.find_ready(self._workers):
                try:
                    said = worker.link.recv()
                except EOFError as error:
                    raise ScoreError(f"a worker on Ray could not start: {error}") from error
                if isinstance(said, Refused):
                    raise ScoreError(said.reason)
                assert isinstance(said, Ready)
                self._admit(worker, said)
                return said
        raise ScoreError(f"the Ray cluster started no worker within {_FIRST_READY_S:.0f} s")

    def find_ready(self, workers: list[Worker]) -> list[Worker]:
        """Returns the workers whose earliest call has ended, waiting a moment for one."""
        first = {
            worker.link.calls[0]: worker
            for worker in workers
            if isinstance(worker.link, RayLink) and worker.link.calls
        }
        if not first:
            time.sleep(POLL_S)
            return []
        ended, _ = self._ray.wait(list(first), num_returns=1, timeout=POLL_S)
        return [first[call] for call in ended]

    def close(self) -> None:
        """Ends the actors, and the Ray of this machine if it was started for the job."""
        super().close()
        self._ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    """Connects to the cluster, or starts a Ray of this machine.

    Ray takes SIGTERM over then: it would exit without a word, and the job write nothing.

    Raises:
        ScoreError: It does not work.
        KeyboardInterrupt: SIGTERM came meanwhile.
    """
    handler = signal.getsignal(signal.SIGTERM)
    is_terminated = False
    try:
        # Of what the error tells in one line.
        with warnings.catch_warnings(action="ignore"), _silent_if(address is not None):
            ray.init(
                address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({} if address else {"include_dashboard": False}),
            )
    except SystemExit:
        is_terminated = True
    except Exception as error:
        # Ray's errors at this point share no base class.
        raise ScoreError(f"Ray at {address or 'this machine'}: {tell(error)}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    if is_terminated:
        signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt


@contextlib.contextmanager
def _silent_if(is_wanted: bool) -> Iterator[None]:
    """Keeps off standard error what Ray's C++ writes there before it knows of a level."""
    if not is_wanted:
        yield
        return
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:  # noqa: PTH123 - not a path to join
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Each of three tries with what speaks gRPC and is no Ray client server, such as Ray's own GCS.
    os.environ.setdefault("RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S", "5")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ScoreError("--engine ray needs Ray: pip install 'fivecrop[ray]'") from error
    return ray


def _check_address(address: str) -> None:
    """Raises ScoreError soon where Ray itself would try for minutes."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port or 10001
        if host is None:
            raise ValueError("no host")
        with socket.create_connection((host, port), timeout=_CONNECT_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                connection.sendall(_HELLO)
                if connection.recv(9)[3:4] != _SETTINGS:
                    raise ValueError("nothing there speaks gRPC")
    except (OSError, ValueError) as error:
        raise ScoreError(f"the Ray cluster at {address} does not answer: {tell(error)}") from error
