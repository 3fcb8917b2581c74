"""Starts and stops the servers under measurement, each a process tree on free local ports."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.models import BenchModel
from benchmarks.photographs import BENCH_FOLDER
from benchmarks.process_tree import read_cpu_seconds, read_pss_bytes
from benchmarks.specs import ServerSpec

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
READY_POLL_S = 0.02
SCORE_TOLERANCE = 1e-4
MULTIPART_BOUNDARY = "fivecropbenchmarkboundary"


class ServerError(RuntimeError):
    """A server that did not start, or did not answer a photograph."""


@dataclass(slots=True, kw_only=True)
class Server:
    """A server that has answered its first photograph."""

    spec: ServerSpec
    pid: int
    http_port: int
    grpc_port: int
    ready_seconds: float
    ready_cpu_seconds: float
    idle_pss_bytes: int

    @property
    def url(self) -> str:
        """Where a photograph is posted."""
        return f"http://127.0.0.1:{self.http_port}{self.spec.path}"

    def check_answer(self, body: bytes, index: int, score: float) -> None:
        """Proves that the best class of a photograph is the one that it has to be.

        Raises:
            ServerError: The answer is another one, or none.
        """
        status, text = _post(self.http_port, self.spec, body)
        if status != 200:
            raise ServerError(f"{self.spec.name} answered {status}: {text[:300]!r}")
        answer = json.loads(text)
        best = (answer[0] if isinstance(answer, list) else answer)["predictions"][0]
        if best["index"] != index or abs(best["score"] - score) > SCORE_TOLERANCE:
            raise ServerError(f"{self.spec.name} answered {best}, not class {index} at {score}")


@contextlib.contextmanager
def run_server(spec: ServerSpec, model: BenchModel, photograph: bytes) -> Iterator[Server]:
    """Yields the server once it has answered ``photograph``; stops it at the end.

    Raises:
        ServerError: It ended, or did not answer in time; the message names its log.
    """
    http_port, grpc_port = _find_free_ports()
    environment = _base_environment() | spec.environment
    if spec.is_ours:
        command = [str(Path(sys.executable).with_name("fivecrop")), "serve"]
        environment |= _fivecrop_environment(model, http_port, grpc_port)
    else:
        command = [sys.executable, "-m", str(spec.module)]
        environment |= _peer_environment(model, http_port)
    log_path = BENCH_FOLDER / f"{spec.name}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("wb") as log:
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # so that no server's signals reach us, nor ours it
        )
        try:
            _await_answer(process, spec, http_port, photograph, log_path)
            yield Server(
                spec=spec,
                pid=process.pid,
                http_port=http_port,
                grpc_port=grpc_port,
                ready_seconds=time.monotonic() - started,
                ready_cpu_seconds=read_cpu_seconds(process.pid),
                idle_pss_bytes=read_pss_bytes(process.pid),
            )
        finally:
            _stop(process)


def _base_environment() -> dict[str, str]:
    """Returns this process's environment without settings of ours, and with a bytecode cache.

    An installed server has compiled files; an environment that forbids them would add seconds to
    every start.
    """
    environment = {name: value for name, value in os.environ.items() if name[:9] != "FIVECROP_"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment | {"PYTHONPYCACHEPREFIX": str((BENCH_FOLDER / "bytecode").resolve())}


def _fivecrop_environment(model: BenchModel, http_port: int, grpc_port: int) -> dict[str, str]:
    return {
        "FIVECROP_HTTP_PORT": str(http_port),
        "FIVECROP_GRPC_PORT": str(grpc_port),
        "FIVECROP_MODEL_REPOSITORY": str(model.repository.resolve()),
        "FIVECROP_MODELS": model.name,
        "FIVECROP_DEFAULT_MODEL": model.name,
        "FIVECROP_PROVIDER": "cpu",
        "FIVECROP_DRAIN_S": "0",
    }


def _peer_environment(model: BenchModel, http_port: int) -> dict[str, str]:
    preprocess = model.manifest.preprocess
    return {
        "PEER_MODEL": str(model.onnx_path),
        "PEER_LABELS": str(model.labels_path),
        "PEER_PORT": str(http_port),
        "PEER_RESIZE": str(preprocess.resize.size),
        "PEER_CROP": str(preprocess.crop.height),
        "PEER_BOX": "1" if preprocess.crop_only_resize else "0",
        "BENTOML_DO_NOT_TRACK": "true",
    }


def _find_free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def encode_form(field: str, body: bytes) -> tuple[str, bytes]:
    """Returns the content type and the bytes of a form with one photograph."""
    head = (
        f"--{MULTIPART_BOUNDARY}\r\nContent-Disposition: form-data; "
        f'name="{field}"; filename="photo.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    return (
        f"multipart/form-data; boundary={MULTIPART_BOUNDARY}",
        head.encode() + body + f"\r\n--{MULTIPART_BOUNDARY}--\r\n".encode(),
    )


def _post(port: int, spec: ServerSpec, body: bytes) -> tuple[int, bytes]:
    content_type = "image/jpeg"
    if spec.form_field != "raw":
        content_type, body = encode_form(spec.form_field, body)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", spec.path, body, {"Content-Type": content_type})
        response = connection.getresponse()
        return response.status, response.read()


def _await_answer(
    process: subprocess.Popen[bytes], spec: ServerSpec, port: int, body: bytes, log_path: Path
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError, http.client.HTTPException):
            if _post(port, spec, body)[0] == 200:
                return
        time.sleep(READY_POLL_S)
    tail = log_path.read_text(errors="replace")[-1500:]
    raise ServerError(f"{spec.name} did not become ready; {log_path} ends:\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the tree: SIGTERM to its root, then SIGKILL to whatever is left of what it started."""
    try:
        tree = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        tree = []
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    _, alive = psutil.wait_procs(tree, timeout=2)
    for child in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    if process.poll() is None:
        process.kill()
        process.wait()
