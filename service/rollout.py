"""Changes what serves while it serves: load, unload, reload and label, without a failed request.

A change is proved beside what serves, takes its place from one lookup to the next, and only then
does the old one finish its last jobs and give its memory back. Whatever goes wrong before that
leaves everything as it was.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final, Self

from service.batcher import Batcher
from service.bundle_source import open_cache, open_source
from service.combined_model import CombinedModel
from service.cores import count_cores
from service.errors import ErrorCode, MemoryBudgetError, RequestError, StartError
from service.live_set import LiveSet, Settled
from service.load_failures import Failure
from service.memory import give_back_free_pages
from service.metrics import Metrics
from service.model import Model, load_model
from service.models import Models
from service.orders import LABEL_PATTERN, ORDERS_FILE, ModelOrders, OrdersChange, OrdersFile
from service.settings import Settings
from service.version_policy import parse_policies, parse_policy

# Longer than any deadline: by then each job of a model was answered, or its engine hangs.
_LONGEST_DRAIN_S: Final = 660.0

TellOthers = Callable[[str, Collection[int]], Awaitable[bool]]
OnCommit = Callable[[Settled], None]

logger = logging.getLogger(__name__)


class Rollout:
    """The live models of one worker and the way to change them.

    Attributes:
        models: The table that requests are looked up in.
        batcher: What runs them.
        tell_others: Called after a change with the name of its model and the versions that serve;
            returns, when the other workers have followed, whether all of them serve the same.
    """

    def __init__(self, live: LiveSet, orders: OrdersFile, models: Models, batcher: Batcher) -> None:
        """Takes the parts; `start` makes them."""
        self.models = models
        self.batcher = batcher
        self.tell_others: TellOthers | None = None
        self._live = live
        self._orders = orders
        self._changing = asyncio.Lock()
        self._committed: Settled | None = None
        # Combinations that nobody finds any more; requests may still be with their members.
        self._leaving: list[CombinedModel] = []
        self._on_commit: OnCommit = lambda _: None
        live.show = self._show

    @classmethod
    def start(cls, settings: Settings, metrics: Metrics, *, device: int) -> Self:
        """Returns the live models that the settings and the orders name, proved on this machine.

        Raises:
            StartError: A model cannot be served, and why, in one line.
        """
        live = _make_live_set(settings, metrics, device)
        orders_file = OrdersFile(settings.model_orders or _place_orders(settings))
        orders = orders_file.read()
        settled = live.settle(orders)
        live.require_all(settled, orders)
        served = list(settled.models.values())
        combinations = list(settled.combinations.values())
        models = Models(served, settings.default_model, settled.version_labels, combinations)
        rollout = cls(live, orders_file, models, _make_batcher(served, settings, metrics))
        rollout._commit(settled)
        return rollout

    async def load(self, name: str, version: int | None) -> None:
        """Serves a version until it is unloaded; None is what the policy chooses.

        Raises:
            RequestError: `model_not_found`, `model_load_failed`, `memory_exceeded`.
        """
        await self.change(
            name, lambda orders: orders.load(version), version=version, must_serve=True
        )
        if not self.versions(name):
            raise RequestError(
                ErrorCode.MODEL_LOAD_FAILED, "the settings choose no version of it: name one"
            )

    async def unload(self, name: str, version: int | None) -> None:
        """Serves a version, or for None no version, no more, until it is loaded again.

        Raises:
            RequestError: `model_not_found`; `invalid_argument` while the version has a label, or a
                combination needs it.
        """
        if users := self._live.find_users(name, version):
            raise RequestError(
                ErrorCode.INVALID_ARGUMENT, f"{users[0]} is made of it: unload that first"
            )

        def unload(orders: ModelOrders) -> ModelOrders:
            for label, labelled in orders.labels.items():
                if labelled == version:
                    raise RequestError(
                        ErrorCode.INVALID_ARGUMENT,
                        f"the version has the label {label}: give it to another version first",
                    )
            return orders.unload(version)

        await self.change(name, unload, version=version)

    async def reload(self, name: str) -> None:
        """Serves what the repository has now: newer versions, changed ones, those that failed.

        Raises:
            RequestError: `model_not_found`, `model_load_failed`, `memory_exceeded`.
        """
        await self.change(name, lambda orders: orders, must_serve=True)

    async def label(self, name: str, label: str, version: int | None) -> None:
        """Lets NAME@LABEL mean a version, loading it if need be; None takes the label away.

        Raises:
            RequestError: `invalid_argument`, `model_not_found`, `model_load_failed`,
                `memory_exceeded`.
        """
        if not LABEL_PATTERN.fullmatch(label):
            raise RequestError(
                ErrorCode.INVALID_ARGUMENT,
                "a label starts with a lower-case letter, goes on with letters, digits, '.', '_' "
                "or '-', has at most 32 characters, and is neither 'latest' nor 'all'",
            )
        await self.change(
            name,
            lambda orders: orders.label(label, version),
            version=version,
            must_serve=version is not None,
        )

    async def follow(self, names: Collection[str] | None = None, *, retry: bool = False) -> None:
        """Serves what the repository and the orders say now; failures leave the old one serving.

        Args:
            names: The models to look at; None is all of them.
            retry: Whether to try versions again that failed before and have not changed since.

        Raises:
            BundleError: The repository or the orders cannot be read; everything is as before.
        """
        async with self._changing:
            orders = await asyncio.to_thread(self._orders.read)
            settled = await asyncio.to_thread(self._live.settle, orders, names, retry=retry)
            gone = self._commit(settled)
        await self._free(gone)

    async def list_repository(self) -> dict[str, list[int]]:
        """Returns the versions of every model and combination in the repository, oldest first.

        Raises:
            RequestError: `model_load_failed`: it cannot be listed.
        """
        source = self._live.source
        try:
            combined = await asyncio.to_thread(source.list_combinations)
            return combined | await asyncio.to_thread(source.list_versions)
        except StartError as error:
            raise self._refusal(error) from error

    def on_commit(self, call: OnCommit) -> None:
        """Calls with what serves now, and again at each change, before the next look-up."""
        self._on_commit = call
        if self._committed is not None:
            call(self._committed)

    def versions(self, name: str) -> list[int]:
        """Returns the versions of a model, or of a combination, that serve."""
        live = self._live
        return sorted(at for of, at in (*live.serving, *live.combinations) if of == name)

    async def change(
        self,
        name: str,
        change: OrdersChange,
        *,
        version: int | None = None,
        must_serve: bool = False,
    ) -> None:
        """Proves what the changed orders need, writes them, and lets every worker follow them.

        Args:
            name: The model.
            change: From its orders to its orders; may be called more than once.
            version: The version that the change is about; None is no particular one.
            must_serve: Whether to refuse the change when that does not serve.

        Raises:
            RequestError: `model_not_found`, `model_load_failed`, `memory_exceeded`.
        """
        async with self._changing:
            try:
                failure, gone = await self._order(name, change, version, must_serve)
            except StartError as error:
                raise self._refusal(error) from error
        await self._free(gone)
        if self.tell_others is not None and not await self.tell_others(name, self.versions(name)):
            raise RequestError(
                ErrorCode.MODEL_LOAD_FAILED, "another worker could not follow; its log says why"
            )
        if must_serve and failure is not None:
            raise self._refusal(failure.error)

    async def _order(
        self, name: str, change: OrdersChange, version: int | None, must_serve: bool
    ) -> tuple[Failure | None, list[Model]]:
        """Does a change in this worker; returns what failed of it and what is to drain."""
        live = self._live
        if not await asyncio.to_thread(live.knows, name, version):
            raise RequestError(ErrorCode.MODEL_NOT_FOUND, "no such model or version")
        before = await asyncio.to_thread(self._orders.read)
        orders = before.change(name, change)
        settled = await asyncio.to_thread(live.settle, orders, {name}, retry=True)
        failure = live.failure(name, version)
        if failure is not None and must_serve and version is not None:
            raise failure.error
        if orders != before:
            await asyncio.to_thread(self._orders.change, name, change)
        return failure, self._commit(settled)

    def _refusal(self, error: StartError) -> RequestError:
        is_memory = isinstance(error, MemoryBudgetError)
        code = ErrorCode.MEMORY_EXCEEDED if is_memory else ErrorCode.MODEL_LOAD_FAILED
        return RequestError(code, self._live.source.hide_place(error.without_cause))

    def _commit(self, settled: Settled) -> list[Model]:
        """Lets requests find exactly these models; returns those that nobody finds any more.

        Runs in the thread of the event loop, as the look-ups do, without a pause in between: a
        request that found a model has submitted its job before this begins.
        """
        before, after = self._live.combinations, settled.combinations
        new, gone = self._live.commit(settled)
        for model in new:
            self.batcher.add_lane(model.lane)
        self._leaving += [one for key, one in before.items() if after.get(key) is not one]
        self.models.replace(
            list(settled.models.values()), settled.version_labels, list(after.values())
        )
        self._committed = settled
        self._on_commit(settled)
        self._show()
        for model in gone:
            self._live.metrics.hide_model(**_describe(model))
        for model in new:
            self._live.metrics.show_model(**_describe(model))
            logger.info("%s serves", model.bundle.reference)
        for key, one in after.items():
            if before.get(key) is not one:
                logger.info("%s (%s) serves", one.reference, one.manifest.kind)
        return gone

    async def _free(self, gone: list[Model]) -> None:
        """Lets models finish their last jobs, then gives their memory back."""
        for combination in self._leaving:
            await combination.wait_until_idle()
        self._leaving = [one for one in self._leaving if one.is_held]
        if not gone:
            return
        while gone:
            model = gone.pop()
            reference = model.bundle.reference
            is_drained = await asyncio.to_thread(
                self.batcher.retire_lane, model.lane, _LONGEST_DRAIN_S
            )
            self._live.forget(model)
            logger.info("%s %s", reference, "is drained and freed" if is_drained else "hangs")
        del model
        await asyncio.to_thread(give_back_free_pages)

    def _show(self) -> None:
        self.models.unavailable = self._live.unavailable()


def _place_orders(settings: Settings) -> Path:
    if isinstance(settings.model_repository, Path):
        return settings.model_repository / ORDERS_FILE
    cache = open_cache(settings).folder
    cache.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(settings.model_repository.encode()).hexdigest()
    return cache / f"{digest[:16]}{ORDERS_FILE}"


def _make_live_set(settings: Settings, metrics: Metrics, device: int) -> LiveSet:
    memory_mib = settings.model_memory_mib
    return LiveSet(
        source=open_source(settings),
        policies=parse_policies(settings.models, settings.version_policy),
        default_policy=None if settings.models else parse_policy(settings.version_policy),
        prove=lambda bundle, admit: load_model(bundle, settings, device=device, admit=admit),
        memory_bytes=None if memory_mib is None else memory_mib * 1024 * 1024,
        metrics=metrics,
    )


def _make_batcher(models: Sequence[Model], settings: Settings, metrics: Metrics) -> Batcher:
    """Returns the one batcher under all models, with as many threads as this machine deserves."""
    on_gpu = any(model.engine.provider == "cuda" for model in models)
    threads = settings.compute_threads
    if threads == 0:
        threads = max(1, count_cores() // settings.workers)
    return Batcher(
        compute_threads=threads,
        device_threads=1 if on_gpu else 0,
        max_queue_views=settings.max_queue_views,
        max_queue_bytes=settings.max_queue_bytes,
        max_queue_decode_s=settings.max_queue_decode_s,
        max_model_share=settings.max_model_share,
        metrics=metrics,
    )


def _describe(model: Model) -> dict[str, Any]:
    return {
        "model": model.name,
        "version": model.version,
        "variant": model.variant.precision,
        "provider": model.engine.provider,
        "digest": model.bundle.digest,
    }
