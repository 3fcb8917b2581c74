"""What a worker thread does next: pure decisions, no threads and no clock of its own.

An image waits twice: encoded, for a thread that decodes it, and ready, for a batch. In both queues
models and priorities share time fairly: whoever has had the least of it, for its weight, is next
(start-time fair queueing: Goyal, Vin and Cheng, SIGCOMM 1996), each in arrival order. So a model
whose images or runs are dear gets fewer turns, and nobody waits for ever.

A batch runs when enough views for a good one are ready, or when the oldest has waited the lane's
delay and nothing that could join it is left to decode. So an idle engine never waits longer than
the delay, and a busy one lets its next batch fill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from service.job import Job, Outcome
from service.lane import Flow, Lane
from service.priority import Priority

__all__ = ["Job", "Lane", "Outcome", "Prepare", "Run", "Schedule", "Wait", "Work"]

# What a turn costs at least, so that models take turns before anything was measured.
_LEAST_COST_S: Final = 1e-4


@dataclass(frozen=True, slots=True)
class Prepare:
    """Decode this job."""

    job: Job

    @property
    def lane(self) -> Lane:
        """Of the job."""
        return self.job.lane


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
        self._lanes: list[Lane] = []
        # Virtual time: the start of the last turn. Newcomers start there, not at the beginning.
        self._decode_clock = 0.0
        self._run_clock = 0.0

    def add_lane(self, lane: Lane) -> None:
        """Gives a model its turns."""
        self._lanes.append(lane)

    def remove_lane(self, lane: Lane) -> None:
        """Takes the turns of a model away; nothing of it may be waiting."""
        self._lanes.remove(lane)

    def add_encoded(self, job: Job) -> None:
        """Queues a job to be decoded."""
        job.flow.encoded.push(job, self._decode_clock)

    def add_ready(self, job: Job, now: float) -> None:
        """Queues a decoded job for a batch."""
        job.ready_at = now
        job.flow.ready.push(job, self._run_clock)
        job.lane.ready_views += job.view_count

    def remove(self, job: Job) -> bool:
        """Takes a job out of the queue it waits in; False when it waits in none."""
        if job in job.flow.encoded.jobs:
            del job.flow.encoded.jobs[job]
        elif job in job.flow.ready.jobs:
            self._take_ready(job)
        else:
            return False
        return True

    def has_waiting(self, *, decodes: bool, runs: bool) -> bool:
        """Whether a thread that decodes, runs batches, or does both may find work."""
        for lane in self._lanes:
            for flow in lane.flows.values():
                if (decodes and flow.encoded.jobs) or (runs and flow.ready.jobs):
                    return True
        return False

    def take_all(self) -> list[Job]:
        """Takes every waiting job, to be refused."""
        flows = [flow for lane in self._lanes for flow in lane.flows.values()]
        jobs = [job for flow in flows for job in (*flow.encoded.jobs, *flow.ready.jobs)]
        for job in jobs:
            self.remove(job)
        return jobs

    def give_way(self, job: Job, *, of_its_model: bool = False) -> Iterator[Job]:
        """Yields the jobs that should make room for a new one, the first to go first.

        Nothing was done for them yet. They are less urgent, or as urgent and of a model that holds
        more of the queue than the new one's; of those the last to come.

        Args:
            job: The new one.
            of_its_model: Whether only jobs of the same model are asked for.
        """
        mine = job.lane.views + job.view_count
        lanes = [job.lane] if of_its_model else self._lanes
        fullest_first = sorted(lanes, key=lambda lane: -lane.views)
        for priority in reversed(Priority):
            for lane in fullest_first:
                views = lane.views
                for other in reversed(lane.flows[priority].encoded.jobs):
                    if priority is job.priority and views - other.view_count < mine:
                        break
                    views -= other.view_count
                    yield other
            if priority is job.priority:
                return

    def next_work(self, now: float, *, decodes: bool, runs: bool) -> Work:
        """Takes the next work of a thread that decodes, runs batches, or does both."""
        wait_s: float | None = None
        if runs:
            due: list[Lane] = []
            for lane in self._lanes:
                due_in_s = self._due_in(lane, now, decodes)
                if due_in_s is None:
                    continue
                if due_in_s <= 0:
                    due.append(lane)
                else:
                    wait_s = due_in_s if wait_s is None else min(wait_s, due_in_s)
            while due:
                lane = min(due, key=_next_run_start) if len(due) > 1 else due[0]
                if jobs := self._take_batch(lane, now):
                    return Run(lane, jobs)
                due.remove(lane)
        if decodes and (job := self._take_encoded(now)):
            return Prepare(job)
        return Wait(wait_s)

    def _due_in(self, lane: Lane, now: float, decodes: bool) -> float | None:
        """Returns seconds until the lane's batch should run, or None when nothing is ready."""
        if not lane.ready_views:
            return None
        if lane.ready_views >= lane.good_batch_views:
            return 0.0
        oldest = now
        for flow in lane.flows.values():
            if decodes and self._has_encoded(flow, now):
                # This same thread can decode the view that makes the batch fuller.
                return None
            if flow.ready.jobs:
                oldest = min(oldest, flow.ready.first().ready_at)
                # What is less urgent has fewer turns; waiting for that would take as long.
                decodes = False
        return max(0.0, oldest + lane.max_delay_s - now)

    def _take_batch(self, lane: Lane, now: float) -> list[Job]:
        jobs: list[Job] = []
        views = 0
        while lane.ready_views:
            line = _next_flow(lane).ready
            job = line.first()
            if job.is_dead(now):
                self._take_ready(job)
                self._drop(job)
                continue
            if jobs and views + job.view_count > lane.max_batch_views:
                break
            self._take_ready(job)
            self._run_clock = max(self._run_clock, line.start)
            line.start += _cost_s(job) / job.flow.weight
            jobs.append(job)
            views += job.view_count
        return jobs

    def _take_ready(self, job: Job) -> None:
        del job.flow.ready.jobs[job]
        job.lane.ready_views -= job.view_count

    def _take_encoded(self, now: float) -> Job | None:
        first: Flow | None = None
        for lane in self._lanes:
            for flow in lane.flows.values():
                if self._has_encoded(flow, now) and (
                    first is None or flow.encoded.start < first.encoded.start
                ):
                    first = flow
        if first is None:
            return None
        line = first.encoded
        job, _ = line.jobs.popitem(last=False)
        self._decode_clock = line.start
        line.start += _cost_s(job) / first.weight
        return job

    def _has_encoded(self, flow: Flow, now: float) -> bool:
        """Whether a live job waits to be decoded, after dropping the dead before it."""
        while flow.encoded.jobs:
            job = flow.encoded.first()
            if not job.is_dead(now):
                return True
            del flow.encoded.jobs[job]
            self._drop(job)
        return False


def _next_flow(lane: Lane) -> Flow:
    """Returns the flow whose turn in a batch is next; something is ready."""
    flows = [flow for flow in lane.flows.values() if flow.ready.jobs]
    return flows[0] if len(flows) == 1 else min(flows, key=lambda flow: flow.ready.start)


def _next_run_start(lane: Lane) -> float:
    return _next_flow(lane).ready.start


def _cost_s(job: Job) -> float:
    return max(_LEAST_COST_S, job.lane.expected_s(job))
