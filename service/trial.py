"""Tries a new version on a part of the traffic: split, shadow, promotion, roll-back, report.

What is ordered is in the orders file, so all workers and the next start agree on it; what happens
to be live of it is made anew whenever the models change.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from service.bundle.decode import Limits
from service.error_watch import ErrorWatch
from service.errors import ErrorCode, FivecropError, RequestError
from service.live_set import Settled
from service.metrics import Metrics
from service.model import Model
from service.models import STABLE
from service.orders import ModelOrders
from service.rollout import Rollout
from service.shadowing import Shadowing
from service.spare_time import SpareTime
from service.traffic import Branch, Traffic
from service.traffic_metrics import Tally
from service.traffic_orders import RolledBack, Shadow, Split
from service.trial_gate import Gate

# What is left when shares that sum to 1 are taken from 1.
_LEAST_SHARE: Final = 1e-9

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialDescription:
    """What is ordered for the traffic of one model, and what became of the last one."""

    name: str
    split: Split | None
    shadow: Shadow | None
    rolled_back: RolledBack | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a trial goes: what is ordered, and what all workers counted since the server started."""

    trial: TrialDescription
    tally: Tally


class Trials:
    """The splits and shadows of all models of one worker."""

    def __init__(self, rollout: Rollout, metrics: Metrics, limits: Limits) -> None:
        """Follows a rollout from now on; images may cost as much as the limits say."""
        self._rollout = rollout
        self._metrics = metrics
        self._limits = limits
        self._spare_time = SpareTime(lambda: rollout.batcher.has_idle_thread)
        self._orders: Mapping[str, ModelOrders] = {}
        self._live: dict[str, tuple[object, Traffic]] = {}
        self._rolling_back: dict[tuple[str, str], asyncio.Task[None]] = {}
        rollout.on_commit(self._commit)

    def describe(self) -> list[TrialDescription]:
        """Returns what is ordered, by model; models without anything are left out."""
        return [
            TrialDescription(
                name=name, split=one.split, shadow=one.shadow, rolled_back=one.rolled_back
            )
            for name, one in sorted(self._orders.items())
            if one.split or one.shadow or one.rolled_back
        ]

    async def split(self, name: str, split: Split | None) -> None:
        """Lets targets answer their shares of the requests that name the model alone.

        Raises:
            RequestError: `model_not_found`, also for a target that does not serve;
                `invalid_argument`.
        """
        for target in split.shares if split else ():
            self._check_target(name, target)
        await self._rollout.change(name, lambda orders: orders.direct(split=split))

    async def shadow(self, name: str, shadow: Shadow | None) -> None:
        """Lets a target be asked a share of those requests too, and compares what it says.

        Raises:
            RequestError: As `split`.
        """
        if shadow is not None:
            self._check_target(name, shadow.target)
        await self._rollout.change(name, lambda orders: orders.watch(shadow=shadow))

    async def report(self, name: str) -> Report:
        """Returns what is ordered for a model, and what all workers counted of it.

        Raises:
            RequestError: `model_not_found`.
        """
        self._rollout.models.find(name)
        tally = await asyncio.to_thread(self._metrics.read_tally, name)
        described = [one for one in self.describe() if one.name == name]
        nothing = TrialDescription(name=name, split=None, shadow=None, rolled_back=None)
        return Report(trial=described[0] if described else nothing, tally=tally)

    async def promote(self, name: str, gate: Gate) -> None:
        """Makes a target the stable version, and ends its trial, if it passes the gate.

        Raises:
            RequestError: `promotion_refused` with the numbers; as `split`.
        """
        self._check_target(name, gate.target)
        models = self._rollout.models
        stable, candidate = models.find(name), models.find(f"{name}@{gate.target}")
        tally = await asyncio.to_thread(self._metrics.read_tally, name)
        gate.check(tally.compare(stable.version, candidate.version))

        def change(orders: ModelOrders) -> ModelOrders:
            if orders.find(gate.target) != candidate.version:
                raise RequestError(
                    ErrorCode.PROMOTION_REFUSED, f"{gate.target} is another version by now"
                )
            return orders.promote(gate.target, STABLE)

        await self._rollout.change(name, change, version=candidate.version, must_serve=True)
        logger.info("%s@%d is promoted to %s", name, candidate.version, STABLE)

    def close(self) -> None:
        """Forgets the comparisons that wait."""
        self._spare_time.close()

    def _check_target(self, name: str, target: str) -> None:
        if target == STABLE:
            raise RequestError(
                ErrorCode.INVALID_ARGUMENT, "what the targets leave is the stable version's anyway"
            )
        self._rollout.models.find(f"{name}@{target}")

    def _commit(self, settled: Settled) -> None:
        """Makes the traffic anew where anything changed; the rest keeps what it has seen."""
        self._orders = settled.orders.models
        live = {}
        for name, orders in self._orders.items():
            branches = self._branch(name, orders.split)
            shadow = self._find_shadow(name, orders.shadow)
            if not branches or (shadow is None and not any(one.target for one in branches)):
                continue
            key = (
                orders.split,
                [(branch.target, branch.model.load) for branch in branches],
                orders.shadow,
                shadow and shadow.load,
            )
            before = self._live.get(name)
            if before is not None and before[0] == key:
                live[name] = before
            else:
                live[name] = (
                    key,
                    Traffic(
                        branches,
                        self._metrics,
                        watch=self._watch(name, orders.split),
                        shadowing=self._make_shadowing(shadow, orders.shadow),
                    ),
                )
        self._live = live
        self._rollout.models.direct({name: traffic for name, (_, traffic) in live.items()})

    def _branch(self, name: str, split: Split | None) -> list[Branch]:
        """Returns what answers: the targets that serve, and what the name means for the rest."""
        models = self._rollout.models
        stable = models.get(name)
        if stable is None:
            return []
        branches = [
            Branch(target=target, model=model, share=share)
            for target, share in (split.shares.items() if split else ())
            if (model := models.get(f"{name}@{target}")) is not None and model is not stable
        ]
        rest = 1.0 - math.fsum(branch.share for branch in branches)
        if rest > _LEAST_SHARE:
            branches.append(Branch(target="", model=stable, share=rest))
        return branches

    def _find_shadow(self, name: str, shadow: Shadow | None) -> Model | None:
        return None if shadow is None else self._rollout.models.get(f"{name}@{shadow.target}")

    def _make_shadowing(self, model: Model | None, shadow: Shadow | None) -> Shadowing | None:
        if model is None or shadow is None:
            return None
        return Shadowing(
            model,
            shadow.share,
            limits=self._limits,
            spare_time=self._spare_time,
            metrics=self._metrics,
        )

    def _watch(self, name: str, split: Split | None) -> ErrorWatch | None:
        if split is None or split.max_error_excess is None:
            return None
        return ErrorWatch(split.max_error_excess, partial(self._blame, name))

    def _blame(self, name: str, target: str, reason: str) -> None:
        """Sends a target nothing more and starts to roll it back, unless that is under way."""
        models = self._rollout.models
        stable, failed = models.get(name), models.get(f"{name}@{target}")
        if stable is None or failed is None or (name, target) in self._rolling_back:
            return
        # Writing the orders and telling the other workers takes its time.
        if name in self._live:
            self._live[name][1].withdraw(target, stable)
        task = asyncio.create_task(self._roll_back(name, target, stable, failed, reason))
        self._rolling_back[name, target] = task
        task.add_done_callback(lambda _: self._rolling_back.pop((name, target)))

    async def _roll_back(
        self, name: str, target: str, stable: Model, failed: Model, reason: str
    ) -> None:
        event = RolledBack(
            at=datetime.datetime.now(datetime.UTC),
            target=target,
            version=failed.version,
            to_version=stable.version,
            reason=reason,
        )
        was_done_here = False

        def change(orders: ModelOrders) -> ModelOrders:
            nonlocal was_done_here
            after = orders.roll_back(event)
            was_done_here = after != orders  # and not by another worker a moment ago
            return after

        try:
            await self._rollout.change(name, change)
        except FivecropError as error:
            logger.error("%s@%s cannot be rolled back everywhere: %s", name, target, error)
        if was_done_here:
            logger.error("%s@%d (%s) is rolled back: %s", name, failed.version, target, reason)
            self._metrics.traffic.count_rollback(name, failed.version)
