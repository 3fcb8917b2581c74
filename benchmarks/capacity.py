"""How many images nodes score in an hour, on paper, from costs measured on one machine.

``python -m benchmarks.capacity`` prints the table of docs/offline-scoring.md. Nothing here was
measured on a cluster: it says what a cluster cannot exceed, and which bound it meets first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

NODES = (1, 8, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What one image costs; measured (docs/benchmarks.md, docs/decisions.md).

    Attributes:
        cpu_ms: CPU time to read, decode and infer, start taken off.
        image_bytes: Of its file.
        rows_per_second: What one program lists, gives out and writes.
    """

    cpu_ms: float
    image_bytes: float
    rows_per_second: float = 70_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What the cluster has; assumed.

    Attributes:
        cores: Of a node, each as fast as those that were measured.
        node_bytes_per_second: Network of a node; 10 Gbit/s.
        gets_per_second: What the store answers; S3 promises 5,500 a prefix
            (https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html).
        images_per_get: 1, or more in shards.
        is_one_job: Ray: one program lists and writes. Otherwise each node has a job (`--shard`).
    """

    cores: int = 8
    node_bytes_per_second: float = 10e9 / 8
    gets_per_second: float = 5_500.0
    images_per_get: float = 1.0
    is_one_job: bool = True


def bounds(nodes: int, costs: Costs, cluster: Cluster) -> dict[str, float]:
    """Returns images/s that each part allows by itself."""
    found = {
        "cores": nodes * cluster.cores / costs.cpu_ms * 1000,
        "network of the nodes": nodes * cluster.node_bytes_per_second / costs.image_bytes,
        "requests to the store": cluster.gets_per_second * cluster.images_per_get,
    }
    if cluster.is_one_job:
        found["the program that writes"] = costs.rows_per_second
    return found


def find_rate(nodes: int, costs: Costs, cluster: Cluster) -> tuple[float, str]:
    """Returns images/s, and what allows no more."""
    found = bounds(nodes, costs, cluster)
    limit = min(found, key=lambda name: found[name])
    return found[limit], limit


def find_last_node(costs: Costs, cluster: Cluster) -> int:
    """Returns how many nodes are used to the full; one more scores no faster."""
    alone = bounds(1, costs, cluster)["cores"]
    shared = ("requests to the store", "the program that writes")
    found = bounds(1, costs, cluster)
    return math.floor(min(found[name] for name in shared if name in found) / alone)


def straggler_share(nodes: int, spread: float) -> float:
    """Returns about how much longer the slowest of equal shares takes than the mean.

    The expected largest of n normal deviates is about sqrt(2 ln n) standard deviations.

    Args:
        nodes: Each with a share of its own that nobody else takes over.
        spread: Standard deviation of their speeds, of the mean.
    """
    return spread * math.sqrt(2 * math.log(nodes))


def make_table() -> str:
    """Returns the table of docs/offline-scoring.md."""
    models = {
        "MobileNetV2": Costs(cpu_ms=12.1, image_bytes=107e3),
        "ResNet-18": Costs(cpu_ms=36.6, image_bytes=107e3),
    }
    stores = {"an object an image": Cluster(), "8 prefixes": Cluster(gets_per_second=8 * 5_500.0)}
    heads = "".join(f" {nodes} node{'s' * (nodes > 1)} |" for nodes in NODES)
    lines = [f"| model | input |{heads} full use up to |", f"|---|---|{'---|' * len(NODES)}---|"]
    for model, costs in models.items():
        for store, cluster in stores.items():
            cells = [
                f"{rate * 3600 / 1e6:.1f} M ({limit})"
                for rate, limit in (find_rate(nodes, costs, cluster) for nodes in NODES)
            ]
            last = f"{find_last_node(costs, cluster)} nodes"
            lines.append(f"| {' | '.join((model, store, *cells, last))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(make_table())
