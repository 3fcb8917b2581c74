"""What is in the image, and what is not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.container

ROOT = Path(__file__).parents[3]
LARGEST = 500_000_000
FREE_LICENCES = re.compile(
    r"MIT|BSD|0BSD|Apache|PSF|Python Software Foundation|ISC|MPL[- ]2\.0|Mozilla Public License 2|"
    r"HPND|Zlib|CC0|Unlicense|Public Domain",
    re.I,
)


@pytest.fixture
def read_inside(podman, container_image):
    """Runs a shell command in a fresh container of the image; returns what it prints."""

    def read(command):
        words = ["--rm", "--network", "none", "--user", "0", "--entrypoint", "sh"]
        return podman.run("podman", "run", *words, container_image, "-c", command)

    return read


def test_image_is_small(podman, container_image):
    """Its base included."""
    assert podman.inspect("image", container_image)["Size"] <= LARGEST


def test_same_inputs_give_the_same_image(podman, container_image):
    rebuilt = podman.build("localhost/fivecrop:rebuilt", "--no-cache")
    podman.run("podman", "rmi", "localhost/fivecrop:rebuilt")
    assert rebuilt == podman.inspect("image", container_image)["Id"]


def test_image_says_how_it_is_run(podman, container_image):
    config = podman.inspect("image", container_image)["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["fivecrop"]
    assert config["Cmd"] == ["serve"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    # With it BentoML's workers would not be started again.
    assert not [line for line in config["Env"] if line.startswith("BENTOML_CONTAINERIZED")]


def test_nothing_in_it_builds_or_was_left_from_building(read_inside):
    assert read_inside("command -v gcc cc make git curl uv || true") == ""
    assert read_inside("ls -A / /root /build /opt | grep -E 'cache|build' || true") == ""
    assert read_inside("ls /opt/fivecrop/bin | grep -E '^(pip|uv|hatchling)$' || true") == ""
    assert read_inside("ls /models") == ""


def test_byte_code_is_not_compiled_again(read_inside):
    """The rootfs cannot be written to, so it would be at each start."""
    said = read_inside("python -v -c 'import service.cli' 2>&1")
    loaded = re.findall(r"^# code object from '?(/opt/fivecrop/lib[^'\s]+)", said, re.M)
    assert len(loaded) > 10
    assert [path for path in loaded if not path.endswith(".pyc")] == []


def test_inventory_names_every_package_of_the_lock(read_inside):
    inventory = json.loads(read_inside("cat /usr/share/sbom/fivecrop.cdx.json"))
    assert inventory["bomFormat"] == "CycloneDX"
    assert inventory["metadata"]["component"]["name"] == "fivecrop"
    listed = {
        (canonicalize_name(part["name"]), part["version"]) for part in inventory["components"]
    }
    python = read_inside("python -c 'import platform; print(platform.python_version())'")
    markers = {"python_version": ".".join(python.split(".")[:2]), "python_full_version": python}
    lock = (ROOT / "requirements/cpu.txt").read_text()
    wanted = set()
    for pin in re.findall(r"^([a-z0-9][^\\\n]*==[^\\\n]*?) *\\$", lock, re.M):
        requirement = Requirement(pin)
        if requirement.marker is None or requirement.marker.evaluate(markers):
            (version,) = requirement.specifier
            wanted.add((canonicalize_name(requirement.name), version.version))
    assert len(wanted) > 60
    assert wanted == listed


def test_every_licence_permits_what_we_do(read_inside):
    lines = read_inside("cat /usr/share/doc/fivecrop/licences.txt").splitlines()[1:]
    assert len(lines) > 60
    assert [line for line in lines if not FREE_LICENCES.search(line)] == []
