"""Raw results -> a dated Markdown table beside the JSON that it was made from."""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.targets import check_targets

# A tight loop that has its core to itself gets all of it.
QUIET_CPU_SHARE = 0.95

Results = dict[str, Any]
Cell = dict[str, Any]


def write_report(folder: Path, results: Results) -> Path:
    """Returns the Markdown file, named after the date; the JSON beside it has the same stem."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = time.strftime("%Y-%m-%d-%H%M%S")
    raw = folder / f"{stem}.json"
    raw.write_text(json.dumps(results, indent=1) + "\n")
    path = folder / f"{stem}.md"
    path.write_text("\n".join(_lines(results, raw.name)) + "\n")
    return path


def _lines(results: Results, raw_name: str) -> Iterable[str]:
    facts = results["facts"]
    plan, images = facts["plan"], facts["photographs"]
    libraries = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items())
    yield f"# Speed and memory, {facts['date'][:10]}"
    yield ""
    yield f"`{facts['command']}`, revision `{facts['revision']}`, raw: `{raw_name}`"
    yield ""
    yield (
        f"{facts['cores']} cores of {facts['cpu']}, load generator included; Python "
        f"{facts['python']}; {libraries}."
    )
    yield (
        f"{images['images']} photographs (mean {images['mean_kb']} kB, sha256 "
        f"`{images['sha256'][:16]}`), {plan['rounds']} rounds of {plan['cells']['seconds']:g} s a "
        f"cell, load average {facts['load_average_at_start'][0]:.2f} before and "
        f"{facts['load_average_at_end'][0]:.2f} after. Medians, ranges in brackets."
    )
    shares = [limit["cpu_share"] for limit in results["limits"]]
    if shares and min(shares) < QUIET_CPU_SHARE:
        yield ""
        yield (
            f"**The machine was busy with something else**: a limit loop got {min(shares):.0%} of "
            "its core. Rates, latencies and ratios below mean nothing; CPU-ms are inflated."
        )
    for name, model in facts["models"].items():
        yield from _model_lines(results, name, model)
    yield from _memory_lines(results["memory"])
    yield from _target_lines(results)
    if results["failures"]:
        yield from ("", "## Failures", "")
        yield from (f"* {failure.splitlines()[0]}" for failure in results["failures"])


def _model_lines(results: Results, name: str, model: dict[str, Any]) -> Iterable[str]:
    limits = [limit for limit in results["limits"] if limit["model"] == name]
    cells = [cell for cell in results["cells"] if cell["model"] == name]
    if not limits:
        return
    yield from ("", f"## {name}", "")
    yield (
        f"{model['architecture']}, `model.onnx` sha256 `{model['sha256'][:16]}`. Limit (one tight "
        f"loop a core, the service's own code): **{_spread(limits, 'images_per_second')} "
        f"images/s**, {_spread(limits, 'cpu_ms', 2)} CPU-ms a photograph "
        f"({_spread(limits, 'prepare_cpu_ms', 2)} decode and resize, "
        f"{_spread(limits, 'infer_cpu_ms', 2)} inference)."
    )
    yield ""
    yield (
        "| server | clients | images/s | efficiency | p50 ms | p99 ms | CPU-ms | edge CPU-ms "
        "| peak MB | client CPU-ms |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for key, group in _group(cells, lambda c: (_title(c), c["concurrency"])).items():
        yield (
            f"| {key[0]} | {key[1]} | {_spread(group, 'images_per_second')} "
            f"| {_spread(group, 'efficiency', 3)} | {_spread(group, 'p50_ms')} "
            f"| {_spread(group, 'p99_ms')} | {_spread(group, 'cpu_ms', 2)} "
            f"| {_spread(group, 'edge_cpu_ms', 2)} | {_spread(group, 'peak_mb', 0)} "
            f"| {_spread(group, 'client_cpu_ms', 2)} |"
        )
    yield ""
    starts = [start for start in results["starts"] if start["model"] == name]
    used = {_start_key(cell) for cell in cells}
    for key, group in _group(starts, _start_key).items():
        if key in used:
            yield (
                f"* {key[0]} ({key[1]}): first answer after {_spread(group, 'ready_seconds')} s "
                f"and {_spread(group, 'ready_cpu_seconds')} s of CPU; "
                f"{_spread(group, 'idle_mb', 0)} MB then."
            )


def _memory_lines(series: list[dict[str, Any]]) -> Iterable[str]:
    for one in series:
        samples = one["samples"]
        yield from ("", f"## Memory of {one['server']} with {one['model']} over many requests", "")
        yield "| requests | process tree MB | largest process MB |"
        yield "|---|---|---|"
        for sample in samples:
            yield (
                f"| {sample['requests']} | {sample['tree_mb']:.1f} "
                f"| {sample['largest_process_mb']:.1f} |"
            )


def _target_lines(results: Results) -> Iterable[str]:
    targets = check_targets(results)
    if not targets:
        return
    yield from ("", "## Targets", "", "| target | wanted | measured | |", "|---|---|---|---|")
    for target in targets:
        mark = "met" if target.is_met else "**missed**"
        yield f"| {target.name} | {target.wanted} | {target.measured} | {mark} |"


def _title(cell: Cell) -> str:
    if cell["server"] == "fivecrop":
        return f"**fivecrop {cell['transport']}**"
    return f"{cell['server']} ({cell['configuration']})"


def _start_key(item: dict[str, Any]) -> tuple[str, str]:
    return item["server"], item["configuration"]


def _group(
    items: list[dict[str, Any]], key: Callable[[dict[str, Any]], Any]
) -> dict[Any, list[dict[str, Any]]]:
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _spread(items: list[dict[str, Any]], name: str, digits: int = 1) -> str:
    values = [item[name] for item in items]
    middle = f"{statistics.median(values):.{digits}f}"
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return middle if low == high else f"{middle} [{low}-{high}]"
