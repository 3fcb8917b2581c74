"""Rounds of alternation: limit, server, limit, server, ... each server beside its own limits."""

from __future__ import annotations

from benchmarks.measure import Bench, CellPlan
from benchmarks.models import BenchModel
from benchmarks.progress import say
from benchmarks.specs import FIVECROP, PEERS, ServerSpec, make_peer

PARTS = ("throughput", "memory")
PEER_MODELS = ("mobilenet-v2", "resnet-18")
MEMORY_MODEL = "resnet-18"


class Selection:
    """What ``--only`` leaves: a kind of which nothing is named is left whole."""

    def __init__(self, only: str, models: list[str]) -> None:
        names = {name.strip() for name in only.split(",") if name.strip()}
        servers = {"fivecrop", *PEERS}
        self._models = names & set(models) or set(models)
        self._servers = names & servers or servers
        self._parts = names & set(PARTS) or set(PARTS)
        if unknown := names - set(models) - servers - set(PARTS):
            raise SystemExit(f"--only: unknown {', '.join(sorted(unknown))}")

    def model(self, name: str) -> bool:
        return name in self._models

    def server(self, name: str) -> bool:
        return name in self._servers

    def part(self, name: str) -> bool:
        return name in self._parts


def measure_throughput(bench: Bench, model: BenchModel, wanted: Selection) -> None:
    """Notes the cells of every wanted server with one model, and how they compare to the limit.

    A cell is compared with the mean of the limits measured just before and just after its server.
    """
    plan = bench.plan
    has_peers = model.name in PEER_MODELS
    peers = [name for name in PEERS if has_peers and wanted.server(name)]
    specs = [_choose_configuration(bench, model, name, plan.choice) for name in peers]
    if wanted.server("fivecrop"):
        specs.insert(0, FIVECROP)
    limit = bench.measure_limit(model)
    for round_ in range(plan.rounds):
        # Every other round runs backwards, so that no server always follows the same one.
        for spec in specs if round_ % 2 == 0 else reversed(specs):
            transports = ("http", "grpc") if spec.is_ours else ("http",)
            cells = bench.measure_server(spec, model, transports, plan.cells)
            before, limit = limit, bench.measure_limit(model)
            limit_rate = (before.images_per_second + limit.images_per_second) / 2
            limit_cpu_ms = (before.cpu_ms + limit.cpu_ms) / 2
            for cell in cells:
                cell["round"] = round_
                cell["limit_images_per_second"] = limit_rate
                cell["limit_cpu_ms"] = limit_cpu_ms
                cell["efficiency"] = cell["images_per_second"] / limit_rate
                cell["edge_cpu_ms"] = cell["cpu_ms"] - limit_cpu_ms
            bench.results.cells.extend(cells)


def _choose_configuration(
    bench: Bench, model: BenchModel, name: str, plan: CellPlan | None
) -> ServerSpec:
    """Returns the configuration of a peer that is fastest here at its best concurrency."""
    candidates = [make_peer(name, **configuration) for configuration in PEERS[name]]
    if plan is None:
        return candidates[0]
    best, best_rate = candidates[0], 0.0
    for spec in candidates:
        cells = bench.measure_server(spec, model, ("http",), plan)
        bench.results.configurations.extend(cells)
        rate = max((cell["images_per_second"] for cell in cells), default=0.0)
        if rate > best_rate:
            best, best_rate = spec, rate
    say(f"{model.name}: {name} is best as {best.configuration}")
    return best
