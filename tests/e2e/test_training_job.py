"""The command of k8s/jobs/training, as its pod runs it: trains in two processes, then exports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from service.bundle.repository import read_bundle, verify_files

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
JOB = yaml.safe_load((ROOT / "k8s/jobs/training/job.yaml").read_text())
POD = JOB["spec"]["template"]["spec"]
RECIPES = "lib/python3.0/site-packages/training/recipes"


@pytest.fixture
def pod(tmp_path):
    """Runs a container's own words, its folders below `tmp_path`; returns its exit code."""
    (tmp_path / RECIPES).mkdir(parents=True)
    recipe = (ROOT / "training/recipes/digits-lenet5.toml").read_text()
    short = recipe.replace("epochs = 30", "epochs = 2")
    assert short != recipe
    (tmp_path / RECIPES / "digits-lenet5.toml").write_text(short)
    places = {
        "/opt/fivecrop/": f"{tmp_path}/",
        **{
            mount["mountPath"]: f"{tmp_path}{mount['mountPath']}"
            for mount in POD["containers"][0]["volumeMounts"]
            if mount["mountPath"] not in ("/tmp", "/data")
        },
    }
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
    }

    def run(container):
        words = [*container.get("command", ["fivecrop"]), *container["args"]]
        for there, here in places.items():
            words = [word.replace(there, here) for word in words]
        ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        return ended.returncode, ended.stderr

    return run


def test_what_the_job_trains_is_a_bundle_that_proves_itself(pod, tmp_path):
    (train,), (export,) = POD["initContainers"], POD["containers"]
    # As it starts, and as a pod that was started again after the first had trained.
    for container in (train, train, export):
        code, told = pod(container)
        assert code == 0, told
    bundle = read_bundle(tmp_path / "models/digits-lenet5/1")
    verify_files(bundle)
    assert bundle.manifest.variants[0].parity.top1_agreement == 1.0


def test_a_wrong_recipe_ends_it_with_the_code_that_fails_the_job(pod, tmp_path):
    (train,) = POD["initContainers"]
    recipe = tmp_path / RECIPES / "digits-lenet5.toml"
    recipe.write_text(recipe.read_text().replace("seed:lenet5", "seed:lenet6"))
    code, told = pod(train)
    rule = JOB["spec"]["podFailurePolicy"]["rules"][0]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [code]), told
    assert "lenet6" in told
