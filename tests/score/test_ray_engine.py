"""The same job on Ray: one machine, and a cluster that loses a node."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
import types
import unittest.mock
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.score.errors import ScoreError
from service.score.messages import Setup
from service.score.ray_engine import RayPool, Scoring, _connect
from service.settings import Settings

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed: make .venv/.ray")
LIMIT_S = 300
# On a busy machine Ray gives up on itself before it has started.
PATIENT = {"RAY_raylet_start_wait_time_s": "120"}


@pytest.fixture
def run(tmp_path, tiny_bundle_repository):
    """Returns `run(program, *arguments)`: what it printed; Ray keeps its files with the test."""

    def start(*command):
        kept = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        ended = subprocess.run(
            [sys.executable, *map(str, command)],
            env={**kept, **PATIENT, "FIVECROP_MODEL_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            check=False,
            text=True,
            timeout=LIMIT_S,
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        return ended.stdout

    return start


@pytest.fixture
def table(tmp_path, picture):
    """A Parquet file of 20,000 pictures, 50 of them different."""
    different = [picture(seed) for seed in range(50)]
    images = [different[index % 50] for index in range(20_000)]
    pq.write_table(pa.table({"image": images}), tmp_path / "t.parquet", row_group_size=500)
    return tmp_path / "t.parquet"


@pytest.mark.e2e
@needs_ray
def test_a_cluster_that_loses_a_node_gives_the_rows_of_one_machine(
    run, score, table, read_rows, tmp_path, tiny_bundle_repository
):
    driver = Path(__file__).with_name("ray_driver.py")
    shown = run(driver, table, tmp_path / "cluster", tiny_bundle_repository)
    state, killed_at, replaced = shown.splitlines()[-1].split()
    assert state == "done"
    assert 0 < int(killed_at) < 20_000
    assert int(replaced) >= 1
    score(table, "here")
    assert read_rows("cluster") == read_rows("here")


@pytest.mark.e2e
@needs_ray
def test_a_ray_of_this_machine_gives_the_rows_of_the_worker_processes(
    run, score, photos, read_rows, tmp_path, tiny_bundle_repository
):
    (photos / "x.png").write_bytes(b"no image")
    options = ["--model=digits-linear", f"--model-repository={tiny_bundle_repository}"]
    options += ["--engine=ray", "--workers=1", f"--out={tmp_path / 'ray'}"]
    run("-c", "from service.cli import main; main()", "score", photos, *options)
    score(photos, "here")
    assert read_rows("ray") == read_rows("here")


@pytest.mark.parametrize("fails", [False, True])
def test_ray_does_not_keep_the_signal_that_stops_a_job(fails):
    def init(*_, **__):
        signal.signal(signal.SIGTERM, lambda *_: None)
        if fails:
            raise RuntimeError("no room")

    ours = signal.getsignal(signal.SIGTERM)
    if fails:
        with pytest.raises(ScoreError, match="Ray at this machine: no room"):
            _connect(types.SimpleNamespace(init=init), None)
    else:
        _connect(types.SimpleNamespace(init=init), None)
    kept = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, ours)
    assert kept == ours


@pytest.fixture
def start(table, tmp_path, tiny_bundle_repository):
    """Returns `start(*options)`: a job on a Ray of this machine, in a process group of its own."""
    command = [sys.executable, Path(__file__).with_name("driver.py"), table, "--engine=ray"]
    command += ["--model=digits-linear", f"--model-repository={tiny_bundle_repository}"]
    command += [f"--out={tmp_path / 'out'}", "--part-seconds=0.2", "--workers=1"]
    environment = {**os.environ, **PATIENT, "FIVECROP_MODEL_CACHE": str(tmp_path / "cache")}

    def run(*options):
        return subprocess.Popen(
            [*command, *options], env=environment, stderr=subprocess.PIPE, start_new_session=True
        )

    return run


def wait_for_parts(job, out, more_than):
    end = time.monotonic() + LIMIT_S
    while len(list(out.glob("part-*"))) <= more_than and time.monotonic() < end:
        assert job.poll() is None, job.stderr.read().decode()[-2000:]
        time.sleep(0.05)


@pytest.mark.e2e
@needs_ray
def test_a_job_on_a_ray_of_this_machine_stops_at_a_part(start, tmp_path):
    with start() as job:
        wait_for_parts(job, tmp_path / "out", 0)
        job.terminate()
        _, told = job.communicate(timeout=60)
    assert job.returncode == 128 + signal.SIGTERM
    assert "--resume goes on" in told.decode()
    assert not (tmp_path / "out/_lock.json").exists()


@pytest.mark.e2e
@needs_ray
def test_a_job_on_ray_that_is_killed_resumes_with_the_rows_of_one_machine(
    start, score, table, read_rows, tmp_path
):
    parts, resume = 0, ()
    for _ in range(3):
        with start(*resume) as job:
            wait_for_parts(job, tmp_path / "out", parts)
            os.killpg(job.pid, signal.SIGKILL)
        parts, resume = len(list((tmp_path / "out").glob("part-*"))), ("--resume",)
    with start(*resume) as job:
        _, told = job.communicate(timeout=LIMIT_S)
    assert job.returncode == 0, told.decode()[-2000:]
    score(table, "here")
    assert read_rows("out") == read_rows("here")


def list_names(process):
    """The processes below one, by their names."""
    found = {}
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found[child.name()] = child
    return found


@pytest.mark.e2e
@needs_ray
@pytest.mark.parametrize(
    ("number", "process"), [(signal.SIGTERM, "gcs_server"), (signal.SIGINT, "raylet")]
)
def test_a_job_stops_while_ray_starts(photos, tmp_path, tiny_bundle_repository, number, process):
    command = [sys.executable, Path(__file__).with_name("driver.py"), photos, "--engine=ray"]
    command += ["--model=digits-linear", f"--model-repository={tiny_bundle_repository}"]
    command += [f"--out={tmp_path / 'out'}", "--workers=1"]
    environment = {**os.environ, **PATIENT, "FIVECROP_MODEL_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as job:
        started = psutil.Process(job.pid)
        end = time.monotonic() + LIMIT_S
        while process not in (running := list_names(started)) and time.monotonic() < end:
            assert job.poll() is None, job.stderr.read().decode()[-2000:]
            time.sleep(0.01)
        asked = time.monotonic()
        job.send_signal(number)
        _, told = job.communicate(timeout=60)
        took_s = time.monotonic() - asked
    assert job.returncode == 128 + number
    assert "--resume goes on" in told.decode()
    assert told.decode().count("\n") == 1
    assert took_s < 5
    _, alive = psutil.wait_procs(running.values(), timeout=10)
    assert not alive


class FakeRay:
    """A cluster that remembers what its actors ask for, and runs none.

    The ONNX Runtime of its nodes is the one for GPUs if `cuda` says so.
    """

    def __init__(self, *, cuda, **resources):
        self.resources = resources
        self.cuda = cuda
        self.asked = []
        self.actors = []
        self.exceptions = types.SimpleNamespace(RayError=RuntimeError)

    def init(self, *_, **__):
        pass

    def put(self, value):
        return value

    def cluster_resources(self):
        return self.resources

    def get(self, call, timeout):
        assert call == ("cuda",)
        return self.cuda

    def remote(self, **asked):
        def declare(kind):
            def start(*given):
                if kind is not Scoring:  # a node is asked what it has
                    assert asked == {"num_cpus": 0, "num_gpus": 1}
                    return given
                self.asked.append(asked)
                self.actors.append(unittest.mock.Mock())
                return self.actors[-1]

            return types.SimpleNamespace(remote=start)

        return declare


@pytest.mark.parametrize(
    ("resources", "cuda", "settings", "workers", "gpus"),
    [
        ({"CPU": 8.0}, True, {}, 8, 0),
        ({"CPU": 8.0, "GPU": 2.0}, True, {}, 2, 1),
        ({"CPU": 8.0, "GPU": 2.0}, False, {}, 8, 0),
        ({"CPU": 8.0, "GPU": 2.0}, False, {"provider": "cuda"}, 2, 1),
        ({"CPU": 8.0, "GPU": 2.0}, True, {"provider": "cpu"}, 8, 0),
        ({"CPU": 8.0, "GPU": 2.0}, True, {"provider": "openvino"}, 8, 0),
        ({"CPU": 8.0, "GPU": 2.0}, False, {"provider": "cpu", "require_gpu": True}, 2, 1),
        ({}, True, {}, 1, 0),
    ],
)
def test_an_actor_asks_for_a_gpu_where_it_can_use_one(
    resources, cuda, settings, workers, gpus, make_options, tiny_bundle_repository, monkeypatch
):
    fake = FakeRay(cuda=cuda, **resources)
    monkeypatch.setattr("service.score.ray_engine._import_ray", lambda: fake)
    setup = Setup(
        bundle_folder=tiny_bundle_repository / "digits-linear/1",
        options=make_options(workers=None),
        settings=Settings(**settings),
        golden=slice(None),
    )
    assert RayPool(setup, None).size == workers
    assert fake.asked == [{"num_cpus": 1, "num_gpus": gpus}] * workers
    # Each may be on another machine, and the job begins with whichever is first.
    for actor in fake.actors:
        actor.begin.remote.assert_called_once_with(slice(None))


@pytest.mark.e2e
@needs_ray
@pytest.mark.parametrize(
    ("nodes", "given"),
    [
        # Ray's own number of the GPU, and all that CUDA shows the actor: index 0 is that GPU.
        ("made for GPUs", ["['0'] 0", "['1'] 1"]),
        ("made for CPUs", ["[] none"] * 4),
    ],
)
def test_each_actor_of_a_cluster_with_gpus_has_one_of_its_own_or_none(
    run, photos, tmp_path, tiny_bundle_repository, nodes, given
):
    driver = Path(__file__).with_name("ray_gpu_driver.py")
    places = tmp_path / "scores", tiny_bundle_repository, tmp_path / "seen"
    shown = run(driver, photos, *places, nodes)
    assert shown.splitlines()[-1] == "done 60"
    assert sorted(path.read_text() for path in (tmp_path / "seen").iterdir()) == given


def test_without_ray_the_extra_is_named(score, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ScoreError, match=r"--engine ray needs Ray: pip install 'fivecrop\[ray\]'"):
        score(photos, engine="ray")
