"""What shadow, tracing, capture and response cache cost a request that they do nothing for.

    .venv/bin/python -m benchmarks.idle

One process with a server for each condition: everything off, twice, and one of the four on but
idle. They answer the same photographs in turn, and what counts is the CPU time of the thread that
the event loop runs on, where all of their code would run, as a ratio to everything off in the same
round. The second server with everything off tells how much of a ratio is noise.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.models import SHIPPED_REPOSITORY
from benchmarks.photographs import DEFAULT_FOLDER, load_photographs
from benchmarks.progress import say
from benchmarks.shadow import publish_twice
from service.combining import CombiningClassifier
from service.http_api import build_http_app
from service.http_edge import HttpEdge
from service.metrics import Metrics
from service.settings import Settings
from service.tracing import Tracing
from service.traffic_orders import Shadow

OFF = "everything off"
CONDITIONS = (OFF, "everything off, again", "shadow", "tracing", "capture", "cache")
# Of the requests that the shadow is asked: none in the time of a run.
_NO_SHARE = 1e-12
_CONCURRENCY = 4


async def _serve(condition: str, folder: Path, model: str, stack: AsyncExitStack) -> HttpEdge:
    """Returns the HTTP edge of a server with one of the four on, which has nothing to do."""
    given: dict[str, Any] = {
        "capture": {"capture_folder": folder / "captured", "capture_share": 0.0},
        "cache": {"response_cache_bytes": 1},  # no answer is as small, so each request is a miss
    }.get(condition, {})
    orders = folder / f"{condition}.json"
    settings = Settings(
        model_repository=folder / "models",
        models=(model,),
        version_policy="all",
        model_orders=orders,
        max_batch_views=1,  # or each server would choose its own by what it measures at its start
        **given,
    )
    # Nobody listens there, and nothing is sent.
    tracing = (
        Tracing.to_collector("http://127.0.0.1:9", sample_ratio=0.0)
        if condition == "tracing"
        else None
    )
    metrics = Metrics()
    classifier = await asyncio.to_thread(
        CombiningClassifier.build, settings, metrics, tracing=tracing
    )
    stack.push_async_callback(classifier.close)
    assert classifier.rollout is not None
    assert classifier.trials is not None
    await classifier.rollout.label(model, "stable", 1)
    if condition == "shadow":
        await classifier.trials.shadow(model, Shadow(target="2", share=_NO_SHARE))
    return build_http_app(classifier, metrics, settings, tracing=tracing)


async def _ask(edge: HttpEdge, body: bytes) -> None:
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/classify",
        "raw_path": b"/v1/classify",
        "query_string": b"",
        "headers": [(b"host", b"fivecrop"), (b"content-length", b"%d" % len(body))],
    }
    messages = iter([{"type": "http.request", "body": body}])
    status = 0

    async def receive() -> Any:
        message = next(messages, None)
        if message is None:
            await asyncio.Event().wait()
        return message

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    await edge(scope, receive, send)
    assert status == 200, status


async def _measure(edge: HttpEdge, bodies: Sequence[bytes]) -> float:
    """Returns the CPU-microseconds of this thread for a request, several at once."""
    waiting = iter(bodies)

    async def ask_in_turn() -> None:
        for body in waiting:
            await _ask(edge, body)

    before = time.thread_time()
    await asyncio.gather(*(ask_in_turn() for _ in range(_CONCURRENCY)))
    return (time.thread_time() - before) / len(bodies) * 1e6


async def _measure_all(options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    model = options.model
    publish_twice(SHIPPED_REPOSITORY / model / "1", folder / "models" / model)
    photographs = cycle(load_photographs(options.photographs).bodies)
    async with AsyncExitStack() as stack:
        edges = {name: await _serve(name, folder, model, stack) for name in CONDITIONS}
        gc.freeze()
        rounds = []
        for round_ in range(options.rounds + 1):
            bodies = list(islice(photographs, options.requests))
            taken = {}
            for name in random.sample(CONDITIONS, len(CONDITIONS)):
                taken[name] = await _measure(edges[name], bodies)
            if round_:  # the first warms up
                rounds.append(taken)
    return rounds


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and reports; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle", description=__doc__)
    parser.add_argument("--model", default="cifar10-airbench")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--requests", type=int, default=60, help="a condition and round")
    parser.add_argument("--photographs", type=Path, default=DEFAULT_FOLDER)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rounds = uvloop.run(_measure_all(options, Path(folder)))
    for name in CONDITIONS:
        ratios = [one[name] / one[OFF] for one in rounds]
        say(f"{name}: {_spread([one[name] for one in rounds], 0)} us, {_spread(ratios, 3)} of off")
    say(f"{len(rounds)} rounds of {options.requests}, load average {os.getloadavg()[0]:.0f}")
    print(json.dumps(rounds))
    return 0


def _spread(values: Sequence[float], digits: int) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    raise SystemExit(main())
