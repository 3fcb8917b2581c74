"""What a shadow costs the requests that it copies: latency with one as a ratio to latency without.

    .venv/bin/python -m benchmarks.shadow exported_models --model cifar10-airbench

Two versions of one bundle in one process, one client in a closed loop with pauses, the conditions
taking turns so that neighbours disturb all alike: no trial, a shadow of every request, a shadow
that computes thirty times as long, and the naive control: the copy goes through the batcher at
low priority.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from service.classifier import Classifier, Options
from service.metrics import Metrics
from service.settings import Settings
from service.traffic_orders import Shadow

_SLOWER = 30


async def _measure(classifier: Classifier, name: str, image: bytes, given: argparse.Namespace):
    lane = classifier._models.find(f"{name}@2").lane
    run = lane.run

    def run_long(views):
        for _ in range(_SLOWER - 1):
            run(views)
        return run(views)

    async def ask_copy():
        await classifier.classify(image, Options(model=f"{name}@2", priority="low"))

    conditions = {
        "no trial": (None, run, False),
        "shadow": (Shadow(target="2"), run, False),
        f"shadow, {_SLOWER} times as slow": (Shadow(target="2"), run_long, False),
        f"control: {_SLOWER} times as slow, in the queue": (None, run_long, True),
    }
    if given.quick:
        conditions = dict([*conditions.items()][:2])
    seconds: dict[str, list[float]] = {condition: [] for condition in conditions}
    for _ in range(given.rounds):
        for condition, (shadow, lane.run, has_copies) in random.sample(
            [*conditions.items()], len(conditions)
        ):
            await classifier.trials.shadow(name, shadow)
            copies = []
            for _ in range(20):
                start = time.perf_counter()
                await classifier.classify(image, Options(model=name))
                seconds[condition].append(time.perf_counter() - start)
                if has_copies:
                    copies.append(asyncio.ensure_future(ask_copy()))
                await asyncio.sleep(given.pause_ms / 1000)
            await asyncio.gather(*copies, return_exceptions=True)
            while classifier.trials._spare_time._is_working:
                await asyncio.sleep(0.01)
    return seconds


def publish_twice(bundle: Path, model: Path) -> None:
    """Copies a bundle of version 1 into the folder of a model, as versions 1 and 2."""
    for version in (1, 2):
        shutil.copytree(bundle, model / str(version))
    manifest = model / "2/bundle.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 2}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--model", default="cifar10-airbench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="only without and with a shadow")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pause-ms", type=float, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        publish_twice(given.repository / given.model / "1", repository / given.model)
        image = next((repository / given.model / "1/golden").glob("0.*")).read_bytes()
        settings = Settings(
            model_repository=repository, version_policy="all", compute_threads=given.threads
        )
        classifier = Classifier.build(settings, Metrics())

        async def measure():
            await classifier.rollout.label(given.model, "stable", 1)
            try:
                return await _measure(classifier, given.model, image, given)
            finally:
                await classifier.close()

        seconds = asyncio.run(measure())
    base = seconds["no trial"]
    for condition, taken in seconds.items():
        median, p99 = statistics.median(taken), statistics.quantiles(taken, n=100)[98]
        ratios = median / statistics.median(base), p99 / statistics.quantiles(base, n=100)[98]
        print(
            f"{condition:45} p50 {median * 1000:8.2f} ms ({ratios[0]:.2f}) "
            f"p99 {p99 * 1000:8.2f} ms ({ratios[1]:.2f}), {len(taken)} requests"
        )


if __name__ == "__main__":
    main()
