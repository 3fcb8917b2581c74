"""The supervisor over stand-ins for workers: scripts that speak as workers do and die as told."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from service import supervisor, worker_process
from service.errors import StartError
from service.live_workers import list_live_workers
from service.settings import Settings

READY = "link.sendall(b'ready\\n'); "
SERVE = READY + "signal.pause()"


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """`run(script, ...)`: a server whose workers run the script; returns what `run_server` does.

    The script sees `link` (its socket), `index`, `starts` (how often its slot was started) and
    `folder`. `then` is called with the line that says ready; by default it stops the server.
    """

    def run_scripts(script, *, workers=1, then=None, **settings):
        head = (
            "import os, signal, socket, sys, time, pathlib\n"
            "link = socket.socket(fileno=int(os.environ['FIVECROP_SUPERVISOR_FD']))\n"
            "index, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])\n"
            "(folder / f'{index}-{os.getpid()}').touch()\n"
            "starts = len(list(folder.glob(f'{index}-*')))\n"
        )
        monkeypatch.setattr(
            worker_process,
            "_command",
            lambda index, *_: [sys.executable, "-c", head + script, str(index), str(tmp_path)],
        )
        return supervisor.run_server(
            Settings(http_port=free_port(), grpc_port=free_port(), workers=workers, **settings),
            then or (lambda _: os.kill(os.getpid(), signal.SIGTERM)),
        )

    return run_scripts


def pids_in(folder):
    return [int(path.name.partition("-")[2]) for path in folder.iterdir() if "-" in path.name]


def when(condition, action):
    """Does something as soon as the condition holds, while the main thread runs a server."""

    def wait():
        while not condition():
            threading.Event().wait(0.01)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


def test_ready_is_announced_once_and_when_the_last_worker_is(run, tmp_path):
    lines = []

    def then(line):
        lines.append((line, len(pids_in(tmp_path)), (tmp_path / "late").exists()))
        stop()

    script = "index == 2 and (time.sleep(0.3), (folder / 'late').touch()); " + SERVE
    assert run(script, workers=2, then=then)
    ((line, started, late_was_ready),) = lines
    assert line.startswith("fivecrop is ready: HTTP http://127.0.0.1:")
    assert (started, late_was_ready) == (2, True)


def test_reason_of_a_failed_start_ends_the_server_and_its_other_workers(run, tmp_path):
    script = "index == 1 and signal.pause(); link.sendall(b'failed the bundle is broken\\n')"
    with pytest.raises(StartError, match=r"^the bundle is broken$"):
        run(script, workers=2)
    assert not any(map(psutil.pid_exists, pids_in(tmp_path)))


def test_worker_that_ends_without_a_word_is_named_with_its_exit_code(run):
    with pytest.raises(StartError, match=r"worker 1 ended while it started \(exit code 7\)"):
        run("sys.exit(7)")


def test_worker_killed_while_it_starts_is_named_with_the_signal(run):
    with pytest.raises(StartError, match=r"\(signal SIGKILL\)"):
        run("os.kill(os.getpid(), signal.SIGKILL)")


def test_worker_that_dies_is_replaced_at_once(run, tmp_path):
    def then(_):
        os.kill(*pids_in(tmp_path), signal.SIGKILL)
        when(lambda: (tmp_path / "again").exists(), stop)

    assert run("starts == 2 and (folder / 'again').touch(); " + SERVE, then=then)


def test_worker_that_dies_again_and_again_is_started_ever_more_rarely():
    pauses = list(itertools.islice(supervisor._restart_pauses(), 10))
    assert pauses[0] == 0
    assert pauses == sorted(pauses)
    assert pauses[-1] == pauses[-2] >= 10


def test_server_goes_on_while_one_worker_serves_and_another_cannot_start_again(
    run, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(supervisor, "_restart_pauses", lambda: itertools.repeat(0.05))
    script = "starts > 1 and sys.exit(3); " + SERVE

    def then(_):
        first = next(pid for pid in pids_in(tmp_path) if (tmp_path / f"1-{pid}").exists())
        os.kill(first, signal.SIGKILL)
        when(lambda: len(pids_in(tmp_path)) >= 5, stop)

    assert run(script, workers=2, then=then)
    assert "worker 1 cannot start again" in caplog.text


def test_worker_that_cannot_start_again_is_not_counted_as_alive(run, tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "_restart_pauses", lambda: itertools.repeat(0.05))
    script = (
        "metrics = pathlib.Path(os.environ['PROMETHEUS_MULTIPROC_DIR'])\n"
        "(metrics / f'gauge_livesum_{os.getpid()}.db').touch()\n"
        "starts == 1 and (folder / 'place').write_text(str(metrics))\n"
    )
    alive = []

    def look():
        alive.append(list_live_workers(Path((tmp_path / "place").read_text())))
        stop()

    def then(_):
        os.kill(pids_in(tmp_path)[0], signal.SIGKILL)
        when(lambda: len(pids_in(tmp_path)) >= 6, look)

    assert run(script + "starts > 1 and sys.exit(3); " + SERVE, workers=2, then=then)
    # One serves; one may be starting just now.
    assert 1 <= len(alive[0]) <= 2


def test_stop_reaches_a_worker_whose_process_was_just_made(run, tmp_path, monkeypatch):
    start = worker_process.WorkerProcess.start

    async def start_and_stop(*args):
        worker = await start(*args)
        if (tmp_path / "died").exists():
            stop()
            await asyncio.sleep(0.1)  # the signal arrives before the worker is known
        return worker

    def then(_):
        (tmp_path / "died").touch()
        os.kill(*pids_in(tmp_path), signal.SIGKILL)

    monkeypatch.setattr(worker_process.WorkerProcess, "start", start_and_stop)
    began = time.monotonic()
    assert run("starts > 1 and time.sleep(60); " + SERVE, then=then)
    assert time.monotonic() - began < 10


def test_server_ends_when_its_last_worker_cannot_start_again(run, tmp_path):
    def then(_):
        os.kill(*pids_in(tmp_path), signal.SIGKILL)

    with pytest.raises(StartError, match="exit code 3"):
        run("starts > 1 and sys.exit(3); " + SERVE, then=then)


def test_worker_that_ends_badly_while_it_stops_makes_the_server_end_badly(run):
    script = "signal.signal(signal.SIGTERM, lambda *_: os._exit(9)); " + SERVE
    assert not run(script)


def test_worker_that_ignores_the_stop_is_killed_after_its_grace(run, monkeypatch):
    monkeypatch.setattr(supervisor, "_STOP_MARGIN_S", 0.2)
    script = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " + READY + "time.sleep(3600)"
    assert not run(script, drain_s=0, shutdown_grace_s=0)


def test_second_interrupt_kills(run):
    script = (
        "signal.signal(signal.SIGINT, lambda *_: (folder / 'asked').touch())\n" + READY + "\n"
        "while True: time.sleep(0.01)"
    )

    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)

    def then(_):
        interrupt()
        when(lambda: True, interrupt)

    assert not run(script, then=then)


def test_stop_during_the_start_ends_it_at_once(run, tmp_path):
    when(lambda: pids_in(tmp_path), stop)
    assert run("time.sleep(3600)", then=lambda _: pytest.fail("it was never ready"))
    assert not any(map(psutil.pid_exists, pids_in(tmp_path)))


@pytest.mark.parametrize(("workers", "is_shared"), [(1, False), (2, True)])
def test_workers_share_a_folder_for_metrics_only_when_there_are_several(
    run, tmp_path, workers, is_shared
):
    script = "(folder / 'env').write_text(os.environ.get('PROMETHEUS_MULTIPROC_DIR', '')); " + SERVE
    seen = []

    def then(_):
        folder = (tmp_path / "env").read_text()
        seen.append((bool(folder), Path(folder or "absent").is_dir()))
        stop()

    assert run(script, workers=workers, then=then)
    assert seen == [(is_shared, is_shared)]
    folder = (tmp_path / "env").read_text()
    assert not folder or not Path(folder).exists()


def test_environment_of_bentoml_containers_does_not_switch_restarts_off(run, tmp_path, monkeypatch):
    """BentoML never replaces a worker when this is set, and stays ready."""
    monkeypatch.setenv("BENTOML_CONTAINERIZED", "true")

    def then(_):
        os.kill(*pids_in(tmp_path), signal.SIGKILL)
        when(lambda: (tmp_path / "again").exists(), stop)

    assert run("starts == 2 and (folder / 'again').touch(); " + SERVE, then=then)


@pytest.mark.parametrize(
    ("host", "keys", "is_warned"),
    [
        ("127.0.0.1", None, False),
        ("127.0.0.2", None, False),
        ("0.0.0.0", None, True),
        ("0.0.0.0", "keys.json", False),
    ],
)
def test_an_open_address_without_keys_is_warned_of_in_one_line(host, keys, is_warned, caplog):
    with socket.socket() as bound:
        bound.bind((host, 0))
        supervisor._warn_if_open(Settings(host=host, api_keys=keys), bound)
    assert len(caplog.records) == is_warned
    assert not is_warned or "0.0.0.0 without API keys" in caplog.text
