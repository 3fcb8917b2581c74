"""A version that is asked what another one answered, for the comparison alone."""

from __future__ import annotations

import logging
import random
import time
from functools import partial
from typing import cast

from service.bundle.decode import Limits
from service.bundle.image_source import ImageSource, prepare_source
from service.bundle.manifest import TtaPolicy
from service.bundle.postprocess import average_views, predict
from service.classification import Classification, Options
from service.metrics import Metrics
from service.model import Model
from service.spare_time import SpareTime

logger = logging.getLogger(__name__)


class Shadowing:
    """Compares a sampled share of answers with those of one version, in spare time."""

    def __init__(
        self,
        model: Model,
        share: float,
        *,
        limits: Limits,
        spare_time: SpareTime,
        metrics: Metrics,
    ) -> None:
        """Makes one.

        Args:
            model: The version that is asked.
            share: Of the answers that it is asked for.
            limits: What an image may cost.
            spare_time: When it is asked.
            metrics: Where the comparison goes.
        """
        self._model = model
        self._share = share
        self._limits = limits
        self._spare_time = spare_time
        self._metrics = metrics

    def offer(self, image: ImageSource, options: Options, answer: Classification) -> None:
        """Takes an answer that was given; returns at once."""
        if answer.version != self._model.version and random.random() < self._share:
            compare = partial(self._compare, image, cast("TtaPolicy", options.tta), answer)
            if not self._spare_time.offer(compare, len(image)):
                self._count(answer, "skipped")
        self._spare_time.go_on()

    def _compare(self, image: ImageSource, tta: TtaPolicy, answer: Classification) -> None:
        """Asks the version and notes how far it is from the answer; on the thread of spare time."""
        model = self._model
        start = time.monotonic()
        try:
            views = prepare_source(image, model.bundle.manifest, tta=tta, limits=self._limits).views
            probabilities = average_views(model.lane.run(views))
            best = predict(probabilities, model.labels, 1)[0]
        except Exception:
            # Where the other one answered, this is its own fault, whatever it is.
            logger.warning("%s failed as a shadow", model.bundle.reference, exc_info=True)
            self._count(answer, "failed")
            return
        seconds = time.monotonic() - start
        said = answer.predictions[0]
        self._count(answer, "agreed" if best.label == said.label else "disagreed")
        score = 0.0
        if said.label in model.labels:
            score = float(probabilities[model.labels.index(said.label)])
        timings = answer.timings
        self._metrics.traffic.observe_shadow(
            answer.model,
            answer.version,
            model.version,
            score_difference=abs(score - said.score),
            seconds=seconds,
            # An answer from the cache took no time that could be compared.
            serving_seconds=timings.decode_s + timings.infer_s if timings.infer_s else None,
        )

    def _count(self, answer: Classification, result: str) -> None:
        self._metrics.traffic.count_shadow(
            answer.model, answer.version, self._model.version, result
        )
