"""A hardened container serves, is confined, drains, and says in one line why it cannot start."""

from __future__ import annotations

import ast
import shutil
import socket
from datetime import datetime
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.container

ROOT = Path(__file__).parents[3]
READY_S = 5.0
REFUSED_S = 5.0


def test_container_serves_in_time(start_container, photograph, on_this_machine):
    container = start_container()
    assert container.wait_ready() <= on_this_machine(READY_S)
    assert container.address.classify(photograph)["predictions"][0]["label"] == "airplane"
    assert container.address.classify_grpc(photograph).predictions[0].label == "airplane"
    container.inside("fivecrop", "probe")
    container.inside("fivecrop", "probe", "--ready")


def test_container_may_do_nothing_but_serve(start_container, podman):
    container = start_container()
    container.wait_ready()
    status = container.inside("cat", "/proc/1/status")
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert facts["Uid"].split() == ["10001"] * 4
    assert facts["Gid"].split() == ["10001"] * 4
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(facts[kind], 16) == 0
    assert facts["NoNewPrivs"] == "1"
    assert facts["Seccomp"] == "2"
    for place in ("/", "/models", "/opt/fivecrop", "/etc"):
        written = podman.try_run("podman", "exec", container.name, "touch", f"{place}/x")
        assert "Read-only file system" in written.stderr
    owned = container.inside("find", "/opt", "/usr", "-user", "10001")
    assert owned == ""


def test_drain_under_load_fails_no_request(start_container, traffic, podman):
    container = start_container(drain_s=4)
    container.wait_ready()
    with traffic(container.address) as sent:
        podman.run("podman", "stop", "--time", "45", container.name)
        sent.wait_noticed()
    assert sent.failed == {}, sent.errors[:5]
    assert min(sent.answered.values()) > 5
    assert container.state["ExitCode"] == 0
    assert "Traceback" not in container.log


@pytest.fixture
def score_as(run_once, scoring_image, photograph, tmp_path):
    """The rows that a job's own script writes, run twice: as one that was started again, too."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(8):
        (images / f"{number}.jpeg").write_bytes(photograph)

    def score(container, out, **environment):
        (script,) = container["args"]
        options = ["--tmpfs", "/scores:mode=1777", "--volume", f"{images}:/images:ro"]
        for name, value in environment.items():
            options += ["--env", f"{name}={value}"]
        read = f"import pyarrow.dataset as d; print(d.dataset('{out}').to_table().to_pylist())"
        once = f"({script})"
        told = run_once(f'{once}\n{once}\npython -c "{read}"', *options, image=scoring_image)
        rows = ast.literal_eval(told)
        assert {row["label"] for row in rows} == {"airplane"}
        return [Path(row["path"]).stem for row in rows]

    return score


@pytest.mark.parametrize("index", [0, 3])
def test_container_scores_as_the_job_does(score_as, index):
    job = yaml.safe_load((ROOT / "k8s/jobs/scoring/job.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    scored = score_as(container, f"/scores/{index}", JOB_COMPLETION_INDEX=index)
    assert scored == [str(index), str(index + 4)]


def test_container_scores_as_the_job_of_each_night_does(score_as):
    job = yaml.safe_load((ROOT / "k8s/jobs/scoring/cron-job.yaml").read_text())
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    scored = score_as(container, "/scores/night-1", JOB_NAME="night-1")
    assert scored == [str(number) for number in range(8)]


@pytest.fixture
def assert_refused(on_this_machine):
    """Asserts that a container has ended in time with one clear line."""

    def check(container, text):
        assert container.wait_ended() == 2, container.log
        state = container.state
        begun, ended = (
            datetime.fromisoformat(state[key][:19]) for key in ("StartedAt", "FinishedAt")
        )
        assert (ended - begun).total_seconds() <= on_this_machine(REFUSED_S)
        lines = [line for line in container.log.splitlines() if " INFO " not in line]
        assert len(lines) == 1, container.log
        assert lines[0].startswith("fivecrop: error: ")
        assert text in lines[0]

    return check


def test_models_not_mounted(start_container, assert_refused):
    assert_refused(start_container(models=None), "no bundle in the model repository")


def test_models_that_cannot_be_read(start_container, assert_refused, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(ROOT / "exported_models", models)
    (manifest,) = models.glob("*/1/bundle.json")
    manifest.chmod(0o600)
    assert_refused(start_container(models=models), "Permission denied")


def test_unknown_setting(start_container, assert_refused):
    assert_refused(start_container(providr="cpu"), "unknown setting FIVECROP_PROVIDR")


def test_impossible_setting(start_container, assert_refused):
    assert_refused(start_container(workers=0), "FIVECROP_WORKERS")


def test_port_in_use(start_container, assert_refused):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        container = start_container(http_port=other.getsockname()[1])
        assert_refused(container, "cannot listen for HTTP")


def test_gpu_that_is_required_and_absent(start_container, assert_refused):
    assert_refused(start_container(require_gpu=True), "cuda")


def test_no_place_for_temporary_files(start_container, assert_refused):
    assert_refused(start_container(tmpfs=False), "temporary")
