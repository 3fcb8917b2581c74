"""Lets a worker serve what is published to the repository, without being asked to."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from watchfiles import Change, awatch

from service.errors import StartError
from service.metrics import Metrics
from service.orders import ORDERS_FILE
from service.rollout import Rollout

# File events come at once, but not from every file system (NFS), and not after a folder was
# mounted over; so everything is looked at this often in any case.
_LOOK_EVERY_MS: Final = 30_000
# A version that is copied in file by file is looked at when that has paused for so long.
_SETTLE_MS: Final = 200
_RETRY_S: Final = 5.0

logger = logging.getLogger(__name__)


class RepositoryWatch:
    """Follows a folder from `start` to `stop`."""

    def __init__(self, folder: Path, rollout: Rollout, metrics: Metrics) -> None:
        self._folder = folder.absolute()
        self._rollout = rollout
        self._metrics = metrics
        self._is_over = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts to watch, in the running event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Returns when nothing is followed any more."""
        self._is_over.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while not self._is_over.is_set():
            try:
                await self._watch()
            except Exception:  # a watch that ended would let the server fall behind unnoticed
                self._metrics.count_repository_failure()
                logger.exception("cannot watch the model repository; trying again")
                await self._pause()

    async def _watch(self) -> None:
        changes = awatch(
            self._folder,
            watch_filter=self._is_relevant,
            step=_SETTLE_MS,
            rust_timeout=_LOOK_EVERY_MS,
            yield_on_timeout=True,
            stop_event=self._is_over,
        )
        async for changed in changes:
            paths = {Path(path).relative_to(self._folder) for _, path in changed}
            names = {path.parts[0] for path in paths if len(path.parts) > 1}
            await self._follow(names if paths and len(names) == len(paths) else None)

    async def _follow(self, names: set[str] | None) -> None:
        """Follows the changes of some models, or of all."""
        try:
            await self._rollout.follow(names)
        except StartError as error:
            self._metrics.count_repository_failure()
            logger.error("cannot read the model repository: %s", error)

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._is_over.wait(), _RETRY_S)
        except TimeoutError:
            return

    def _is_relevant(self, change: Change, path: str) -> bool:  # noqa: ARG002
        first = Path(path).relative_to(self._folder).parts[:1]
        # Names with a dot before them are work in progress.
        return bool(first) and (first[0] == ORDERS_FILE or not first[0].startswith("."))
