"""What a worker thread does next: pure decisions, no threads and no clock of its own.

An image waits twice: encoded, for a thread that decodes it, and ready, for a batch. Models take
turns in both queues, each in arrival order. A batch runs when enough views for a good one are
ready, or when the oldest has waited the lane's delay and nothing that could join it is left to
decode. So an idle engine never waits longer than the delay, and a busy one lets its next batch
fill.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.bundle.preprocess import PreparedImage


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a job that ran; durations in seconds.

    Attributes:
        probabilities: float32 [V, C], one row a view.
        prepared: The decoded image's views and facts.
        batch_views: Views in the batch that it ran in.
        decode_s: Decode, resize and crop.
        queue_s: Waiting, before decoding and before the batch.
        infer_s: The run of the batch, retries included.
    """

    probabilities: NDArray[np.float32]
    prepared: PreparedImage
    batch_views: int
    decode_s: float
    queue_s: float
    infer_s: float


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """One image on its way through a lane.

    Attributes:
        lane: The model's lane.
        prepare: Decodes; called once, on a worker thread.
        view_count: Views that `prepare` will make.
        encoded_bytes: Size of the encoded image, for admission.
        deadline: On `time.monotonic`'s clock; later than that the job is dropped, not run.
        finish: Called exactly once, from a worker thread, with the outcome or the error.
        is_cancelled: Set by whoever no longer wants the answer.
    """

    lane: Lane
    prepare: Callable[[], PreparedImage]
    view_count: int
    encoded_bytes: int
    deadline: float
    finish: Callable[[Outcome | Exception], None]
    is_cancelled: bool = False
    prepared: PreparedImage | None = None
    admitted_at: float = 0.0
    ready_at: float = 0.0
    decode_s: float = 0.0

    @property
    def decoded(self) -> PreparedImage:
        """What `prepare` returned; only a ready job is asked."""
        assert self.prepared is not None
        return self.prepared

    def is_dead(self, now: float) -> bool:
        """Whether running the job would be work for nobody."""
        return self.is_cancelled or now > self.deadline


@dataclass(slots=True, eq=False, kw_only=True)
class Lane:
    """The waiting jobs of one model, and how its batches are formed.

    Attributes:
        name: NAME@VERSION.
        run: Views uint8 [N, H, W, 3] -> probabilities float32 [N, C].
        max_batch_views: Views in one run at most; a job of more views is run in parts.
        good_batch_views: A batch of this many views does not wait for more.
        max_delay_s: Longest wait of an idle engine for more views.
    """

    name: str
    run: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    max_batch_views: int
    good_batch_views: int
    max_delay_s: float
    encoded: deque[Job] = field(default_factory=deque)
    ready: deque[Job] = field(default_factory=deque)
    ready_views: int = 0


@dataclass(frozen=True, slots=True)
class Prepare:
    """Decode this job."""

    job: Job


@dataclass(frozen=True, slots=True)
class Run:
    """Run these jobs as one batch."""

    lane: Lane
    jobs: list[Job]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do now; ask again on news, or after `seconds` when that is not None."""

    seconds: float | None


Work = Prepare | Run | Wait


class Schedule:
    """The lanes of all models and whose turn it is. Not thread-safe: the batcher holds a lock."""

    def __init__(self, drop: Callable[[Job], None]) -> None:
        """Makes an empty schedule; `drop` is told of each job found dead when its turn came."""
        self._drop = drop
        self._decode_turns: deque[Lane] = deque()
        self._run_turns: deque[Lane] = deque()

    def add_lane(self, lane: Lane) -> None:
        """Gives a model its turns."""
        self._decode_turns.append(lane)
        self._run_turns.append(lane)

    def add_encoded(self, job: Job) -> None:
        """Queues a job to be decoded."""
        job.lane.encoded.append(job)

    def add_ready(self, job: Job, now: float) -> None:
        """Queues a decoded job for a batch."""
        job.ready_at = now
        job.lane.ready.append(job)
        job.lane.ready_views += job.view_count

    def has_waiting(self, *, decodes: bool, runs: bool) -> bool:
        """Whether a thread that decodes, runs batches, or does both may find work."""
        return any((decodes and lane.encoded) or (runs and lane.ready) for lane in self._run_turns)

    def take_all(self) -> list[Job]:
        """Takes every waiting job, to be refused."""
        jobs = [job for lane in self._run_turns for job in (*lane.encoded, *lane.ready)]
        for lane in self._run_turns:
            lane.encoded.clear()
            lane.ready.clear()
            lane.ready_views = 0
        return jobs

    def next_work(self, now: float, *, decodes: bool, runs: bool) -> Work:
        """Takes the next work of a thread that decodes, runs batches, or does both."""
        wait_s: float | None = None
        if runs:
            for lane in tuple(self._run_turns):
                due_in_s = self._due_in(lane, now, decodes)
                if due_in_s is None:
                    continue
                if due_in_s <= 0 and (jobs := self._take_batch(lane, now)):
                    self._run_turns.remove(lane)
                    self._run_turns.append(lane)
                    return Run(lane, jobs)
                if lane.ready:
                    wait_s = due_in_s if wait_s is None else min(wait_s, due_in_s)
        if decodes and (job := self._take_encoded(now)):
            return Prepare(job)
        return Wait(wait_s)

    def _due_in(self, lane: Lane, now: float, decodes: bool) -> float | None:
        """Returns seconds until the lane's batch should run, or None when nothing is ready."""
        if not lane.ready:
            return None
        if lane.ready_views >= lane.good_batch_views:
            return 0.0
        if decodes and self._has_encoded(lane, now):
            # This same thread can decode the view that makes the batch fuller.
            return None
        return max(0.0, lane.ready[0].ready_at + lane.max_delay_s - now)

    def _take_batch(self, lane: Lane, now: float) -> list[Job]:
        jobs: list[Job] = []
        views = 0
        while lane.ready:
            job = lane.ready[0]
            is_dead = job.is_dead(now)
            if not is_dead and jobs and views + job.view_count > lane.max_batch_views:
                break
            lane.ready.popleft()
            lane.ready_views -= job.view_count
            if is_dead:
                self._drop(job)
            else:
                jobs.append(job)
                views += job.view_count
        return jobs

    def _take_encoded(self, now: float) -> Job | None:
        for lane in tuple(self._decode_turns):
            if self._has_encoded(lane, now):
                self._decode_turns.remove(lane)
                self._decode_turns.append(lane)
                return lane.encoded.popleft()
        return None

    def _has_encoded(self, lane: Lane, now: float) -> bool:
        """Whether a live job waits to be decoded, after dropping the dead before it."""
        while lane.encoded and lane.encoded[0].is_dead(now):
            self._drop(lane.encoded.popleft())
        return bool(lane.encoded)
