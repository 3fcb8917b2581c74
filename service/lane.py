"""The lane of one model: what waits there, what is admitted, and how long its work takes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.job import Job
from service.priority import WEIGHT, Priority

# A new measurement moves what is expected by a tenth; one that is far out, as when the machine
# stalls, counts as four times what was expected at most.
_NEW_SHARE: Final = 0.1
# Shorter waits are the whims of the scheduler of the system: on a busy machine a job that is first
# in the queue may wait that long, which says nothing about one that has many before it.
_PREDICTABLE_S: Final = 0.05
_MOST_TIMES: Final = 4.0

RunOutputs = Callable[[NDArray[np.uint8], Sequence[str]], list[NDArray[np.float32]]]


@dataclass(slots=True, kw_only=True)
class Backlog:
    """Work that is admitted and not finished.

    Attributes:
        views: Not yet finished.
        encoded_bytes: Of images not yet finished.
        decode_cost_s: Of images not yet decoded, in seconds of the reference core.
    """

    views: int = 0
    encoded_bytes: int = 0
    decode_cost_s: float = 0.0

    def add(self, job: Job) -> None:
        """Adds a job."""
        self.views += job.view_count
        self.encoded_bytes += job.encoded_bytes
        self.decode_cost_s += job.decode_cost_s

    def subtract(self, job: Job) -> None:
        """Takes a job away again."""
        self.views -= job.view_count
        self.encoded_bytes -= job.encoded_bytes
        # Adding and subtracting fractions leaves something over.
        self.decode_cost_s = self.decode_cost_s - job.decode_cost_s if self.views else 0.0


class Line:
    """Jobs of one flow that wait at one stage, in order of arrival.

    Attributes:
        jobs: An ordered dictionary, because a job may leave from the middle.
        start: The virtual time at which the flow's next turn starts.
    """

    __slots__ = ("jobs", "start")

    def __init__(self) -> None:
        self.jobs: OrderedDict[Job, None] = OrderedDict()
        self.start = 0.0

    def push(self, job: Job, clock: float) -> None:
        """Adds a job; where nobody waited the next turn starts at `clock`, without arrears."""
        if not self.jobs and self.start < clock:
            self.start = clock
        self.jobs[job] = None

    def first(self) -> Job:
        """Returns the job that has waited longest."""
        return next(iter(self.jobs))


class Flow:
    """The jobs of one model and one priority: what shares the machine with other flows.

    Attributes:
        weight: Its part of the time, in comparison with the other flows that wait.
        encoded: Jobs that wait to be decoded.
        ready: Jobs that wait for a batch.
        backlog: What is admitted, those at work included.
    """

    __slots__ = (
        "_actual_s",
        "_deviation_s",
        "_predicted_s",
        "backlog",
        "encoded",
        "ready",
        "weight",
    )

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.encoded = Line()
        self.ready = Line()
        self.backlog = Backlog()
        self._predicted_s = 0.0
        self._actual_s = 0.0
        self._deviation_s = 0.0

    def correct_wait(self, predicted_s: float) -> float:
        """Returns a predicted wait as experience corrects it, and rather too long than too short.

        Newcomers to other flows take their share of the time that a job waits here, and the machine
        has other work: only experience tells how much. As for a retransmission timer (RFC 6298) the
        usual deviation comes on top.
        """
        usual_s = self._actual_s + self._deviation_s
        return predicted_s * max(1.0, usual_s / max(self._predicted_s, _PREDICTABLE_S))

    def note_wait(self, predicted_s: float, actual_s: float) -> None:
        """Learns from a job whose turn came."""
        if self._predicted_s:
            # A client alone is predicted not to wait, and the mean of that dwindles to next to
            # nothing: unbounded, the quotient would make the next crowd late by ages.
            expected_s = predicted_s * self._actual_s / max(self._predicted_s, _PREDICTABLE_S)
            self._deviation_s += _NEW_SHARE * (abs(actual_s - expected_s) - self._deviation_s)
        self._predicted_s += _NEW_SHARE * (predicted_s - self._predicted_s)
        self._actual_s += _NEW_SHARE * (actual_s - self._actual_s)


@dataclass(slots=True, eq=False, kw_only=True)
class Lane:
    """The waiting jobs of one model, and how its batches are formed.

    Attributes:
        name: NAME@VERSION.
        run: Views uint8 [N, H, W, 3] -> probabilities float32 [N, C].
        run_outputs: As `run`, for named outputs of the graph, each float32 [N, ...].
        max_batch_views: Views in one run at most; a job of more views is run in parts.
        good_batch_views: A batch of this many views does not wait for more.
        max_delay_s: Longest wait of an idle engine for more views.
        flows: Its jobs by priority, the most urgent first.
        ready_views: Of the jobs that wait for a batch.
        seconds_per_view: Of a run, as measured; 0 until the first.
        decode_slowness: Seconds that decoding takes for one of `Job.decode_cost_s`, as measured.
        threads: Worker threads that have work of this model in hand.
        is_closed: The model was unloaded: no job may be submitted any more.
    """

    name: str
    run: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    max_batch_views: int
    good_batch_views: int
    max_delay_s: float
    run_outputs: RunOutputs | None = None
    flows: dict[Priority, Flow] = field(
        default_factory=lambda: {priority: Flow(WEIGHT[priority]) for priority in Priority}
    )
    ready_views: int = 0
    seconds_per_view: float = 0.0
    decode_slowness: float = 1.0
    threads: int = 0
    is_closed: bool = False

    @property
    def views(self) -> int:
        """Views of all jobs that are admitted."""
        return sum(flow.backlog.views for flow in self.flows.values())

    @property
    def is_idle(self) -> bool:
        """Whether nothing is admitted and no thread holds the model."""
        return self.threads == 0 and self.views == 0

    def note_run(self, seconds: float, views: int) -> None:
        """Learns from a run of the model."""
        self.seconds_per_view = _learn(self.seconds_per_view, seconds / views)

    def note_decode(self, seconds: float, cost_s: float) -> None:
        """Learns from the decoding of an image whose header promised `cost_s`."""
        if cost_s > 0:
            self.decode_slowness = _learn(self.decode_slowness, seconds / cost_s)

    def expected_s(self, job: Job) -> float:
        """Returns the seconds of one thread that a job should still take."""
        decode_s = 0.0 if job.prepared else job.decode_cost_s * self.decode_slowness
        return decode_s + job.view_count * self.seconds_per_view


def _learn(expected: float, measured: float) -> float:
    if expected == 0.0:
        return measured
    return expected + _NEW_SHARE * (min(measured, _MOST_TIMES * expected) - expected)
