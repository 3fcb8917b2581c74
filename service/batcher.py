"""Dynamic batching: one bounded queue under both protocols and every model, and its threads.

On a CPU each thread both decodes and runs models, as many threads as cores: anything more only adds
switching (docs/decisions.md). With a GPU the threads decode and one more feeds the device.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from typing import Final

from service.admission import Admission, Bounds, Reason
from service.batch import run_batch
from service.errors import ErrorCode, RequestError
from service.metrics import Metrics
from service.schedule import Job, Lane, Outcome, Prepare, Run, Schedule, Wait

_REFUSING_S: Final = 1.0
# Far beyond any decode or run that ends by itself; such a thread never comes back.
_STUCK_S: Final = 60.0
_REFUSALS: Final[dict[Reason, str]] = {
    "queue_full": "the queue is full",
    "model_quota": "this model's share of the queue is full",
    "too_late": "the queue is too long for the deadline",
}

logger = logging.getLogger(__name__)


class Batcher:
    """Admits jobs within bounds, decodes them, runs them in batches, finishes each exactly once."""

    def __init__(
        self,
        *,
        compute_threads: int,
        device_threads: int,
        max_queue_views: int,
        max_queue_bytes: int,
        metrics: Metrics,
        max_queue_decode_s: float = math.inf,
        max_model_share: float = 1.0,
    ) -> None:
        """Starts the threads.

        Args:
            compute_threads: Threads that decode and, when `device_threads` is 0, run models.
            device_threads: Threads that only run models: one a GPU.
            max_queue_views: Views admitted and not yet finished.
            max_queue_bytes: Encoded bytes admitted and not yet finished.
            metrics: Where batches, queue and drops are counted.
            max_queue_decode_s: Decoding, by the images' headers, admitted and not yet done.
            max_model_share: Of these bounds, for one model while several are served.
        """
        self._metrics = metrics
        self._schedule = Schedule(self._drop)
        self._admission = Admission(
            Bounds(
                views=max_queue_views,
                encoded_bytes=max_queue_bytes,
                decode_cost_s=max_queue_decode_s,
                model_share=max_model_share,
            ),
            compute_threads=compute_threads,
            device_threads=device_threads,
        )
        self._refuses_until = 0.0
        self._is_closing = False
        self._is_stopped = False
        self._begun: dict[int, float] = {}
        self._lock = threading.Lock()
        self._encoded_news = threading.Condition(self._lock)
        self._ready_news = threading.Condition(self._lock) if device_threads else self._encoded_news
        self._finished_news = threading.Condition(self._lock)
        runs = device_threads == 0
        self._threads = [
            threading.Thread(
                target=self._work,
                kwargs={"news": self._encoded_news, "decodes": True, "runs": runs},
                name=f"fivecrop-compute-{index}",
                daemon=True,
            )
            for index in range(compute_threads)
        ] + [
            threading.Thread(
                target=self._work,
                kwargs={"news": self._ready_news, "decodes": False, "runs": True},
                name=f"fivecrop-device-{index}",
                daemon=True,
            )
            for index in range(device_threads)
        ]
        for thread in self._threads:
            thread.start()

    def add_lane(self, lane: Lane) -> None:
        """Lets a model take part; its jobs may be submitted from now on."""
        with self._lock:
            self._schedule.add_lane(lane)
            self._admission.add_lane()

    def retire_lane(self, lane: Lane, timeout_s: float) -> bool:
        """Waits for the jobs of a model that gets no new ones, then takes its turns away.

        Jobs still unfinished after `timeout_s` keep their turns, and the lane may be retired again;
        then False is returned.
        """
        with self._lock:
            lane.is_closed = True
            is_empty = self._finished_news.wait_for(
                lambda: lane.is_idle or self._is_stopped, timeout_s
            )
            if is_empty:
                self._schedule.remove_lane(lane)
                self._admission.remove_lane()
        return is_empty

    @property
    def has_idle_thread(self) -> bool:
        """Whether less is admitted than there are threads to do it."""
        return self._admission.load.views < len(self._threads)

    @property
    def is_refusing(self) -> bool:
        """Whether a job was refused within the last second."""
        return time.monotonic() < self._refuses_until

    @property
    def is_stuck(self) -> bool:
        """Whether a thread has been at one decode or run for a minute; takes no lock to tell."""
        begun = list(self._begun.values())
        return bool(begun) and time.monotonic() - min(begun) > _STUCK_S

    def submit(self, job: Job) -> None:
        """Admits a job, before any work was done for it.

        When the queue is full, less urgent jobs make room, and jobs of a model that holds more of
        the queue than this one's.

        Raises:
            RequestError: `overloaded` when a bound is reached or the deadline cannot be met,
                `draining` after `close` began,
                `model_not_found` after its lane began to retire.
        """
        with self._lock:
            now = time.monotonic()
            for other in self._judge(job, now):
                self._displace(other)
            self._admission.enter(job, now)
            self._show_queue()
            self._schedule.add_encoded(job)
            self._encoded_news.notify()

    def judge(self, job: Job) -> None:
        """Raises what `submit` would raise now, and changes nothing."""
        with self._lock:
            self._judge(job, time.monotonic())

    def withdraw(self, job: Job) -> None:
        """Takes a job that nobody waits for any more out of the queue; its room is free at once.

        What is being decoded or run for it is not interrupted.
        """
        with self._lock:
            if self._schedule.remove(job):
                self._drop(job)

    def close(self, timeout_s: float) -> bool:
        """Refuses new jobs, waits for the admitted ones and stops the threads.

        Jobs that still wait after `timeout_s` are finished with `draining`; then False is returned.
        """
        ends = time.monotonic() + timeout_s
        with self._lock:
            self._is_closing = True
            is_empty = self._finished_news.wait_for(
                lambda: self._admission.load.views == 0, timeout_s
            )
            self._is_stopped = True
            self._finished_news.notify_all()
            left = self._schedule.take_all()
            self._encoded_news.notify_all()
            self._ready_news.notify_all()
        for job in left:
            self._finish(job, _draining())
        for thread in self._threads:
            thread.join(max(0.1, ends - time.monotonic()))
        return is_empty

    def _work(self, *, news: threading.Condition, decodes: bool, runs: bool) -> None:
        me = threading.get_ident()
        work: Prepare | Run | None = None
        while True:
            with self._lock:
                if work is not None:
                    del self._begun[me]
                    self._let_go(work.lane)
                # While this thread waits for more, it must not keep the model of its last batch.
                work = None
                work = self._take_work(news, decodes, runs)
                if work is None:
                    return
                work.lane.threads += 1
                self._begun[me] = time.monotonic()
            if isinstance(work, Prepare):
                self._prepare(work.job)
            else:
                self._run(work.lane, work.jobs, time.monotonic())

    def _take_work(
        self, news: threading.Condition, decodes: bool, runs: bool
    ) -> Prepare | Run | None:
        """Returns the next work, waiting for it; None when the threads are to stop."""
        while not self._is_stopped:
            now = time.monotonic()
            work = self._schedule.next_work(now, decodes=decodes, runs=runs)
            if isinstance(work, Prepare):
                self._admission.note_turn(work.job, now)
            if not isinstance(work, Wait):
                # News wakes one thread; when there is work for another, this one passes it on.
                if self._schedule.has_waiting(decodes=decodes, runs=runs):
                    news.notify()
                return work
            news.wait(work.seconds)
        return None

    def _prepare(self, job: Job) -> None:
        start = time.monotonic()
        try:
            job.prepared = job.prepare()
        except Exception as error:  # noqa: BLE001 - a job never takes its thread down
            self._finish(job, error)
            return
        now = time.monotonic()
        job.decode_s = now - start
        if not job.decoded.is_shared:
            job.lane.note_decode(job.decode_s, job.decode_cost_s)
        with self._lock:
            self._admission.finish_decode(job)
            self._schedule.add_ready(job, now)
            if self._ready_news is not self._encoded_news:
                self._ready_news.notify()

    def _run(self, lane: Lane, jobs: list[Job], start: float) -> None:
        """Runs a batch; when it fails, its halves, so that one poison image fails alone."""
        try:
            outcomes = run_batch(lane, jobs, start, self._metrics)
        except Exception as error:
            if len(jobs) == 1:
                logger.exception("%s failed on one image", lane.name)
                failure = RequestError(ErrorCode.INFERENCE_FAILED, "the model failed on this image")
                failure.__cause__ = error
                self._finish(jobs[0], failure)
                return
            logger.warning("%s failed on a batch of %d images: halved", lane.name, len(jobs))
            middle = len(jobs) // 2
            self._run(lane, jobs[:middle], start)
            self._run(lane, jobs[middle:], start)
            return
        for job, outcome in zip(jobs, outcomes, strict=True):
            self._finish(job, outcome)

    def _let_go(self, lane: Lane) -> None:
        lane.threads -= 1
        if lane.is_closed and lane.is_idle:
            self._finished_news.notify_all()

    def _judge(self, job: Job, now: float) -> list[Job]:
        """Returns the jobs that have to make room for a new one.

        Raises:
            RequestError: It cannot be admitted, even so.
        """
        if self._is_closing:
            self._metrics.count_rejected("draining")
            raise _draining()
        if job.lane.is_closed:
            raise RequestError(ErrorCode.MODEL_NOT_FOUND, "the model was unloaded")
        verdict = self._admission.judge(job, now, self._schedule.give_way)
        if isinstance(verdict, list):
            return verdict
        self._refuses_until = now + _REFUSING_S
        self._metrics.count_rejected(verdict)
        raise self._overloaded(_REFUSALS[verdict])

    def _displace(self, job: Job) -> None:
        self._metrics.count_rejected("displaced")
        self._schedule.remove(job)
        self._release(job)
        job.finish(self._overloaded("another request needed the room in the queue more"))

    def _overloaded(self, detail: str) -> RequestError:
        # Spread out, so that those refused together do not come back together.
        retry_after_s = self._admission.drain_s() * random.uniform(1.0, 1.5)
        return RequestError(ErrorCode.OVERLOADED, detail, retry_after_s=retry_after_s)

    def _drop(self, job: Job) -> None:
        """Forgets a job that died waiting; called with the lock held."""
        if job.is_cancelled:
            self._metrics.count_rejected("cancelled")
        else:
            self._metrics.count_rejected("expired")
            self._admission.note_turn(job, time.monotonic())
        self._release(job)
        job.finish(RequestError(ErrorCode.DEADLINE_EXCEEDED, "the deadline passed in the queue"))

    def _finish(self, job: Job, outcome: Outcome | Exception) -> None:
        with self._lock:
            self._release(job)
        job.finish(outcome)

    def _release(self, job: Job) -> None:
        self._admission.leave(job)
        self._show_queue()
        if self._admission.load.views == 0 or (job.lane.is_closed and job.lane.is_idle):
            self._finished_news.notify_all()

    def _show_queue(self) -> None:
        self._metrics.set_queue_views(self._admission.load.views)


def _draining() -> RequestError:
    return RequestError(ErrorCode.DRAINING, "the server is shutting down", retry_after_s=1.0)
