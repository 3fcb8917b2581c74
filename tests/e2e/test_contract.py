"""The OpenAPI document holds: schemathesis sends what it allows and what it forbids."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

SCHEMATHESIS = Path(sys.executable).with_name("st")
SECONDS = 40
# A client that gives us two milliseconds may be told that they have passed, or that they will have.
CONFIG = f"""
hooks = "{Path(__file__).with_name("contract_hooks.py")}"

[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503", "504"]

# A wrong body may also be too large: the first reason found is the one given.
[checks.negative_data_rejection]
expected-statuses = ["4xx", "5xx"]
"""


def check_contract(server, folder, *options):
    """Runs every check but one for a bounded time; the server must be ready afterwards."""
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG)
    run = subprocess.run(
        [
            SCHEMATHESIS,
            f"--config-file={config}",
            "run",
            f"http://127.0.0.1:{server.http_port}/openapi.json",
            "--phases=examples,coverage,fuzzing",
            f"--max-time={SECONDS}",
            "--max-examples=30",
            "--seed=1",
            "--request-timeout=30",
            "--suppress-health-check=all",
            # No schema can say that bytes are to be an image, or which models there are.
            "--exclude-checks=positive_data_acceptance",
            "--no-color",
            *options,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=10 * SECONDS,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert server.get("/readyz")[0] == 200
    assert "Traceback" not in server.stderr


def test_schemathesis_finds_nothing_as_anybody(start_server, tmp_path):
    check_contract(start_server().wait_ready(), tmp_path)


@pytest.mark.parametrize("scopes", [("infer", "metrics"), ("admin",)], ids="+".join)
def test_schemathesis_finds_nothing_with_a_key(start_server, growing_repository, tmp_path, scopes):
    keys = tmp_path / "keys.json"
    scopes = [f"--scope={scope}" for scope in scopes]
    key = subprocess.run(
        [SCHEMATHESIS.with_name("fivecrop"), "keys", "add", f"--file={keys}", *scopes],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    # Its own copy: an administrator's orders are kept in the repository.
    server = start_server(growing_repository.folder, api_keys=keys).wait_ready()
    check_contract(server, tmp_path, f"--header=Authorization: Bearer {key}")
