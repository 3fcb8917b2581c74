"""The worker processes of a job: gives out chunks, takes rows back in order, replaces the dead."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Final, Protocol

from service.score.chunker import Chunker, Stretch
from service.score.entry import Entry
from service.score.errors import JobFailed, ReadCode, ScoreError
from service.score.messages import Answer, Chunk, Ready, Refused, Setup, Spent
from service.score.row import Row, failed_row

# A worker has this many chunks, so that it never waits for the next.
_DEPTH: Final = 2
# Chunks that are given out or wait for an earlier one, for each worker: bounds what is in memory.
_WINDOW: Final = 16
# A chunk should take about so long: short enough to stop soon, long enough to cost nothing.
_CHUNK_S: Final = 0.25
_MAX_CHUNK: Final = 32
# What is at work when a stop is asked for may take so long to finish.
_STOP_S: Final = 2.0
POLL_S: Final = 0.2
# Starts in a row without an answer between, after which it is not the images' fault.
_MAX_FAILED_STARTS: Final = 3

# What runs a worker; its last argument is the file number of its connection.
COMMAND: Final = (sys.executable, "-c", "from service.score.worker import main; main()")


@dataclass(slots=True)
class Scored:
    """A stretch of the input with its rows, in its order."""

    stretch: Stretch
    rows: list[Row]
    spent: Spent


@dataclass(slots=True)
class _Pending:
    """A stretch that is given out: rows come with the chunk it was sent as, or one by one."""

    stretch: Stretch
    rows: dict[int, Row] = field(default_factory=dict)
    spent: Spent = field(default_factory=Spent)

    @property
    def is_complete(self) -> bool:
        return len(self.rows) == len(self.stretch.entries)


@dataclass(slots=True)
class _Work:
    """What one message to a worker asks for; a suspect was with a worker when it died."""

    pending: _Pending
    entries: list[Entry]
    is_suspect: bool = False


class Link(Protocol):
    """The way to one worker and back. A dead worker's raises OSError or EOFError."""

    def send(self, message: Setup | Chunk) -> None:
        """Sends a message; returns before it is answered."""

    def recv(self) -> Ready | Refused | Answer:
        """Returns the next answer, waiting for it."""

    def close(self) -> None:
        """Ends the worker."""

    def tell_death(self) -> str:
        """Returns how a dead worker ended, for people."""


