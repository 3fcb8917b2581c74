"""One measurement each: a cell of load, a limit, a start, the memory over many requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.limit import Limit, measure_limit
from benchmarks.load import Load, LoadError, run_grpc, run_wrk
from benchmarks.models import BenchModel
from benchmarks.photographs import Photographs
from benchmarks.process_tree import (
    PeakMemory,
    await_idle,
    read_cpu_seconds,
    read_pss_by_process,
    read_pss_bytes,
)
from benchmarks.progress import say
from benchmarks.servers import Server, ServerError, run_server
from benchmarks.specs import ServerSpec
from service.bundle.decode import Limits
from service.bundle.preprocess import prepare
from service.engine import Engine

MEGABYTE = 1_000_000
CHECKED_PHOTOGRAPHS = 10
MEMORY_CONCURRENCY = 8
MEMORY_TIME_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPlan:
    """Which cells of load a server gets, and for how long each."""

    concurrencies: tuple[int, ...]
    warm_up_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long and how often to measure; ``choice`` is for choosing between configurations."""

    cores: int
    rounds: int
    cells: CellPlan
    choice: CellPlan | None
    limit_seconds: float
    memory_requests: int


@dataclass(slots=True, kw_only=True)
class Results:
    """Everything measured so far, as it goes into the raw file."""

    limits: list[dict[str, Any]] = field(default_factory=list)
    cells: list[dict[str, Any]] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)
    configurations: list[dict[str, Any]] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


