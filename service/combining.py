"""Ensembles and cascades: answers made of the answers of several models.

A member is asked like the model that it is: its own preprocessing, its own lane, its own place in
the metrics. A combination that cannot serve, because its members are not those it was validated
with, answers `not_ready` and why, and never something else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from service.bundle.combination import Cascade, Ensemble, Member, is_sure
from service.bundle.decision import Decider
from service.bundle.image_source import AskedImage, ImageSource
from service.bundle.postprocess import Prediction, predict, weigh
from service.bundle.shared_image import SharedImage
from service.classification import (
    Classification,
    ExplainOptions,
    Explanation,
    MemberAnswer,
    ModelDescription,
    Options,
    Timings,
)
from service.classifier import Classifier
from service.combined_model import CombinedModel
from service.errors import ErrorCode, RequestError
from service.explain import choose_method
from service.model import Model


class CombiningClassifier(Classifier):
    """A classifier that also answers for combinations; without any it looks into an empty table."""

    def refuse_early(self, options: Options) -> None:
        """Raises what any image with these options would be refused with now.

        A combination is refused when its first member is.
        """
        if (found := self._models.combinations.get(options.model)) is not None:
            _check(options)
            first = found.manifest.members[0]
            options = replace(options, model=first.model, tta=first.tta)
        super().refuse_early(options)

    async def _ask(self, image: ImageSource, options: Options) -> Classification:
        found = self._models.combinations.get(options.model)
        if found is None:
            return await super()._ask(image, options)
        start = time.monotonic()
        try:
            with found.hold():
                answers = await self._ask_members(found, image, options)
            answer = self._sign(found, _join(found, answers, options, start), answers)
        except BaseException:
            self._metrics.models.observe_failure(
                found.name, found.version, time.monotonic() - start
            )
            raise
        self._metrics.models.observe_answer(found.name, found.version, time.monotonic() - start)
        return answer

    async def classify_many(
        self, images: Sequence[ImageSource], options: Options
    ) -> list[Classification | RequestError]:
        """Returns an answer or an error for each image, as `Classifier.classify_many`."""
        if self._models.combinations.get(options.model) is None:
            return await super().classify_many(images, options)
        _check(options)
        return await self._classify_each(images, options)

    async def explain(self, image: bytes, options: ExplainOptions) -> Explanation:
        """Returns the evidence of one member for what the combination says, as `Classifier`.

        Of a cascade it is the member that decides, of an ensemble the one that says most for the
        class, by its weight.
        """
        found = self._models.combinations.get(options.model)
        if found is None:
            return await super().explain(image, options)
        for model in found.models:
            choose_method(options, model.bundle.manifest)
        start = time.monotonic()
        deadline = start + options.check(self._settings.default_timeout_ms)
        asked = Options(model=options.model, timeout_ms=options.timeout_ms)
        with found.hold():
            answers = await self._ask_members(found, image, asked)
            answer = _join(found, answers, asked, start)
            index = answer.predictions[0].index if options.index is None else options.index
            model = found.models[_choose_member(found, answers, index)]
            left_ms = (deadline - time.monotonic()) * 1000
            explanation = await self._explain(
                model, image, replace(options, index=index, timeout_ms=left_ms)
            )
        best = Prediction(
            label=model.labels[index], index=index, score=float(answer.probabilities[index])
        )
        return replace(
            explanation,
            model=found.name,
            version=found.version,
            prediction=best,
            member=model.bundle.reference,
            timings=replace(explanation.timings, total_s=time.monotonic() - start),
        )

    def describe_models(self) -> list[ModelDescription]:
        """Returns what is served: the bundles, then the combinations."""
        combinations = {one.reference: one for one in self._models.combinations.values()}
        described = [self._describe_combination(one) for one in combinations.values()]
        return [*super().describe_models(), *described]

    def describe_model(self, reference: str) -> ModelDescription:
        """Returns one served model, as `Classifier.describe_model`."""
        found = self._models.combinations.get(reference)
        if found is None:
            return super().describe_model(reference)
        return self._describe_combination(found)

    async def _ask_members(
        self, found: CombinedModel, image: ImageSource, options: Options
    ) -> list[Classification]:
        """Returns the answers of the members that are needed, in their order."""
        _check(options)
        _, timeout_s = options.check(self._settings.default_timeout_ms)
        deadline = time.monotonic() + timeout_s
        shared = _share(image, found)
        ask = partial(self._ask_member, image=shared, options=options, deadline=deadline)
        if not isinstance(found.manifest, Cascade):
            return await _ask_all(map(ask, found.manifest.members, found.models))
        answers: list[Classification] = []
        for stage, model in zip(found.manifest.members, found.models, strict=True):
            answers.append(await ask(stage, model))
            if is_sure(answers[-1].predictions[0].score, stage):
                break
        return answers

    async def _ask_member(
        self, member: Member, model: Model, *, image: AskedImage, options: Options, deadline: float
    ) -> Classification:
        left_ms = (deadline - time.monotonic()) * 1000
        asked = replace(options, model=member.model, tta=member.tta, timeout_ms=left_ms)
        return await self._answer(model, image, asked)

    def _sign(
        self, found: CombinedModel, answer: Classification, answers: Sequence[Classification]
    ) -> Classification:
        """Returns the answer as that of the combination, saying which members ran."""
        best = answer.predictions[0]
        self._metrics.observe_prediction(found.name, found.version, best.label, best.score)
        if answer.verdict.abstained:
            self._metrics.count_abstained(found.name, found.version)
        return replace(
            answer,
            model=found.name,
            version=found.version,
            views=sum(one.views for one in answers),
            members=tuple(
                MemberAnswer(
                    model=one.model,
                    version=one.version,
                    tta=member.tta,
                    label=one.predictions[0].label,
                    score=one.predictions[0].score,
                )
                for member, one in zip(found.manifest.members, answers, strict=False)
            ),
        )

    def _describe_combination(self, found: CombinedModel) -> ModelDescription:
        manifest = found.manifest
        first, *_ = described = [self._models.describe(model) for model in found.models]
        decision = manifest.decision if isinstance(manifest, Ensemble) else described[-1].decision
        return replace(
            first,
            name=found.name,
            version=found.version,
            variant="+".join(sorted({one.variant for one in described})),
            is_default=self._models.is_default(found),
            digest=found.digest,
            top1=None if manifest.measured is None else manifest.measured.top1,
            decision=decision,
            memory_bytes=0,
            version_labels=self._models.version_labels(found),
            kind=manifest.kind,
            members=tuple(member.model for member in manifest.members),
            card=None,
        )


async def _ask_all(
    asked: Iterable[Coroutine[Any, Any, Classification]],
) -> list[Classification]:
    """Returns all answers. Without one there is none: then the others need not go on."""
    tasks = [asyncio.ensure_future(one) for one in asked]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _share(image: ImageSource, found: CombinedModel) -> AskedImage:
    """Returns an image of which the members have in common what they can.

    All members of an ensemble need it. A stage of a cascade takes what an earlier one happened to
    make in the same way, and none prepares for a later one, which few images come to.
    """
    if not isinstance(image, bytes):
        return image
    if isinstance(found.manifest, Cascade):
        return SharedImage(image)
    members = zip(found.manifest.members, found.models, strict=True)
    return SharedImage(
        image, [(model.bundle.manifest.preprocess, member.tta) for member, model in members]
    )


def _join(
    found: CombinedModel, answers: Sequence[Classification], options: Options, start: float
) -> Classification:
    """Returns what the members' answers come to: the weighted mean, or the last one's."""
    manifest = found.manifest
    # Side by side, or one after the other.
    total = max if isinstance(manifest, Ensemble) else sum
    timings = Timings(
        decode_s=total(one.timings.decode_s for one in answers),
        queue_s=total(one.timings.queue_s for one in answers),
        infer_s=total(one.timings.infer_s for one in answers),
        total_s=time.monotonic() - start,
    )
    if not isinstance(manifest, Ensemble):
        return replace(answers[-1], timings=timings)
    first = found.models[0]
    probabilities = weigh(
        [one.probabilities for one in answers], [member.weight for member in manifest.members]
    )
    predictions = predict(probabilities, first.labels, options.top_k)
    decider = Decider(manifest.decision, first.bundle.manifest.labels)
    return replace(
        answers[0],
        predictions=predictions,
        probabilities=probabilities,
        verdict=decider.decide(probabilities, predictions[0].index),
        reference=manifest.decision.reference,
        timings=timings,
    )


def _choose_member(found: CombinedModel, answers: Sequence[Classification], index: int) -> int:
    """Returns which member's evidence speaks for the combination's answer."""
    if not isinstance(found.manifest, Ensemble):
        return len(answers) - 1
    parts = [
        member.weight * float(one.probabilities[index])
        for member, one in zip(found.manifest.members, answers, strict=True)
    ]
    return parts.index(max(parts))


def _check(options: Options) -> None:
    """Refuses what a combination cannot be asked."""
    if options.tta != "none":
        raise _invalid("this model chooses its views itself: leave tta out")
    if options.coverage is not None:
        raise _invalid("this model has no label sets")
    if options.embedding:
        # Members' features mean different things, and which of them answer may differ by image.
        raise _invalid("this model has no embedding of its own: ask one of its members")


def _invalid(detail: str) -> RequestError:
    return RequestError(ErrorCode.INVALID_ARGUMENT, detail)
