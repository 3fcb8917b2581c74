"""Importing the service does nothing but import, and each part imports only what it may."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "service").rglob("*.py")
)
CORE = [
    name
    for name in MODULES
    if name.startswith("service.bundle")
    or name in {f"service.{part}" for part in ("engine", "batcher", "classifier", "models")}
]

LOOK_FOR_EFFECTS = """
import logging, os, sys, threading, warnings

def state():
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "threads": threading.active_count(),
        "log level": logging.getLogger("service").level,
        "log handlers": list(logging.getLogger("service").handlers),
        "signals": [__import__("signal").getsignal(number) for number in (2, 15)],
        "sockets": sorted(
            link for fd in os.listdir("/proc/self/fd")
            if (link := read(fd)).startswith("socket:")
        ),
    }

def read(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""

# What other packages do when they are imported is theirs: they come first.
import bentoml, click, google.protobuf, grpc, grpc_health.v1.health_pb2, grpc_reflection.v1alpha
import numpy, onnxruntime, PIL.Image, prometheus_client, pydantic_settings, pynvml, starlette
bentoml.service, bentoml.Service
before = state()
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
after = state()
changed = [name for name in before if before[name] != after[name]]
assert not changed, changed
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"torch", "torchvision", "timm", "training"}, loaded
"""

LOOK_FOR_MODULES = """
import importlib, sys
for name in sys.argv[2:]:
    importlib.import_module(name)
loaded = {name.partition(".")[0] for name in sys.modules} & set(sys.argv[1].split(","))
assert not loaded, loaded
"""


def run(script, *arguments, home):
    ended = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", script, *arguments],
        cwd=ROOT,
        env={**os.environ, "HOME": str(home), "ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        check=False,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


def test_importing_every_module_of_the_service_has_no_effect(tmp_path):
    assert len(MODULES) > 30
    assert run(LOOK_FOR_EFFECTS, *MODULES, home=tmp_path) == ""
    assert list(tmp_path.iterdir()) == []


def test_look_for_effects_notices_one(tmp_path):
    """The control: a module that starts a thread and prints is found out."""
    (tmp_path / "nosy.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    with pytest.raises(AssertionError, match="threads"):
        run(
            f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{LOOK_FOR_EFFECTS}",
            "nosy",
            home=tmp_path,
        )


def test_core_knows_no_host_and_no_protocol(tmp_path):
    assert len(CORE) > 8
    run(LOOK_FOR_MODULES, "bentoml,_bentoml_sdk,grpc,starlette,uvicorn,torch", *CORE, home=tmp_path)


def test_supervisor_does_not_pay_for_what_its_workers_import(tmp_path):
    heavy = "bentoml,_bentoml_sdk,grpc,starlette,onnxruntime,numpy,prometheus_client"
    run(LOOK_FOR_MODULES, heavy, "service.supervisor", "service.cli", home=tmp_path)


def test_declaration_of_the_service_does_not_load_what_serves(tmp_path):
    """BentoML imports it in processes that serve nothing."""
    run(LOOK_FOR_MODULES, "onnxruntime,grpc", "service.app", home=tmp_path)


def test_a_scoring_job_does_not_load_pandas(tmp_path, tiny_bundle_repository):
    (tmp_path / "list.txt").write_text(f"{tmp_path}/absent.png\n")
    script = (
        "import sys\nfrom service.cli import main\n"
        "main(['score', *sys.argv[1:]], standalone_mode=False)\n"
        "assert 'pyarrow' in sys.modules\nassert 'pandas' not in sys.modules\n"
    )
    given = [str(tmp_path / "list.txt"), f"--model-repository={tiny_bundle_repository}"]
    options = ["--model=digits-linear", "--workers=1", "--max-error-rate=1"]
    run(script, *given, *options, f"--out={tmp_path / 'out'}", home=tmp_path)


def test_a_scoring_job_loads_beside_its_workers_nothing_that_only_they_use(tmp_path):
    """They load it too, so a job would begin that much later."""
    heavy = "onnxruntime,numpy,PIL,cykooz_resizer,pyarrow,ray,prometheus_client,rich"
    run(LOOK_FOR_MODULES, heavy, "service.cli", "service.score_command", home=tmp_path)
