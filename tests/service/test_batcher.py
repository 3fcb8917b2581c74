"""The batcher with real threads: bounds, failures, cancellation, closing."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batcher import Batcher
from service.bundle.preprocess import PreparedImage
from service.errors import ErrorCode, RequestError
from service.metrics import Metrics
from service.priority import Priority
from service.schedule import Job, Lane, Outcome

POISON = 255


def mean_pixel(views):
    """A model of two classes whose answer tells which view it was given; it chokes on poison."""
    if (views == POISON).any():
        raise RuntimeError("poison")
    means = views.reshape(len(views), -1).mean(axis=1, dtype=np.float32)
    return np.stack([means, -means], axis=1)


class Desk:
    """Submits jobs and keeps their results in order."""

    def __init__(self, batcher, lane):
        self.batcher, self.lane = batcher, lane
        self.results: dict[int, list] = {}
        self.changed = threading.Condition()

    def submit(self, value, *, views=1, prepare=None, deadline=None, size=1, **options):
        number = len(self.results)
        results = self.results[number] = []

        def finish(outcome):
            with self.changed:
                results.append(outcome)
                self.changed.notify_all()

        image = PreparedImage(
            views=np.full((views, 2, 2, 3), value, np.uint8), width=2, height=2, format="png"
        )
        job = Job(
            lane=self.lane,
            prepare=prepare or (lambda: image),
            view_count=views,
            encoded_bytes=size,
            deadline=time.monotonic() + 60 if deadline is None else deadline,
            finish=finish,
            **options,
        )
        try:
            self.batcher.submit(job)
        except RequestError:
            del self.results[number]
            raise
        return job

    def wait(self, timeout=20):
        with self.changed:
            done = self.changed.wait_for(lambda: all(self.results.values()), timeout)
        assert done, "a job never finished"
        assert all(len(result) == 1 for result in self.results.values())
        return [result[0] for result in self.results.values()]


@pytest.fixture
def make_desk():
    batchers = []

    def make(
        run=mean_pixel,
        *,
        threads=2,
        devices=0,
        views=512,
        size=10**6,
        good=1,
        delay_s=0.0,
        share=1.0,
    ):
        batcher = Batcher(
            compute_threads=threads,
            device_threads=devices,
            max_queue_views=views,
            max_queue_bytes=size,
            max_model_share=share,
            metrics=Metrics(),
        )
        lane = Lane(
            name="m@1", run=run, max_batch_views=8, good_batch_views=good, max_delay_s=delay_s
        )
        batcher.add_lane(lane)
        batchers.append(batcher)
        return Desk(batcher, lane)

    yield make
    for batcher in batchers:
        batcher.close(5)


class Gate:
    """A model that holds its thread until it is let through."""

    def __init__(self):
        self.entered, self.open = threading.Event(), threading.Event()
        self.batches = []

    def __call__(self, views):
        self.batches.append(views)
        self.entered.set()
        assert self.open.wait(20)
        return mean_pixel(views)


@pytest.mark.parametrize("devices", [0, 1])
def test_each_job_gets_its_own_rows(make_desk, devices):
    desk = make_desk(devices=devices, good=8)
    for value in range(100):
        desk.submit(value, views=1 + value % 3)
    for value, outcome in enumerate(desk.wait()):
        assert isinstance(outcome, Outcome)
        assert outcome.probabilities.shape == (1 + value % 3, 2)
        assert (outcome.probabilities[:, 0] == value).all()


@pytest.mark.parametrize("devices", [0, 1])
def test_a_model_that_never_returns_is_noticed(make_desk, monkeypatch, devices):
    monkeypatch.setattr("service.batcher._STUCK_S", 0.05)
    gate = Gate()
    desk = make_desk(gate, threads=2, devices=devices)
    time.sleep(0.1)
    assert not desk.batcher.is_stuck, "waiting for work is not hanging"
    desk.submit(1)
    assert gate.entered.wait(20)
    time.sleep(0.1)
    assert desk.batcher.is_stuck
    gate.open.set()
    desk.wait()
    for _ in range(100):
        if not desk.batcher.is_stuck:
            break
        time.sleep(0.01)
    assert not desk.batcher.is_stuck, "it came back after all"


def test_a_poison_image_fails_alone(make_desk):
    gate = Gate()
    desk = make_desk(gate, threads=1, good=8)
    desk.submit(1)
    assert gate.entered.wait(20)
    for value in (2, POISON, 3, 4):
        desk.submit(value)
    gate.open.set()
    outcomes = desk.wait()
    assert isinstance(outcomes[2], RequestError)
    assert outcomes[2].code is ErrorCode.INFERENCE_FAILED
    rest = [o.probabilities[0, 0] for i, o in enumerate(outcomes) if i != 2]
    assert rest == [1, 2, 3, 4]
    assert len(gate.batches[1]) == 4, "the poison was in a batch with its neighbours"


def test_the_naive_control_loses_the_neighbours_of_a_poison_image():
    batch = np.stack([np.full((2, 2, 3), v, np.uint8) for v in (2, POISON, 3)])
    with pytest.raises(RuntimeError):
        mean_pixel(batch)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.sampled_from([0, 1, 2, 3, POISON]), min_size=1, max_size=24))
def test_any_mix_of_poison_and_good_images_gives_the_good_ones_their_answers(values):
    batcher = Batcher(
        compute_threads=2,
        device_threads=0,
        max_queue_views=512,
        max_queue_bytes=10**6,
        metrics=Metrics(),
    )
    lane = Lane(name="m@1", run=mean_pixel, max_batch_views=8, good_batch_views=8, max_delay_s=0.0)
    batcher.add_lane(lane)
    desk = Desk(batcher, lane)
    for value in values:
        desk.submit(value)
    for value, outcome in zip(values, desk.wait(), strict=True):
        if value == POISON:
            assert isinstance(outcome, RequestError)
        else:
            assert outcome.probabilities[0, 0] == value
    assert batcher.close(5)


def test_an_image_that_cannot_be_decoded_disturbs_nobody(make_desk):
    def refuse():
        raise RequestError(ErrorCode.IMAGE_CORRUPT, "damaged")

    desk = make_desk()
    desk.submit(1)
    desk.submit(2, prepare=refuse)
    desk.submit(3)
    first, second, third = desk.wait()
    assert second.code is ErrorCode.IMAGE_CORRUPT
    assert (first.probabilities[0, 0], third.probabilities[0, 0]) == (1, 3)


def test_a_bug_in_decoding_does_not_take_the_thread_down(make_desk):
    desk = make_desk(threads=1)
    desk.submit(1, prepare=lambda: 1 / 0)
    desk.submit(2)
    broken, fine = desk.wait()
    assert isinstance(broken, ZeroDivisionError)
    assert fine.probabilities[0, 0] == 2


def test_a_full_queue_refuses_before_any_work(make_desk):
    gate = Gate()
    desk = make_desk(gate, threads=1, views=3)
    for value in range(3):
        desk.submit(value)
    with pytest.raises(RequestError) as refused:
        desk.submit(9, prepare=lambda: pytest.fail("work was done for a refused job"))
    assert refused.value.code is ErrorCode.OVERLOADED
    assert refused.value.retry_after_s is not None
    gate.open.set()
    assert len(desk.wait()) == 3
    desk.submit(4)
    assert len(desk.wait()) == 4


def test_the_queue_is_bounded_in_bytes_too(make_desk):
    gate = Gate()
    desk = make_desk(gate, threads=1, size=100)
    desk.submit(1, size=60)
    with pytest.raises(RequestError):
        desk.submit(2, size=60)
    gate.open.set()
    desk.wait()
    desk.submit(2, size=60)
    desk.wait()


def test_an_expired_job_is_never_run(make_desk):
    gate = Gate()
    desk = make_desk(gate, threads=1)
    desk.submit(1)
    assert gate.entered.wait(20)
    desk.submit(2, deadline=time.monotonic() - 1, prepare=lambda: pytest.fail("it was decoded"))
    gate.open.set()
    _, late = desk.wait()
    assert late.code is ErrorCode.DEADLINE_EXCEEDED
    assert sum(len(batch) for batch in gate.batches) == 1


def test_a_cancelled_job_leaves_its_batch_and_disturbs_nobody(make_desk):
    gate = Gate()
    desk = make_desk(gate, threads=1, good=8)
    desk.submit(1)
    assert gate.entered.wait(20)
    desk.submit(2)
    desk.submit(3).is_cancelled = True
    desk.submit(4)
    gate.open.set()
    outcomes = desk.wait()
    assert [outcomes[i].probabilities[0, 0] for i in (0, 1, 3)] == [1, 2, 4]
    assert sum(len(batch) for batch in gate.batches) == 3


def test_a_withdrawn_job_gives_its_room_back_at_once(make_desk):
    gate = Gate()
    desk = make_desk(gate, threads=1, views=2)
    desk.submit(1)
    assert gate.entered.wait(20)
    waiting = desk.submit(2)
    # The naive control only marks it, and its room stays taken while the engine is busy.
    waiting.is_cancelled = True
    with pytest.raises(RequestError):
        desk.submit(3)
    desk.batcher.withdraw(waiting)
    assert desk.results[1], "it was not told"
    desk.submit(3)
    gate.open.set()
    outcomes = desk.wait()
    assert [outcomes[i].probabilities[0, 0] for i in (0, 2)] == [1, 3]


def test_withdrawing_a_job_that_runs_changes_nothing(make_desk):
    gate = Gate()
    desk = make_desk(gate, threads=1)
    running = desk.submit(1)
    assert gate.entered.wait(20)
    desk.batcher.withdraw(running)
    gate.open.set()
    assert desk.wait()[0].probabilities[0, 0] == 1
    desk.batcher.withdraw(running)


def test_an_urgent_job_takes_the_place_of_a_lesser_one_in_a_full_queue(make_desk):
    gate = Gate()
    desk = make_desk(gate, threads=1, views=3)
    desk.submit(1)
    assert gate.entered.wait(20)
    desk.submit(2)
    desk.submit(3)
    with pytest.raises(RequestError):
        desk.submit(4)  # as urgent as the others
    desk.submit(4, priority=Priority.HIGH)
    displaced = desk.results[2][0]
    assert displaced.code is ErrorCode.OVERLOADED
    assert displaced.retry_after_s is not None
    gate.open.set()
    outcomes = desk.wait()
    assert [outcomes[i].probabilities[0, 0] for i in (0, 1, 3)] == [1, 2, 4]


def test_a_model_at_its_quota_refuses_while_another_is_still_admitted(make_desk):
    gate = Gate()
    desk = make_desk(gate, threads=1, views=4, share=0.5)
    lane = Lane(name="n@1", run=mean_pixel, max_batch_views=8, good_batch_views=1, max_delay_s=0)
    desk.batcher.add_lane(lane)
    other = Desk(desk.batcher, lane)
    desk.submit(1)
    assert gate.entered.wait(20)
    desk.submit(2)
    with pytest.raises(RequestError, match="share"):
        desk.submit(3)
    other.submit(4)
    desk.submit(5, priority=Priority.HIGH)  # at the cost of its own model's other job
    assert desk.results[1][0].code is ErrorCode.OVERLOADED
    gate.open.set()
    assert [desk.wait()[i].probabilities[0, 0] for i in (0, 2)] == [1, 5]
    assert other.wait()[0].probabilities[0, 0] == 4


def test_nobody_is_displaced_in_vain(make_desk):
    gate = Gate()
    desk = make_desk(gate, threads=1, views=4)
    desk.submit(1, views=2)
    assert gate.entered.wait(20)
    desk.submit(2, priority=Priority.LOW)
    desk.submit(3, priority=Priority.LOW)
    with pytest.raises(RequestError):
        desk.submit(4, views=3, priority=Priority.HIGH)
    gate.open.set()
    assert all(isinstance(outcome, Outcome) for outcome in desk.wait())


def test_a_job_whose_answer_would_come_too_late_is_refused_before_any_work(make_desk):
    gate = Gate()
    desk = make_desk(gate, threads=1)
    desk.lane.seconds_per_view = 0.1
    desk.submit(1)
    assert gate.entered.wait(20)
    for value in range(10):
        desk.submit(value)
    with pytest.raises(RequestError) as refused:
        desk.submit(9, deadline=time.monotonic() + 0.5)
    assert refused.value.code is ErrorCode.OVERLOADED
    assert 1.1 <= refused.value.retry_after_s <= 1.65, "the predicted drain, spread out"
    gate.open.set()
    desk.wait()


def test_a_busy_engine_lets_the_next_batch_fill(make_desk):
    gate = Gate()
    desk = make_desk(gate, threads=2, devices=1, good=8, delay_s=0.0)
    desk.submit(1)
    assert gate.entered.wait(20)
    for value in range(6):
        desk.submit(value)
    deadline = time.monotonic() + 20
    while desk.lane.ready_views < 6:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    gate.open.set()
    desk.wait()
    assert [len(batch) for batch in gate.batches] == [1, 6]


def test_a_request_of_many_views_runs_in_parts_of_the_batch_size(make_desk):
    sizes = []

    def run(views):
        sizes.append(len(views))
        return mean_pixel(views)

    desk = make_desk(run)
    desk.submit(7, views=20)
    (outcome,) = desk.wait()
    assert outcome.probabilities.shape == (20, 2)
    assert sizes == [8, 8, 4]


def test_closing_waits_for_admitted_jobs_and_refuses_new_ones(make_desk):
    gate = Gate()
    desk = make_desk(gate, threads=1)
    for value in range(5):
        desk.submit(value)
    assert gate.entered.wait(20)
    emptied = []
    closing = threading.Thread(target=lambda: emptied.append(desk.batcher.close(20)))
    closing.start()
    while not desk.batcher._is_closing:
        time.sleep(0.001)
    with pytest.raises(RequestError) as refused:
        desk.submit(9)
    assert refused.value.code is ErrorCode.DRAINING
    gate.open.set()
    closing.join(20)
    assert emptied == [True]
    assert all(isinstance(outcome, Outcome) for outcome in desk.wait())


def test_closing_with_a_hung_engine_still_answers_the_waiting(make_desk):
    gate = Gate()
    desk = make_desk(gate, threads=1)
    desk.submit(1)
    assert gate.entered.wait(20)
    desk.submit(2)
    assert desk.batcher.close(0.05) is False
    with desk.changed:
        assert desk.changed.wait_for(lambda: desk.results[1], 20)
    assert desk.results[1][0].code is ErrorCode.DRAINING
    gate.open.set()
    desk.wait()


def test_a_retired_model_finishes_its_jobs_and_takes_no_more(make_desk):
    gate = threading.Event()
    desk = make_desk(lambda views: (gate.wait(20), mean_pixel(views))[1], threads=1)
    for value in range(6):
        desk.submit(value)
    assert not desk.batcher.retire_lane(desk.lane, 0.01)
    with pytest.raises(RequestError) as refused:
        desk.submit(7)
    assert refused.value.code is ErrorCode.MODEL_NOT_FOUND
    gate.set()
    assert desk.batcher.retire_lane(desk.lane, 20)
    assert all(isinstance(result, Outcome) for result in desk.wait())
    assert desk.lane.is_idle


def test_closing_ends_the_wait_for_a_model_that_hangs(make_desk):
    gate = threading.Event()
    desk = make_desk(lambda views: (gate.wait(20), mean_pixel(views))[1], threads=1)
    desk.submit(1)
    waiter = threading.Thread(target=desk.batcher.retire_lane, args=(desk.lane, 600))
    waiter.start()
    desk.batcher.close(0.01)
    waiter.join(20)
    assert not waiter.is_alive()
    gate.set()
