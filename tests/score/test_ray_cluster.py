"""A Ray cluster as `ray start` makes it, of two nodes: what the RayJob of `k8s/` does with it."""

from __future__ import annotations

import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed: make .venv/.ray"
    ),
]

ROOT = Path(__file__).parents[2]
JOB = ROOT / "k8s/jobs/scoring-ray"
PROGRAMS = Path(sys.executable).parent
LIMIT_S = 240
# On a busy machine Ray gives up on itself before it has started.
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(16),
}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def await_port(port, process):
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        assert process.poll() is None, "the node ended"
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.1)
    raise AssertionError("the node does not listen")


@pytest.fixture(scope="module")
def cluster():
    """The ports of a head, for nodes and for clients; a worker node is with it.

    They are started with the parameters that the manifest gives them.
    """
    spec = yaml.safe_load((JOB / "ray-job.yaml").read_text())["spec"]["rayClusterSpec"]
    (workers,) = spec["workerGroupSpecs"]
    port, client_port = free_port(), free_port()
    common = ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000", "--block"]
    head = [f"--port={port}", f"--ray-client-server-port={client_port}"]
    # A socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="fcr", dir="/tmp") as folder:
        head += ["--head", f"--temp-dir={folder}", "--include-dashboard=false"]
        nodes = []
        try:
            for group, place in (
                (spec["headGroupSpec"], head),
                (workers, [f"--address=127.0.0.1:{port}"]),
            ):
                given = [f"--{name}={value}" for name, value in group["rayStartParams"].items()]
                command = [PROGRAMS / "ray", "start", *common, *given, *place]
                nodes.append(
                    subprocess.Popen(
                        command,
                        env=ENVIRONMENT,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        start_new_session=True,
                    )
                )
                await_port(port, nodes[0])
            await_port(client_port, nodes[0])
            yield port, client_port
        finally:
            for node in reversed(nodes):
                node.terminate()
            for node in nodes:
                node.wait(LIMIT_S)


@pytest.fixture
def environment(tmp_path):
    return {**ENVIRONMENT, "FIVECROP_MODEL_CACHE": str(tmp_path / "cache")}


@pytest.fixture
def script(cluster, photos, tmp_path, tiny_bundle_repository):
    """The script that is the job's entry point, with the places of this machine."""
    text = (JOB / "score.sh").read_text()
    for theirs, ours in {
        "/images": photos,
        "/scores/ray": tmp_path / "scores",
        "--model cifar10-airbench": "--model digits-linear",
        "--model-repository /models": f"--model-repository {tiny_bundle_repository}",
        "127.0.0.1:6379": f"127.0.0.1:{cluster[0]}",
    }.items():
        assert theirs in text
        text = text.replace(theirs, str(ours))
    (tmp_path / "score.sh").write_text(text)
    return tmp_path / "score.sh"


def test_the_entry_point_of_the_job_scores_and_its_second_try_goes_on(
    script, environment, score, photos, read_rows, tmp_path
):
    with subprocess.Popen(["sh", script], env=environment, start_new_session=True) as first:
        end = time.monotonic() + LIMIT_S
        while not (tmp_path / "scores/_manifest.json").exists() and time.monotonic() < end:
            assert first.poll() is None
            time.sleep(0.01)
        os.killpg(first.pid, signal.SIGKILL)
    again = subprocess.run(
        ["sh", script], env=environment, capture_output=True, check=False, timeout=LIMIT_S
    )
    assert again.returncode == 0, again.stderr.decode()
    score(photos, "here")
    assert read_rows() == read_rows("here")


@pytest.fixture
def ask(photos, environment, tmp_path, tiny_bundle_repository):
    """Returns `ask(address, **variables)`: how a job on the cluster ended."""
    command = [PROGRAMS / "fivecrop", "score", photos, "--model=digits-linear", "--engine=ray"]
    command += [f"--model-repository={tiny_bundle_repository}", f"--out={tmp_path / 'scores'}"]

    def run(address, **variables):
        return subprocess.run(
            [*command, f"--address={address}"],
            env={**environment, **variables},
            capture_output=True,
            check=False,
            text=True,
            timeout=LIMIT_S,
        )

    return run


def test_a_job_from_outside_the_cluster_gives_the_rows_of_this_machine(
    cluster, ask, score, photos, read_rows
):
    for _ in range(3):
        ended = ask(f"ray://127.0.0.1:{cluster[1]}")
        # On a busy machine Ray gives up on a client before it has started a server for it.
        if "Initialization failure from server" not in ended.stderr:
            break
    assert ended.returncode == 0, ended.stderr
    score(photos, "here")
    assert read_rows() == read_rows("here")


@pytest.mark.parametrize("place", [0, 1], ids=["within", "outside"])
def test_a_cluster_that_refuses_the_token_is_one_line_within_half_a_minute(cluster, ask, place):
    began = time.monotonic()
    ended = ask(f"{('', 'ray://')[place]}127.0.0.1:{cluster[place]}", RAY_AUTH_TOKEN="another")
    assert ended.returncode == 2
    assert ended.stderr.startswith("fivecrop: error: Ray at ")
    assert ended.stderr.count("\n") == 1
    assert time.monotonic() - began < 30
