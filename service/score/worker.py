"""A worker process: reads ahead, decodes and runs the model, one image after the other.

Started by `service.score.pool` as a program of its own, so that what the caller's program holds,
threads above all, is not copied into it, and a script that scores needs no `__main__` guard.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection

from service.bundle.repository import read_bundle
from service.errors import FivecropError
from service.score.entry import Entry, File
from service.score.messages import Answer, Chunk, Ready, Refused, Setup, Spent
from service.score.row import Row
from service.score.scorer import Scorer
from service.score.storage import Reader, is_url

# Reads that are under way or wait for the model; a remote store answers many at once.
_LOCAL_READS, _REMOTE_READS = 4, 16


@dataclass(frozen=True, slots=True)
class _Fetched:
    number: int
    entry: Entry
    data: Future[bytes]
    is_last: bool


class _ReadAhead:
    """Entries in their order, with their bytes on the way.

    Two threads: what takes chunks off the connection never waits, so that the other end, which
    sends and receives by turns, cannot come to a stop; what starts reads waits for the model.
    """

    def __init__(self, connection: Connection, reader: Reader) -> None:
        self._connection = connection
        self._reader = reader
        self._chunks: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
        self._fetched: queue.SimpleQueue[_Fetched] = queue.SimpleQueue()
        self._under_way = 0
        self._news = threading.Condition()
        self._pool = ThreadPoolExecutor(_REMOTE_READS, thread_name_prefix="fivecrop-read")
        for work in (self._receive, self._start_reads):
            threading.Thread(target=work, daemon=True).start()

    def take(self) -> _Fetched:
        """Returns the next entry; its read may still be under way."""
        fetched = self._fetched.get()
        with self._news:
            self._under_way -= 1
            self._news.notify()
        return fetched

    def _receive(self) -> None:
        while True:
            try:
                self._chunks.put(self._connection.recv())
            except (EOFError, OSError):
                os._exit(0)  # the job ended, or died: nobody waits for the rest

    def _start_reads(self) -> None:
        while True:
            chunk = self._chunks.get()
            for place, entry in enumerate(chunk.entries, 1):
                is_remote = isinstance(entry.place, File) and is_url(entry.place.address)
                most = _REMOTE_READS if is_remote else _LOCAL_READS
                with self._news:
                    self._news.wait_for(lambda most=most: self._under_way < most)  # type: ignore[misc]
                    self._under_way += 1
                read = self._pool.submit(self._reader.read, entry)
                is_last = place == len(chunk.entries)
                self._fetched.put(_Fetched(chunk.number, entry, read, is_last))


def run_worker(connection: Connection) -> None:
    """Answers chunks until the other end is closed."""
    try:
        setup: Setup = connection.recv()
    except (EOFError, OSError):
        return  # the job ended, or died, before it knew what to score with
    try:
        scorer = Scorer(read_bundle(setup.bundle_folder), setup.options, setup.settings)
        scorer.prove(setup.golden)
    except FivecropError as error:
        _send(connection, Refused(" ".join(str(error).split())))
        return
    _send(connection, Ready(provider=scorer.engine.provider, variant=scorer.variant.precision))
    ahead = _ReadAhead(connection, Reader(setup.settings.max_body_bytes))
    rows: list[Row] = []
    while True:
        fetched = ahead.take()
        rows.append(scorer.score_read(fetched.entry, fetched.data))
        if fetched.is_last:
            _send(connection, Answer(fetched.number, rows, scorer.spent))
            rows, scorer.spent = [], Spent()


def _send(connection: Connection, message: Ready | Refused | Answer) -> None:
    try:
        connection.send(message)
    except OSError:
        os._exit(0)  # the job ended, or died: nobody waits for it


def main() -> None:
    """Runs a worker on the connection whose file number is the first argument."""
    # A terminal sends Ctrl-C to every process; the one that gives out work decides what to do.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    warnings.filterwarnings("ignore", module=r"PIL(\..*)?")
    run_worker(Connection(int(sys.argv[1])))
