"""The targets that the results are held against; a benchmark reports them and asserts none.

They are those of the spine issue: efficiency and ratios at concurrency 8 and 32, within one run.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

BUSY = (8, 32)
FLATNESS = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One promise and what was measured."""

    name: str
    wanted: str
    measured: str
    is_met: bool


def check_targets(results: dict[str, Any]) -> list[Target]:
    """Returns each target for which the results hold figures."""
    cells = results["cells"]
    return [
        *_check_efficiency(cells, "resnet-18", 0.92),
        *_check_efficiency(cells, "mobilenet-v2", 0.85),
        *(
            target
            for model in ("mobilenet-v2", "resnet-18")
            for peer, ratio in (("mosec", 1.05), ("litserve", 1.2))
            for target in _check_peer(cells, model, peer, ratio)
        ),
        *_check_peer(cells, "mobilenet-v2", "bentoml", 2.0),
        *_check_edge(cells, "http", 0.35),
        *_check_edge(cells, "grpc", 0.45),
        *_check_start(results["starts"], 4.0),
        *_check_memory(results["memory"], 400.0),
    ]


def _median(
    cells: list[dict[str, Any]], value: str, server: str, transport: str, **where: object
) -> float | None:
    wanted = {"server": server, "transport": transport, **where}
    found = [c[value] for c in cells if all(c[key] == want for key, want in wanted.items())]
    return statistics.median(found) if found else None


def _check_efficiency(cells: list[dict[str, Any]], model: str, wanted: float) -> Iterable[Target]:
    for clients in BUSY:
        value = _median(cells, "efficiency", "fivecrop", "http", model=model, concurrency=clients)
        if value is not None:
            yield Target(
                name=f"efficiency, {model}, HTTP, {clients} clients",
                wanted=f">= {wanted}",
                measured=f"{value:.3f}",
                is_met=value >= wanted,
            )


def _check_peer(
    cells: list[dict[str, Any]], model: str, peer: str, wanted: float
) -> Iterable[Target]:
    for clients in BUSY:
        # Efficiencies, not rates: each is relative to the limit measured right beside it.
        where = {"model": model, "concurrency": clients}
        ours = _median(cells, "efficiency", "fivecrop", "http", **where)
        theirs = _median(cells, "efficiency", peer, "http", **where)
        if ours is not None and theirs:
            yield Target(
                name=f"images/s over {peer}'s, {model}, {clients} clients",
                wanted=f">= {wanted}x",
                measured=f"{ours / theirs:.2f}x",
                is_met=ours / theirs >= wanted,
            )


def _check_edge(cells: list[dict[str, Any]], transport: str, wanted: float) -> Iterable[Target]:
    where = {"model": "mobilenet-v2", "concurrency": 8}
    value = _median(cells, "edge_cpu_ms", "fivecrop", transport, **where)
    if value is not None:
        yield Target(
            name=f"edge, {transport}, mobilenet-v2, 8 clients",
            wanted=f"<= {wanted} CPU-ms",
            measured=f"{value:.2f} CPU-ms",
            is_met=value <= wanted,
        )


def _check_start(starts: list[dict[str, Any]], wanted: float) -> Iterable[Target]:
    ours = [start for start in starts if start["server"] == "fivecrop"]
    for model in sorted({start["model"] for start in ours}):
        value = statistics.median(s["ready_seconds"] for s in ours if s["model"] == model)
        yield Target(
            name=f"start to first answer, {model}",
            wanted=f"<= {wanted:g} s",
            measured=f"{value:.1f} s",
            is_met=value <= wanted,
        )


def _check_memory(series: list[dict[str, Any]], wanted: float) -> Iterable[Target]:
    for one in series:
        samples = one["samples"]
        last = samples[-1]
        yield Target(
            name=f"memory of one worker, {one['model']}, after {last['requests']} requests",
            wanted=f"<= {wanted:g} MB",
            measured=f"{last['largest_process_mb']:.0f} MB",
            is_met=last["largest_process_mb"] <= wanted,
        )
        # The first samples still fill caches and the allocator's arenas.
        middle = samples[len(samples) // 2]
        growth = last["tree_mb"] / middle["tree_mb"]
        yield Target(
            name=f"memory from request {middle['requests']} to {last['requests']}, {one['model']}",
            wanted=f"<= {FLATNESS:g}x",
            measured=f"{growth:.3f}x",
            is_met=growth <= FLATNESS,
        )