class Bench:
    """Measures servers and the limit over one set of photographs, and keeps what it saw."""

    def __init__(self, plan: Plan, photographs: Photographs) -> None:
        self.plan = plan
        self.results = Results()
        self._photographs = photographs
        self._listing = photographs.write_list()
        self._compiled: set[str] = set()

    def measure_limit(self, model: BenchModel) -> Limit:
        """Returns the limit of these cores for a model, now."""
        plan = self.plan
        limit = measure_limit(
            model.folder, self._photographs.folder, seconds=plan.limit_seconds, cores=plan.cores
        )
        self.results.limits.append({"model": model.name, **asdict(limit)})
        say(
            f"{model.name}: limit {limit.images_per_second:.1f} images/s with "
            f"{limit.cpu_share:.0%} of the cores, CPU {limit.cpu_ms:.2f} ms = "
            f"{limit.prepare_cpu_ms:.2f} prepare + {limit.infer_cpu_ms:.2f} infer"
        )
        return limit

    def measure_server(
        self, spec: ServerSpec, model: BenchModel, transports: Iterable[str], plan: CellPlan
    ) -> list[dict[str, Any]]:
        """Returns the cells of one server, started for this and stopped afterwards."""
        cells: list[dict[str, Any]] = []
        try:
            self._compile(spec, model)
            with run_server(spec, model, self._photographs.bodies[0]) as server:
                self._note_start(server, model)
                self._check_answers(server, model)
                for transport in transports:
                    for concurrency in plan.concurrencies:
                        cell = self._measure_cell(server, transport, concurrency, plan)
                        cells.append({"model": model.name, **cell})
        except (LoadError, ServerError) as error:
            self._note_failure(spec, model, error)
        return cells

    def measure_memory(self, spec: ServerSpec, model: BenchModel) -> None:
        """Notes the memory of a server after each tenth of many requests, as far as time allows."""
        wanted = self.plan.memory_requests
        try:
            with run_server(spec, model, self._photographs.bodies[0]) as server:
                send = self._client(server, "http", MEMORY_CONCURRENCY)
                samples = [{"requests": 0, **_read_memory(server.pid)}]
                rate = send(self.plan.cells.warm_up_seconds).images_per_second
                total = 0
                deadline = time.monotonic() + MEMORY_TIME_LIMIT_S
                while total < wanted and time.monotonic() < deadline:
                    total += send(max(1.0, wanted / 10 / rate)).requests
                    samples.append({"requests": total, **_read_memory(server.pid)})
                    say(f"{spec.name}, {model.name}: {samples[-1]}")
        except (LoadError, ServerError) as error:
            self._note_failure(spec, model, error)
            return
        self.results.memory.append({"model": model.name, "server": spec.name, "samples": samples})

    def _compile(self, spec: ServerSpec, model: BenchModel) -> None:
        """Starts a server once for nothing, so that no start that is noted compiles Python."""
        if spec.name not in self._compiled:
            with run_server(spec, model, self._photographs.bodies[0]):
                self._compiled.add(spec.name)

    def _note_failure(self, spec: ServerSpec, model: BenchModel, error: Exception) -> None:
        self.results.failures.append(f"{model.name}, {spec.name}: {error}")
        say(f"FAILED {model.name}, {spec.name}: {error}")

    def _check_answers(self, server: Server, model: BenchModel) -> None:
        engine = Engine(model.onnx_path, provider="cpu")
        for body in self._photographs.bodies[:CHECKED_PHOTOGRAPHS]:
            views = prepare(body, model.manifest.preprocess, limits=Limits()).views
            (probabilities,) = engine.run(views)
            index = int(probabilities.argmax())
            server.check_answer(body, index, float(probabilities[index]))

    def _note_start(self, server: Server, model: BenchModel) -> None:
        start = {
            "model": model.name,
            "server": server.spec.name,
            "configuration": server.spec.configuration,
            "ready_seconds": server.ready_seconds,
            "ready_cpu_seconds": server.ready_cpu_seconds,
            "idle_mb": server.idle_pss_bytes / MEGABYTE,
        }
        self.results.starts.append(start)
        say(
            f"{server.spec.name} ({server.spec.configuration}), {model.name}: first answer after "
            f"{server.ready_seconds:.1f} s, {server.ready_cpu_seconds:.1f} s of CPU"
        )

    def _client(self, server: Server, transport: str, concurrency: int) -> Callable[[float], Load]:
        if transport == "grpc":
            target = f"127.0.0.1:{server.grpc_port}"
            return lambda seconds: run_grpc(
                target=target, listing=self._listing, concurrency=concurrency, seconds=seconds
            )
        return lambda seconds: run_wrk(
            url=server.url,
            form_field=server.spec.form_field,
            listing=self._listing,
            concurrency=concurrency,
            seconds=seconds,
        )

    def _measure_cell(
        self, server: Server, transport: str, concurrency: int, plan: CellPlan
    ) -> dict[str, Any]:
        send = self._client(server, transport, concurrency)
        send(plan.warm_up_seconds)
        await_idle(server.pid)
        with PeakMemory(server.pid) as memory:
            cpu_before = read_cpu_seconds(server.pid)
            load = send(plan.seconds)
            # Read at once: what is still in flight then was not counted as answered either.
            cpu_seconds = read_cpu_seconds(server.pid) - cpu_before
        cell = {
            "server": server.spec.name,
            "configuration": server.spec.configuration,
            "transport": transport,
            **asdict(load),
            "images_per_second": load.images_per_second,
            "cpu_ms": cpu_seconds / load.requests * 1000,
            "client_cpu_ms": load.client_cpu_seconds / load.requests * 1000,
            "peak_mb": memory.peak_bytes / MEGABYTE,
        }
        say(
            f"    {server.spec.name} {transport} x{concurrency}: {load.images_per_second:.1f} "
            f"images/s, p50 {load.p50_ms:.1f} ms, p99 {load.p99_ms:.1f} ms, CPU "
            f"{cell['cpu_ms']:.2f} ms, peak {cell['peak_mb']:.0f} MB"
        )
        return cell


def _read_memory(pid: int) -> dict[str, float]:
    sizes = read_pss_by_process(pid)
    return {
        "tree_mb": read_pss_bytes(pid) / MEGABYTE,
        "largest_process_mb": max(sizes, default=0) / MEGABYTE,
    }
