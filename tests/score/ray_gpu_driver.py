"""A job on a Ray cluster that says it has two GPUs; the actors write down which they were given.

Arguments: input, output, repository, a folder for what they write, and what the ONNX Runtime of the
nodes is made for (the one here is for CPUs). Prints how the job ended.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from ray_driver import WatchedPool

from service.score import ScoreOptions, ray_engine, score_dataset

SEEN = sys.argv[4]


class Witness(ray_engine.Scoring):
    """Writes down what it was given; there is no GPU, so the engine takes the CPU."""

    def begin(self, golden):
        Path(SEEN).mkdir(exist_ok=True)
        given = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        shown = os.environ.get("CUDA_VISIBLE_DEVICES") or "none"
        Path(SEEN, str(os.getpid())).write_text(f"{given} {shown}")
        return super().begin(golden)


if __name__ == "__main__":
    given, out, repository, _, nodes = sys.argv[1:]
    head = {"num_cpus": 4, "num_gpus": 2, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
    ray_engine.RayPool, ray_engine.Scoring = WatchedPool, Witness
    if nodes == "made for GPUs":
        ray_engine.has_provider = lambda _: True
    options = ScoreOptions(
        model="digits-linear",
        model_repository=repository,
        engine="ray",
        address=cluster.address,
    )
    summary = score_dataset(given, out, options)
    sys.stdout.write(f"{summary.state} {summary.progress.done}\n")
    ray.shutdown()
    cluster.shutdown()
