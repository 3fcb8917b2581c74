"""The manifests say nothing that the code does not read; `make k8s-check` checks their schemas."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
import yaml
from starlette.routing import Match

from service.cli import main
from service.environment import load_settings
from service.http_api import build_http_app
from service.metrics import Metrics
from service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
FILES = sorted(K8S.rglob("*.yaml"))
KNOWN = {PREFIX + name.upper() for name in Settings.model_fields}
# What a worker that hangs is given beyond its drain and grace (service/supervisor.py).
HANGING_S = 5


def load(path):
    # JSON patches are lists, and say nothing of their own.
    return [one for one in yaml.safe_load_all(path.read_text()) if isinstance(one, dict)]


def walk(value):
    """Yields every mapping inside."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from walk(one)


MAPPINGS = [(path, one) for path in FILES for document in load(path) for one in walk(document)]
CONTAINERS = [
    container
    for _, one in MAPPINGS
    for container in (*one.get("containers", ()), *one.get("initContainers", ()))
]
(DEPLOYMENT,) = load(K8S / "base/deployment.yaml")
POD = DEPLOYMENT["spec"]["template"]["spec"]
(SERVER,) = POD["containers"]
SETTINGS_FILES = sorted(K8S.rglob("settings.env"))


def read_settings(path):
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if line)


@pytest.fixture
def settings(monkeypatch):
    """What the pods of the base are given, as the server reads it."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    for name, value in read_settings(K8S / "base/settings.env").items():
        monkeypatch.setenv(name, value)
    return load_settings()


def test_every_variable_is_a_setting():
    literals = [
        text.split("=", 1)[0]
        for _, one in MAPPINGS
        for text in one.get("literals", ())
        if text.startswith(PREFIX)
    ]
    variables = [
        entry["name"]
        for container in CONTAINERS
        for entry in container.get("env", ())
        if entry["name"].startswith(PREFIX)
    ]
    files = [name for path in SETTINGS_FILES for name in read_settings(path)]
    assert len(files) > 15
    assert literals
    assert variables
    assert {*literals, *variables, *files} <= KNOWN


@pytest.mark.parametrize("path", SETTINGS_FILES, ids=lambda path: path.parent.name)
def test_every_value_is_one_that_the_server_takes(monkeypatch, path):
    for name, value in read_settings(path).items():
        monkeypatch.setenv(name, value)
    load_settings()


def test_ports_are_those_that_the_server_listens_on(settings):
    ports = {port["name"]: port["containerPort"] for port in SERVER["ports"]}
    assert ports == {"http": settings.http_port, "grpc": settings.grpc_port}
    for service in load(K8S / "base/services.yaml"):
        for port in service["spec"]["ports"]:
            assert port["port"] == ports[port["targetPort"]]


def test_probes_and_scrapes_ask_for_paths_that_exist():
    app = build_http_app(_NoClassifier(), Metrics(), Settings())
    asked = {one["path"] for _, one in MAPPINGS if "port" in one and "path" in one}
    assert {"/livez", "/readyz", "/metrics", "/v2/health/ready"} <= asked
    for path in asked:
        scope = {"type": "http", "method": "GET", "path": path, "root_path": ""}
        assert any(route.matches(scope)[0] is Match.FULL for route in app.router.routes), path


class _NoClassifier:
    rollout = trials = None


def test_what_a_pod_is_given_to_end_is_enough(settings):
    readiness = SERVER["readinessProbe"]
    noticed_s = readiness["periodSeconds"] * readiness["failureThreshold"]
    assert settings.drain_s >= 2 * noticed_s
    needed_s = settings.drain_s + settings.shutdown_grace_s + HANGING_S
    assert POD["terminationGracePeriodSeconds"] > needed_s
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    defaults = Settings()
    needed_s = defaults.drain_s + defaults.shutdown_grace_s + HANGING_S
    grace = compose["services"]["fivecrop"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > needed_s


def test_liveness_asks_neither_for_models_nor_for_load():
    asked = {
        one["livenessProbe"]["httpGet"]["path"] for one in CONTAINERS if one.get("livenessProbe")
    }
    assert asked == {"/livez"}


def test_pods_are_not_told_of_other_services():
    """Their variables begin like ours: a service fivecrop-grpc sets FIVECROP_GRPC_PORT."""
    pods = [one["spec"] for _, one in MAPPINGS if "restartPolicy" in one.get("spec", {})] + [POD]
    pods += [one for _, one in MAPPINGS if "restartPolicy" in one]
    assert len(pods) >= 4
    assert all(pod["enableServiceLinks"] is False for pod in pods)


def test_metrics_that_scale_exist():
    text = (ROOT / "docs/operations.md").read_text()
    asked = {
        name
        for path in FILES
        if path.parts[-2] in ("keda", "hpa-queue")
        for name in re.findall(r"\bfivecrop_[a-z0-9_]+", path.read_text())
    }
    assert asked == {"fivecrop_queue_views"}
    assert all(f"`{name}`" in text for name in asked)


# Of `sh -c`: several in one, some over two lines.
COMMANDS = [
    words
    for container in CONTAINERS
    if container.get("command") == ["sh", "-c"]
    for line in re.split(r"&&|;|(?<!\\)\n", container["args"][0])
    if (words := shlex.split(line.removeprefix("exec ")))[:1] == ["fivecrop"]
] + [
    ["fivecrop", *container["args"]]
    for container in CONTAINERS
    if "command" not in container and "args" in container and container["image"][:9] == "fivecrop-"
]


def test_the_jobs_score_train_and_export():
    assert {words[1] for words in COMMANDS} == {"score", "train", "export"}


def test_what_no_second_try_mends_fails_a_job_for_good():
    """Exit code 2; tests/e2e/test_training_processes.py has it of several processes."""
    specs = [one["spec"] for _, one in MAPPINGS if one.get("kind") == "Job"]
    specs += [
        one["spec"]["jobTemplate"]["spec"] for _, one in MAPPINGS if one.get("kind") == "CronJob"
    ]
    assert len(specs) == 3
    for spec in specs:
        pod = spec["template"]["spec"]
        names = {one["name"] for one in (*pod.get("initContainers", ()), *pod["containers"])}
        rule = spec["podFailurePolicy"]["rules"][0]
        assert rule["action"] == "FailJob"
        assert rule["onExitCodes"]["values"] == [2]
        assert {rule["onExitCodes"].get("containerName")} in ({None}, names)


def test_metrics_of_jobs_are_where_prometheus_looks():
    ports = [
        port for one in CONTAINERS for port in one.get("ports") or () if port["name"] == "metrics"
    ]
    addresses = [
        words[words.index("--metrics-address") + 1] for words in COMMANDS if words[1] == "score"
    ]
    assert {f"0.0.0.0:{port['containerPort']}" for port in ports} == set(addresses)
    assert len(ports) == len(addresses) == 2


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[1:3]))
def test_jobs_run_commands_that_exist(words):
    name, *arguments = words[1:]
    context = main.make_context("fivecrop", [name], resilient_parsing=True)
    command = main.get_command(context, name)
    if name == "score":  # `score SOURCE` is `score run SOURCE`
        command = command.commands["run"]
    options = {flag for parameter in command.params for flag in parameter.opts}
    used = {word for word in arguments if word.startswith("--")}
    assert used
    assert used <= options
