"""k8s/components/kserve against the types of KServe's API, which its client is published with."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import yaml

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the packages that kserve imports
    import kserve.models
    import kubernetes.client.models

FOLDER = Path(__file__).parents[3] / "k8s/components/kserve"
KINDS = {
    "ServingRuntime": "V1alpha1ServingRuntime",
    "InferenceService": "V1beta1InferenceService",
}
PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object}


def build(kind, value, place=""):
    """Makes `value` what `kind` names; fails for an unknown field, a wrong type, or a lack."""
    if found := re.fullmatch(r"[Ll]ist\[(.*)\]", kind):
        assert isinstance(value, list), f"{place} is no list"
        return [build(found[1], one, f"{place}[{at}]") for at, one in enumerate(value)]
    if found := re.fullmatch(r"[Dd]ict[(\[]str, (.*)[)\]]", kind):
        assert isinstance(value, dict), f"{place} is no mapping"
        return {key: build(found[1], one, f"{place}.{key}") for key, one in value.items()}
    if kind in PLAIN:
        assert isinstance(value, PLAIN[kind]), f"{place} is no {kind}"
        return value
    made = getattr(kserve.models, kind, None) or getattr(kubernetes.client.models, kind)
    names = {json: name for name, json in made.attribute_map.items()}
    assert value.keys() <= names.keys(), f"{place}: unknown {value.keys() - names.keys()}"
    return made(
        **{
            names[json]: build(made.openapi_types[names[json]], one, f"{place}.{json}")
            for json, one in value.items()
        }
    )


def load(name):
    manifest = yaml.safe_load((FOLDER / name).read_text())
    return KINDS[manifest["kind"]], manifest


FILES = ("serving-runtime.yaml", "inference-service.yaml")


@pytest.mark.parametrize("name", FILES)
def test_manifest_is_what_kserve_takes(name):
    kind, manifest = load(name)
    version = kind.removesuffix(manifest["kind"]).lower()
    assert manifest["apiVersion"] == f"serving.kserve.io/{version}"
    assert build(kind, manifest).kind == manifest["kind"]


def misspell(runtime, service):
    runtime["spec"]["containers"][0]["imagePullPolcy"] = "Always"


def mistype(runtime, service):
    service["spec"]["predictor"]["minReplicas"] = "2"


def leave_out(runtime, service):
    del service["spec"]["predictor"]["model"]["modelFormat"]


@pytest.mark.parametrize("damage", [misspell, mistype, leave_out])
def test_a_damaged_one_is_refused(damage):
    loaded = [load(name) for name in FILES]
    damage(*(manifest for _, manifest in loaded))
    with pytest.raises((AssertionError, ValueError)):
        [build(kind, manifest) for kind, manifest in loaded]


def test_the_runtime_answers_what_the_service_asks_for():
    (_, runtime), (_, service) = map(load, FILES)
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    formats = [one["name"] for one in runtime["spec"]["supportedModelFormats"]]
    assert model["modelFormat"]["name"] in formats
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
