"""Real jobs that are killed, stopped and run out of disk, and jobs that are very long."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.score.dataset import list_parts
from service.score.folder import open_folder
from service.score.part_format import read_part

pytestmark = pytest.mark.e2e

DRIVER = Path(__file__).with_name("driver.py")
LIMIT_S = 180


@pytest.fixture
def start(tmp_path, tiny_bundle_repository):
    """Returns `start(inputs, out, *options)`: a job in a process group of its own."""
    started = []

    def run(inputs, out, *options, **environment):
        command = [sys.executable, str(DRIVER), str(inputs), f"--out={out}", *options, "--json"]
        command += ["--model=digits-linear", f"--model-repository={tiny_bundle_repository}"]
        environment = {**os.environ, "FIVECROP_MODEL_CACHE": str(tmp_path / "cache"), **environment}
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def make_table(tmp_path, picture):
    """Returns `make_table(count)`: a Parquet file of that many pictures, 50 of them different."""

    def make(count):
        different = [picture(seed) for seed in range(50)]
        images = [different[index % 50] for index in range(count)]
        pq.write_table(pa.table({"image": images}), tmp_path / "t.parquet", row_group_size=500)
        return tmp_path / "t.parquet"

    return make


def ids_of(out):
    folder = open_folder(str(out))
    return [
        row["id"]
        for part in list_parts(folder)
        for row in read_part(folder.read(part.name), part.format)
    ]


def wait_for_parts(process, out, more_than):
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end and process.poll() is None:
        if len(list(out.glob("part-*"))) > more_than:
            return
        time.sleep(0.005)


def kill_and_resume(start, table, out, kills, **environment):
    """Kills a job `kills` times at random moments, mostly while it writes; lets it end then."""
    moments = random.Random(5)
    killed = 0
    resume: tuple[str, ...] = ()
    while True:
        options = ("--workers=1", "--part-seconds=0.02", "--max-error-rate=1", *resume)
        process = start(table, out, *options, **environment)
        if killed == kills:
            _, told = process.communicate(timeout=LIMIT_S)
            return process.returncode, told.decode()
        if killed % 10 == 9:
            time.sleep(moments.uniform(0, 1.0))  # at some moment of its start
        else:
            wait_for_parts(process, out, len(list(out.glob("part-*"))))
            time.sleep(moments.uniform(0, 0.15))
        if process.poll() is not None:
            return process.returncode, process.communicate()[1].decode()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        killed += 1
        if (out / "_manifest.json").exists():
            resume = ("--resume",)


def test_fifty_kills_lose_and_repeat_no_row(start, make_table, tmp_path):
    total, out, counted = 60_000, tmp_path / "out", tmp_path / "count"
    code, told = kill_and_resume(start, make_table(total), out, 50, COUNT_FILE=str(counted))
    assert code == 0, told
    counts = Counter(ids_of(out))
    assert set(counts) == set(range(total)), "missing"
    assert set(counts.values()) == {1}, "duplicates"
    rework = counted.stat().st_size / total - 1
    assert 0 <= rework <= 0.10, rework


def test_files_written_in_place_do_not_survive_kills(start, make_table, tmp_path):
    """The control: without the temporary name a kill leaves a torn part or manifest."""
    out = tmp_path / "out"
    code, told = kill_and_resume(start, make_table(60_000), out, 20, NAIVE="1")
    assert code == 2, told
    assert "part-" in told or "_manifest.json" in told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_job_at_a_part_and_tells_how_to_go_on(
    start, make_table, tmp_path, number
):
    table, out = make_table(100_000), tmp_path / "out"
    process = start(table, out, "--part-seconds=0.2")
    wait_for_parts(process, out, 1)
    asked = time.monotonic()
    # Ctrl-C goes to every process of the terminal, SIGTERM to the one that was started.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    shown, told = process.communicate(timeout=LIMIT_S)
    assert time.monotonic() - asked < 5
    assert process.returncode == 128 + number
    assert "--resume goes on" in told.decode()
    last = json.loads(shown.splitlines()[-1])
    assert last["event"] == "stopped"
    ids = ids_of(out)
    assert sorted(ids) == list(range(last["done"]))
    assert 0 < len(ids) < 100_000
    assert not (out / "_lock.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_without_handlers_a_signal_loses_what_was_not_written(start, make_table, tmp_path, number):
    """The control."""
    process = start(make_table(100_000), tmp_path / "out", "--part-seconds=0.2", DEAF="1")
    wait_for_parts(process, tmp_path / "out", 1)
    process.send_signal(number)
    shown, told = process.communicate(timeout=LIMIT_S)
    assert json.loads(shown.splitlines()[-1])["event"] == "progress"  # how it ended is not told
    if number == signal.SIGTERM:  # of Ctrl-C Python makes an exception
        assert process.returncode == -signal.SIGTERM
        assert "--resume" not in told.decode()
        assert (tmp_path / "out/_lock.json").exists()


@pytest.mark.parametrize(
    "environment",
    [{}, {"BEGUN": "1"}, {"BEGUN": "1", "PATIENT": "1"}],
    ids=["starting", "at work", "control"],
)
def test_a_job_whose_input_hangs_stops_in_time(start, tmp_path, environment):
    listed = tmp_path / "list.txt"
    os.mkfifo(listed)
    process = start(listed, tmp_path / "out", **environment)
    writer = os.open(listed, os.O_WRONLY)  # returns when the job reads
    asked = time.monotonic()
    process.terminate()
    if "PATIENT" in environment:
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=8)
        os.close(writer)
        return
    _, told = process.communicate(timeout=LIMIT_S)
    os.close(writer)
    assert time.monotonic() - asked < 5
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped before" in told.decode()
    assert told.decode().count("\n") == 1


@pytest.mark.parametrize("environment", [{}, {"UNLOCKED": "1"}], ids=["ours", "control"])
def test_a_second_job_into_the_same_output_is_refused(start, make_table, tmp_path, environment):
    table, out = make_table(60_000), tmp_path / "out"
    first = start(table, out, "--workers=1", "--part-seconds=0.2", **environment)
    wait_for_parts(first, out, 1)
    second = start(table, out, "--workers=1", "--part-seconds=0.2", "--resume", **environment)
    _, told = second.communicate(timeout=LIMIT_S)
    _, first_told = first.communicate(timeout=LIMIT_S)
    counts = Counter(ids_of(out))
    is_well = first.returncode == 0 and counts == Counter(range(60_000))
    if environment:
        assert not is_well  # what the lock is for: rows twice, or files taken from each other
        return
    assert is_well, first_told
    assert second.returncode == 2
    assert f"is being written by process {first.pid} on " in told.decode()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte; `grow()` gives it more."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs the right to mount one")
    yield (
        place,
        lambda: subprocess.run(["mount", "-o", "remount,size=100m", str(place)], check=True),
    )
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_ends_the_job_and_with_more_room_it_goes_on(start, make_table, small_disk):
    disk, grow = small_disk
    table = make_table(20_000)
    options = ("--workers=1", "--probabilities", "--embedding", "--part-rows=500")
    process = start(table, disk / "out", *options)
    _, told = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert told.decode().count("\n") == 1
    assert "No space left on device; what was written stays, go on with --resume" in told.decode()
    assert 0 < len(ids_of(disk / "out")) < 20_000
    grow()
    process = start(table, disk / "out", *options, "--resume")
    assert process.wait(LIMIT_S) == 0
    assert sorted(ids_of(disk / "out")) == list(range(20_000))


def test_files_written_in_place_do_not_survive_a_full_disk(start, make_table, small_disk):
    """The control."""
    disk, grow = small_disk
    table = make_table(20_000)
    options = ("--workers=1", "--probabilities", "--embedding", "--part-rows=500")
    assert start(table, disk / "out", *options, NAIVE="1").wait(LIMIT_S) != 0
    grow()
    process = start(table, disk / "out", *options, "--resume")
    _, told = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 2
    assert "part-" in told.decode() or "_manifest.json" in told.decode()


MILLION = """
import sys, unittest.mock
from service.score import engines, job
from service.score.options import ScoreOptions
from service.score.pool import Scored
from service.score.row import Row
from service.score.messages import Ready, Spent

