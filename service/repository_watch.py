"""Lets a worker serve what is published to the repository, without being asked to."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import Final

from watchfiles import Change, awatch

from service.errors import StartError
from service.metrics import Metrics
from service.orders import ORDERS_FILE
from service.rollout import Rollout

# A version that is copied in file by file is looked at when that has paused for so long.
_SETTLE_MS: Final = 200
_RETRY_S: Final = 5.0

logger = logging.getLogger(__name__)


class RepositoryWatch:
    """Follows a repository from `start` to `stop`.

    The events of a folder come at once, but not from every file system (NFS), and not after another
    one was mounted over it; so everything is looked at now and then in any case.
    """

    def __init__(
        self, folder: Path | None, rollout: Rollout, metrics: Metrics, *, look_every_s: float = 30.0
    ) -> None:
        """Makes a watch that does nothing yet.

        Args:
            folder: The repository; None when it is behind a URL.
            rollout: What follows it.
            metrics: Where looks that failed are counted.
            look_every_s: Seconds until the next look when nothing tells of a change.
        """
        self._folder = None if folder is None else folder.absolute()
        self._look_every_s = look_every_s
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
                if self._folder is None:
                    await self._pause(self._look_every_s)
                    await self._follow(None)
                else:
                    await self._watch(self._folder)
            except Exception:  # a watch that ended would let the server fall behind unnoticed
                self._metrics.count_repository_failure()
                logger.exception("cannot watch the model repository; trying again")
                await self._pause(_RETRY_S)

    async def _watch(self, folder: Path) -> None:
        changes = awatch(
            folder,
            watch_filter=partial(_is_relevant, folder),
            step=_SETTLE_MS,
            rust_timeout=round(self._look_every_s * 1000),
            yield_on_timeout=True,
            stop_event=self._is_over,
        )
        async for changed in changes:
            paths = {Path(path).relative_to(folder) for _, path in changed}
            names = {path.parts[0] for path in paths if len(path.parts) > 1}
            await self._follow(names if paths and len(names) == len(paths) else None)

    async def _follow(self, names: set[str] | None) -> None:
        """Follows the changes of some models, or of all."""
        try:
            await self._rollout.follow(names)
        except StartError as error:
            self._metrics.count_repository_failure()
            logger.error("cannot read the model repository: %s", error)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._is_over.wait(), seconds)
        except TimeoutError:
            return


def _is_relevant(folder: Path, change: Change, path: str) -> bool:  # noqa: ARG001
    first = Path(path).relative_to(folder).parts[:1]
    # Names with a dot before them are work in progress.
    return bool(first) and (first[0] == ORDERS_FILE or not first[0].startswith("."))
