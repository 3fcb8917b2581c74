"""A job on a Ray cluster of two nodes, one of which is killed while both work.

Arguments: input, output, repository. Prints the state, how many images were done when the node was
killed, and how many workers were replaced.
"""

from __future__ import annotations

import sys

import ray
from ray.cluster_utils import Cluster

from service.score import ScoreOptions, ray_engine, score_dataset


class WatchedPool(ray_engine.RayPool):
    """Begins when all of its workers can, and counts those that it had to replace."""

    replaced = 0

    def wait_ready(self):
        ready = super().wait_ready()
        while waiting := [worker for worker in self._workers if not worker.is_ready]:
            for worker in self.find_ready(waiting):
                self._receive(worker)
        return ready

    def _replace(self, worker):
        WatchedPool.replaced += 1
        super()._replace(worker)


if __name__ == "__main__":
    given, out, repository = sys.argv[1:]
    small = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    second = cluster.add_node(**small)
    ray_engine.RayPool = WatchedPool
    killed_at = []

    def watch(progress):
        if not killed_at and progress.done > 2000:
            killed_at.append(progress.done)
            cluster.remove_node(second, allow_graceful=False)

    options = ScoreOptions(
        model="digits-linear",
        model_repository=repository,
        engine="ray",
        address=cluster.address,
        part_seconds=0.5,
    )
    summary = score_dataset(given, out, options, watch=watch)
    sys.stdout.write(f"{summary.state} {killed_at[0]} {WatchedPool.replaced}\n")
    ray.shutdown()
    cluster.shutdown()
