"""A manifest that contradicts itself is refused, with one clear line that says where."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.bundle.manifest import Golden, Manifest


def _set(path: str, value: object) -> Callable[[dict], None]:
    """Returns a function that sets `a.0.b` in plain data."""
    *parents, last = path.split(".")

    def change(facts: dict) -> None:
        for part in parents:
            facts = facts[int(part) if part.isdigit() else part]
        facts[int(last) if last.isdigit() else last] = value

    return change


def _repeat(path: str) -> Callable[[dict], None]:
    """Returns a function that repeats the first entry of a list."""
    return lambda facts: facts[path].append(copy.deepcopy(facts[path][0]))


def _list_file(name: str) -> Callable[[dict], None]:
    record = {"sha256": "0" * 64, "bytes": 1}
    return lambda facts: facts["files"].update({name: record})


def _sets(*coverages: float) -> dict:
    """Returns a conformal calibration with a level for each coverage."""
    rest = {"min_score": 0.1, "measured_coverage": 0.9, "mean_labels": 1}
    levels = [{"coverage": coverage, **rest} for coverage in coverages]
    return {"tta": "none", "images": 100, "levels": levels}


# what is wrong -> (change to a good manifest, part of the message)
CONTRADICTIONS = {
    "unknown key": (_set("extra", 1), "Extra inputs are not permitted"),
    "unknown key inside": (_set("preprocess.resize.extra", 1), "Extra inputs are not permitted"),
    "another version of the specification": (_set("spec_version", 2), "Input should be 1"),
    "name with a slash": (_set("name", "a/b"), "pattern"),
    "name with a line break": (_set("name", "a\n"), "pattern"),
    "name of capitals": (_set("name", "ResNet"), "pattern"),
    "name of 65 letters": (_set("name", "a" * 65), "pattern"),
    "hidden name": (_set("name", ".a"), "pattern"),
    "version 0": (_set("version", 0), "greater than or equal to 1"),
    "crop larger than the resize": (_set("preprocess.resize.size", 7), "crop is larger"),
    "crop is not the input": (_set("input.height", 8), "not the size of the model's input"),
    "unknown interpolation": (_set("preprocess.resize.interpolation", "cubic"), "Input should be"),
    "background outside bytes": (_set("preprocess.background.0", 256), "less than or equal"),
    "division by zero": (_set("normalisation.std.1", 0), "greater than 0"),
    "mean of NaN": (_set("normalisation.mean.1", float("nan")), "finite number"),
    "one label": (_set("labels", [{"name": "a"}]), "at least 2"),
    "empty label": (_set("labels.0.name", ""), "at least 1 character"),
    "more labels than classes": (_repeat("labels"), "number of labels"),
    "no probabilities": (_set("outputs.0.name", "cam"), "no output named probabilities"),
    "an output twice": (_repeat("outputs"), "named twice"),
    "an unknown output": (_set("outputs.1.name", "logits"), "Input should be"),
    "no variant": (_set("variants", []), "at least 1 item"),
    "a precision twice": (_repeat("variants"), "two variants"),
    "digest of capitals": (_set("variants.0.sha256", "A" * 64), "pattern"),
    "an empty variant": (_set("variants.0.bytes", 0), "greater than or equal to 1"),
    "no tolerance": (_set("variants.0.golden_tolerance", 0), "greater than 0"),
    "metrics of another variant": (_set("metrics.0.variant", "int8"), "variant that is not there"),
    "accuracy over 1": (_set("metrics.0.top1", 1.01), "less than or equal to 1"),
    "no golden samples": (_set("files", {}), "no golden samples"),
    "a file twice": (_list_file("model.onnx"), "listed twice"),
    "the manifest among the files": (_list_file("bundle.json"), "listed twice"),
    "histogram of other classes": (
        _set("reference.predicted_classes", [1, 2]),
        "another number of classes",
    ),
    "moments of another embedding": (_set("reference.embedding_mean", [0]), "another embedding"),
    "temperature 0": (
        _set("calibration", {"temperature": 0, "ece_before": 0, "ece_after": 0}),
        "greater than 0",
    ),
    "thresholds of other classes": (
        _set("decision", {"abstain_below_by_class": [0.5]}),
        "thresholds are about another number of classes",
    ),
    "a group that comes later": (
        _set("groups", [{"name": "a", "parent": 0}]),
        "not an earlier group",
    ),
    "a class below no group": (_set("labels.0.parent", 0), "not an earlier group"),
    "levels that do not rise": (
        _set("decision", {"conformal": [_sets(0.9, 0.9)]}),
        "do not rise",
    ),
    "a policy twice": (
        _set("decision", {"conformal": [_sets(0.9), _sets(0.9)]}),
        "two conformal calibrations",
    ),
    "sets of no level": (_set("decision", {"conformal": [_sets()]}), "at least 1 item"),
    "no provenance": (lambda facts: facts.pop("provenance"), "Field required"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_is_refused_and_said(name, manifest_facts):
    change, message = CONTRADICTIONS[name]
    facts = manifest_facts()
    Manifest.model_validate(facts)
    change(facts)
    with pytest.raises(ValidationError) as caught:
        Manifest.model_validate_json(json.dumps(facts))
    first = caught.value.errors()[0]
    assert message in first["msg"]
    assert "\n" not in first["msg"]


OUTSIDE = (
    *("/etc/passwd", "../model.onnx", "golden/../../x", "..", ".", "", "a\\b", "C:\\x\\y"),
    *("golden//x", "./model.onnx", "golden/", "a\0b", "a\nb", "a\u202eb"),
)


@pytest.mark.parametrize("path", OUTSIDE)
def test_no_path_leaves_the_folder(path, manifest_facts):
    facts = manifest_facts()
    _list_file(path)(facts)
    with pytest.raises(ValidationError, match="of a bundle"):
        Manifest.model_validate(facts)
    facts = manifest_facts()
    facts["variants"][0]["file"] = path
    with pytest.raises(ValidationError, match="of a bundle"):
        Manifest.model_validate(facts)


@given(st.text(max_size=30))
def test_a_path_is_allowed_only_in_its_one_spelling(manifest_facts, tmp_path_factory, path):
    facts = manifest_facts()
    _list_file(path)(facts)
    try:
        Manifest.model_validate(facts)
    except ValidationError:
        return
    folder = tmp_path_factory.getbasetemp()
    assert (folder / path).resolve().is_relative_to(folder.resolve())
    assert (folder / path).relative_to(folder).as_posix() == path


def test_a_manifest_comes_back_from_json_as_it_was(manifest_facts):
    manifest = Manifest.model_validate(manifest_facts())
    text = manifest.model_dump_json()
    assert Manifest.model_validate_json(text) == manifest
    assert Manifest.model_validate_json(text).model_dump_json() == text


def test_everything_optional_may_be_left_out(manifest_facts):
    facts = manifest_facts()
    del facts["metrics"], facts["reference"]
    manifest = Manifest.model_validate(facts)
    assert manifest.calibration is None
    assert manifest.decision.abstain_below is None
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_a_manifest_cannot_be_changed(manifest_facts):
    manifest = Manifest.model_validate(manifest_facts())
    with pytest.raises(ValidationError, match="frozen"):
        manifest.version = 2


@pytest.mark.parametrize("name", ["a", "0", "resnet-18", "cifar10_airbench.v2", "a" * 64])
def test_good_names_are_allowed(name, manifest_facts):
    assert Manifest.model_validate({**manifest_facts(), "name": name}).name == name


def _golden(**change: object) -> dict:
    sample = {"file": "golden/0.png", "top": [1], "probabilities": [0.25, 0.75], **change}
    return {"samples": [sample] * 4}


@pytest.mark.parametrize(
    ("golden", "message"),
    [
        ({"samples": _golden()["samples"][:3]}, "at least 4"),
        ({"samples": _golden()["samples"] * 5}, "at most 16"),
        (_golden(top=[]), "at least 1"),
        (_golden(top=[-1]), "greater than or equal to 0"),
        (_golden(top=[0] * 6), "at most 5"),
        (_golden(probabilities=[1.5]), "less than or equal to 1"),
        (_golden(file="../0.png"), "inside its folder"),
        (_golden(label="cat"), "Extra inputs"),
    ],
)
def test_golden_samples_are_checked(golden, message):
    Golden.model_validate(_golden())
    with pytest.raises(ValidationError, match=message):
        Golden.model_validate(golden)
