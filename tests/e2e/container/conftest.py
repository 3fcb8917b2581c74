"""The image, built as `make image` builds it, and containers of it that podman runs hardened."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from documents import read_block

ROOT = Path(__file__).parents[3]
MODELS = ROOT / "exported_models"
BASE = "localhost/fivecrop-base:bookworm"
IMAGE = "localhost/fivecrop:test"
GUIDE = "docs/deploy.md"


def read_hardening():
    """The options of the document: what can be taken away from a container, all of it taken."""
    words = shlex.split(read_block(GUIDE, "podman run").replace("\\\n", " "))
    options = words[2 : words.index("-p")]
    for one in ("--rm", "--tmpfs", "/tmp"):  # who starts one says whether
        options.remove(one)
    return (*options, "--read-only-tmpfs=false")


HARDENED = read_hardening()
LIMIT_S = 600


class Podman:
    """Podman and buildah with a storage of their own."""

    def __init__(self, folder):
        storage = folder / "storage.conf"
        engine = folder / "containers.conf"
        engine.write_text(read_block(GUIDE, "[engine]"))
        self._environment = {**os.environ, "CONTAINERS_CONF": str(engine)}
        if "CONTAINERS_STORAGE_CONF" in os.environ:
            return
        self._environment["CONTAINERS_STORAGE_CONF"] = str(storage)
        for driver in ("overlay", "vfs"):
            storage.write_text(
                f'[storage]\ndriver = "{driver}"\n'
                f'runroot = "{folder}/run"\ngraphroot = "{folder}/graph"\n'
            )
            if self.try_run("podman", "images").returncode == 0:
                break

    def try_run(self, *command, **environment):
        return subprocess.run(
            [str(word) for word in command],
            env={**self._environment, **environment},
            cwd=ROOT,
            capture_output=True,
            check=False,
            text=True,
            timeout=LIMIT_S,
        )

    def run(self, *command, **environment):
        """Standard output, stripped."""
        ended = self.try_run(*command, **environment)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout.strip()

    def inspect(self, kind, name):
        (facts,) = json.loads(self.run("podman", kind, "inspect", name))
        return facts

    def inside(self, name, *command):
        return self.run("podman", "exec", name, *command)

    def build(self, tag, *options):
        """Builds the image as `make image` does; returns its id."""
        return self.run("scripts/build-image", tag, *options, BASE=BASE).splitlines()[-1]


@pytest.fixture(scope="session")
def podman():
    """Podman with a storage that goes away; CONTAINERS_STORAGE_CONF names one that stays."""
    missing = [tool for tool in ("buildah", "podman", "runc") if shutil.which(tool) is None]
    if missing:
        pytest.fail(f"{', '.join(missing)} missing; `make e2e-container` installs them")
    folder = Path(tempfile.mkdtemp(prefix="fivecrop-containers-"))
    podman = Podman(folder)
    try:
        yield podman
    finally:
        if "CONTAINERS_STORAGE_CONF" not in os.environ:
            podman.try_run("podman", "system", "reset", "--force")
            subprocess.run(["umount", folder / "graph/overlay"], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def container_image(podman):
    """The tag of the image."""
    if podman.try_run("podman", "image", "exists", BASE).returncode != 0:
        podman.run("scripts/make-base-image", BASE)
    podman.build(IMAGE)
    return IMAGE


@pytest.fixture(scope="session")
def scoring_image(podman, container_image):
    """The tag of the image that the scoring jobs run."""
    podman.build("localhost/fivecrop:score", "--build-arg", "VARIANT=score")
    return "localhost/fivecrop:score"


class Container:
    """A server in a container, on the network of this machine."""

    def __init__(self, podman, name, address):
        self._podman = podman
        self.name = name
        self.address = address

    @property
    def log(self):
        ended = self._podman.try_run("podman", "logs", self.name)
        return ended.stdout + ended.stderr

    @property
    def state(self):
        return self._podman.inspect("container", self.name)["State"]

    def inside(self, *command):
        return self._podman.inside(self.name, *command)

    def wait_ready(self):
        """Returns the seconds from its start until it was ready."""
        start = time.monotonic()
        while time.monotonic() < start + LIMIT_S:
            with contextlib.suppress(OSError):
                if self.address.get("/readyz")[0] == 200:
                    return time.monotonic() - start
            assert self.state["Running"], self.log
            time.sleep(0.05)
        raise AssertionError(self.log)

    def wait_ended(self):
        """Returns the exit code."""
        return int(self._podman.run("podman", "wait", self.name))


@pytest.fixture
def start_container(podman, container_image, find_server, unused_ports):
    """Starts a hardened container; gone at the end of the test."""
    names = []

    def start(*options, tmpfs=True, models=MODELS, **settings):
        http_port, grpc_port = unused_ports(2)
        given = {"host": "127.0.0.1", "http_port": http_port, "grpc_port": grpc_port, **settings}
        words = [*HARDENED, "--network", "host"]
        for setting, value in given.items():
            words += ["--env", f"FIVECROP_{setting.upper()}={value}"]
        if tmpfs:
            words += ["--tmpfs", "/tmp"]
        if models is not None:
            words += ["--volume", f"{models}:/models:ro"]
        names.append(podman.run("podman", "run", "--detach", *words, *options, container_image))
        address = find_server(given["http_port"], given["grpc_port"])
        return Container(podman, names[-1], address)

    yield start
    for name in names:
        podman.try_run("podman", "rm", "--force", "--time", "0", name)


@pytest.fixture(scope="session")
def run_once(podman, container_image):
    """`run_once(script, *options)`: what a shell script prints in a hardened container."""

    def run(script, *options, image=container_image):
        words = [
            *HARDENED,
            "--network",
            "none",
            "--tmpfs",
            "/tmp",
            "--volume",
            f"{MODELS}:/models:ro",
        ]
        words += ["--volume", f"{MODELS}:/models:ro", *options, "--entrypoint", "sh"]
        return podman.run("podman", "run", "--rm", *words, image, "-c", script)

    return run


@pytest.fixture
def photograph():
    """The bytes of an aeroplane."""
    return (MODELS / "cifar10-airbench/1/golden/0.jpeg").read_bytes()


@pytest.fixture(scope="session")
def on_this_machine():
    """Makes seconds of a machine at rest those of this one, which may be crowded."""
    cores = len(os.sched_getaffinity(0))
    return lambda seconds: seconds * max(1.0, 2 * os.getloadavg()[0] / cores)
