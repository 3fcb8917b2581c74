"""What a worker process is told: exactly the settings, whatever else the shell holds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.environment import load_settings, opt_out_of_telemetry, worker_environment
from service.errors import SettingsError
from service.settings import (
    ProviderChoice,
    Settings,
)


@pytest.fixture(autouse=True)
def shell(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("FIVECROP_", "BENTOML_", "PROMETHEUS_", "ORT_")):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"models": "a,b@2", "image_formats": "png", "provider": "cpu", "require_gpu": True},
        {"max_batch_delay_ms": 0.5, "default_model": "a", "supervisor_fd": 7, "drain_s": 0},
        {"model_repository": "some/where", "metrics_folder": "metrics"},
    ],
)
def test_worker_reads_back_the_settings_it_was_given(shell, tmp_path, given):
    settings = Settings(**given)
    for name, value in worker_environment(settings, tmp_path).items():
        shell.setenv(name, value)
    absolute = {
        name: value.absolute()
        for name in ("model_repository", "metrics_folder")
        if isinstance(value := getattr(settings, name), Path)
    }
    assert load_settings() == settings.model_copy(update=absolute)


def test_variable_of_the_shell_does_not_win_over_an_option(shell, tmp_path):
    shell.setenv("FIVECROP_PROVIDER", "openvino")
    shell.setenv("FIVECROP_DEFAULT_MODEL", "old")
    settings = load_settings(provider="cpu", default_model=None)
    assert settings.provider is ProviderChoice.CPU
    environment = worker_environment(settings, tmp_path)
    assert environment["FIVECROP_PROVIDER"] == "cpu"
    assert "FIVECROP_DEFAULT_MODEL" not in environment


def test_metrics_are_shared_only_in_a_folder_of_this_server(shell, tmp_path):
    shell.setenv("PROMETHEUS_MULTIPROC_DIR", "left/over")
    assert "PROMETHEUS_MULTIPROC_DIR" not in worker_environment(Settings(), tmp_path)
    shared = worker_environment(Settings(metrics_folder=tmp_path), tmp_path)
    assert shared["PROMETHEUS_MULTIPROC_DIR"] == str(tmp_path)


def test_libraries_are_kept_out_of_the_home_folder_unless_told_otherwise(shell, tmp_path):
    assert worker_environment(Settings(), tmp_path)["BENTOML_HOME"] == str(tmp_path / "bentoml")
    shell.setenv("BENTOML_HOME", "mine")
    assert worker_environment(Settings(), tmp_path)["BENTOML_HOME"] == "mine"


def test_telemetry_is_off_unless_asked_for(shell):
    shell.setenv("ORT_DISABLE_TELEMETRY", "0")
    opt_out_of_telemetry()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
    shell.delenv("ORT_DISABLE_TELEMETRY")
    opt_out_of_telemetry()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


LINKS = {
    "FIVECROP_SERVICE_HOST": "10.0.0.7",
    "FIVECROP_SERVICE_PORT": "3000",
    "FIVECROP_SERVICE_PORT_HTTP": "3000",
    "FIVECROP_PORT": "tcp://10.0.0.7:3000",
    "FIVECROP_PORT_3000_TCP_ADDR": "10.0.0.7",
    "FIVECROP_GRPC_SERVICE_HOST": "None",
    "FIVECROP_GRPC_PORT_3001_TCP": "tcp://10.0.0.8:3001",
}


def test_what_kubernetes_tells_of_services_is_no_setting(monkeypatch):
    for name, value in LINKS.items():
        monkeypatch.setenv(name, value)
    load_settings()


@pytest.mark.parametrize("name", ["FIVECROP_PORT", "FIVECROP_GRPC_PORT_3001", "FIVECROP_SERVICE"])
def test_a_misspelt_setting_is_refused_although_there_are_services(monkeypatch, name):
    monkeypatch.setenv("FIVECROP_OTHER_SERVICE_HOST", "10.0.0.7")
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=f"unknown setting {name}$"):
        load_settings()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_variable_that_is_set_and_empty_is_one_that_is_not_set(shell, name):
    """As in a ConfigMap; an empty path would otherwise be the current folder."""
    shell.setenv(f"FIVECROP_{name.upper()}", "")
    assert load_settings() == Settings()
