"""The manifest of a scoring job on Ray: fields that KubeRay has, pods as confined as the others."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from service.score_command import run

K8S = Path(__file__).parents[2] / "k8s"
FOLDER = K8S / "jobs/scoring-ray"
# Of ray.io/v1: https://ray-project.github.io/kuberay/reference/api/ (2026-11-21).
JOB_FIELDS = {
    *("activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate"),
    *("metadata", "clusterSelector", "submitterConfig", "managedBy", "deletionStrategy"),
    *("entrypoint", "runtimeEnvYAML", "jobId", "submissionMode", "entrypointResources"),
    *("entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished"),
    *("shutdownAfterJobFinishes", "suspend"),
}
GROUP_FIELDS = {
    *("groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "numOfHosts"),
    *("rayStartParams", "template", "scaleStrategy", "suspend"),
}


@pytest.fixture(scope="module")
def spec():
    return yaml.safe_load((FOLDER / "ray-job.yaml").read_text())["spec"]


@pytest.fixture(scope="module")
def groups(spec):
    cluster = spec["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_every_field_is_one_of_kuberay(spec, groups):
    assert set(spec) <= JOB_FIELDS
    assert set(spec["rayClusterSpec"]) <= {"headGroupSpec", "workerGroupSpecs", "rayVersion"}
    assert all(set(group) <= GROUP_FIELDS for group in groups)
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
    assert len(groups) == 2


def test_pods_are_confined_like_those_of_the_other_job(groups):
    other = yaml.safe_load((K8S / "jobs/scoring/job.yaml").read_text())["spec"]["template"]["spec"]
    (scoring,) = other["containers"]
    for group in groups:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        for name in ("securityContext", "automountServiceAccountToken", "enableServiceLinks"):
            assert pod[name] == other[name]
        assert container["securityContext"] == scoring["securityContext"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_workers_see_the_images_where_the_head_does(groups):
    containers = [group["template"]["spec"]["containers"][0] for group in groups]
    places = [
        [one["mountPath"] for one in container["volumeMounts"] if one["name"] == "images"]
        for container in containers
    ]
    assert places == [["/images"], ["/images"]]


def test_the_script_is_there_and_its_command_exists(spec):
    _, script = spec["entrypoint"].split()
    line = (FOLDER / Path(script).name).read_text().splitlines()[-1]
    exec_, program, name, *words = shlex.split(line)
    assert (exec_, program, name) == ("exec", "fivecrop", "score")
    options = {flag for parameter in run.params for flag in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options
    checked = subprocess.run(["sh", "-n", FOLDER / Path(script).name], check=False)
    assert checked.returncode == 0


def test_the_lock_of_its_image_has_what_the_job_needs():
    def read(lock):
        text = (K8S.parent / f"requirements/{lock}.txt").read_text()
        return dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", text, re.MULTILINE))

    ray, others = read("ray"), read("dev")
    # The operator asks the dashboard, whose server is not in Ray alone, to start the job.
    assert {"ray", "aiohttp-cors", "onnxruntime", "pyarrow", "s3fs"} <= ray.keys()
    assert {name: others[name] for name in ray.keys() & others.keys()} == {
        name: version for name, version in ray.items() if name in others
    }


def test_the_image_is_a_variant_of_ours():
    assert "VARIANT=ray." in (FOLDER / "kustomization.yaml").read_text()
    assert "VARIANT=ray`" in (K8S.parent / "docs/deploy.md").read_text()
    assert "requirements/${VARIANT}.txt" in (K8S.parent / "Dockerfile").read_text()


def test_kustomize_names_the_image_of_each_pod():
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    built = subprocess.run(
        ["kubectl", "kustomize", FOLDER], capture_output=True, check=True, text=True
    ).stdout
    assert built.count("image: registry.example.com/fivecrop-ray:0.1.0") == 2
