"""`bentoml build` packs the service without a network, and BentoML serves what it packed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
BENTOML = Path(sys.executable).with_name("bentoml")


@pytest.fixture(scope="module")
def bento(tmp_path_factory):
    """The folder of the bento, and the environment that it is found in."""
    home = tmp_path_factory.mktemp("bentoml")
    environment = {
        **os.environ,
        "BENTOML_HOME": str(home / "home"),
        "HOME": str(home),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    # In a network of its own there is nobody to ask.
    subprocess.run(
        ["unshare", "--map-root-user", "--net", BENTOML, "build", "--quiet", "."],
        env=environment,
        capture_output=True,
        check=True,
        cwd=ROOT,
    )
    (folder,) = (path for path in (home / "home/bentos/fivecrop").iterdir() if path.is_dir())
    return folder, environment


def test_bento_holds_the_service_and_its_models_and_nothing_else(bento):
    source = bento[0] / "src"
    assert (source / "service/app.py").is_file()
    assert list(source.glob("exported_models/*/*/bundle.json"))
    assert {path.name for path in source.iterdir()} - {"bentofile.yaml"} == {
        *("service", "exported_models", "pyproject.toml", "README.md", "LICENSE")
    }


def test_bento_is_served(bento, find_server, unused_ports, wait_until):
    folder, environment = bento
    http_port, grpc_port = unused_ports(2)
    server = find_server(http_port, grpc_port)
    process = subprocess.Popen(
        [BENTOML, "serve", f"fivecrop:{folder.name}", "--host=127.0.0.1", f"--port={http_port}"],
        env={**environment, "FIVECROP_GRPC_PORT": str(grpc_port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def is_ready():
        assert process.poll() is None
        try:
            return server.get("/readyz")[0] == 200
        except OSError:
            return False

    try:
        wait_until(is_ready, "ready")
        image = (ROOT / "exported_models/cifar10-airbench/1/golden/0.jpeg").read_bytes()
        assert server.classify(image)["predictions"][0]["label"] == "airplane"
    finally:
        process.terminate()
        process.wait(60)
