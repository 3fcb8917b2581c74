"""Addresses at which there is no Ray cluster: one line, and soon, where Ray tries for minutes."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from service.score.errors import ScoreError

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed: make .venv/.ray"
    ),
]


@pytest.mark.parametrize("address", ["ray://127.0.0.1:1", "127.0.0.1:1", "ray://"])
def test_a_cluster_that_is_not_there_is_one_line(score, photos, address):
    with pytest.raises(ScoreError, match="does not answer"):
        score(photos, engine="ray", address=address)


@pytest.mark.parametrize("scheme", ["ray://", ""])
def test_another_grpc_server_is_told_from_ray_within_half_a_minute(
    photos, tmp_path, tiny_bundle_repository, scheme
):
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    began = time.monotonic()
    job = subprocess.run(
        [
            *(Path(sys.executable).with_name("fivecrop"), "score", photos, "--engine", "ray"),
            *("--address", f"{scheme}127.0.0.1:{port}", "--out", tmp_path / "scores"),
            *("--model", "digits-linear", "--model-repository", tiny_bundle_repository),
        ],
        env={**os.environ, "FIVECROP_MODEL_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    server.stop(None)
    assert job.stderr.startswith(f"fivecrop: error: Ray at {scheme}127.0.0.1:")
    assert (job.returncode, job.stderr.count("\n")) == (2, 1)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("scheme", ["ray://", ""])
@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n"], ids=["silence", "HTTP"])
def test_what_answers_but_is_no_ray_is_one_line(score, photos, monkeypatch, scheme, said):
    """Ray itself was seen to try for more than two minutes."""
    monkeypatch.setattr("service.score.ray_engine._CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"

        def answer():
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):  # the other end leaves when it has seen
                connection.sendall(said)
                connection.recv(1000)
                connection.recv(1000)

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(ScoreError, match=r"does not answer: (timed out|nothing there speaks)"):
            score(photos, engine="ray", address=address)
