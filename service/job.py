"""One image on its way through the server, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.bundle.preprocess import PreparedImage
from service.priority import Priority

if TYPE_CHECKING:
    from service.lane import Flow, Lane


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a job that ran; durations in seconds.

    Attributes:
        probabilities: float32 [V, C], one row a view.
        prepared: The decoded image's views and facts.
        extra: The outputs that its job asked for besides, each float32 [V, ...].
        batch_views: Views in the batch that it ran in.
        decode_s: Decode, resize and crop.
        queue_s: Waiting, before decoding and before the batch.
        infer_s: The run of the batch, retries included.
    """

    probabilities: NDArray[np.float32]
    prepared: PreparedImage
    extra: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    batch_views: int
    decode_s: float
    queue_s: float
    infer_s: float

    @property
    def embedding(self) -> NDArray[np.float32] | None:
        """float32 [D], mean over the views, if its job asked for it."""
        found = self.extra.get("embedding")
        if found is None:
            return None
        mean: NDArray[np.float32] = found.mean(axis=0, dtype=np.float32)
        return mean


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """One image on its way through a lane.

    Attributes:
        lane: The model's lane.
        prepare: Decodes; called once, on a worker thread.
        view_count: Views that `prepare` will make.
        encoded_bytes: Size of the encoded image, for admission.
        deadline: On `time.monotonic`'s clock; later than that the job is dropped, not run.
        finish: Called exactly once, from any thread, with the outcome or the error.
        priority: How urgent it is.
        outputs: What else of the graph it wants, besides the probabilities.
        decode_cost_s: What decoding should cost by the image's header, in seconds of the reference
            core; see `service.bundle.decode_cost`.
        is_cancelled: Set by whoever no longer wants the answer.
    """

    lane: Lane
    prepare: Callable[[], PreparedImage]
    view_count: int
    encoded_bytes: int
    deadline: float
    finish: Callable[[Outcome | Exception], None]
    priority: Priority = Priority.NORMAL
    outputs: tuple[str, ...] = ()
    decode_cost_s: float = 0.0
    is_cancelled: bool = False
    prepared: PreparedImage | None = None
    admitted_at: float = 0.0
    predicted_wait_s: float = 0.0
    ready_at: float = 0.0
    decode_s: float = 0.0
    flow: Flow = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.flow = self.lane.flows[self.priority]

    @property
    def decoded(self) -> PreparedImage:
        """What `prepare` returned; only a ready job is asked."""
        assert self.prepared is not None
        return self.prepared

    def is_dead(self, now: float) -> bool:
        """Whether running the job would be work for nobody."""
        return self.is_cancelled or now > self.deadline
