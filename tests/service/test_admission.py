"""Who may join the queue: bounds, quotas, predicted waits, and what they do under overload.

The overload tests run schedule and admission on a clock of their own, so that they are exact.
"""

from __future__ import annotations

import heapq
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.admission import Admission, Bounds
from service.bundle.preprocess import PreparedImage
from service.priority import Priority
from service.schedule import Job, Lane, Prepare, Run, Schedule


def make_lane(name="a", *, seconds_per_view=0.0, good_batch=1):
    return Lane(
        name=name,
        run=lambda views: np.zeros((len(views), 2), np.float32),
        max_batch_views=8,
        good_batch_views=good_batch,
        max_delay_s=0.0,
        seconds_per_view=seconds_per_view,
    )


def make_job(lane, *, views=1, size=1, cost=0.0, deadline=1e9, priority=Priority.NORMAL):
    image = PreparedImage(
        views=np.zeros((views, 1, 1, 3), np.uint8), width=1, height=1, format="png"
    )
    return Job(
        lane=lane,
        prepare=lambda: image,
        view_count=views,
        encoded_bytes=size,
        deadline=deadline,
        finish=lambda outcome: None,
        priority=priority,
        decode_cost_s=cost,
    )


def make_admission(*, views=512, size=10**6, cost=1e9, share=1.0, threads=1, devices=0, lanes=1):
    bounds = Bounds(views=views, encoded_bytes=size, decode_cost_s=cost, model_share=share)
    admission = Admission(bounds, compute_threads=threads, device_threads=devices)
    for _ in range(lanes):
        admission.add_lane()
    return admission


def enter(admission, job, count=1):
    jobs = [job] + [
        make_job(job.lane, views=job.view_count, cost=job.decode_cost_s, priority=job.priority)
        for _ in range(count - 1)
    ]
    for one in jobs:
        admission.enter(one, 0.0)
    return jobs


def admits(admission, job, now):
    is_late = admission.is_late(job, now)
    return not is_late and admission.has_quota(job) and admission.has_room(job)


# ---- bounds ----


@pytest.mark.parametrize(
    ("bound", "job"),
    [
        ({"views": 9}, {"views": 5}),
        ({"size": 9}, {"size": 5}),
        ({"cost": 9.0}, {"cost": 5.0}),
    ],
)
def test_views_bytes_and_decoding_are_each_bounded(bound, job):
    lane = make_lane()
    admission = make_admission(**bound)
    first = make_job(lane, **job)
    assert admission.has_room(first)
    admission.enter(first, 0.0)
    assert not admission.has_room(make_job(lane, **job))
    admission.leave(first)
    assert admission.has_room(make_job(lane, **job))


def test_an_image_that_costs_more_to_decode_takes_more_of_the_queue():
    lane = make_lane()
    admission = make_admission(cost=1.0)
    enter(admission, make_job(lane, cost=0.01), 50)
    assert admission.has_room(make_job(lane, cost=0.01))
    assert not admission.has_room(make_job(lane, cost=0.6))


def test_decoded_images_give_their_decoding_back():
    lane = make_lane()
    admission = make_admission(cost=1.0)
    job = make_job(lane, cost=0.9)
    admission.enter(job, 0.0)
    admission.finish_decode(job)
    assert admission.has_room(make_job(lane, cost=0.9))
    admission.leave(job)
    assert admission.load.views == 0


def test_one_of_several_models_cannot_hold_more_than_its_share():
    a, b = make_lane("a"), make_lane("b")
    admission = make_admission(views=10, share=0.5, lanes=2)
    enter(admission, make_job(a), 5)
    assert not admission.has_quota(make_job(a))
    assert admission.has_quota(make_job(b))
    assert admission.has_quota(make_job(b, views=9)), "one job alone is no flood"


def test_the_only_model_may_hold_the_whole_queue():
    lane = make_lane()
    admission = make_admission(views=10, share=0.5, lanes=1)
    enter(admission, make_job(lane), 9)
    assert admission.has_quota(make_job(lane))


# ---- predicted waits ----


def test_the_wait_is_the_work_before_a_job_over_the_threads():
    lane = make_lane(seconds_per_view=0.02)
    lane.decode_slowness = 2.0
    admission = make_admission(threads=2)
    enter(admission, make_job(lane, views=2, cost=0.01), 10)
    assert admission.wait_s(make_job(lane)) == pytest.approx(10 * (2 * 0.02 + 2.0 * 0.01) / 2)
    assert admission.drain_s() == pytest.approx(0.3)


