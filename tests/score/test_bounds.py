"""What a job may hold in memory, and how far it reads ahead."""

from __future__ import annotations

import sys
from collections import deque
from itertools import count

import pytest

from service.score import pool
from service.score.chunker import Chunker, Stretch
from service.score.entry import Entry, File, Inline
from service.score.messages import Answer, Chunk, Ready, Setup, Spent
from service.score.needs import Needs
from service.score.row import failed_row
from service.settings import Settings

MIB = 2**20


@pytest.mark.parametrize(("size", "most"), [(10, 32), (MIB, 4), (3 * MIB, 2), (20 * MIB, 1)])
def test_a_chunk_is_bounded_in_images_and_in_bytes(size, most):
    data = bytes(size)
    entries = (Entry(position, "x", Inline(data)) for position in range(100))
    assert len(Chunker(entries, Needs()).take(32).entries) == most


class Link:
    """A worker that answers every chunk but the first that a job gives out."""

    def __init__(self):
        self.answers = deque()

    def send(self, message):
        if isinstance(message, Setup):
            self.answers.append(Ready(provider="cpu", variant="fp32"))
        if isinstance(message, Chunk) and message.number > 1:
            rows = [failed_row(entry, "not_found") for entry in message.entries]
            self.answers.append(Answer(message.number, rows, Spent()))

    def recv(self):
        return self.answers.popleft()


class Pool(pool.WorkerPool):
    def find_ready(self, workers):
        return [worker for worker in workers if worker.link.answers]


class EndlessChunker:
    taken = 0

    def take(self, _count):
        self.taken += 1
        return Stretch([Entry(self.taken, "x", File("x"))], follows=True)


@pytest.mark.parametrize("window", [None, 1_000], ids=["ours", "control"])
def test_one_slow_chunk_lets_the_others_run_ahead_so_far_and_no_further(
    make_options, tmp_path, monkeypatch, window
):
    monkeypatch.setattr(pool, "_STOP_S", 0)
    if window is not None:
        monkeypatch.setattr(pool, "_WINDOW", window)
    options, settings = make_options(), Settings()
    setup = Setup(bundle_folder=tmp_path, options=options, settings=settings, golden=slice(None))
    workers, chunker, asked = Pool(setup, [Link(), Link()]), EndlessChunker(), count()
    workers.wait_ready()
    assert list(workers.run(chunker, lambda: next(asked) > 500)) == []  # nothing overtakes it
    bound = 2 * 16
    assert chunker.taken == bound if window is None else chunker.taken > bound


COUNTING = """
import pathlib, threading, time
from service.score import worker
class Counting(worker.Reader):
    lock = threading.Lock()
    now = most = 0
    def read(self, entry):
        with self.lock:
            Counting.now += 1
            if Counting.now > Counting.most:
                Counting.most = Counting.now
                pathlib.Path({place!r}).write_text(str(Counting.most))
        time.sleep(0.02)
        with self.lock:
            Counting.now -= 1
        return b""
worker.Reader = Counting
worker.main()
"""


# The one that the model waits for, and four ahead of it; the threads that read are sixteen.
@pytest.mark.parametrize(("prefix", "reads"), [("memory://x/", 16), ("x/", 5)])
def test_remote_images_are_read_further_ahead_than_local_ones(
    with_workers, score, tmp_path, monkeypatch, prefix, reads
):
    place = tmp_path / "most"
    program = COUNTING.format(place=str(place))
    monkeypatch.setattr(pool, "COMMAND", (sys.executable, "-c", program))
    (tmp_path / "list.txt").write_text("".join(f"{prefix}{index}\n" for index in range(300)))
    assert score(tmp_path / "list.txt", max_error_rate=1).state == "done"
    assert int(place.read_text()) == reads