class Fake:
    size = 1
    def __init__(self, setup, links): pass
    def wait_ready(self): return Ready(provider="cpu", variant="fp32")
    def close(self): pass
    def run(self, chunker, should_stop):
        while (stretch := chunker.take(64)) is not None:
            yield Scored(stretch, [
                Row(id=e.position, path=e.path, status="ok", label="7", index=7, score=0.5,
                    top_labels=["7"], top_indices=[7], top_scores=[0.5], width=1, height=1,
                    format="png")
                for e in stretch.entries], Spent())

engines.WorkerPool, engines.ProcessLink = Fake, unittest.mock.Mock
peaks, kept = [], []
def watch(progress):
    if "--keep" in sys.argv:
        kept.append([f"{progress.done}-{index}" * 4 for index in range(64)])
    if progress.done % 100_032 == 0 or progress.done == progress.total:
        # Of this program alone: getrusage counts what it was forked from, too.
        status = open("/proc/self/status").read()
        peaks.append(int(status.split("VmHWM:")[1].split()[0]) / 1024)
summary = job.score_dataset(sys.argv[1], sys.argv[2], ScoreOptions(
    model="digits-linear", model_repository=sys.argv[3], top_k=1), watch=watch)
print(summary.progress.done, peaks[0], peaks[-1])
"""


def measure_growth(tmp_path, repository, *options):
    """MiB that the peak of a job over a million entries grew by after the first tenth of them."""
    listed = tmp_path / "list.txt"
    with listed.open("w") as file:
        file.writelines(f"photos/{index:09}.jpg\n" for index in range(1_000_000))
    shown = subprocess.run(
        [sys.executable, "-c", MILLION, listed, tmp_path / "out", repository, *options],
        env={**os.environ, "FIVECROP_MODEL_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    done, early_mib, late_mib = map(float, shown.split())
    assert done == 1_000_000
    return late_mib - early_mib


def test_a_million_entries_take_no_more_memory_than_a_hundred_thousand(
    tmp_path, tiny_bundle_repository
):
    assert measure_growth(tmp_path, tiny_bundle_repository) <= 50


def test_the_measurement_of_memory_notices_a_name_kept_for_each_entry(
    tmp_path, tiny_bundle_repository
):
    """The control."""
    assert measure_growth(tmp_path, tiny_bundle_repository, "--keep") > 50
