"""Which servers are measured, and in which configurations."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """How to start one server and where it takes a photograph."""

    name: str
    configuration: str
    module: str | None
    path: str
    form_field: str = "raw"
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether this is fivecrop itself."""
        return self.module is None


def make_peer(name: str, *, workers: int, threads: int, batch: int = 1) -> ServerSpec:
    """Returns the specification of a peer in one configuration."""
    path, form_field = {
        "mosec": ("/inference", "raw"),
        "litserve": ("/classify", "image"),
        "fastapi": ("/classify", "image"),
        "bentoml": ("/classify", "images"),
    }[name]
    return ServerSpec(
        name=name,
        configuration=f"{workers} x {threads} threads, batch {batch}",
        module=f"benchmarks.peers.{name}_server",
        path=path,
        form_field=form_field,
        environment={
            "PEER_WORKERS": str(workers),
            "PEER_THREADS": str(threads),
            "PEER_BATCH": str(batch),
        },
    )


# Configurations that suit two cores. A quick run takes the first; a full run measures them all and
# goes on with the fastest.
PEERS: dict[str, tuple[dict[str, int], ...]] = {
    "mosec": ({"workers": 2, "threads": 1, "batch": 4}, {"workers": 2, "threads": 1, "batch": 1}),
    "litserve": (
        {"workers": 2, "threads": 1, "batch": 1},
        {"workers": 2, "threads": 1, "batch": 4},
        {"workers": 1, "threads": 2, "batch": 1},
    ),
    "fastapi": (
        {"workers": 1, "threads": 1, "batch": 1},
        {"workers": 2, "threads": 1, "batch": 1},
        {"workers": 1, "threads": 2, "batch": 1},
    ),
    "bentoml": (
        {"workers": 2, "threads": 1, "batch": 16},
        {"workers": 1, "threads": 2, "batch": 16},
    ),
}

FIVECROP = ServerSpec(name="fivecrop", configuration="as shipped", module=None, path="/v1/classify")
