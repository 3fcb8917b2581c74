"""What a job survives: vanished files, dead workers, flaky stores, a swapped bundle, old locks."""

from __future__ import annotations

import concurrent.futures
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from service.bundle_cache import BundleCache
from service.score import pool
from service.score.entry import Entry, File
from service.score.errors import JobFailed, ScoreError
from service.score.folder import open_folder
from service.score.lock import LOCK_FILE, Lock, is_alive, read_lock
from service.score.storage import Reader, ReadError

# A worker that dies, as of the kernel's hand, of an image with a certain text in it.
DEADLY = """
import os, signal
from service.score import scorer, worker
score = scorer.Scorer.score
def die_or_score(self, entry, data):
    if b"DEADLY" in data:
        os.kill(os.getpid(), signal.SIGKILL)
    return score(self, entry, data)
scorer.Scorer.score = die_or_score
worker.main()
"""


def test_a_file_that_vanished_or_cannot_be_read_is_an_error_row(score, photos, read_rows):
    listed = photos.parent / "list.txt"
    names = sorted(map(str, photos.glob("*.png")))
    listed.write_text("\n".join([*names, str(photos)]))
    seen = []

    def remove_one():
        if not seen:
            seen.append(os.unlink(names[-1]))  # noqa: PTH108
        return False

    assert score(listed, should_stop=remove_one).state == "done"
    codes = [row["error_code"] for row in read_rows()]
    assert codes == [None] * (len(names) - 1) + ["not_found", "unreadable"]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_that_kills_its_worker_is_an_error_row_and_the_job_goes_on(
    with_workers, score, photos, read_rows, monkeypatch, workers
):
    for index in (10, 11, 40):
        (photos / f"deep/er/{index:03}-x.png").write_bytes(b"DEADLY")
    monkeypatch.setattr(pool, "COMMAND", (sys.executable, "-c", DEADLY))
    assert score(photos, workers=workers).state == "done"
    rows = read_rows()
    assert len(rows) == 63
    killed = [row["path"][-9:] for row in rows if row["status"] == "error"]
    assert killed == ["010-x.png", "011-x.png", "040-x.png"]
    assert {row["error_code"] for row in rows} == {None, "worker_killed"}


def test_the_standard_pool_of_processes_does_not_survive_that():
    """The control: what most people would write loses every job after one death."""
    with concurrent.futures.ProcessPoolExecutor(1) as executor:
        first = executor.submit(os.getpid)
        first.result()
        executor.submit(os._exit, 9)
        time.sleep(0.2)
        with pytest.raises(concurrent.futures.process.BrokenProcessPool):
            executor.submit(os.getpid).result()


