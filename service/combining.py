"""Ensembles and cascades: answers made of the answers of several models.

A member is asked through the classifier like anybody else's image: its own preprocessing, its own
lane, its own place in the metrics. Members are looked up at each request, so they may be loaded,
replaced and unloaded; a combination whose members are not those it was validated with answers
`not_ready` and never something else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.bundle.combination import (
    Cascade,
    Combination,
    Ensemble,
    FoundCombination,
    Member,
    is_sure,
    read_combinations,
    weigh,
)
from service.bundle.decision import Decider
from service.bundle.image_source import ImageSource
from service.bundle.postprocess import predict
from service.classification import Classification, MemberAnswer, ModelDescription, Options, Timings
from service.classifier import Classifier
from service.errors import ErrorCode, RequestError
from service.metrics import Metrics
from service.model import Model
from service.settings import Settings

if TYPE_CHECKING:
    from service.tracing import Tracing

logger = logging.getLogger(__name__)


def build_classifier(
    settings: Settings, metrics: Metrics, *, device: int = 0, tracing: Tracing | None = None
) -> Classifier:
    """Returns a classifier over the models of the settings; with combinations if there are any.

    Raises:
        StartError: A model cannot be served, or a combination does not parse.
    """
    repository = settings.model_repository
    found = read_combinations(repository) if isinstance(repository, Path) else []
    if not found:
        return Classifier.build(settings, metrics, device=device, tracing=tracing)
    classifier = CombiningClassifier.build(settings, metrics, device=device, tracing=tracing)
    assert isinstance(classifier, CombiningClassifier)
    classifier.combine(found)
    return classifier


@dataclass(frozen=True, slots=True, kw_only=True)
class _Resolved:
    """A combination whose members serve: the models of the members, in their order."""

    manifest: Combination
    models: tuple[Model, ...]


class CombiningClassifier(Classifier):
    """A classifier that also answers for combinations."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self._combinations: dict[str, FoundCombination] = {}

    def combine(self, found: Sequence[FoundCombination]) -> None:
        """Answers for these combinations too; of one name, NAME alone is the last."""
        for one in found:
            self._combinations[one.manifest.reference] = one
            self._combinations[one.manifest.name] = one
            try:
                self._resolve(one)
            except RequestError as error:
                logger.warning("%s does not serve: %s", one.manifest.reference, error.detail)
            else:
                logger.info("%s (%s) serves", one.manifest.reference, one.manifest.kind)

    def refuse_early(self, options: Options) -> None:
        """Raises what any image with these options would be refused with now.

        A combination is refused when its first member is.
        """
        if (found := self._combinations.get(options.model or "")) is not None:
            self._check_combination(found, options)
            first = found.manifest.members[0]
            options = replace(options, model=first.model, tta=first.tta)
        super().refuse_early(options)

    async def _ask(self, image: ImageSource, options: Options) -> Classification:
        found = self._combinations.get(options.model or "")
        if found is None:
            return await super()._ask(image, options)
        start = time.monotonic()
        name, version = found.manifest.name, found.manifest.version
        try:
            answer = await self._combine(found, image, options, start)
        except BaseException:
            self._metrics.models.observe_failure(name, version, time.monotonic() - start)
            raise
        self._metrics.models.observe_answer(name, version, time.monotonic() - start)
        return answer

    async def classify_many(
        self, images: Sequence[ImageSource], options: Options
    ) -> list[Classification | RequestError]:
        """Returns an answer or an error for each image, as `Classifier.classify_many`."""
        found = self._combinations.get(options.model or "")
        if found is None:
            return await super().classify_many(images, options)
        self._check_combination(found, options)
        options.check(self._settings.default_timeout_ms)
        return await self._classify_each(images, options)

    def describe_models(self) -> list[ModelDescription]:
        """Returns what is served: the bundles, then the combinations whose members are."""
        described = super().describe_models()
        for reference, found in sorted(self._combinations.items()):
            if "@" in reference:
                try:
                    described.append(self._describe_combination(found))
                except RequestError:
                    continue  # its members may come back
        return described

    def describe_model(self, reference: str) -> ModelDescription:
        """Returns one served model, as `Classifier.describe_model`."""
        found = self._combinations.get(reference)
        if found is None:
            return super().describe_model(reference)
        return self._describe_combination(found)

    async def _combine(
        self, found: FoundCombination, image: ImageSource, options: Options, start: float
    ) -> Classification:
        resolved = self._check_combination(found, options)
        _, timeout_s = options.check(self._settings.default_timeout_ms)
        deadline = start + timeout_s
        if isinstance(found.manifest, Cascade):
            return await self._escalate(found.manifest, image, options, start, deadline)
        return await self._average(found.manifest, resolved, image, options, start, deadline)

    async def _escalate(
        self, cascade: Cascade, image: ImageSource, options: Options, start: float, deadline: float
    ) -> Classification:
        """Returns the answer of the first stage that is sure, or of the last."""
        answers = []
        for stage in cascade.members:
            answer = await self._ask_member(stage, image, options, deadline)
            answers.append(answer)
            if is_sure(answer.predictions[0].score, stage):
                break
        ran = cascade.members[: len(answers)]
        timings = Timings(
            decode_s=sum(one.timings.decode_s for one in answers),
            queue_s=sum(one.timings.queue_s for one in answers),
            infer_s=sum(one.timings.infer_s for one in answers),
            total_s=time.monotonic() - start,
        )
        return self._sign(cascade, replace(answer, timings=timings), ran, answers)

    async def _average(
        self,
        ensemble: Ensemble,
        resolved: _Resolved,
        image: ImageSource,
        options: Options,
        start: float,
        deadline: float,
    ) -> Classification:
        """Returns the weighted mean of what all members say."""
        asked = [
            asyncio.ensure_future(self._ask_member(member, image, options, deadline))
            for member in ensemble.members
        ]
        try:
            answers = await asyncio.gather(*asked)
        finally:
            # Without one member there is no answer: the others need not go on.
            for one in asked:
                one.cancel()
        first = resolved.models[0]
        probabilities = weigh([one.probabilities for one in answers], ensemble)
        predictions = predict(probabilities, first.labels, options.top_k)
        decider = Decider(ensemble.decision, first.bundle.manifest.labels)
        timings = Timings(
            decode_s=max(one.timings.decode_s for one in answers),
            queue_s=max(one.timings.queue_s for one in answers),
            infer_s=max(one.timings.infer_s for one in answers),
            total_s=time.monotonic() - start,
        )
        answer = replace(
            answers[0],
            predictions=predictions,
            probabilities=probabilities,
            verdict=decider.decide(probabilities, predictions[0].index),
            reference=ensemble.decision.reference,
            timings=timings,
        )
        return self._sign(ensemble, answer, ensemble.members, answers)

    async def _ask_member(
        self, member: Member, image: ImageSource, options: Options, deadline: float
    ) -> Classification:
        left_ms = (deadline - time.monotonic()) * 1000
        asked = replace(options, model=member.model, tta=member.tta, timeout_ms=left_ms)
        return await super()._ask(image, asked)

    def _sign(
        self,
        manifest: Combination,
        answer: Classification,
        members: Sequence[Member],
        answers: Sequence[Classification],
    ) -> Classification:
        """Returns the answer as that of the combination, saying which members ran."""
        best = answer.predictions[0]
        self._metrics.observe_prediction(manifest.name, manifest.version, best.label, best.score)
        if answer.verdict.abstained:
            self._metrics.count_abstained(manifest.name, manifest.version)
        return replace(
            answer,
            model=manifest.name,
            version=manifest.version,
            views=sum(one.views for one in answers),
            members=tuple(
                MemberAnswer(
                    model=one.model,
                    version=one.version,
                    tta=member.tta,
                    label=one.predictions[0].label,
                    score=one.predictions[0].score,
                )
                for member, one in zip(members, answers, strict=True)
            ),
        )

    def _check_combination(self, found: FoundCombination, options: Options) -> _Resolved:
        """Returns the combination when its members serve; refuses what it cannot be asked."""
        if options.tta != "none":
            raise _invalid("this model chooses its views itself: leave tta out")
        if options.coverage is not None:
            raise _invalid("this model has no label sets")
        return self._resolve(found)

    def _resolve(self, found: FoundCombination) -> _Resolved:
        models = []
        for member in found.manifest.members:
            try:
                model = self._models.find(member.model)
            except RequestError:
                raise _not_ready("a member of this model is not served") from None
            if model.bundle.digest != member.digest:
                raise _not_ready("a member of this model is not the one it was validated with")
            models.append(model)
        if any(model.labels != models[0].labels for model in models[1:]):
            raise _not_ready("the members of this model have different labels")
        return _Resolved(manifest=found.manifest, models=tuple(models))

    def _describe_combination(self, found: FoundCombination) -> ModelDescription:
        manifest = found.manifest
        resolved = self._resolve(found)
        first, *_ = described = [self._models.describe(model) for model in resolved.models]
        decision = manifest.decision if isinstance(manifest, Ensemble) else described[-1].decision
        return replace(
            first,
            name=manifest.name,
            version=manifest.version,
            variant="+".join(sorted({one.variant for one in described})),
            is_default=False,
            digest=found.digest,
            top1=None if manifest.measured is None else manifest.measured.top1,
            decision=decision,
            memory_bytes=0,
            kind=manifest.kind,
            members=tuple(member.model for member in manifest.members),
            card=None,
        )


def _invalid(detail: str) -> RequestError:
    return RequestError(ErrorCode.INVALID_ARGUMENT, detail)


def _not_ready(detail: str) -> RequestError:
    return RequestError(ErrorCode.NOT_READY, detail)
