"""Which combinations can serve: those whose members are proved and are what they were made of."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass

from service.bundle.combination import FoundCombination
from service.bundle_source import BundleSource
from service.combined_model import CombinedModel, join_members, split_reference
from service.errors import BundleError, StartError
from service.load_failures import Failure, LoadFailures
from service.model import Model
from service.orders import Orders

Key = tuple[str, int]


def list_members(combinations: Iterable[CombinedModel]) -> set[Key]:
    """Returns the names and versions of the bundles that combinations are made of."""
    return {(model.name, model.version) for one in combinations for model in one.models}


@dataclass(frozen=True, slots=True, kw_only=True)
class CombinationProof:
    """Proves combinations by proving their members.

    Attributes:
        source: The repository.
        orders: Members that are unloaded by order are not loaded for a combination.
        failures: What is known of earlier proofs; those of the same files are not repeated.
        retry: Whether they are repeated nevertheless.
        prove_member: Proves a bundle, or returns the one that serves.
    """

    source: BundleSource
    orders: Orders
    failures: LoadFailures
    retry: bool
    prove_member: Callable[[str, int], Model | Failure]

    def prove(self, name: str, version: int, old: CombinedModel | None) -> CombinedModel | Failure:
        """Returns the combination over members that are proved: `old`, if nothing changed."""
        fingerprint: Hashable = None
        try:
            found = self.source.read_combination(name, version)
            fingerprint = (found.digest, *self._look_at_members(found))
            before = self.failures.get(name, version)
            if before is not None and not self.retry and before.fingerprint == fingerprint:
                return before
            joined = join_members(found, self._find)
        except (StartError, OSError) as error:
            return self.failures.count(name, version, error, fingerprint)
        is_same = old is not None and (old.digest, old.models) == (joined.digest, joined.models)
        return old if old is not None and is_same else joined

    def _find(self, name: str, version: int) -> Model | None:
        if self.orders.of(name).keeps_out(version):
            return None
        found = self.prove_member(name, version)
        if isinstance(found, Failure):
            raise found.error
        return found

    def _look_at_members(self, found: FoundCombination) -> list[Hashable]:
        """Returns what changes when a member may be another one, or may serve again."""
        members = [split_reference(member.model) for member in found.manifest.members]
        return [
            (self.source.fingerprint(name, version), self.orders.of(name).keeps_out(version))
            for name, version in members
        ]


def keep_whole(
    combinations: Mapping[Key, CombinedModel],
    models: Mapping[Key, Model],
    failures: LoadFailures,
) -> dict[Key, CombinedModel]:
    """Returns the combinations whose members are among these models; others become failures.

    One that serves on because nothing good could follow it may have lost a member by that.
    """
    whole = {}
    for (name, version), one in combinations.items():
        if all(models.get((model.name, model.version)) is model for model in one.models):
            whole[name, version] = one
        elif failures.get(name, version) is None:
            error = BundleError(f"{one.reference}: one of its members was replaced")
            failures.add(name, {version: failures.count(name, version, error, None)})
    return whole


def show_clashes(
    combined: Mapping[str, list[int]], listing: Mapping[str, list[int]], failures: LoadFailures
) -> None:
    """Makes failures of the combinations whose names are those of bundles."""
    for name in combined.keys() & listing.keys():
        error = BundleError(f"{name}: bundles have the name already")
        failure = Failure(error=error, reason=str(error), fingerprint=None)
        failures.add(name, dict.fromkeys({*combined[name]} - {*listing[name]}, failure))
