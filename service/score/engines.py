"""The engines that a job may run on, behind one protocol."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

from service.bundle.repository import Bundle
from service.bundle_source import open_cache, open_source
from service.cores import count_cores
from service.score.chunker import Chunker
from service.score.errors import ScoreError
from service.score.messages import Ready, Setup
from service.score.options import ScoreOptions
from service.score.pool import ProcessLink, Scored, WorkerPool
from service.score.row import Stamp
from service.score.snapshot import take_snapshot
from service.score.transport import Connect
from service.settings import Settings


class ScoringEngine(Protocol):
    """What turns entries into rows."""

    @property
    def size(self) -> int:
        """How many of them work side by side."""

    def wait_ready(self) -> Ready:
        """Returns where the model runs, when it can begin."""

    def run(self, chunker: Chunker, should_stop: Callable[[], bool]) -> Iterator[Scored]:
        """Yields what was scored, in the order of the input."""

    def close(self) -> None:
        """Ends what it started."""


@contextlib.contextmanager
def open_engine(
    options: ScoreOptions, settings: Settings, connect: Connect | None
) -> Iterator[tuple[ScoringEngine, Stamp]]:
    """Gives the engine that the options ask for, and the model that it runs.

    Raises:
        StartError: There is no such model, or nothing to run it.
    """
    with contextlib.ExitStack() as stack:
        engine: ScoringEngine
        if options.url is not None:
            from service.score.http_transport import HttpTransport
            from service.score.service_engine import ServiceEngine

            asking = ServiceEngine(options, settings.max_body_bytes, connect or HttpTransport)
            engine = asking
            stamp = asking.stamp
        else:
            # They load their code while the bundle is looked for and verified.
            count = 0 if options.engine == "ray" else options.workers or count_cores()
            links = [stack.enter_context(contextlib.closing(ProcessLink())) for _ in range(count)]
            # Held until the job ends: a worker that is replaced reads it again.
            bundle = take_snapshot(_find_bundle(settings, options.model), open_cache(settings))
            stamp = Stamp(
                model=bundle.manifest.name,
                version=bundle.manifest.version,
                bundle_digest=bundle.digest,
            )
            setup = Setup(
                bundle_folder=bundle.folder, options=options, settings=settings, golden=slice(None)
            )
            engine = _make_pool(setup, links)
        stack.callback(engine.close)
        yield engine, stamp


def _make_pool(setup: Setup, links: list[ProcessLink]) -> ScoringEngine:
    if setup.options.engine == "ray":
        from service.score.ray_engine import RayPool

        return RayPool(setup, setup.options.address)
    return WorkerPool(setup, links)


def _find_bundle(settings: Settings, reference: str) -> Bundle:
    """Returns the bundle that a reference means now.

    Raises:
        StartError: There is no such bundle, or it is damaged.
    """
    source = open_source(settings)
    name, _, version = reference.partition("@")
    listing = source.list_versions()
    versions = listing.get(name, [])
    if not versions or (version and version not in map(str, versions)):
        known = ", ".join(f"{one}@{each}" for one, all_of in listing.items() for each in all_of)
        raise ScoreError(f"unknown model {reference!r}; there is {known or 'none'}")
    return source.fetch(name, int(version) if version else versions[-1])
