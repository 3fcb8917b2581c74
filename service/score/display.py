"""Shows how far a job is: a live line on a terminal, plain lines in a log, events for programs."""

from __future__ import annotations

import json
import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final, Protocol, Self

import click

from service.score.job import Summary
from service.score.progress import Progress

# A log needs no more lines than that.
_LINE_EVERY_S: Final = 10.0
_EVENT_EVERY_S: Final = 1.0


class Display(AbstractContextManager["Display"], Protocol):
    """What is shown while a job runs."""

    def show(self, progress: Progress) -> None:
        """Shows how far the job is, if it is time."""

    def conclude(self, summary: Summary) -> None:
        """Shows how it ended."""


def make_display(*, as_json: bool) -> Display:
    """Returns the display for whoever reads: a program, a person at a terminal, or a log."""
    if as_json:
        return Events()
    if sys.stderr.isatty():
        from service.score.live_line import LiveLine  # rich is a tenth of all that is imported

        return LiveLine()
    return Lines()


def describe(progress: Progress) -> str:
    """Returns one line for people."""
    about = "" if progress.is_total_exact else "about "
    of = f" of {about}{progress.total:,}" if progress.total is not None else ""
    eta = f", {_clock(progress.eta_s)} left" if progress.eta_s is not None else ""
    return (
        f"{progress.done:,}{of} images, {progress.images_per_second:,.1f}/s{eta}, "
        f"{progress.errors:,} errors, decode {progress.share('decode'):.0%}, "
        f"engine {progress.share('infer'):.0%}"
    )


class Paced:
    """Lets through one call in a while."""

    every_s: float

    def __init__(self) -> None:
        self._next = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops showing."""
        self.stop()

    def stop(self) -> None:
        """Puts back what was changed to show it: nothing, unless a display says what."""

    def is_time(self) -> bool:
        """Whether the last call that was let through is long enough ago."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self.every_s
        return True


class Lines(Paced):
    """A line on standard error every ten seconds."""

    every_s = _LINE_EVERY_S

    def show(self, progress: Progress) -> None:
        """Writes a line, if it is time."""
        if self.is_time():
            click.echo(describe(progress), err=True)

    def conclude(self, summary: Summary) -> None:
        """Writes how the job ended."""
        click.echo(f"{summary.state}: {describe(summary.progress)} -> {summary.out}", err=True)


class Events(Paced):
    """JSON objects on standard output, one a line, each with an `event`."""

    every_s = _EVENT_EVERY_S

    def show(self, progress: Progress) -> None:
        """Writes an event `progress`, if it is time."""
        if self.is_time():
            self._write("progress", progress.describe())

    def conclude(self, summary: Summary) -> None:
        """Writes the event `done`, `stopped` or `failed`."""
        self._write(summary.state, {**summary.progress.describe(), "out": summary.out})

    def _write(self, event: str, facts: dict[str, object]) -> None:
        sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
        sys.stdout.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