def test_workers_that_cannot_start_fail_the_job_in_one_line(
    with_workers, score, photos, monkeypatch
):
    monkeypatch.setattr(pool, "COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(ScoreError, match=r"a worker process could not start \(exit code 3\)"):
        score(photos)


def test_workers_that_die_of_everything_fail_the_job(with_workers, score, photos, monkeypatch):
    once = photos.parent / "started"
    start_once = (
        f"import pathlib, os; p = pathlib.Path({str(once)!r})\n"
        "if p.exists(): os._exit(4)\np.touch()\n"
    )
    (photos / "000.png").write_bytes(b"DEADLY")
    monkeypatch.setattr(pool, "COMMAND", (sys.executable, "-c", start_once + DEADLY))
    with pytest.raises(JobFailed, match="exit code 4"):
        score(photos)


def test_workers_that_would_give_other_rows_fail_the_job(with_workers, score, photos, monkeypatch):
    """As one that finds no free GPU and falls back to the CPU."""
    once = photos.parent / "started"
    fall_back = f"""
import pathlib
from service.score import worker
class Other(worker.Scorer):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        try:
            pathlib.Path({str(once)!r}).touch(exist_ok=False)
        except FileExistsError:
            self.engine.provider = "cuda"
worker.Scorer = Other
worker.main()
"""
    monkeypatch.setattr(pool, "COMMAND", (sys.executable, "-c", fall_back))
    with pytest.raises(JobFailed, match=r"workers differ: one has fp32 on (cpu|cuda), another"):
        score(photos, workers=2)


class FlakyStore(MemoryFileSystem):
    """Fails as often as a test says before it answers."""

    protocol = "flaky"
    store = {"/x.png": None}  # noqa: RUF012
    failures = 0
    asked = 0

    def cat_file(self, path, start=None, end=None, **kwargs):
        FlakyStore.asked += 1
        if FlakyStore.asked <= FlakyStore.failures:
            raise ConnectionResetError("reset by peer")
        if path.endswith("absent.png"):
            raise FileNotFoundError(path)
        return b"the image"


@pytest.fixture
def flaky(monkeypatch):
    fsspec.register_implementation("flaky", FlakyStore, clobber=True)
    pauses = []
    monkeypatch.setattr("service.score.storage.time.sleep", pauses.append)

    def read(failures, name="x.png"):
        FlakyStore.failures, FlakyStore.asked = failures, 0
        pauses.clear()
        try:
            result = Reader(100).read(Entry(0, name, File(f"flaky://{name}")))
        except ReadError as error:
            result = error.code
        return result, FlakyStore.asked, list(pauses)

    return read


def test_remote_reads_are_tried_again_with_growing_pauses(flaky):
    result, asked, pauses = flaky(3)
    assert (result, asked) == (b"the image", 4)
    assert len(pauses) == 3
    for pause, least in zip(pauses, (0.25, 0.5, 1.0), strict=True):
        assert least <= pause <= 1.5 * least


def test_a_remote_read_that_never_works_is_unreadable(flaky):
    assert flaky(99)[:2] == ("unreadable", 4)
    assert flaky(0, "absent.png") == ("not_found", 1, [])


@pytest.mark.parametrize("attempts", [4, 1], ids=["ours", "control"])
def test_a_job_over_a_flaky_store_loses_only_what_never_comes(
    flaky, score, tmp_path, picture, read_rows, monkeypatch, attempts
):
    asked = Counter()

    def fail_twice(self, path, start=None, end=None, **kwargs):
        asked[path] += 1
        if asked[path] <= 2 or path.endswith("gone.png"):
            raise ConnectionResetError("reset by peer")
        return picture(len(path))

    monkeypatch.setattr(FlakyStore, "cat_file", fail_twice)
    monkeypatch.setattr("service.score.storage._ATTEMPTS", attempts)
    names = ["a.png", "b.png", "gone.png", "c.png"]
    (tmp_path / "list.txt").write_text("".join(f"flaky://{name}\n" for name in names))
    assert score(tmp_path / "list.txt", max_error_rate=1).state == "done"
    lost = "unreadable"
    expected = [None, None, lost, None] if attempts == 4 else [lost] * 4
    assert [row["error_code"] for row in read_rows()] == expected


def test_a_full_disk_ends_the_job_and_with_more_room_it_goes_on(
    score, photos, read_rows, tmp_path, monkeypatch
):
    sync, room = os.fsync, [None] * 4

    def fill_disk(number):
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room.pop()
        sync(number)

    monkeypatch.setattr("service.score.folder.os.fsync", fill_disk)
    with pytest.raises(JobFailed, match=r"No space left on device; .* go on with --resume"):
        score(photos, part_rows=5)
    assert len(read_rows()) == 15  # three parts; the manifest was the first file
    assert not list((tmp_path / "scores").glob(".*"))
    monkeypatch.undo()
    assert score(photos, resume=True).progress.resumed == 15
    assert [row["id"] for row in read_rows()] == list(range(60))


@pytest.mark.parametrize("keeps_copy", [True, False], ids=["ours", "control"])
def test_a_bundle_that_is_replaced_during_a_job_changes_nothing(
    with_workers, score, photos, growing_repository, read_rows, tmp_path, monkeypatch, keeps_copy
):
    if not keeps_copy:
        monkeypatch.setattr("service.score.engines.take_snapshot", lambda bundle, _: bundle)
    given = {"model_repository": str(growing_repository.folder)}
    score(photos, "before", **given)
    (photos / "deep/er/040-x.png").write_bytes(b"DEADLY")  # so that a worker starts anew
    monkeypatch.setattr(pool, "COMMAND", (sys.executable, "-c", DEADLY))
    swapped = []

    def swap():
        if not swapped:
            swapped.append(growing_repository.publish(1, answers_as=2))
        return False

    score(photos, "during", should_stop=swap, **given)
    (photos / "deep/er/040-x.png").unlink()
    score(photos, "after", **given)
    answers = {
        out: [(row["label"], row["bundle_digest"]) for row in read_rows(out) if row["label"]]
        for out in ("before", "during", "after")
    }
    # The worker that started anew shows which bundle it read.
    assert (answers["during"] == answers["before"]) == keeps_copy
    assert answers["after"] != answers["before"]


def test_the_bundle_of_a_running_job_is_not_cleared_from_the_cache(
    with_workers, score, photos, tmp_path
):
    cache = BundleCache(tmp_path / "cache", 0)

    def clear():
        cache._make_room(1)
        return not list(cache.folder.iterdir())  # a worker that starts anew would not find it

    assert score(photos, should_stop=clear).state == "done"
    assert clear()  # the control: nobody holds it any more


def test_the_lock_of_a_job_that_was_killed_is_taken_over(tmp_path):
    program = (
        "import sys, time\nfrom service.score.lock import Lock\n"
        "from service.score.folder import open_folder\n"
        "Lock(open_folder(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(60)\n"
    )
    folder = open_folder(str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ScoreError, match=f"written by process {other.pid} on .*, for [0-9]+ s"):
            Lock(folder).acquire()
        other.send_signal(signal.SIGKILL)
        other.wait()
    lock = Lock(folder)
    lock.acquire()
    assert read_lock(folder)["pid"] == os.getpid()
    lock.release()
    assert read_lock(folder) is None


@pytest.mark.parametrize(("silent_s", "alive"), [(0, True), (50, True), (70, False)])
def test_a_holder_on_another_machine_is_dead_when_it_is_silent(silent_s, alive):
    holder = {"host": "elsewhere", "pid": 1, "renewed": time.time() - silent_s}
    assert is_alive(holder) == alive


def test_a_process_that_only_has_the_number_of_the_holder_is_not_it():
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time()}
    assert not is_alive({**holder, "process_began": "1"})


