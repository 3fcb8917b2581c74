"""What kustomize makes of k8s/ fits together: namespaces, selectors, ports, confinement."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

K8S = Path(__file__).parents[2] / "k8s"
COMPONENTS = sorted(path.name for path in (K8S / "components").iterdir())
FOLDERS = sorted(str(path.parent.relative_to(K8S)) for path in K8S.glob("[oj]*/*/kustom*.yaml"))
CLUSTER_WIDE = {"Namespace"}
# KServe's name for the pods of an InferenceService.
SERVED_BY = "serving.kserve.io/inferenceservice"
pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl")


def build(folder):
    built = subprocess.run(
        ["kubectl", "kustomize", folder], capture_output=True, check=False, text=True
    )
    assert built.returncode == 0, built.stderr
    return list(yaml.safe_load_all(built.stdout))


@pytest.fixture(scope="module", params=[*FOLDERS, *(f"components/{name}" for name in COMPONENTS)])
def objects(request, tmp_path_factory):
    """The objects of an overlay or a job, or of the base with a component."""
    if not request.param.startswith("components/"):
        return build(K8S / request.param)
    folder = tmp_path_factory.mktemp("overlay").resolve()
    there = Path(os.path.relpath(K8S, folder))
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [str(there / "base")],
        "components": [str(there / request.param)],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return build(folder)


def list_pods(objects):
    """(labels, specification) of the pods that the objects ask for."""
    for one in objects:
        spec = one.get("spec", {})
        match one["kind"]:
            case "CronJob":
                templates = [spec["jobTemplate"]["spec"]["template"]]
            case "RayJob":
                cluster = spec["rayClusterSpec"]
                groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
                templates = [group["template"] for group in groups]
            case "ServingRuntime":
                (service,) = (two for two in objects if two["kind"] == "InferenceService")
                labels = {SERVED_BY: service["metadata"]["name"]}
                templates = [{"metadata": {"labels": labels}, "spec": spec}]
            case _:
                templates = [spec["template"]] if "template" in spec else []
        for template in templates:
            yield template["metadata"]["labels"], template["spec"]


def list_containers(objects):
    for _, pod in list_pods(objects):
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            yield pod, container


def is_selected(selector, labels):
    return selector.get("matchLabels", {}).items() <= labels.items()


def test_all_is_in_the_namespace_of_the_server(objects):
    named = {
        (one["kind"], one["metadata"].get("namespace"))
        for one in objects
        if one["kind"] not in CLUSTER_WIDE
    }
    assert {namespace for _, namespace in named} == {"fivecrop"}, named


def test_what_selects_pods_selects_some(objects):
    """A budget without a selector, say, protects nobody, and no schema minds."""
    labels = [labels for labels, _ in list_pods(objects)]
    # Scrapes the jobs too, which are applied apart from it.
    labels.append({"app.kubernetes.io/name": "fivecrop-score"})
    for one in objects:
        if one["kind"] not in ("PodDisruptionBudget", "Service", "PodMonitor", "Deployment"):
            continue
        selector = one["spec"]["selector"]
        selector = selector if "matchLabels" in selector else {"matchLabels": selector}
        assert selector["matchLabels"], one["kind"]
        assert any(is_selected(selector, these) for these in labels), one["metadata"]["name"]
    for these, pod in list_pods(objects):
        for spread in pod.get("topologySpreadConstraints", ()):
            assert is_selected(spread["labelSelector"], these)


def test_what_scales_scales_something_that_is_there(objects):
    there = {(one["kind"], one["metadata"]["name"]) for one in objects}
    for one in objects:
        if one["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            target = one["spec"]["scaleTargetRef"]
            assert (target.get("kind", "Deployment"), target["name"]) in there
            (scaled,) = (two for two in objects if two["kind"] == "Deployment")
            # Applied again, they would be those of the file.
            assert "replicas" not in scaled["spec"]


def test_every_port_is_open_to_somebody(objects):
    """Nothing is, in a namespace that denies by default, but what a policy lists by its name."""
    policies = [one["spec"] for one in objects if one["kind"] == "NetworkPolicy"]
    for labels, pod in list_pods(objects):
        opened = {
            port["port"]
            for policy in policies
            if is_selected(policy["podSelector"], labels)
            for rule in policy.get("ingress", ())
            for port in rule.get("ports", ())
        }
        for container in pod["containers"]:
            for port in container.get("ports") or ():
                assert {port["name"], port["containerPort"]} & opened, port


def test_every_container_is_confined_and_its_last_words_are_kept(objects):
    for pod, container in list_containers(objects):
        if pod.get("hostNetwork"):  # of the overlay for one machine
            continue
        merged = {**pod.get("securityContext", {}), **container["securityContext"]}
        # https://kubernetes.io/docs/concepts/security/pod-security-standards/, restricted, and more
        assert merged["runAsNonRoot"] is True
        assert merged["allowPrivilegeEscalation"] is False
        assert merged["readOnlyRootFilesystem"] is True
        assert merged["seccompProfile"] == {"type": "RuntimeDefault"}
        assert merged["capabilities"] == {"drop": ["ALL"]}
        # What `kubectl describe` shows of a container that could not start.
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError", container["name"]


def test_what_pods_refer_to_is_there(objects):
    maps = {one["metadata"]["name"] for one in objects if one["kind"] == "ConfigMap"}
    for _, pod in list_pods(objects):
        # That of the base, which jobs are applied beside.
        assert pod.get("serviceAccountName", "fivecrop") == "fivecrop"
        volumes = {volume["name"] for volume in pod["volumes"]}
        maps_used = {one["configMap"]["name"] for one in pod["volumes"] if "configMap" in one}
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            for source in container.get("envFrom", ()):
                maps_used |= {source["configMapRef"]["name"]} if "configMapRef" in source else set()
        assert maps_used <= maps


def test_what_asks_for_gpus_may_run_on_nodes_that_are_kept_for_them(objects):
    for _, pod in list_pods(objects):
        asked = {
            name
            for container in (*pod.get("initContainers", ()), *pod["containers"])
            for name in container.get("resources", {}).get("limits", ())
            if "/" in name
        }
        assert asked <= {toleration["key"] for toleration in pod.get("tolerations", ())}


def test_on_gpus_there_is_no_surge():
    (deployment,) = (one for one in build(K8S / "overlays/gpu") if one["kind"] == "Deployment")
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
    ((_, pod),) = list_pods([deployment])
    assert "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]
