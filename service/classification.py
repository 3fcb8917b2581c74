"""What is asked of the classifier, and what it answers: plain data, the same for every protocol."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from service.bundle.decision import LabelSet, Verdict
from service.bundle.manifest import Decision, DecisionReference, TtaPolicy
from service.bundle.postprocess import Prediction
from service.bundle.preprocess import TTA_POLICIES, is_tta_policy
from service.errors import ErrorCode, RequestError
from service.priority import Priority

# gRPC clients without a deadline send an infinite one.
_LONGEST_TIMEOUT_MS = 600_000.0
_PRIORITIES = frozenset(Priority)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a client may ask for.

    Attributes:
        model: NAME, NAME@VERSION or NAME@LABEL; None is the default model.
        top_k: Predictions wanted, at least 1; more than there are classes gives all of them.
        tta: Test-time augmentation policy.
        timeout_ms: Time left until the answer is worthless; None is the server's default.
        asked_at: Time of the monotonic clock that `timeout_ms` counts from; None is now.
        priority: `high`, `normal` or `low`.
        embedding: Ask for the features that the classifier reads.
        coverage: Ask for the set of labels that holds the right one with this probability.
        has_views: Ask for pictures of the views, as the network saw them.
    """

    model: str | None = None
    top_k: int = 5
    tta: str = "none"
    timeout_ms: float | None = None
    asked_at: float | None = field(default=None, compare=False)
    priority: str = Priority.NORMAL
    coverage: float | None = None
    embedding: bool = False
    has_views: bool = False

    def check(self, default_timeout_ms: float) -> tuple[TtaPolicy, float]:
        """Returns the policy and the seconds until the deadline.

        Raises:
            RequestError: `invalid_argument` for what has no meaning, `deadline_exceeded`.
        """
        if self.top_k < 1:
            raise RequestError(ErrorCode.INVALID_ARGUMENT, "top_k must be at least 1")
        if not is_tta_policy(self.tta):
            raise RequestError(
                ErrorCode.INVALID_ARGUMENT, f"tta must be one of {', '.join(TTA_POLICIES)}"
            )
        if self.priority not in _PRIORITIES:
            raise RequestError(
                ErrorCode.INVALID_ARGUMENT, f"priority must be one of {', '.join(Priority)}"
            )
        return cast("TtaPolicy", self.tta), _seconds_left(self, default_timeout_ms)


def _seconds_left(options: Options | ExplainOptions, default_ms: float) -> float:
    timeout_ms = options.timeout_ms
    if timeout_ms is None:
        timeout_ms = default_ms
    elif options.asked_at is not None:
        timeout_ms -= 1000 * (time.monotonic() - options.asked_at)
    if math.isnan(timeout_ms):
        raise RequestError(ErrorCode.INVALID_ARGUMENT, "the timeout is not a number")
    if timeout_ms <= 0:
        raise late()
    return min(timeout_ms, _LONGEST_TIMEOUT_MS) / 1000


def late() -> RequestError:
    """Returns the error for a request whose time is up."""
    return RequestError(ErrorCode.DEADLINE_EXCEEDED, "the deadline passed before an answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time of an answer went, in seconds."""

    decode_s: float
    queue_s: float
    infer_s: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberAnswer:
    """What one member of an ensemble or cascade said: its best class and the probability."""

    model: str
    version: int
    tta: str
    label: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """The answer for one image.

    Attributes:
        model: Name of the model that answered.
        version: Its version.
        predictions: Best first; `score` is the calibrated probability.
        probabilities: Of every class, float32 [C]; what the predictions were picked from.
        verdict: Whether the best class may be acted on, and the group that may when it may not.
        reference: What the bundle's thresholds gave on validation.
        embedding: float32 [D], mean over the views, when it was asked for.
        label_set: The labels that were asked for with a coverage.
        width: Of the image file, in pixels.
        height: Of the image file, in pixels.
        format: Of the image file.
        views: Views whose probabilities were averaged.
        batch_views: Views in the batch it ran in.
        timings: Where the time went.
        members: Of an ensemble or cascade, those that ran, in their order.
        view_pngs: A PNG of each view, when asked for; of an ensemble, its first member's.
    """

    model: str
    version: int
    predictions: tuple[Prediction, ...]
    probabilities: NDArray[np.float32] = field(compare=False, repr=False)
    verdict: Verdict
    reference: DecisionReference | None = None
    label_set: LabelSet | None = None
    embedding: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    width: int
    height: int
    format: str
    views: int
    batch_views: int
    timings: Timings
    members: tuple[MemberAnswer, ...] = ()
    view_pngs: tuple[bytes, ...] = field(default=(), compare=False, repr=False)


def find_slowest(answers: Iterable[Classification]) -> Classification:
    """Returns the answer that the others of its request were not waited for any longer."""
    return max(answers, key=lambda one: one.timings.total_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainOptions:
    """What a client may ask of an explanation.

    Attributes:
        model: NAME or NAME@VERSION; None is the default model.
        index: The class to explain; None is the best one.
        method: `cam`, `occlusion`, or `auto` for the first that the model has.
        timeout_ms: Time left until the answer is worthless; None is the server's default.
        asked_at: Time of the monotonic clock that `timeout_ms` counts from; None is now.
        has_overlay: Also draw the picture.
    """

    model: str | None = None
    index: int | None = None
    method: str = "auto"
    timeout_ms: float | None = None
    asked_at: float | None = field(default=None, compare=False)
    has_overlay: bool = False

    def check(self, default_timeout_ms: float) -> float:
        """Returns the seconds until the deadline.

        Raises:
            RequestError: `invalid_argument` for what has no meaning, `deadline_exceeded`.
        """
        return _seconds_left(self, default_timeout_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Where in the image the evidence for a class lies.

    Attributes:
        model: Name of the model that answered.
        version: Its version.
        method: `cam` or `occlusion`.
        prediction: The class, and its score on the whole image.
        evidence: float32 [h, w] over the centre crop that the model saw.
        overlay: PNG of that crop with the evidence over it, when asked for.
        width: Of the image file, in pixels.
        height: Of the image file, in pixels.
        format: Of the image file.
        timings: Where the time went.
        member: Of an ensemble or cascade, whose evidence it is, as NAME@VERSION.
    """

    model: str
    version: int
    method: str
    prediction: Prediction
    evidence: NDArray[np.float32] = field(compare=False)
    overlay: bytes | None
    width: int
    height: int
    format: str
    timings: Timings
    member: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """What clients and operators may know about a served model.

    `resized_side` is that of a square image that is cropped without being resized.
    `kind` is `bundle`, `ensemble` or `cascade`; the latter two have `members`, as NAME@VERSION.
    `card` is the model card in Markdown, if there is one.
    """

    name: str
    version: int
    provider: str
    variant: str
    is_default: bool
    state: str
    classes: int
    input_height: int
    input_width: int
    resized_side: int
    good_batch_views: int
    max_batch_delay_ms: float
    digest: str
    top1: float | None
    labels: tuple[str, ...]
    decision: Decision
    memory_bytes: int = 0
    version_labels: tuple[str, ...] = ()
    kind: str = "bundle"
    members: tuple[str, ...] = ()
    card: str | None = None