def test_with_a_device_decoding_and_running_overlap():
    lane = make_lane(seconds_per_view=0.002)
    admission = make_admission(threads=4, devices=1)
    enter(admission, make_job(lane, cost=0.02), 100)
    assert admission.wait_s(make_job(lane)) == pytest.approx(max(100 * 0.02 / 4, 100 * 0.002))


def test_an_urgent_job_does_not_wait_for_the_others_and_a_lesser_one_does():
    lane = make_lane(seconds_per_view=0.01)
    admission = make_admission()
    enter(admission, make_job(lane), 100)
    waits = [admission.wait_s(make_job(lane, priority=priority)) for priority in Priority]
    assert waits[0] < 0.002
    assert waits[1] == pytest.approx(1.0)
    assert waits[2] == pytest.approx(0.08)  # its own turn is after eight of the others'
    enter(admission, make_job(lane, priority=Priority.LOW), 20)
    assert admission.wait_s(make_job(lane, priority=Priority.LOW)) == pytest.approx(1.2)


def test_a_flood_for_one_model_hardly_lengthens_the_wait_for_another():
    flooded, other = make_lane("a", seconds_per_view=0.01), make_lane("b", seconds_per_view=0.01)
    admission = make_admission(lanes=2)
    enter(admission, make_job(flooded), 100)
    assert admission.wait_s(make_job(flooded)) == pytest.approx(1.0)
    assert admission.wait_s(make_job(other)) == pytest.approx(0.01)


def test_a_job_that_would_be_late_is_refused_and_one_with_more_time_is_not():
    lane = make_lane(seconds_per_view=0.01)
    admission = make_admission()
    enter(admission, make_job(lane), 100)
    assert admission.is_late(make_job(lane, deadline=51.0), 50.0)
    assert not admission.is_late(make_job(lane, deadline=52.0), 50.0)


def test_a_flow_without_jobs_tries_one_whatever_it_fears():
    lane, busy = make_lane(seconds_per_view=1000.0), make_lane("b", seconds_per_view=1.0)
    admission = make_admission(lanes=2)
    assert not admission.is_late(make_job(lane, deadline=1.0), 0.0)
    enter(admission, make_job(busy), 100)
    job = make_job(lane, deadline=1.0)
    assert not admission.is_late(job, 0.0)
    admission.enter(job, 0.0)
    assert admission.is_late(make_job(lane, deadline=1.0), 0.0)


def test_one_stall_does_not_make_a_lane_fear_for_long():
    lane = make_lane()
    lane.note_run(0.010, 1)
    lane.note_run(100.0, 1)
    assert lane.seconds_per_view <= 0.014
    for _ in range(60):
        lane.note_run(0.080, 1)
    assert lane.seconds_per_view == pytest.approx(0.080, rel=0.05)


def test_waits_too_short_to_predict_make_nobody_late():
    """A model of microseconds: what its jobs really wait for is the scheduler of the system."""
    lane, admission = make_lane(seconds_per_view=1e-6), make_admission()
    for _ in range(50):
        job = make_job(lane)
        job.predicted_wait_s = 1e-6
        admission.enter(job, 0.0)
        admission.note_turn(job, 0.01)
        admission.leave(job)
    enter(admission, make_job(lane), 100)
    assert admits(admission, make_job(lane, deadline=1.0), 0.0)


def test_a_job_that_waited_for_a_busy_machine_makes_no_burst_late():
    lane, admission = make_lane(seconds_per_view=0.002), make_admission()
    for _ in range(50):
        job = make_job(lane)
        job.predicted_wait_s = 0.002
        admission.enter(job, 0.0)
        admission.note_turn(job, 0.03)
        admission.leave(job)
    enter(admission, make_job(lane), 100)
    assert admits(admission, make_job(lane, deadline=1.0), 0.0)


def test_waits_that_scatter_are_taken_for_longer():
    seconds = 1.0
    flow = make_lane().flows[Priority.NORMAL]
    for _ in range(50):
        flow.note_wait(seconds, seconds)
    assert flow.correct_wait(seconds) == pytest.approx(seconds, rel=0.01)
    for number in range(100):
        flow.note_wait(seconds, seconds * (1.3 if number % 2 else 0.7))
    assert flow.correct_wait(seconds) == pytest.approx(1.3 * seconds, rel=0.1)


def test_a_crowd_after_one_client_alone_is_not_late():
    """A lone client's jobs are not predicted to wait; what they wait all the same is no measure."""
    lane, admission = make_lane(seconds_per_view=0.01), make_admission()
    busy = enter(admission, make_job(lane), 8)
    for job in busy:
        job.predicted_wait_s = 0.08
        admission.note_turn(job, 0.08)
        admission.leave(job)
    for _ in range(500):
        alone = make_job(lane)
        assert admits(admission, alone, 0.0)
        admission.enter(alone, 0.0)
        admission.note_turn(alone, 1e-4)
        admission.leave(alone)
    for _ in range(20):
        crowd = [make_job(lane, deadline=10.0) for _ in range(8)]
        for job in crowd:
            assert admits(admission, job, 0.0)
            admission.enter(job, 0.0)
        for job in crowd:
            admission.note_turn(job, 0.05)
            admission.leave(job)


