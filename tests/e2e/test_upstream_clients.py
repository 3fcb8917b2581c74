"""Clients of other servers, unmodified, against ours: see `clients/`.

Each file there runs in a process of its own, in the environment of `requirements/clients.txt`: the
clients want another protobuf than the server, and two of them define the same messages.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / ".venv/clients/bin/python"
CHECKS = sorted((Path(__file__).parent / "clients").glob("check_*.py"))


@pytest.fixture(scope="module")
def bundled(tmp_path_factory, make_server):
    with make_server(tmp_path_factory.mktemp("server"), ROOT / "exported_models") as server:
        yield server.wait_ready()


@pytest.mark.parametrize("check", CHECKS, ids=lambda path: path.stem)
def test_an_unmodified_client_works(bundled, check):
    assert CLIENTS.exists(), "`make e2e` installs the clients"
    apart = ["-c", os.devnull, f"--confcutdir={check.parent}", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [CLIENTS, "-m", "pytest", "-q", *apart, check],
        cwd=ROOT,
        env={
            **os.environ,
            "FIVECROP_TEST_HTTP": f"127.0.0.1:{bundled.http_port}",
            "FIVECROP_TEST_GRPC": f"127.0.0.1:{bundled.grpc_port}",
            "FIVECROP_TEST_GOLDEN": str(ROOT / "exported_models/cifar10-airbench/1/golden"),
        },
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
