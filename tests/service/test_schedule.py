"""The schedule's decisions, without threads: hypothesis plays clock, clients and threads."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.preprocess import PreparedImage
from service.priority import WEIGHT, Priority
from service.schedule import Job, Lane, Prepare, Run, Schedule, Wait


def make_lane(name="a", *, max_batch=4, good_batch=1, delay_s=0.0):
    return Lane(
        name=name,
        run=lambda views: np.zeros((len(views), 2), np.float32),
        max_batch_views=max_batch,
        good_batch_views=good_batch,
        max_delay_s=delay_s,
    )


def make_job(lane, *, views=1, deadline=1e9, priority=Priority.NORMAL, cost=0.0):
    image = PreparedImage(
        views=np.zeros((views, 1, 1, 3), np.uint8), width=1, height=1, format="png"
    )
    return Job(
        lane=lane,
        prepare=lambda: image,
        view_count=views,
        encoded_bytes=1,
        deadline=deadline,
        finish=lambda outcome: None,
        priority=priority,
        decode_cost_s=cost,
    )


@pytest.fixture
def dropped():
    return []


@pytest.fixture
def schedule(dropped):
    return Schedule(dropped.append)


def test_an_idle_schedule_waits_for_news(schedule):
    schedule.add_lane(make_lane())
    assert schedule.next_work(0.0, decodes=True, runs=True) == Wait(None)


def test_a_thread_that_does_both_decodes_until_a_good_batch_is_ready(schedule):
    lane = make_lane(good_batch=2)
    schedule.add_lane(lane)
    jobs = [make_job(lane) for _ in range(3)]
    for job in jobs:
        schedule.add_encoded(job)
    for job in jobs[:2]:
        work = schedule.next_work(0.0, decodes=True, runs=True)
        assert work == Prepare(job)
        schedule.add_ready(job, 0.0)
    assert schedule.next_work(0.0, decodes=True, runs=True) == Run(lane, jobs[:2])


def test_an_idle_engine_with_no_delay_runs_at_once(schedule):
    lane = make_lane(good_batch=8)
    schedule.add_lane(lane)
    job = make_job(lane)
    schedule.add_ready(job, 5.0)
    assert schedule.next_work(5.0, decodes=True, runs=True) == Run(lane, [job])


def test_an_idle_engine_waits_no_longer_than_the_delay(schedule):
    lane = make_lane(good_batch=8, delay_s=0.002)
    schedule.add_lane(lane)
    job = make_job(lane)
    schedule.add_ready(job, 5.0)
    assert schedule.next_work(5.0, decodes=False, runs=True) == Wait(pytest.approx(0.002))
    assert schedule.next_work(5.003, decodes=False, runs=True) == Run(lane, [job])


def test_a_full_batch_does_not_wait(schedule):
    lane = make_lane(good_batch=2, max_batch=2, delay_s=10)
    schedule.add_lane(lane)
    jobs = [make_job(lane) for _ in range(3)]
    for job in jobs:
        schedule.add_ready(job, 0.0)
    assert schedule.next_work(0.0, decodes=False, runs=True) == Run(lane, jobs[:2])


def test_models_take_turns(schedule):
    a, b = make_lane("a"), make_lane("b")
    schedule.add_lane(a)
    schedule.add_lane(b)
    for _ in range(3):
        schedule.add_ready(make_job(a, views=4), 0.0)
    schedule.add_ready(make_job(b), 0.0)
    order = [schedule.next_work(0.0, decodes=True, runs=True).lane.name for _ in range(4)]
    assert order == ["a", "b", "a", "a"]


def test_a_flood_for_one_model_does_not_starve_another_of_decoding(schedule):
    flooded, other = make_lane("flooded", good_batch=2), make_lane("other", good_batch=2)
    schedule.add_lane(flooded)
    schedule.add_lane(other)
    for _ in range(100):
        schedule.add_encoded(make_job(flooded))
    schedule.add_encoded(make_job(other))
    decoded = []
    for _ in range(2):
        work = schedule.next_work(0.0, decodes=True, runs=False)
        decoded.append(work.job.lane.name)
    assert sorted(decoded) == ["flooded", "other"]


def test_dead_jobs_are_dropped_before_any_work(schedule, dropped):
    lane = make_lane(good_batch=1)
    schedule.add_lane(lane)
    late, cancelled, alive = make_job(lane, deadline=1.0), make_job(lane), make_job(lane)
    for job in (late, cancelled, alive):
        schedule.add_encoded(job)
    cancelled.is_cancelled = True
    assert schedule.next_work(2.0, decodes=True, runs=True) == Prepare(alive)
    assert dropped == [late, cancelled]


def test_a_job_that_dies_between_decoding_and_its_batch_is_not_run(schedule, dropped):
    lane = make_lane(good_batch=2)
    schedule.add_lane(lane)
    late, alive = make_job(lane, deadline=1.0), make_job(lane)
    schedule.add_ready(late, 0.0)
    schedule.add_ready(alive, 0.0)
    assert schedule.next_work(2.0, decodes=True, runs=True) == Run(lane, [alive])
    assert dropped == [late]


def test_a_schedule_full_of_dead_jobs_empties_itself(schedule, dropped):
    lane = make_lane()
    schedule.add_lane(lane)
    for _ in range(5):
        schedule.add_ready(make_job(lane, deadline=1.0), 0.0)
    assert schedule.next_work(2.0, decodes=True, runs=True) == Wait(None)
    assert len(dropped) == 5
    assert lane.ready_views == 0


def test_a_job_larger_than_a_batch_runs_alone(schedule):
    lane = make_lane(max_batch=4, good_batch=4)
    schedule.add_lane(lane)
    big, small = make_job(lane, views=10), make_job(lane)
    schedule.add_ready(big, 0.0)
    schedule.add_ready(small, 0.0)
    assert schedule.next_work(0.0, decodes=True, runs=True) == Run(lane, [big])
    assert schedule.next_work(0.0, decodes=True, runs=True) == Run(lane, [small])


def test_a_dead_job_waiting_to_be_decoded_does_not_hold_up_a_ready_one(schedule, dropped):
    lane = make_lane(good_batch=2)
    schedule.add_lane(lane)
    alive, late = make_job(lane), make_job(lane, deadline=0.0)
    schedule.add_ready(alive, 0.0)
    schedule.add_encoded(late)
    assert schedule.next_work(1.0, decodes=True, runs=True) == Run(lane, [alive])
    assert dropped == [late]


def decode_all(schedule, count):
    works = [schedule.next_work(0.0, decodes=True, runs=False) for _ in range(count)]
    return [work.job for work in works]


def test_models_share_time_and_not_turns(schedule):
    dear, cheap = make_lane("dear"), make_lane("cheap")
    schedule.add_lane(dear)
    schedule.add_lane(cheap)
    for _ in range(100):
        schedule.add_encoded(make_job(dear, cost=0.1))
        schedule.add_encoded(make_job(cheap, cost=0.01))
    turns = Counter(job.lane.name for job in decode_all(schedule, 110))
    assert turns == {"dear": pytest.approx(10, abs=1), "cheap": pytest.approx(100, abs=1)}


def test_a_model_that_comes_late_gets_its_share_and_no_more(schedule):
    first, second = make_lane("first"), make_lane("second")
    schedule.add_lane(first)
    schedule.add_lane(second)
    for _ in range(100):
        schedule.add_encoded(make_job(first, cost=0.01))
    decode_all(schedule, 50)
    for _ in range(50):
        schedule.add_encoded(make_job(second, cost=0.01))
    turns = Counter(job.lane.name for job in decode_all(schedule, 40))
    assert turns["second"] == pytest.approx(20, abs=1)


def test_priorities_share_time_by_weight(schedule):
    lane = make_lane()
    schedule.add_lane(lane)
    for priority in Priority:
        for _ in range(200):
            schedule.add_encoded(make_job(lane, priority=priority, cost=0.01))
    turns = Counter(job.priority for job in decode_all(schedule, 146))
    assert turns == {priority: 2 * WEIGHT[priority] for priority in Priority}


def test_an_urgent_image_does_not_wait_for_a_batch_to_fill_with_lesser_ones(schedule):
    lane = make_lane(good_batch=8, max_batch=8)
    schedule.add_lane(lane)
    urgent = make_job(lane, priority=Priority.HIGH)
    for _ in range(8):
        schedule.add_encoded(make_job(lane, priority=Priority.LOW))
    schedule.add_ready(urgent, 0.0)
    assert schedule.next_work(0.0, decodes=True, runs=True) == Run(lane, [urgent])


def test_a_job_leaves_either_queue_from_the_middle(schedule, dropped):
    lane = make_lane(good_batch=9, max_batch=9)
    schedule.add_lane(lane)
    encoded, ready = ([make_job(lane) for _ in range(3)] for _ in range(2))
    for job in encoded:
        schedule.add_encoded(job)
    for job in ready:
        schedule.add_ready(job, 0.0)
    assert schedule.remove(encoded[1])
    assert schedule.remove(ready[1])
    assert not schedule.remove(ready[1])
    assert lane.ready_views == 2
    assert decode_all(schedule, 2) == [encoded[0], encoded[2]]
    assert schedule.next_work(0.0, decodes=True, runs=True) == Run(lane, [ready[0], ready[2]])
    assert dropped == []


def test_the_latest_of_the_least_urgent_make_way_first(schedule):
    lane, other = make_lane("a"), make_lane("b")
    schedule.add_lane(lane)
    schedule.add_lane(other)
    jobs = {}
    for priority in Priority:
        jobs[priority] = [make_job(lane, priority=priority) for _ in range(2)]
        for job in jobs[priority]:
            schedule.add_encoded(job)
            job.flow.backlog.add(job)
    lows, normals = jobs[Priority.LOW], jobs[Priority.NORMAL]
    newcomer = make_job(lane, priority=Priority.HIGH)
    assert list(schedule.give_way(newcomer)) == [*reversed(lows), *reversed(normals)]
    assert list(schedule.give_way(make_job(lane))) == [*reversed(lows)]
    assert list(schedule.give_way(make_job(lane, priority=Priority.LOW))) == []
    # Of another model, which holds nothing yet: equals make way as long as they hold more.
    assert list(schedule.give_way(make_job(other))) == [*reversed(lows), *reversed(normals)]
    assert list(schedule.give_way(make_job(other, views=6))) == [*reversed(lows)]


@settings(max_examples=100, deadline=None)
@given(
    floods=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(list(Priority)), st.floats(0.001, 0.05)),
        min_size=1,
        max_size=8,
    ),
    priority=st.sampled_from(list(Priority)),
)
def test_no_flood_starves_a_job_of_its_turn(floods, priority):
    schedule = Schedule(lambda job: None)
    lanes = [make_lane(name) for name in "abcde"]
    for lane in lanes:
        schedule.add_lane(lane)
    costs = {}
    for lane, urgency, cost in floods:
        costs[lane, urgency] = cost
    for (lane, urgency), cost in costs.items():
        schedule.add_encoded(make_job(lanes[lane], priority=urgency, cost=cost))
    patient = make_job(lanes[4], priority=priority, cost=0.01)
    for _ in range(3):  # turns before it came, so that the floods have a history
        refill(schedule, lanes, costs)
    schedule.add_encoded(patient)
    # Each flood gets no more, before its turn, than one job that was under way.
    spent = 0.0
    while (job := refill(schedule, lanes, costs)) is not patient:
        spent += job.decode_cost_s
        assert spent <= sum(costs.values()) + 1e-9


def refill(schedule, lanes, costs):
    """Decodes one job and queues another of its kind, so that a flood never ends."""
    (job,) = decode_all(schedule, 1)
    flood = next(
        (key for key in costs if lanes[key[0]] is job.lane and key[1] is job.priority), None
    )
    if flood:
        schedule.add_encoded(make_job(job.lane, priority=job.priority, cost=costs[flood]))
    return job


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"),
            st.integers(0, 2),
            st.integers(1, 10),
            st.one_of(st.just(1e9), st.floats(0, 5)),
            st.sampled_from(list(Priority)),
        ),
        st.tuples(st.just("cancel"), st.integers(0, 50)),
        st.tuples(st.just("withdraw"), st.integers(0, 50)),
        st.tuples(st.just("tick"), st.floats(0, 1)),
        st.tuples(st.just("work"), st.sampled_from([(True, True), (True, False), (False, True)])),
    ),
    max_size=120,
)


class Simulation:
    """Clients, threads and a clock around a schedule, moved by the steps that hypothesis draws."""

    def __init__(self, *, good, delay):
        self.now, self.delay = 0.0, delay
        self.submitted: list[Job] = []
        self.ran: list[Job] = []
        self.dropped: list[Job] = []
        self.schedule = Schedule(self.dropped.append)
        self.lanes = [make_lane(n, max_batch=8, good_batch=good, delay_s=delay) for n in "abc"]
        for lane in self.lanes:
            self.schedule.add_lane(lane)

    def submit(self, lane, views, deadline, priority):
        job = make_job(self.lanes[lane], views=views, deadline=deadline, priority=priority)
        self.submitted.append(job)
        self.schedule.add_encoded(job)

    def cancel(self, number):
        if number < len(self.submitted):
            self.submitted[number].is_cancelled = True

    def withdraw(self, number):
        if number < len(self.submitted) and self.schedule.remove(self.submitted[number]):
            self.dropped.append(self.submitted[number])

    def tick(self, seconds):
        self.now += seconds

    def work(self, roles):
        decodes, runs = roles
        todo = self.schedule.next_work(self.now, decodes=decodes, runs=runs)
        if isinstance(todo, Prepare):
            assert not todo.job.is_dead(self.now)
            self.schedule.add_ready(todo.job, self.now)
        elif isinstance(todo, Run):
            assert not any(job.is_dead(self.now) for job in todo.jobs)
            assert len(todo.jobs) == 1 or sum(j.view_count for j in todo.jobs) <= 8
            assert {job.lane for job in todo.jobs} == {todo.lane}
            self.ran.extend(todo.jobs)
        return todo

    def finish(self):
        """An idle thread that does both empties everything, waiting at most the delay each time."""
        while (todo := self.work((True, True))) != Wait(None):
            if isinstance(todo, Wait):
                assert todo.seconds <= self.delay + 1e-9
                self.tick(todo.seconds + 1e-9)


@settings(max_examples=300, deadline=None)
@given(steps=steps, good=st.integers(1, 8), delay=st.floats(0, 0.5))
def test_every_job_ends_once_in_order_within_its_batch_size(steps, good, delay):
    simulation = Simulation(good=good, delay=delay)
    for step, *arguments in steps:
        getattr(simulation, step)(*arguments)
    simulation.finish()
    submitted, ran = simulation.submitted, simulation.ran
    assert Counter(map(id, submitted)) == Counter(map(id, [*ran, *simulation.dropped]))
    for lane in simulation.lanes:
        for priority in Priority:
            order = [
                submitted.index(job) for job in ran if job.lane is lane and job.priority is priority
            ]
            assert order == sorted(order)
        assert lane.ready_views == 0
