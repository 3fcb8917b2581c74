"""Which versions of a model should serve: the policy's choice, and what an operator ordered."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from service.errors import SettingsError

_POLICY = re.compile(r"all|latest:([1-9][0-9]{0,8})")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Either the newest versions that prove themselves, or certain ones.

    Attributes:
        latest: How many of the newest; None is all of them.
        specific: These and no others; empty when `latest` counts.
    """

    latest: int | None = 1
    specific: frozenset[int] = frozenset()

    def choose(self, versions: Sequence[int], failed: Collection[int] = ()) -> set[int]:
        """Returns the versions that should serve.

        Args:
            versions: Those in the repository, oldest first.
            failed: Versions that did not prove themselves; the next older ones take their places,
                so that a broken new version never takes a model out of service.
        """
        if self.specific:
            return set(self.specific) - set(failed)
        good = [version for version in versions if version not in failed]
        return set(good if self.latest is None else good[-self.latest :])


def parse_policy(text: str) -> VersionPolicy:
    """Returns the policy of `latest:N` or `all`.

    Raises:
        SettingsError: The text is neither.
    """
    if not (found := _POLICY.fullmatch(text)):
        raise SettingsError(f"version policy {text!r} is neither 'all' nor 'latest:N'")
    return VersionPolicy(latest=None if found[1] is None else int(found[1]))


def parse_policies(references: Sequence[str], default: str) -> dict[str, VersionPolicy]:
    """Returns the policy of each named model, in the order of their names' first mention.

    Args:
        references: NAME (the default policy), NAME@VERSION (a specific one; may be repeated),
            NAME@latest:N or NAME@all.
        default: The policy of a NAME alone.

    Raises:
        SettingsError: A reference is none of these, or a model is given two policies.
    """
    policies: dict[str, VersionPolicy] = {}
    for reference in references:
        name, _, wanted = reference.partition("@")
        if _VERSION.fullmatch(wanted):
            before = policies.get(name, VersionPolicy(specific=frozenset()))
            policy = VersionPolicy(specific=before.specific | {int(wanted)})
            is_second = name in policies and not before.specific
        else:
            policy = parse_policy(wanted if "@" in reference else default)
            is_second = name in policies
        if is_second:
            raise SettingsError(f"model {name!r} is given two version policies")
        policies[name] = policy
    return policies