def test_the_header_estimate_is_corrected_by_what_decoding_took():
    lane = make_lane()
    for _ in range(60):
        lane.note_decode(0.03, 0.01)
    assert lane.decode_slowness == pytest.approx(3.0, rel=0.01)
    assert lane.expected_s(make_job(lane, cost=0.1)) == pytest.approx(0.3, rel=0.01)


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["come", "decoded", "go"]),
            st.integers(0, 2),
            st.sampled_from(list(Priority)),
            st.integers(1, 6),
            st.floats(0, 2),
        ),
        max_size=80,
    ),
    share=st.floats(0.1, 1.0),
)
def test_the_bounds_and_every_quota_hold_and_the_books_end_empty(steps, share):
    lanes = [make_lane(name, seconds_per_view=0.01) for name in "abc"]
    admission = make_admission(views=20, size=100, cost=8.0, share=share, lanes=3)
    inside: list[Job] = []
    for step, lane, priority, number, cost in steps:
        if step == "come":
            job = make_job(lanes[lane], views=number, size=5 * number, cost=cost, priority=priority)
            if admits(admission, job, 0.0):
                admission.enter(job, 0.0)
                inside.append(job)
        elif inside and step == "decoded":
            admission.finish_decode(inside[number % len(inside)])
        elif inside:
            admission.leave(inside.pop(number % len(inside)))
        views = [sum(j.view_count for j in inside if j.lane is one) for one in lanes]
        assert sum(views) == admission.load.views <= 20
        assert sum(j.encoded_bytes for j in inside) == admission.load.encoded_bytes <= 100
        assert admission.load.decode_cost_s <= 8.0 + 1e-9
        for one, held in zip(lanes, views, strict=True):
            alone = sum(j.lane is one for j in inside) <= 1
            assert held <= 20 * share or alone
        assert admission.wait_s(make_job(lanes[lane], priority=priority)) <= (
            admission.drain_s() + 1e-9
        )
    for job in inside:
        admission.leave(job)
    assert admission.load.views == admission.load.encoded_bytes == 0
    assert admission.drain_s() == pytest.approx(0.0, abs=1e-9)


# ---- overload ----


class Shop:
    """A server on a clock of its own: real schedule and admission, threads that only take time."""

    THREADS, DECODE_S, RUN_S = 2, 0.002, 0.018

    def __init__(self, *, is_naive=False, models=1, **bounds):
        self.is_naive = is_naive
        self.now = 0.0
        self.schedule = Schedule(self._drop)
        self.admission = make_admission(threads=self.THREADS, lanes=models, **bounds)
        self.lanes = [make_lane(name) for name in "abcd"[:models]]
        for lane in self.lanes:
            self.schedule.add_lane(lane)
        self.served: list[Job] = []
        self.refused: list[Job] = []
        self._idle = self.THREADS
        self._events: list = []

    @property
    def capacity(self):
        return self.THREADS / (self.DECODE_S + self.RUN_S)

    def play(self, arrivals, *, timeout_s):
        """Plays (time, lane, priority) in order, then empties the shop; keeps what was in time."""
        for number, (at, lane, priority) in enumerate(arrivals):
            heapq.heappush(self._events, (at, 1, number, (lane, priority)))
        while self._events:
            self.now, kind, _, what = heapq.heappop(self._events)
            if kind == 1:
                lane, priority = what
                self._come(
                    make_job(
                        self.lanes[lane],
                        cost=self.DECODE_S,
                        deadline=self.now + timeout_s,
                        priority=priority,
                    )
                )
            else:
                self._idle += 1
                what()
            while self._idle and self._start_work():
                pass

    def _come(self, job):
        if not self.is_naive:
            if not admits(self.admission, job, self.now):
                self.refused.append(job)
                return
            self.admission.enter(job, self.now)
        job.admitted_at = self.now
        self.schedule.add_encoded(job)

    def _start_work(self):
        work = self.schedule.next_work(self.now, decodes=True, runs=True)
        if isinstance(work, Prepare):
            self.admission.note_turn(work.job, self.now)
            self._after(self.DECODE_S, lambda: self._decoded(work.job))
        elif isinstance(work, Run):
            self._after(self.RUN_S * len(work.jobs), lambda: self._ran(work))
        else:
            return False
        return True

    def _after(self, seconds, do):
        self._idle -= 1
        heapq.heappush(self._events, (self.now + seconds, 0, id(do), do))

    def _decoded(self, job):
        job.prepared = job.prepare()
        job.lane.note_decode(self.DECODE_S, job.decode_cost_s)
        if not self.is_naive:
            self.admission.finish_decode(job)
        self.schedule.add_ready(job, self.now)

    def _ran(self, work):
        work.lane.note_run(self.RUN_S * len(work.jobs), len(work.jobs))
        for job in work.jobs:
            job.ready_at = self.now  # when it was answered
            self.served.append(job)
            if not self.is_naive:
                self.admission.leave(job)

    def _drop(self, job):
        self.refused.append(job)
        if not self.is_naive:
            self.admission.note_turn(job, self.now)
            self.admission.leave(job)

    def goodput(self, seconds, lane=None):
        return sum(
            job.ready_at <= job.deadline and (lane is None or job.lane is self.lanes[lane])
            for job in self.served
        ) / (seconds * self.capacity)


