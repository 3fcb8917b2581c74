"""The bar that a person at a terminal sees."""

from __future__ import annotations

from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

from service.score.display import Lines, Paced, describe
from service.score.job import Summary
from service.score.progress import Progress

_EVERY_S: Final = 0.2


class LiveLine(Paced):
    """A bar on the terminal that standard error is."""

    every_s = _EVERY_S

    def __init__(self) -> None:
        super().__init__()
        columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def stop(self) -> None:
        """Takes the bar away."""
        self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Moves the bar, if it is time."""
        if self.is_time():
            self._bar.update(
                self._task,
                description=describe(progress),
                completed=progress.done,
                total=progress.total,
            )

    def conclude(self, summary: Summary) -> None:
        """Writes how the job ended."""
        self.stop()
        Lines().conclude(summary)
