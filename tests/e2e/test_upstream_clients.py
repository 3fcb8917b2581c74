"""Clients of other servers, unmodified, against ours: see `clients/`.

Each file there runs in a process of its own, in the environment of `requirements/clients.txt`: the
clients want another protobuf than the server, and two of them define the same messages.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from service.api_keys import KeyRing, KeyScope, make_key, write_keys

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / ".venv/clients/bin/python"
FOLDER = Path(__file__).parent / "clients"
CONTROL = "triton_control"
CHECKS = {path.stem.removeprefix("check_") for path in FOLDER.glob("check_*.py")}
MODEL = "cifar10-airbench"


@pytest.fixture(scope="module")
def bundled(tmp_path_factory, make_server):
    folder = tmp_path_factory.mktemp("server")
    options = {"tfserving": True, "pixel_models": MODEL}
    with make_server(folder, ROOT / "exported_models", **options) as server:
        yield server.wait_ready()


@pytest.fixture
def administered(tmp_path, make_server):
    """A server of two workers and its key, over a repository that may be changed."""
    shutil.copytree(ROOT / "exported_models" / MODEL, tmp_path / "models" / MODEL)
    text, kept = make_key([KeyScope.INFER, KeyScope.ADMIN])
    write_keys(tmp_path / "keys.json", KeyRing(keys=(kept,)))
    options = {"workers": 2, "api_keys": tmp_path / "keys.json"}
    with make_server(tmp_path, tmp_path / "models", **options) as server:
        yield server.wait_ready(), text


def run_check(name, server, **environment):
    assert CLIENTS.exists(), "`make e2e` installs the clients"
    check = FOLDER / f"check_{name}.py"
    apart = ["-c", os.devnull, f"--confcutdir={FOLDER}", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [CLIENTS, "-m", "pytest", "-q", *apart, check],
        cwd=ROOT,
        env={
            **os.environ,
            "FIVECROP_TEST_HTTP": f"127.0.0.1:{server.http_port}",
            "FIVECROP_TEST_GRPC": f"127.0.0.1:{server.grpc_port}",
            "FIVECROP_TEST_GOLDEN": str(ROOT / "exported_models" / MODEL / "1/golden"),
            **environment,
        },
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]


@pytest.mark.parametrize("check", sorted(CHECKS - {CONTROL}))
def test_an_unmodified_client_works(bundled, check):
    run_check(check, bundled)


def test_unmodified_triton_clients_control_models_and_read_statistics(administered):
    server, key = administered
    run_check(CONTROL, server, FIVECROP_TEST_KEY=key)
