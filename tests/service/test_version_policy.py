"""Which versions a policy chooses, and how policies are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import SettingsError
from service.version_policy import VersionPolicy, parse_policies, parse_policy

VERSIONS = st.lists(st.integers(1, 30), unique=True).map(sorted)


@given(VERSIONS, st.sets(st.integers(1, 30)), st.integers(1, 5))
def test_the_newest_good_versions_are_chosen_and_no_older_one_before_a_newer(
    versions, failed, count
):
    chosen = VersionPolicy(latest=count).choose(versions, failed)
    good = set(versions) - failed
    assert chosen <= good
    assert len(chosen) == min(count, len(good))
    assert all(left < min(chosen) for left in good - chosen)


@given(VERSIONS, st.sets(st.integers(1, 30)))
def test_all_and_specific_choose_what_they_say_less_what_failed(versions, failed):
    assert parse_policy("all").choose(versions, failed) == set(versions) - failed
    specific = VersionPolicy(specific=frozenset({3, 40}))
    assert specific.choose(versions, failed) == {3, 40} - failed


def test_policies_are_written_with_the_names_of_models():
    policies = parse_policies(["a", "b@3", "b@1", "c@latest:2", "d@all", "e"], "latest:4")
    assert policies == {
        "a": VersionPolicy(latest=4),
        "b": VersionPolicy(specific=frozenset({1, 3})),
        "c": VersionPolicy(latest=2),
        "d": VersionPolicy(latest=None),
        "e": VersionPolicy(latest=4),
    }


@pytest.mark.parametrize(
    "references",
    [
        ["a@"],
        ["a@0"],
        ["a@01"],
        ["a@latest"],
        ["a@latest:0"],
        ["a@-1"],
        ["a@stable"],
        ["a", "a"],
        ["a@1", "a"],
        ["a", "a@1"],
        ["a@all", "a@1"],
    ],
)
def test_what_is_no_policy_or_a_second_one_is_refused_by_name(references):
    with pytest.raises(SettingsError, match="polic"):
        parse_policies(references, "latest:1")
