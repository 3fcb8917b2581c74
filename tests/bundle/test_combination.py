"""Manifests of ensembles and cascades: read, refused, published, and the arithmetic they name."""

from __future__ import annotations

import datetime
import json

import pytest

from service.bundle.combination import (
    COMBINATION_FILE,
    Cascade,
    Ensemble,
    Stage,
    WeightedMember,
    is_sure,
    publish_combination,
    read_combination,
)
from service.bundle.repository import list_versions
from service.errors import BundleError

DIGEST = "0" * 64
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def ensemble(*weights, name="both"):
    members = tuple(
        WeightedMember(model=f"m{index}@1", digest=DIGEST, weight=weight)
        for index, weight in enumerate(weights)
    )
    return Ensemble(name=name, version=1, created=NOW, members=members)


def cascade(name="fast"):
    members = (
        Stage(model="small@1", digest=DIGEST, escalate_below=0.8),
        Stage(model="small@1", digest=DIGEST, tta="ten_crop"),
    )
    return Cascade(name=name, version=1, created=NOW, members=members)


def test_what_is_published_is_read_again_with_the_next_version(tmp_path):
    for made in (ensemble(1, 3), cascade(), cascade()):
        publish_combination(tmp_path, made)
    listing = list_versions(tmp_path, COMBINATION_FILE)
    assert listing == {"both": [1], "fast": [1, 2]}
    found = [
        read_combination(tmp_path / name / str(version))
        for name, versions in listing.items()
        for version in versions
    ]
    assert [one.manifest.reference for one in found] == ["both@1", "fast@1", "fast@2"]
    assert found[0].manifest == ensemble(1, 3)
    assert found[2].manifest == cascade().model_copy(update={"version": 2})
    assert len({one.digest for one in found}) == 3


def test_combinations_are_no_bundles_to_whoever_looks_for_those(tmp_path):
    publish_combination(tmp_path, cascade())
    assert list_versions(tmp_path) == {}


def test_name_of_a_bundle_is_refused(tiny_bundle_repository):
    with pytest.raises(BundleError, match="have the name"):
        publish_combination(tiny_bundle_repository, cascade(name="digits-linear"))


BAD = {
    "an unknown kind": {"kind": "choir"},
    "no kind": {"kind": None},
    "an unknown key": {"extra": 1},
    "one member": {"members": [{"model": "a@1", "digest": DIGEST}]},
    "a member without version": {"members": [{"model": "a", "digest": DIGEST, "weight": 1}] * 2},
    "a member without digest": {"members": [{"model": "a@1", "weight": 1}] * 2},
    "a weight of nothing": {"members": [{"model": "a@1", "digest": DIGEST, "weight": 0}] * 2},
    "a weight that is no number": {
        "members": [{"model": "a@1", "digest": DIGEST, "weight": "NaN"}] * 2
    },
    "views that do not exist": {"members": [{"model": "a@1", "digest": DIGEST, "tta": "x"}] * 2},
    "a member with a path": {"members": [{"model": "../a@1", "digest": DIGEST}] * 2},
    "another version than its folder": {"version": 7},
    "another name than its folder": {"name": "other"},
    "thresholds by class": {"decision": {"abstain_below_by_class": [0.5, 0.5]}},
}


@pytest.mark.parametrize("name", BAD)
def test_manifest_that_says_something_else_is_refused_in_one_line(tmp_path, name):
    folder = publish_combination(tmp_path, ensemble(1, 1))
    file = folder / COMBINATION_FILE
    document = json.loads(file.read_text()) | BAD[name]
    file.write_text(
        json.dumps({key: value for key, value in document.items() if value is not None})
    )
    with pytest.raises(BundleError) as caught:
        read_combination(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("thresholds", [(None, None), (0.5, 0.5)])
def test_cascade_has_a_threshold_at_each_stage_but_the_last(thresholds):
    members = [{"model": "a@1", "digest": DIGEST, "escalate_below": one} for one in thresholds]
    with pytest.raises(ValueError, match="stage"):
        Cascade.model_validate({"name": "a", "version": 1, "created": NOW, "members": members})


def test_stage_is_sure_at_its_threshold_and_the_last_always():
    first, last = cascade().members
    assert is_sure(0.8, first)
    assert not is_sure(0.79, first)
    assert is_sure(0.0, last)
