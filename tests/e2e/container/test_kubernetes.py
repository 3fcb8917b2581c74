"""The Deployment of k8s/overlays/local, run by `podman play kube`, and used."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.container

MODELS = Path(__file__).parents[3] / "exported_models"
IMAGE = "localhost/fivecrop:cpu"
CONTAINER = "fivecrop-pod-0-fivecrop"


@pytest.fixture
def pod(podman, container_image, tmp_path, find_server, unused_ports):
    """The address of the running pod."""
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl to build the overlay with")
    podman.build(IMAGE, "--build-arg", "MODELS=baked")
    built = subprocess.run(
        ["kubectl", "kustomize", "k8s/overlays/local"], capture_output=True, check=True, text=True
    )
    manifests = list(yaml.safe_load_all(built.stdout))
    assert {manifest["kind"] for manifest in manifests} == {"ConfigMap", "Deployment"}
    http_port, grpc_port = unused_ports(2)
    # The pod is in the network of this machine, where others may have its ports.
    (settings,) = (one["data"] for one in manifests if one["kind"] == "ConfigMap")
    settings.update(FIVECROP_HTTP_PORT=str(http_port), FIVECROP_GRPC_PORT=str(grpc_port))
    file = tmp_path / "local.yaml"
    file.write_text(yaml.safe_dump_all(manifests))
    podman.run("podman", "play", "kube", file)
    yield find_server(http_port, grpc_port)
    podman.try_run("podman", "play", "kube", "--down", file)
    podman.try_run("podman", "volume", "rm", "tmp")


def test_deployment_serves(pod, podman, wait_until, photograph):
    def is_ready():
        try:
            return pod.get("/readyz")[0] == 200
        except OSError:
            assert podman.inspect("container", CONTAINER)["State"]["Running"]
            time.sleep(0.1)
            return False

    wait_until(is_ready, "ready")
    assert pod.classify(photograph)["predictions"][0]["label"] == "airplane"
    assert pod.classify_grpc(photograph).predictions[0].label == "airplane"
    host = podman.inspect("container", CONTAINER)["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["Memory"] == 2 * 1024**3
    status = podman.inside(CONTAINER, "cat", "/proc/1/status")
    assert "CapBnd:\t0000000000000000" in status
    # What is baked in is listed, by the digests that the bundles have.
    inventory = json.loads(podman.inside(CONTAINER, "cat", "/usr/share/sbom/models.cdx.json"))
    listed = {
        (model["name"], model["version"]): model["hashes"][0]["content"]
        for model in inventory["components"]
    }
    assert listed == {
        (path.parts[-3], path.parts[-2]): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in MODELS.glob("*/*/bundle.json")
    }
    # What the manifest asks of the cores, not what the machine has.
    environment = podman.inside(CONTAINER, "env")
    assert "FIVECROP_COMPUTE_THREADS=2" in environment.splitlines()
