"""What should serve now, every bit of it proved: repository, policy and orders come together here.

The outcome depends on the repository and the orders, not on the order in which they changed, with
one exception that serves everybody: what serves goes on when there is nothing good to follow it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from service.bundle.repository import Bundle
from service.bundle_source import BundleSource
from service.combined_model import CombinedModel
from service.errors import BundleError, MemoryBudgetError, StartError
from service.live_combinations import (
    CombinationProof,
    Key,
    keep_whole,
    list_members,
    show_clashes,
)
from service.load_failures import Failure, LoadFailures
from service.metrics import Metrics
from service.model import Model
from service.models import Unavailable
from service.orders import ModelOrders, Orders
from service.version_policy import VersionPolicy

_MIB = 1024 * 1024

Prove = Callable[[Bundle, Callable[[int], None]], Model]
Served = TypeVar("Served", Model, CombinedModel)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What should serve from now on, and the orders to serve it by."""

    models: Mapping[Key, Model]
    combinations: Mapping[Key, CombinedModel]
    orders: Orders

    @property
    def version_labels(self) -> dict[str, Mapping[str, int]]:
        """Versions by name and label."""
        return {name: one.labels for name, one in self.orders.models.items()}


@dataclass(slots=True, kw_only=True)
class LiveSet:
    """The models that serve and those that failed to. Not thread-safe: one change at a time.

    Attributes:
        source: The repository.
        policies: By name; models without one serve only by order, unless there is a default.
        default_policy: Of models that `policies` does not name; None serves none of them.
        prove: Turns a bundle into a model that proved itself; is handed the check of the budget.
        memory_bytes: The budget; None is no limit.
        metrics: Where failures are counted.
        show: Called whenever `unavailable` would return something else.
        serving: The bundles that serve; replaced by `commit`.
        combinations: What serves that is made of them; replaced by `commit`.
        draining: What still finishes its last jobs.
    """

    source: BundleSource
    policies: Mapping[str, VersionPolicy]
    default_policy: VersionPolicy | None
    prove: Prove
    memory_bytes: int | None
    metrics: Metrics
    show: Callable[[], None] = lambda: None
    serving: dict[Key, Model] = field(default_factory=dict)
    combinations: dict[Key, CombinedModel] = field(default_factory=dict)
    draining: list[Model] = field(default_factory=list)
    _loading: Key | None = None
    # Proved, or tried in vain, since `settle` began.
    _fresh: dict[Key, Model | Failure] = field(default_factory=dict)
    _failures: LoadFailures = field(init=False)
    _combined: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Knows of no failures yet."""
        self._failures = LoadFailures(self.source, self.metrics)

    def settle(
        self, orders: Orders, names: Collection[str] | None = None, *, retry: bool = False
    ) -> Settled:
        """Returns what should serve, having proved what is new; what serves is left as it is.

        Args:
            orders: What an operator ordered.
            names: The models to look at; the others stay as they are. None is all of them.
            retry: Whether to try versions again that failed before and have not changed since.

        Raises:
            BundleError: The repository cannot be listed.
        """
        listing = self.source.list_versions()
        combined = self.source.list_combinations()
        try:
            # First, because they keep their members in service whatever the policy says of them.
            combinations = self._settle_combinations(combined, listing, orders, names, retry)
            needed = list_members(combinations.values())
            members = _names(needed | list_members(self.combinations.values()))
            if names is None:
                failed = _names(key for key, _ in self._failures)
                serving = _names(self.serving)
                names = {*listing, *self.policies, *orders.models, *serving, *failed}
            self._combined = {*combined, *_names(self.combinations)} - listing.keys()
            models = dict(self.serving)
            for name in sorted({*names, *members} - self._combined):
                mine = self._settle_model(
                    name,
                    listing.get(name, []),
                    orders.of(name),
                    {version: model for (of, version), model in self.serving.items() if of == name},
                    partial(self._prove, retry=retry),
                    kept={version for of, version in needed if of == name},
                )
                models = {key: one for key, one in models.items() if key[0] != name} | mine
            combinations = keep_whole(combinations, models, self._failures)
            show_clashes(combined, listing, self._failures)
        finally:
            # Held until here, because they take memory although nothing serves them yet.
            self._fresh.clear()
        self.show()
        return Settled(models=models, combinations=combinations, orders=orders)

    def commit(self, settled: Settled) -> tuple[list[Model], list[Model]]:
        """Makes it what serves; returns the models that are new and those that are to drain."""
        self._failures.start_log()
        before, after = self.serving, dict(settled.models)
        self.serving = after
        self.combinations = dict(settled.combinations)
        gone = [model for key, model in before.items() if after.get(key) is not model]
        self.draining = [*self.draining, *gone]
        return [model for key, model in after.items() if before.get(key) is not model], gone

    def forget(self, drained: Model) -> None:
        """Takes a model that finished its last job off the books."""
        self.draining = [model for model in self.draining if model is not drained]
        self.show()

    def knows(self, name: str, version: int | None) -> bool:
        """Whether a model, or one version of it, serves or is in the repository.

        Raises:
            BundleError: The repository cannot be listed.
        """
        versions = {*self.source.list_versions().get(name, ())}
        versions |= {*self.source.list_combinations().get(name, ())}
        versions |= {at for of, at in (*self.serving, *self.combinations) if of == name}
        return bool(versions) if version is None else version in versions

    def require_all(self, settled: Settled, orders: Orders) -> None:
        """Passes when every model that should serve does, for a start that tells its faults.

        Raises:
            StartError: The first model that cannot be served, and why.
        """
        names = {*self.policies, *(self.source.list_versions() if self.default_policy else ())}
        if not names:
            raise BundleError("no bundle in the model repository")
        for name in sorted(names):
            serves = any(of == name for of, _ in (*settled.models, *settled.combinations))
            policy, failure = self.policies.get(name), self.failure(name)
            if failure is not None and (not serves or (policy and policy.specific)):
                raise failure.error
            if not serves and orders.of(name) == ModelOrders():
                raise BundleError(f"no bundle {name!r} in the model repository")

    def failure(self, name: str, version: int | None = None) -> Failure | None:
        """Returns why a version, or the newest that failed of a model, does not serve."""
        return self._failures.find(name, version)

    def unavailable(self) -> tuple[Unavailable, ...]:
        """Returns what does not serve and why, by name and version."""
        states = {
            (model.name, model.version): Unavailable(
                name=model.name, version=model.version, state="draining"
            )
            for model in self.draining
        }
        for (name, version), failure in self._failures:
            states[name, version] = Unavailable(
                name=name,
                version=version,
                state="failed",
                reason=failure.reason,
                is_combination=name in self._combined,
            )
        if self._loading is not None:
            name, version = self._loading
            states[self._loading] = Unavailable(name=name, version=version, state="loading")
        return tuple(states[key] for key in sorted(states))

    def find_users(self, name: str, version: int | None) -> list[str]:
        """Returns the combinations that serve and need a version, or any version, of a model."""
        return sorted(
            one.reference
            for one in self.combinations.values()
            for of, at in list_members([one])
            if of == name and version in (None, at)
        )

    def _settle_combinations(
        self,
        combined: Mapping[str, list[int]],
        listing: Mapping[str, list[int]],
        orders: Orders,
        names: Collection[str] | None,
        retry: bool,
    ) -> dict[Key, CombinedModel]:
        """Returns the combinations that should serve, all of whose members are proved."""
        known = {*combined, *_names(self.combinations)} - listing.keys()
        settled: dict[Key, CombinedModel] = {}
        for name in sorted(known):
            old = {at: one for (of, at), one in self.combinations.items() if of == name}
            is_asked = names is None or name in names
            again = retry and is_asked
            proof = CombinationProof(
                source=self.source,
                orders=orders,
                failures=self._failures,
                retry=again,
                prove_member=partial(self._prove_member, retry=again),
            )
            versions = combined.get(name, [])
            settled |= self._settle_model(name, versions, orders.of(name), old, proof.prove)
        return settled

    def _settle_model(
        self,
        name: str,
        versions: list[int],
        orders: ModelOrders,
        old: Mapping[int, Served],
        prove: Callable[[str, int, Served | None], Served | Failure],
        kept: Collection[int] = (),
    ) -> dict[Key, Served]:
        """Returns what should serve of one name, by their keys; `kept` does whatever happens."""
        policy = self.policies.get(name, self.default_policy)
        proved: dict[int, Served] = {}
        failures: dict[int, Failure] = {}
        while True:
            # A model that left the repository serves on: nothing could follow it.
            chosen = policy.choose(versions or sorted(old), failures) if policy else set()
            wanted = orders.apply(chosen) | set(kept)
            if not (news := wanted - proved.keys() - failures.keys()):
                break
            for version in sorted(news):
                found = prove(name, version, old.get(version))
                if isinstance(found, Failure):
                    failures[version] = found
                else:
                    proved[version] = found
        self._failures.replace(name, failures)
        self.show()
        good = {version: proved.get(version, old.get(version)) for version in wanted}
        if not any(good.values()) and (failures or policy):
            good = {version: old.get(version) for version in orders.apply(set(old))}
        return {(name, version): model for version, model in good.items() if model is not None}

    def _prove(self, name: str, version: int, old: Model | None, *, retry: bool) -> Model | Failure:
        """Returns the version as it is in the repository now: `old`, if that is it."""
        if (fresh := self._fresh.get((name, version))) is not None:
            return fresh
        found = self._prove_now(name, version, old, retry)
        if found is not old:
            self._fresh[name, version] = found
        return found

    def _prove_member(self, name: str, version: int, *, retry: bool) -> Model | Failure:
        return self._prove(name, version, self.serving.get((name, version)), retry=retry)

    def _prove_now(
        self, name: str, version: int, old: Model | None, retry: bool
    ) -> Model | Failure:
        fingerprint = self.source.fingerprint(name, version)
        before = self._failures.get(name, version)
        if before and not retry and before.fingerprint == fingerprint is not None:
            return before
        if old is not None and fingerprint is None:
            return old
        self._loading = (name, version)
        self.show()
        try:
            digest = None if old is None else self.source.read_digest(name, version)
            if old is not None and digest == old.bundle.digest:
                return old
            model = self.prove(self.source.fetch(name, version), self._admit)
        except (StartError, OSError, MemoryError) as error:
            return self._failures.count(name, version, error, fingerprint)
        finally:
            self._loading = None
        return model

    def _admit(self, needed: int) -> None:
        """Lets a model take memory, or raises MemoryBudgetError."""
        if self.memory_bytes is None:
            return
        fresh = (one for one in self._fresh.values() if not isinstance(one, Failure))
        resident = (*self.serving.values(), *self.draining, *fresh)
        taken = sum(model.memory_bytes for model in resident)
        if taken + needed > self.memory_bytes:
            raise MemoryBudgetError(
                f"it needs about {needed / _MIB:.0f} MiB; the loaded models take "
                f"{taken / _MIB:.0f} of the {self.memory_bytes / _MIB:.0f} MiB of "
                "FIVECROP_MODEL_MEMORY_MIB"
            )


def _names(keys: Iterable[Key]) -> set[str]:
    return {name for name, _ in keys}
