"""What a person sees of a run: a bar on stderr, and a line an epoch."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TrainingProgress:
    """A context manager; silent when `is_shown` is false.

    Args:
        total_steps: of the whole run.
        first_step: where a resumed run goes on.
        batch_size: images a step.
        is_shown: whether anything is written.
    """

    def __init__(
        self, *, total_steps: int, first_step: int, batch_size: int, is_shown: bool
    ) -> None:
        self._console = Console(stderr=True, quiet=not is_shown)
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps"),
            TextColumn("{task.fields[rate]:.0f} img/s"),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not is_shown,
        )
        self._task = self._bar.add_task(
            "train", total=total_steps, completed=first_step, epoch=0, rate=0.0, loss=0.0
        )
        self._batch_size = batch_size
        self._last = time.perf_counter()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def step(self, *, epoch: int, loss: float) -> None:
        """Count one finished step."""
        now = time.perf_counter()
        rate, self._last = self._batch_size / (now - self._last), now
        self._bar.update(self._task, advance=1, epoch=epoch, rate=rate, loss=loss)

    def line(self, text: str) -> None:
        """Write a line that stays."""
        self._console.print(text, highlight=False)
        self._last = time.perf_counter()