class ProcessLink:
    """A worker process of this machine."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*COMMAND, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=2,  # standard output is for data
            )
        self.connection = Connection(ours.detach())

    def send(self, message: Setup | Chunk) -> None:
        """Sends a message; returns before it is answered."""
        self.connection.send(message)

    def recv(self) -> Ready | Refused | Answer:
        """Returns the next answer, waiting for it."""
        said: Ready | Refused | Answer = self.connection.recv()
        return said

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()  # first: one that is hung up on ends by itself
        self.connection.close()
        self._process.wait()

    def tell_death(self) -> str:
        """Returns how the process ended."""
        code = self._process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"


@dataclass(slots=True, eq=False)
class Worker:
    """A worker, and what it is at."""

    link: Link
    is_ready: bool = False
    at_work: dict[int, _Work] = field(default_factory=dict)


class WorkerPool:
    """Worker processes that score the entries of a job."""

    def __init__(self, setup: Setup, links: Sequence[Link]) -> None:
        """Tells the workers what to load; they do while the caller does something else."""
        self._setup = setup
        self._numbers = 0
        self._failed_starts = 0
        self._suspects: deque[_Work] = deque()
        self._order: deque[_Pending] = deque()
        self._chunk_size = 1
        self._ready: Ready | None = None
        self._count = len(links)
        self._workers = [self._begin(link, index) for index, link in enumerate(links)]

    @property
    def size(self) -> int:
        """How many workers there are."""
        return len(self._workers)

    def wait_ready(self) -> Ready:
        """Waits until every worker can begin; returns where the model runs.

        Raises:
            ScoreError: A worker cannot begin.
        """
        for worker in self._workers:
            try:
                said = worker.link.recv()
            except (EOFError, OSError) as error:
                raise ScoreError(_died(worker)) from error
            assert not isinstance(said, Answer)
            if isinstance(said, Refused):
                raise ScoreError(said.reason)
            self._admit(worker, said)
        assert self._ready is not None
        return self._ready

    def _admit(self, worker: Worker, ready: Ready) -> None:
        """Lets a worker begin, unless its rows would not be those of the others.

        Raises:
            JobFailed: It runs elsewhere than they do, or another file of the bundle.
        """
        if self._ready is not None and ready != self._ready:
            raise JobFailed(f"workers differ: one has {ready}, another {self._ready}")
        self._ready = ready
        worker.is_ready = True

    def run(self, chunker: Chunker, should_stop: Callable[[], bool]) -> Iterator[Scored]:
        """Yields what was scored, in the order of the input, until its end or a stop.

        Raises:
            JobFailed: Workers die whatever they are given.
        """
        has_more, stop_at = True, float("inf")
        while has_more or self._order:
            if stop_at == float("inf") and should_stop():
                stop_at, has_more = time.monotonic() + _STOP_S, False
            if has_more:
                has_more = self._give_out(chunker)
            self._give_suspects()
            for worker in self.find_ready(self._workers):
                self._receive(worker)
            while self._order and self._order[0].is_complete:
                pending = self._order.popleft()
                rows = [pending.rows[entry.position] for entry in pending.stretch.entries]
                yield Scored(pending.stretch, rows, pending.spent)
            if time.monotonic() >= stop_at:
                return

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers:
            worker.link.close()

    def open_link(self) -> Link:
        """Starts a worker."""
        return ProcessLink()

    def find_ready(self, workers: list[Worker]) -> list[Worker]:
        """Returns the workers that something came from, or that died, waiting a moment for one."""
        listening = {
            worker.link.connection: worker
            for worker in workers
            if isinstance(worker.link, ProcessLink)
        }
        return [listening[found] for found in wait(list(listening), POLL_S)]  # type: ignore[index]

    def share_golden(self, index: int) -> slice:
        """Returns the golden samples that a worker proves: those of one machine share them."""
        return slice(index, None, self._count)

    def _begin(self, link: Link, index: int) -> Worker:
        with contextlib.suppress(OSError):  # a death is noticed where it is waited for
            link.send(replace(self._setup, golden=self.share_golden(index)))
        return Worker(link)

    def _give_out(self, chunker: Chunker) -> bool:
        """Gives every worker enough to do; returns whether there may be more."""
        for worker in self._workers:
            while (
                worker.is_ready
                and not self._suspects
                and len(worker.at_work) < _DEPTH
                and not any(work.is_suspect for work in worker.at_work.values())
                and len(self._order) < _WINDOW * len(self._workers)
            ):
                stretch = chunker.take(self._chunk_size)
                if stretch is None:
                    return False
                pending = _Pending(stretch)
                self._order.append(pending)
                self._send(worker, _Work(pending, stretch.entries))
        return True

    def _give_suspects(self) -> None:
        """Gives an idle worker one image that may have killed another, and nothing else."""
        for worker in self._workers:
            if self._suspects and worker.is_ready and not worker.at_work:
                self._send(worker, self._suspects.popleft())

    def _send(self, worker: Worker, work: _Work) -> None:
        self._numbers += 1
        worker.at_work[self._numbers] = work
        with contextlib.suppress(OSError):  # its death is noticed when it is listened to
            worker.link.send(Chunk(self._numbers, work.entries))

    def _receive(self, worker: Worker) -> None:
        try:
            said = worker.link.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        match said:
            case Ready():
                self._admit(worker, said)
            case Refused(reason):
                raise JobFailed(f"a worker cannot go on: {reason}")
            case Answer(number, rows, spent):
                self._failed_starts = 0
                work = worker.at_work.pop(number)
                for row in rows:
                    work.pending.rows[row.id] = row
                work.pending.spent = spent
                self._adapt(len(rows), spent)

    def _adapt(self, count: int, spent: Spent) -> None:
        seconds = max(1e-6, spent.read_s + spent.decode_s + spent.infer_s)
        wanted = int(count * _CHUNK_S / seconds)
        # At most doubled, because one small image says little about the next.
        self._chunk_size = max(1, min(wanted, 2 * self._chunk_size, _MAX_CHUNK))

    def _replace(self, worker: Worker) -> None:
        """Starts another worker for one that died, and finds out which image it was.

        What it was at is tried again, one image at a time with a worker of its own; the one that a
        second worker dies of gets an error row.
        """
        if not worker.is_ready:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                raise JobFailed(_died(worker))
        for work in worker.at_work.values():
            if work.is_suspect:
                (entry,) = work.entries
                work.pending.rows[entry.position] = failed_row(entry, ReadCode.WORKER_KILLED)
            else:
                self._suspects.extend(
                    _Work(work.pending, [entry], is_suspect=True) for entry in work.entries
                )
        worker.link.close()
        index = self._workers.index(worker)
        self._workers[index] = self._begin(self.open_link(), index)


def _died(worker: Worker) -> str:
    return f"a worker process could not start ({worker.link.tell_death()})"
