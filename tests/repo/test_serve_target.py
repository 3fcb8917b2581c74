"""`make serve` installs the build of ONNX Runtime that the machine can use."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def plan(tmp_path):
    """Returns `plan(has_gpu, *markers)`: what `make serve` would run where these are installed."""

    def plan(has_gpu, *markers):
        venv, programs = tmp_path / "venv", tmp_path / "programs"
        for folder in (venv, programs):
            folder.mkdir()
        driver = programs / "nvidia-smi"
        driver.write_text(f"#!/bin/sh\nexit {0 if has_gpu else 9}\n")
        driver.chmod(0o755)
        for age, marker in enumerate((".tools", *markers)):
            (venv / marker).touch()
            os.utime(venv / marker, (2**31 + age, 2**31 + age))  # newer than any lock
        environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
        command = ["make", "--dry-run", "serve", f"VENV={venv}"]
        said = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        return [
            line for line in said.stdout.splitlines() if "requirements/" in line or "uv pip" in line
        ]

    return plan


@pytest.mark.parametrize(
    ("has_gpu", "markers", "installed"),
    [
        (False, [], "cpu"),
        (False, [".cpu"], None),
        (False, [".dev"], None),
        (True, [], "gpu"),
        (True, [".cpu"], "gpu"),
        (True, [".dev"], "gpu"),
        (True, [".dev", ".gpu"], None),
        (True, [".gpu", ".dev"], "gpu"),  # which put the CPU's build over it
    ],
)
def test_the_build_for_gpus_is_installed_where_a_driver_answers(plan, has_gpu, markers, installed):
    lines = plan(has_gpu, *markers)
    if installed is None:
        assert lines == []
    else:
        assert any(f"-r requirements/{installed}.txt" in line for line in lines)
        assert any("uninstall" in line for line in lines) == (installed == "gpu")
