"""Closed-loop load from a client that costs little: wrk for HTTP, an asyncio process for gRPC."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

WRK_SCRIPT = Path(__file__).with_name("wrk.lua")
CLIENT_SLACK_S = 60.0


class LoadError(RuntimeError):
    """A client that failed, or answers that were not all accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one run of a client saw."""

    concurrency: int
    requests: int
    rejected: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    client_cpu_seconds: float

    @property
    def images_per_second(self) -> float:
        """Answers a second; a request carries one photograph."""
        return self.requests / self.seconds


def run_wrk(*, url: str, form_field: str, listing: Path, concurrency: int, seconds: float) -> Load:
    """Returns what wrk saw.

    ``form_field`` is the multipart field of the photograph, ``raw``, or ``v2`` for a raw request of
    the Open Inference Protocol.

    Raises:
        LoadError: wrk failed, or the server refused, dropped or did not answer a request.
    """
    command = ["wrk", "--threads", "1", "--connections", str(concurrency)]
    command += ["--duration", f"{max(1, round(seconds))}s", "--timeout", "30s"]
    command += ["--script", str(WRK_SCRIPT), url, "--", str(listing), form_field]
    return _run_client(command, seconds=seconds, concurrency=concurrency)


def run_grpc(
    *, target: str, listing: Path, concurrency: int, seconds: float, v2_model: str = ""
) -> Load:
    """Returns what the asyncio gRPC client saw, of our own protocol or of v2; see ``run_wrk``."""
    command = [sys.executable, "-m", "benchmarks.grpc_client", target, str(listing)]
    command += [str(concurrency), str(seconds), v2_model]
    return _run_client(command, seconds=seconds, concurrency=concurrency)


def _run_client(command: list[str], *, seconds: float, concurrency: int) -> Load:
    before = _children_cpu_seconds()
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds + CLIENT_SLACK_S, check=False
    )
    client_cpu_seconds = _children_cpu_seconds() - before
    reports = [line for line in done.stdout.splitlines() if line.startswith("JSON ")]
    if done.returncode != 0 or not reports:
        raise LoadError(f"{command[0]} failed: {done.stdout[-500:]} {done.stderr[-2000:]}")
    report = json.loads(reports[-1].removeprefix("JSON "))
    rejected = report["answered"] - report["accepted"]
    if rejected or report["socket_errors"] or report["timeouts"]:
        raise LoadError(f"not every request was answered with 200: {report}")
    return Load(
        concurrency=concurrency,
        requests=report["requests"],
        rejected=rejected,
        seconds=report["seconds"],
        p50_ms=report["p50_ms"],
        p99_ms=report["p99_ms"],
        max_ms=report["max_ms"],
        client_cpu_seconds=report.get("cpu_seconds", client_cpu_seconds),
    )


def _children_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
