"""READ FIRST. One image in, one calibrated answer out: admit, decode, batch, run, postprocess.

Every edge (HTTP, gRPC) comes through `Classifier.classify`, so that an answer cannot depend on how
it was asked for.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from service.batcher import Batcher
from service.bundle.heatmap import draw_views
from service.bundle.image_source import AskedImage, ImageSource, estimate_prepare_s, prepare_source
from service.bundle.manifest import ConformalLevel
from service.bundle.postprocess import average_views, predict
from service.bundle.preprocess import count_views
from service.capture import Capture
from service.classification import (
    Classification,
    ExplainOptions,
    Explanation,
    ModelDescription,
    Options,
    Timings,
)
from service.dispatch import dispatch, draft_unread
from service.errors import RequestError
from service.explain import choose_method, conclude
from service.image_trace import trace_image
from service.metrics import Metrics
from service.model import Model
from service.models import Models, Unavailable
from service.priority import Priority
from service.rate_limit import Allowances
from service.request_images import ask_each
from service.response_cache import ResponseCache
from service.rollout import Rollout
from service.schedule import Job, Outcome
from service.settings import Settings
from service.traffic import STICKY_KEY
from service.trial import TrialDescription, Trials
from service.watch import watch

if TYPE_CHECKING:
    from service.tracing import Tracing

__all__ = ["Classification", "Classifier", "ModelDescription", "Options", "Timings"]


class Classifier:
    """Answers requests with the live models, through one batcher.

    Attributes:
        rollout: The way to change the models while they serve; None when they are fixed.
        trials: The way to try new versions on a part of the traffic, as well.
    """

    def __init__(
        self,
        *,
        models: Models,
        batcher: Batcher,
        settings: Settings,
        metrics: Metrics,
        tracing: Tracing | None = None,
        rollout: Rollout | None = None,
    ) -> None:
        """Makes a classifier that is ready: its models have proved themselves.

        Args:
            models: What can be asked for.
            batcher: What runs it.
            settings: Limits of a request.
            metrics: Where images are counted.
            tracing: Where the spans of images go.
            rollout: The way to change the models while they serve.
        """
        self.rollout = rollout
        self.trials = None if rollout is None else Trials(rollout, metrics, settings.image_limits())
        self._models = models
        self._batcher = batcher
        self._settings = settings
        self._metrics = metrics
        self._tracing = tracing
        self._limits = settings.image_limits()
        self._cache = ResponseCache.build(settings, metrics)
        self._capture = Capture.build(settings, metrics, lambda of: self.describe_model(of).labels)
        self._is_draining = False
        self._allowances = Allowances.build(settings, metrics)

    @classmethod
    def build(
        cls,
        settings: Settings,
        metrics: Metrics,
        *,
        device: int = 0,
        tracing: Tracing | None = None,
    ) -> Classifier:
        """Returns a classifier over the models that the settings name, proved on this machine.

        Raises:
            StartError: A model cannot be served.
        """
        rollout = Rollout.start(settings, metrics, device=device)
        return cls(
            models=rollout.models,
            batcher=rollout.batcher,
            settings=settings,
            metrics=metrics,
            rollout=rollout,
            tracing=tracing,
        )

    @property
    def is_ready(self) -> bool:
        """Whether a load balancer should send requests here."""
        return not self._is_draining

    @property
    def is_draining(self) -> bool:
        """Whether the server is about to stop; requests are still answered."""
        return self._is_draining

    @property
    def is_stuck(self) -> bool:
        """Whether a thread hangs in a decoder or a model, which only a new process heals."""
        return self._batcher.is_stuck

    def start_drain(self) -> None:
        """Makes the server look not ready, while it goes on answering."""
        self._is_draining = True

    async def close(self) -> None:
        """Waits for what is in flight, then stops the threads."""
        self._is_draining = True
        if self.trials is not None:
            self.trials.close()
        await asyncio.to_thread(self._batcher.close, self._settings.shutdown_grace_s)
        if self._capture is not None:
            await asyncio.to_thread(self._capture.close)

    def refuse_early(self, options: Options) -> None:
        """Raises what any image with these options would be refused with now.

        For an edge to ask before it reads one. While nobody is refused it costs nothing.

        Raises:
            RequestError: As `classify`.
        """
        if not self._batcher.is_refusing:
            return
        model = self._models.find(options.model)
        tta, timeout_s = options.check(self._settings.default_timeout_ms)
        deadline = time.monotonic() + timeout_s
        priority = Priority(options.priority)
        self._batcher.judge(draft_unread(model.lane, count_views(tta), deadline, priority))

    async def classify(self, image: ImageSource, options: Options) -> Classification:
        """Returns the answer for one image.

        When the caller is cancelled its job is dropped before it runs, and its batch neighbours
        notice nothing.

        Raises:
            RequestError: The image, an option or the state of the server prevents an answer.
        """
        answer = await self._ask(image, options)
        if self._capture is not None:
            self._capture.offer(image, answer)
        return answer

    async def _ask(self, image: ImageSource, options: Options) -> Classification:
        """Returns the answer of the model that the options mean."""
        if (traffic := self._models.traffic.get(options.model)) is not None:
            return await traffic.answer(image, options, self._answer)
        return await self._answer(self._models.find(options.model), image, options)

    async def _answer(self, model: Model, image: AskedImage, options: Options) -> Classification:
        start = time.monotonic()
        try:
            if self._cache is None:
                result = await self._compute(model, image, options)
            else:
                result = await self._cache.answer(
                    model, image, options, partial(self._compute, model)
                )
        except BaseException:
            self._metrics.models.observe_failure(
                model.name, model.version, time.monotonic() - start
            )
            raise
        self._metrics.models.observe_answer(model.name, model.version, time.monotonic() - start)
        return result

    async def _compute(self, model: Model, image: AskedImage, options: Options) -> Classification:
        start = time.monotonic()
        tta, timeout_s = options.check(self._settings.default_timeout_ms)
        asked = options.coverage
        level = None if asked is None else model.decider.find_level(asked, tta)
        draft = partial(
            Job,
            lane=model.lane,
            prepare=partial(
                prepare_source, image, model.bundle.manifest, tta=tta, limits=self._limits
            ),
            view_count=count_views(tta),
            encoded_bytes=len(image),
            deadline=start + timeout_s,
            priority=Priority(options.priority),
            decode_cost_s=estimate_prepare_s(image, self._limits.max_pixels),
            outputs=model.need_output("embedding")
            if options.embedding
            else model.watched_outputs(),
        )
        job, outcome = await dispatch(self._batcher, draft, self._allowances)
        resumed_at = time.monotonic()
        result = self._conclude(model, outcome, options, level, start)
        if options.has_views:
            pngs = await asyncio.to_thread(draw_views, outcome.prepared.views)
            result = replace(result, view_pngs=pngs)
        if self._tracing is not None:
            trace_image(self._tracing, job, result, resumed_at)
        return result

    async def explain(self, image: bytes, options: ExplainOptions) -> Explanation:
        """Returns where in one encoded image the evidence for a class lies.

        Raises:
            RequestError: As for `classify`; `invalid_argument` for a class or method that the model
                does not have.
        """
        return await self._explain(self._models.find(options.model), image, options)

    async def _explain(self, model: Model, image: bytes, options: ExplainOptions) -> Explanation:
        start = time.monotonic()
        deadline = start + options.check(self._settings.default_timeout_ms)
        method = choose_method(options, model.bundle.manifest)
        draft = method.draft(model, image, self._limits, deadline)
        _, outcome = await dispatch(self._batcher, draft, self._allowances)
        tell = partial(conclude, method, model, outcome, options, start)
        # Drawing takes some milliseconds, which the event loop does not have.
        return await asyncio.to_thread(tell) if options.has_overlay else tell()

    async def classify_many(
        self, images: Sequence[ImageSource], options: Options
    ) -> list[Classification | RequestError]:
        """Returns an answer or an error for each image; one bad image never fails its neighbours.

        Raises:
            RequestError: The options are wrong, whatever the images are.
        """
        self._models.find(options.model)
        if options.model in self._models.traffic and STICKY_KEY.get() is None:
            STICKY_KEY.set(os.urandom(8))  # one version for all of them
        return await self._classify_each(images, options)

    async def _classify_each(
        self, images: Sequence[ImageSource], options: Options
    ) -> list[Classification | RequestError]:
        _, timeout_s = options.check(self._settings.default_timeout_ms)
        return await ask_each(
            self.classify,
            images,
            options,
            timeout_s=timeout_s,
            budget_s=self._settings.max_request_decode_s,
            max_pixels=self._limits.max_pixels,
        )

    def describe_models(self) -> list[ModelDescription]:
        """Returns what is served, by name and version."""
        return [self._models.describe(model) for model in self._models]

    def describe_unavailable(self) -> tuple[Unavailable, ...]:
        """Returns the versions that are known and do not serve, and why."""
        return self._models.unavailable

    def describe_trials(self) -> list[TrialDescription]:
        """Returns the splits and shadows that are ordered, and the roll-backs, by model."""
        return [] if self.trials is None else self.trials.describe()

    def describe_model(self, reference: str) -> ModelDescription:
        """Returns one served model.

        Raises:
            RequestError: `model_not_found`.
        """
        return self._models.describe(self._models.find(reference))

    def _conclude(
        self,
        model: Model,
        outcome: Outcome,
        options: Options,
        level: ConformalLevel | None,
        start: float,
    ) -> Classification:
        resumed_at = time.monotonic()
        probabilities = average_views(outcome.probabilities)
        predictions = predict(probabilities, model.labels, options.top_k)
        best = predictions[0]
        verdict = model.decider.decide(probabilities, best.index)
        label_set = None if level is None else model.decider.label_set(probabilities, level)
        end = time.monotonic()
        timings = Timings(
            decode_s=outcome.decode_s,
            queue_s=outcome.queue_s,
            infer_s=outcome.infer_s,
            total_s=end - start,
        )
        metrics = self._metrics
        trace_id = None if self._tracing is None else self._tracing.current_trace_id()
        metrics.models.observe_stages(
            model.name, model.version, timings, end - resumed_at, outcome.batch_views, trace_id
        )
        metrics.observe_prediction(model.name, model.version, best.label, best.score)
        watch(model, outcome, best, metrics)
        if verdict.abstained:
            metrics.count_abstained(model.name, model.version)
        return Classification(
            model=model.name,
            version=model.version,
            predictions=predictions,
            probabilities=probabilities,
            verdict=verdict,
            reference=model.bundle.manifest.decision.reference,
            label_set=label_set,
            embedding=outcome.embedding if options.embedding else None,
            width=outcome.prepared.width,
            height=outcome.prepared.height,
            format=outcome.prepared.format,
            views=len(outcome.probabilities),
            batch_views=outcome.batch_views,
            timings=timings,
        )
