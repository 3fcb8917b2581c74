"""Prometheus metrics of splits and shadows: what a new version does beside the one that serves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric

_DIFFERENCES: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_PAIR: Final = ("model", "serving", "shadow")
_ANSWERS, _SHADOW = "fivecrop_split_requests", "fivecrop_shadow_images"
_DIFFERENCE, _TIME = "fivecrop_shadow_score_difference", "fivecrop_shadow_seconds"


@dataclass(slots=True, kw_only=True)
class Comparison:
    """What a shadow said of images that another version answered; means are None without any.

    Attributes:
        serving: The version that answered.
        shadow: The version that was asked as well.
        agreed: Images with the same best class.
        disagreed: Images with another one.
        failed: Images that only the shadow failed on.
        skipped: Images that there was no spare time for.
        score_difference: Mean difference of the scores of the class that was answered.
        serving_s: Mean seconds of decoding and inference.
        shadow_s: The same of the shadow, which has the lowest priority.
    """

    serving: int
    shadow: int
    agreed: int = 0
    disagreed: int = 0
    failed: int = 0
    skipped: int = 0
    score_difference: float | None = None
    serving_s: float | None = None
    shadow_s: float | None = None

    @property
    def images(self) -> int:
        """How many were compared; to fail is to disagree."""
        return self.agreed + self.disagreed + self.failed

    @property
    def agreement(self) -> float | None:
        """Share of the images with the same best class."""
        return self.agreed / self.images if self.images else None


@dataclass(slots=True, kw_only=True)
class Tally:
    """What all workers counted of one model since the server started.

    Attributes:
        answers: By version, requests that it answered and that it failed.
        comparisons: By serving version and shadow.
    """

    answers: dict[int, dict[str, int]] = field(default_factory=dict)
    comparisons: dict[tuple[int, int], Comparison] = field(default_factory=dict)

    def compare(self, serving: int, shadow: int) -> Comparison:
        """Returns the comparison of two versions; without any, one of no image."""
        fresh = Comparison(serving=serving, shadow=shadow)
        return self.comparisons.setdefault((serving, shadow), fresh)


class TrafficMetrics:
    """The versions on trial. Part of `Metrics`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Makes the metrics in the registry of the others."""
        self._answers = Counter(
            _ANSWERS,
            "Images that a split or a shadow was ordered for, by the version that they went to.",
            ("model", "version", "result"),
            registry=registry,
        )
        self._rollbacks = Counter(
            "fivecrop_rollbacks",
            "Versions that failed too often and were taken out of a split.",
            ("model", "version"),
            registry=registry,
        )
        self._shadow = Counter(
            _SHADOW,
            "Images that a shadow was asked: agreed, disagreed, failed, or skipped for want of "
            "spare time.",
            (*_PAIR, "result"),
            registry=registry,
        )
        self._difference = Histogram(
            _DIFFERENCE,
            "Difference between the scores that the two versions give the class that was answered.",
            _PAIR,
            buckets=_DIFFERENCES,
            registry=registry,
        )
        self._seconds = Histogram(
            _TIME,
            "Decoding and inference of the same images, of the serving version and of the shadow.",
            (*_PAIR, "of"),
            buckets=_SECONDS,
            registry=registry,
        )

    def count_answer(self, model: str, version: int, *, is_failure: bool) -> None:
        """Counts a request by how its version ended it."""
        self._answers.labels(model, str(version), "failed" if is_failure else "ok").inc()

    def count_rollback(self, model: str, version: int) -> None:
        """Counts a version that was taken out of a split."""
        self._rollbacks.labels(model, str(version)).inc()

    def count_shadow(self, model: str, serving: int, shadow: int, result: str) -> None:
        """Counts an image that a shadow was, or should have been, asked."""
        self._shadow.labels(model, str(serving), str(shadow), result).inc()

    def observe_shadow(
        self,
        model: str,
        serving: int,
        shadow: int,
        *,
        score_difference: float,
        seconds: float,
        serving_seconds: float | None,
    ) -> None:
        """Records how far a shadow's answer is from the one that was given."""
        pair = model, str(serving), str(shadow)
        self._difference.labels(*pair).observe(score_difference)
        if serving_seconds is not None:
            self._seconds.labels(*pair, "shadow").observe(seconds)
            self._seconds.labels(*pair, "serving").observe(serving_seconds)


def read_tally(families: Iterable[Metric], model: str) -> Tally:
    """Returns what the metrics say of one model."""
    tally = Tally()
    sums: dict[tuple[str, ...], float] = {}
    for family in families:
        if family.name not in (_ANSWERS, _SHADOW, _DIFFERENCE, _TIME):
            continue
        for sample in family.samples:
            labels = sample.labels
            if labels["model"] != model:
                continue
            if sample.name == f"{_ANSWERS}_total":
                of_version = tally.answers.setdefault(
                    int(labels["version"]), {"ok": 0, "failed": 0}
                )
                of_version[labels["result"]] += int(sample.value)
            elif sample.name == f"{_SHADOW}_total":
                comparison = tally.compare(int(labels["serving"]), int(labels["shadow"]))
                setattr(comparison, labels["result"], int(sample.value))
            elif sample.name.endswith(("_sum", "_count")):
                of = labels.get("of", "difference")
                key = labels["serving"], labels["shadow"], of, sample.name.rpartition("_")[2]
                sums[key] = sample.value
    for (serving, shadow, of, what), count in sums.items():
        if what != "count" or not count:
            continue
        mean = sums[serving, shadow, of, "sum"] / count
        comparison = tally.compare(int(serving), int(shadow))
        name = "score_difference" if of == "difference" else f"{of}_s"
        setattr(comparison, name, mean)
    return tally
