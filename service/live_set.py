"""What should serve now, every bit of it proved: repository, policy and orders come together here.

The outcome depends on the repository and the orders, not on the order in which they changed, with
one exception that serves everybody: what serves goes on when there is nothing good to follow it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field

from service.bundle.repository import Bundle
from service.bundle_source import BundleSource
from service.errors import (
    BundleError,
    GoldenError,
    MemoryBudgetError,
    ProviderError,
    StartError,
)
from service.metrics import LoadFailure, Metrics
from service.model import Model
from service.models import Unavailable
from service.orders import ModelOrders, Orders
from service.version_policy import VersionPolicy

_MIB = 1024 * 1024

Key = tuple[str, int]
Prove = Callable[[Bundle, Callable[[int], None]], Model]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a version does not serve, and the state of its files that this is about."""

    error: StartError
    reason: str
    fingerprint: Hashable


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What should serve from now on, and the orders to serve it by."""

    models: Mapping[Key, Model]
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
        serving: What serves; replaced by `commit`.
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
    draining: list[Model] = field(default_factory=list)
    _failures: dict[Key, Failure] = field(default_factory=dict)
    _loading: Key | None = None
    _has_started: bool = False
    _fresh: dict[Key, Model] = field(default_factory=dict)

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
        known = {*listing, *self.policies, *orders.models, *(name for name, _ in self.serving)}
        models = dict(self.serving)
        try:
            for name in sorted(known if names is None else names):
                mine = self._settle_model(name, listing.get(name, []), orders.of(name), retry)
                models = {key: one for key, one in models.items() if key[0] != name} | mine
        finally:
            # Held until here, because they take memory although nothing serves them yet.
            self._fresh.clear()
        return Settled(models=models, orders=orders)

    def commit(self, settled: Settled) -> tuple[list[Model], list[Model]]:
        """Makes it what serves; returns the models that are new and those that are to drain."""
        if not self._has_started:
            # Until now a failure may have been why the server does not start: one line, not two.
            for key, failure in self._failures.items():
                _log_failure(key, failure)
            self._has_started = True
        before, after = self.serving, dict(settled.models)
        self.serving = after
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
        versions |= {at for of, at in self.serving if of == name}
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
            serves = any(of == name for of, _ in settled.models)
            policy, failure = self.policies.get(name), self.failure(name)
            if failure is not None and (not serves or (policy and policy.specific)):
                raise failure.error
            if not serves and orders.of(name) == ModelOrders():
                raise BundleError(f"no bundle {name!r} in the model repository")

    def failure(self, name: str, version: int | None = None) -> Failure | None:
        """Returns why a version, or the newest that failed of a model, does not serve."""
        keys = [key for key in self._failures if key[0] == name and version in (None, key[1])]
        return self._failures[max(keys)] if keys else None

    def unavailable(self) -> tuple[Unavailable, ...]:
        """Returns what does not serve and why, by name and version."""
        states = {
            (model.name, model.version): Unavailable(
                name=model.name, version=model.version, state="draining"
            )
            for model in self.draining
        }
        for (name, version), failure in self._failures.items():
            states[name, version] = Unavailable(
                name=name, version=version, state="failed", reason=failure.reason
            )
        if self._loading is not None:
            name, version = self._loading
            states[self._loading] = Unavailable(name=name, version=version, state="loading")
        return tuple(states[key] for key in sorted(states))

    def _settle_model(
        self, name: str, versions: list[int], orders: ModelOrders, retry: bool
    ) -> dict[Key, Model]:
        """Returns the models of one name that should serve, by their keys."""
        old = {version: model for (of, version), model in self.serving.items() if of == name}
        policy = self.policies.get(name, self.default_policy)
        proved: dict[int, Model] = {}
        failures: dict[int, Failure] = {}
        while True:
            # A model that left the repository serves on: nothing could follow it.
            chosen = policy.choose(versions or sorted(old), failures) if policy else set()
            wanted = orders.apply(chosen)
            if not (news := wanted - proved.keys() - failures.keys()):
                break
            for version in sorted(news):
                found = self._prove(name, version, old.get(version), retry)
                if isinstance(found, Failure):
                    failures[version] = found
                else:
                    proved[version] = found
        self._remember(name, failures)
        good = {version: proved.get(version, old.get(version)) for version in wanted}
        if not any(good.values()) and (failures or policy):
            good = {version: old.get(version) for version in orders.apply(set(old))}
        return {(name, version): model for version, model in good.items() if model is not None}

    def _prove(self, name: str, version: int, old: Model | None, retry: bool) -> Model | Failure:
        """Returns the version as it is in the repository now: `old`, if that is it."""
        fingerprint = self.source.fingerprint(name, version)
        before = self._failures.get((name, version))
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
            self.metrics.count_load_failure(f"{name}@{version}", _classify(error))
            failure = Failure(
                error=error if isinstance(error, StartError) else BundleError(str(error)),
                reason=self.source.hide_place(str(error)),
                # Room may be made, and a machine may recover, without a change of the files.
                fingerprint=fingerprint if isinstance(error, BundleError) else None,
            )
            if self._has_started:
                _log_failure((name, version), failure)
            return failure
        finally:
            self._loading = None
        self._fresh[name, version] = model
        return model

    def _admit(self, needed: int) -> None:
        """Lets a model take memory, or raises MemoryBudgetError."""
        if self.memory_bytes is None:
            return
        resident = (*self.serving.values(), *self.draining, *self._fresh.values())
        taken = sum(model.memory_bytes for model in resident)
        if taken + needed > self.memory_bytes:
            raise MemoryBudgetError(
                f"it needs about {needed / _MIB:.0f} MiB; the loaded models take "
                f"{taken / _MIB:.0f} of the {self.memory_bytes / _MIB:.0f} MiB of "
                "FIVECROP_MODEL_MEMORY_MIB"
            )

    def _remember(self, name: str, failures: Mapping[int, Failure]) -> None:
        self._failures = {key: one for key, one in self._failures.items() if key[0] != name}
        self._failures |= {(name, version): one for version, one in failures.items()}
        self.show()


def _classify(error: Exception) -> LoadFailure:
    match error:
        case GoldenError():
            return "golden"
        case BundleError():
            return "bundle"
        case ProviderError():
            return "provider"
        case MemoryBudgetError() | MemoryError():
            return "memory"
        case _:
            return "other"


def _log_failure(key: Key, failure: Failure) -> None:
    logger.error("%s@%d is not served: %s", *key, failure.error)
