"""The targets that results are held against, those of an overload included.

Of `benchmarks.run`: efficiency and ratios at concurrency 8 and 32, within one run.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

BUSY = (8, 32)
FLATNESS = 1.05
# Goodput under so many times the peak, as a share of the peak.
GOODPUT = {2.0: 0.9, 10.0: 0.8}
REJECT_P99_MS = 50.0
RECOVERY_S = 5.0


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


def check_overload(parts: Sequence[dict[str, Any]]) -> list[Target]:
    """Returns each target for which the rounds of one server hold figures; medians count."""
    return [
        target
        for factor in sorted({part["factor"] for part in parts})
        for target in _check_factor([one for one in parts if one["factor"] == factor], factor)
    ]


def _check_factor(parts: Sequence[dict[str, Any]], factor: float) -> Iterable[Target]:
    def median(column: str) -> float:
        return statistics.median(part[column] for part in parts)

    if factor in GOODPUT:
        value = median("goodput_ratio")
        yield Target(
            name=f"goodput over the peak, {factor:g} times offered",
            wanted=f">= {GOODPUT[factor]:.2f}",
            measured=f"{value:.2f}",
            is_met=value >= GOODPUT[factor],
        )
    # A median over rounds in which nothing was refused would be a target met by nothing.
    if all(part["rejects"] for part in parts):
        value = median("reject_p99_ms")
        yield Target(
            name=f"p99 of rejects, {factor:g} times offered",
            wanted=f"<= {REJECT_P99_MS:g} ms",
            measured=f"{value:.1f} ms",
            is_met=value <= REJECT_P99_MS,
        )
    value = median("recovery_s")
    yield Target(
        name=f"recovery after {factor:g} times",
        wanted=f"<= {RECOVERY_S:g} s",
        measured=f"{value:.1f} s",
        is_met=value <= RECOVERY_S,
    )


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
