"""Whether a job may join the queue: within the bounds, and only when its answer can be in time.

What is refused costs nothing. What is admitted and then late has cost everybody: under overload a
server that admits all of it answers nobody in time. So the wait of each newcomer is predicted, from
the work before it and the measured speed of the threads, and held against its deadline.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from service.job import Job
from service.lane import Backlog, Flow, Lane

Reason = Literal["queue_full", "model_quota", "too_late"]

# Of the time until the deadline this much may be spent waiting by the prediction. The rest is for
# what the prediction gets wrong: a job that misses its deadline half done was work for nobody.
_WAITING_SHARE: Final = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much may be admitted and not yet finished.

    Attributes:
        views: Of all models.
        encoded_bytes: Of images.
        decode_cost_s: Of images not yet decoded, in seconds of the reference core.
        model_share: Of each of these that one model may hold while several are served.
    """

    views: int
    encoded_bytes: int
    decode_cost_s: float
    model_share: float

    def fit(self, load: Backlog, job: Job, share: float = 1.0) -> bool:
        """Whether the job may join the load within this share of the bounds."""
        return (
            load.views + job.view_count <= self.views * share
            and load.encoded_bytes + job.encoded_bytes <= self.encoded_bytes * share
            and load.decode_cost_s + job.decode_cost_s <= self.decode_cost_s * share
        )


class Admission:
    """The books of what is admitted. Not thread-safe: the batcher holds a lock."""

    def __init__(self, bounds: Bounds, *, compute_threads: int, device_threads: int) -> None:
        """Opens the books.

        Args:
            bounds: How much may be admitted at once.
            compute_threads: Threads that decode and, when `device_threads` is 0, run models.
            device_threads: Threads that only run models.
        """
        self.load = Backlog()
        self._bounds = bounds
        self._compute_threads = compute_threads
        self._device_threads = device_threads
        self._flows: dict[Flow, Lane] = {}
        self._lanes = 0

    def add_lane(self) -> None:
        """Counts one model more."""
        self._lanes += 1

    def remove_lane(self) -> None:
        """Counts one model less."""
        self._lanes -= 1

    def judge(
        self, job: Job, now: float, candidates: Callable[..., Iterator[Job]]
    ) -> list[Job] | Reason:
        """Returns the jobs that have to make room for a new one, or why it is refused even so.

        Args:
            job: The new one.
            now: On the clock of its deadline.
            candidates: `Schedule.give_way`.
        """
        leaving: list[Job] = []
        if self.is_late(job, now):
            return "too_late"
        if not self.has_quota(job):
            own = candidates(job, of_its_model=True)
            while not self.has_quota(job, leaving):
                if (other := next(own, None)) is None:
                    return "model_quota"
                leaving.append(other)
        if not self.has_room(job, leaving):
            others = (other for other in candidates(job) if other not in leaving)
            while not self.has_room(job, leaving):
                if (other := next(others, None)) is None:
                    return "queue_full"
                leaving.append(other)
        return leaving

    def is_late(self, job: Job, now: float) -> bool:
        """Whether the answer would come after the deadline; predicts the job's wait.

        The only job of its flow is never late. So each flow goes on measuring its waits, and a bad
        guess cannot shut it out for ever.
        """
        if not self._flows:
            return False
        job.predicted_wait_s = self.wait_s(job)
        wait_s = job.flow.correct_wait(job.predicted_wait_s)
        is_late = wait_s + job.lane.expected_s(job) > _WAITING_SHARE * (job.deadline - now)
        return is_late and wait_s > 0 and job.flow in self._flows

    def has_room(self, job: Job, without: Collection[Job] = ()) -> bool:
        """Whether a job fits the bounds, once the jobs `without` have left."""
        return self._bounds.fit(_less(self.load, without), job)

    def has_quota(self, job: Job, without: Collection[Job] = ()) -> bool:
        """As `has_room` for the share of the job's model, which one job alone may exceed."""
        if self._lanes <= 1:
            return True
        load = Backlog()
        for flow in job.lane.flows.values():
            load.views += flow.backlog.views
            load.encoded_bytes += flow.backlog.encoded_bytes
            load.decode_cost_s += flow.backlog.decode_cost_s
        load = _less(load, [other for other in without if other.lane is job.lane])
        return load.views == 0 or self._bounds.fit(load, job, self._bounds.model_share)

    def enter(self, job: Job, now: float) -> None:
        """Books a job."""
        job.admitted_at = now
        self._flows[job.flow] = job.lane
        self.load.add(job)
        job.flow.backlog.add(job)

    def note_turn(self, job: Job, now: float) -> None:
        """Learns how long a job waited whose turn has come, or whose deadline came before."""
        job.flow.note_wait(job.predicted_wait_s, now - job.admitted_at)

    def finish_decode(self, job: Job) -> None:
        """Books that a job needs no more decoding."""
        self.load.decode_cost_s -= job.decode_cost_s
        job.flow.backlog.decode_cost_s -= job.decode_cost_s
        job.decode_cost_s = 0.0

    def leave(self, job: Job) -> None:
        """Books that a job is finished, refused or withdrawn."""
        self.load.subtract(job)
        job.flow.backlog.subtract(job)
        if not job.flow.backlog.views:
            del self._flows[job.flow]

    def wait_s(self, job: Job) -> float:
        """Returns the predicted seconds until the turn of a job that comes now, if it is the last.

        While its own flow empties, every other flow gets no more than its weight in comparison, nor
        more than it has waiting: the schedule shares time that way.
        """
        flow = job.flow
        decode_s, infer_s = _work_s(job.lane, flow)
        until_its_turn_s = decode_s + infer_s + job.lane.expected_s(job)
        for other, lane in self._flows.items():
            if other is not flow:
                other_decode_s, other_infer_s = _work_s(lane, other)
                whole_s = other_decode_s + other_infer_s
                allowed_s = until_its_turn_s * other.weight / flow.weight
                part = 1.0 if whole_s <= allowed_s else allowed_s / whole_s
                decode_s += part * other_decode_s
                infer_s += part * other_infer_s
        return self._threads_need_s(decode_s, infer_s)

    def drain_s(self) -> float:
        """Returns the predicted seconds until everything that is admitted now is answered."""
        work = [_work_s(lane, flow) for flow, lane in self._flows.items()]
        return self._threads_need_s(sum(d for d, _ in work), sum(i for _, i in work))

    def _threads_need_s(self, decode_s: float, infer_s: float) -> float:
        if self._device_threads == 0:
            return (decode_s + infer_s) / self._compute_threads
        # Decoding of later batches goes on while the device runs.
        return max(decode_s / self._compute_threads, infer_s / self._device_threads)


def _less(load: Backlog, jobs: Collection[Job]) -> Backlog:
    """Returns the load without these jobs; itself when there are none."""
    if jobs:
        load = replace(load)
        for job in jobs:
            load.subtract(job)
    return load


def _work_s(lane: Lane, flow: Flow) -> tuple[float, float]:
    """Returns the seconds of decoding and of running that a flow still needs."""
    backlog = flow.backlog
    return backlog.decode_cost_s * lane.decode_slowness, backlog.views * lane.seconds_per_view
