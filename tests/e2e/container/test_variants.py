"""What the image of each variant installs is to be had, as wheels; most are too big to build."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.container

REQUIREMENTS = Path(__file__).parents[3] / "requirements"


@pytest.fixture
def resolve(tmp_path):
    """Resolves a lock for a base image with that Python, without fetching the wheels."""

    def run(lock, python="3.11"):
        uv = Path(sys.executable).with_name("uv")
        command = [uv, "pip", "install", "--dry-run", "--require-hashes", "--only-binary=:all:"]
        command += ["--python-platform=x86_64-manylinux_2_36", f"--python-version={python}"]
        command += [f"--target={tmp_path}/none", "-r", lock]
        return subprocess.run(command, capture_output=True, check=False, text=True)

    return run


@pytest.mark.parametrize("python", ["3.11", "3.13"])
@pytest.mark.parametrize("variant", ["cpu", "gpu", "openvino", "score", "ray", "train"])
def test_every_package_has_a_wheel_and_nothing_is_missing(resolve, variant, python):
    told = resolve(REQUIREMENTS / f"{variant}.txt", python)
    assert told.returncode == 0, told.stderr
    assert told.stderr.count("\n + ") > 50


def test_a_lock_that_lacks_a_package_is_noticed(resolve, tmp_path):
    text = (REQUIREMENTS / "gpu.txt").read_text()
    without, times = re.subn(r"^numpy==.*\n(?:    .*\n)*", "", text, flags=re.M)
    assert times > 0
    (tmp_path / "short.txt").write_text(without)
    told = resolve(tmp_path / "short.txt")
    assert told.returncode != 0
    assert "numpy" in told.stderr