def poisson(rate, seconds, *, lane=0, priority=Priority.NORMAL, start=0.0, seed=1):
    generator, at, arrivals = random.Random(seed), start, []
    while (at := at + generator.expovariate(rate)) < start + seconds:
        arrivals.append((at, lane, priority))
    return arrivals


@pytest.mark.parametrize("timeout_s", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("overload", [2, 10])
def test_goodput_stays_at_the_peak_under_overload(overload, timeout_s):
    shop = Shop()
    shop.play(poisson(overload * shop.capacity, 10), timeout_s=timeout_s)
    assert shop.goodput(10) >= 0.97
    late = [job for job in shop.served if job.ready_at > job.deadline]
    assert len(late) <= 0.01 * len(shop.served)


@pytest.mark.parametrize("overload", [2, 10])
def test_the_naive_control_answers_nearly_nobody_in_time(overload):
    shop = Shop(is_naive=True)
    shop.play(poisson(overload * shop.capacity, 10), timeout_s=1.0)
    assert shop.goodput(10) < 0.6


def test_after_an_overload_everyone_is_answered_again_within_the_deadline():
    shop = Shop()
    flood = poisson(10 * shop.capacity, 5)
    calm = poisson(0.5 * shop.capacity, 5, start=6.0, seed=2)
    shop.play(sorted(flood + calm), timeout_s=1.0)
    answered = [job for job in shop.served if job.admitted_at >= 6.0]
    assert len(answered) == len(calm)
    assert max(job.ready_at - job.admitted_at for job in answered) < 0.5


def test_one_model_cannot_starve_another():
    shop = Shop(models=2, share=0.5)
    flood = poisson(10 * shop.capacity, 10, lane=0)
    modest = poisson(0.4 * shop.capacity, 10, lane=1, seed=2)
    shop.play(sorted(flood + modest), timeout_s=0.5)
    in_time = sum(job.ready_at <= job.deadline for job in shop.served if job.lane.name == "b")
    assert in_time >= 0.99 * len(modest)
    assert shop.goodput(10) >= 0.93


def test_the_naive_control_starves_the_modest_model():
    # One line for all, as a queue without lanes would have it.
    shop = Shop(is_naive=True)
    flood = poisson(10 * shop.capacity, 10)
    modest = poisson(0.4 * shop.capacity, 10, seed=2)
    shop.play(sorted(flood + modest), timeout_s=0.5)
    came = {at for at, _, _ in modest}
    in_time = sum(job.ready_at <= job.deadline for job in shop.served if job.admitted_at in came)
    assert in_time < 0.2 * len(modest)


def test_urgent_requests_hardly_notice_an_overload_and_lesser_ones_still_get_a_share():
    shop = Shop()
    arrivals = [
        *poisson(0.3 * shop.capacity, 10, priority=Priority.HIGH),
        *poisson(2 * shop.capacity, 10, priority=Priority.NORMAL, seed=2),
        *poisson(2 * shop.capacity, 10, priority=Priority.LOW, seed=3),
    ]
    shop.play(sorted(arrivals), timeout_s=2.0)
    waits = sorted(
        job.ready_at - job.admitted_at for job in shop.served if job.priority is Priority.HIGH
    )
    high = sum(priority is Priority.HIGH for _, _, priority in arrivals)
    assert len(waits) == high
    assert waits[int(0.99 * len(waits))] < 0.1
    low = sum(job.priority is Priority.LOW for job in shop.served)
    assert low >= 0.05 * 10 * shop.capacity
    assert shop.goodput(10) >= 0.97