def test_a_lock_that_is_no_lock_is_nobodys(tmp_path):
    (tmp_path / LOCK_FILE).write_text("{}")
    lock = Lock(open_folder(str(tmp_path)))
    lock.acquire()
    lock.release()


def test_a_lock_is_renewed_and_never_taken_from_its_new_owner(tmp_path, monkeypatch):
    monkeypatch.setattr("service.score.lock._RENEW_S", 0.01)
    folder = open_folder(str(tmp_path))
    lock = Lock(folder)
    lock.acquire()
    first = read_lock(folder)["renewed"]
    deadline = time.monotonic() + 10
    while read_lock(folder)["renewed"] == first and time.monotonic() < deadline:
        time.sleep(0.01)
    assert read_lock(folder)["renewed"] > first
    assert not lock.is_lost
    other = {**json.loads(folder.read(LOCK_FILE)), "token": "another"}
    while not lock.is_lost and time.monotonic() < deadline:
        folder.write(LOCK_FILE, json.dumps(other).encode())
        time.sleep(0.01)
    lock.release()
    assert read_lock(folder)["token"] == "another"


def test_a_torn_part_is_reported_not_skipped(score, photos, tmp_path):
    score(photos, part_rows=20)
    part = sorted((tmp_path / "scores").glob("part-*"))[0]
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ScoreError, match="part-"):
        score(photos, resume=True)
