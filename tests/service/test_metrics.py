import os
import subprocess
import sys
from typing import get_args

import pytest

from service.metrics import Metrics, RejectReason
from service.processes import ProcessesCollector


def test_labels_beyond_the_bound_are_counted_as_other():
    metrics = Metrics(max_labels=2)
    for label in ("cat", "dog", "bird", "fish", "cat"):
        metrics.observe_prediction("m", 1, label, 0.5)
    text = metrics.render()[0].decode()
    assert 'label="cat",model="m",version="1"} 2.0' in text
    assert 'label="dog",model="m",version="1"} 1.0' in text
    assert 'label="other",model="m",version="1"} 2.0' in text
    assert "bird" not in text


def test_batches_are_counted_under_the_name_that_other_metrics_have():
    metrics = Metrics()
    metrics.models.observe_batch("m@2", 3, decode_s=0.1, infer_s=0.2)
    text = metrics.render()[0].decode()
    assert 'fivecrop_batch_views_count{model="m"} 1.0' in text
    assert 'fivecrop_batches_total{model="m",version="2",views="3"} 1.0' in text


def test_rejections_are_shown_before_the_first_one():
    text = Metrics().render()[0].decode()
    for reason in get_args(RejectReason):
        assert f'fivecrop_rejected_total{{reason="{reason}"}} 0.0' in text


def test_worker_is_alive_once_it_serves():
    metrics = Metrics()
    assert b"fivecrop_workers_alive 0.0" in metrics.render()[0]
    metrics.count_worker()
    assert b"fivecrop_workers_alive 1.0" in metrics.render()[0]


def test_requests_in_flight_are_counted_down_also_after_an_error():
    metrics = Metrics()
    seen = []

    def fail():
        with metrics.track_inflight("http"):
            seen.append(metrics.render()[0].decode())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert 'inflight_requests{transport="http"} 1.0' in seen[0]
    assert 'inflight_requests{transport="http"} 0.0' in metrics.render()[0].decode()


def test_process_metrics_are_summed_over_the_workers():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        pids = [os.getpid()]
        metrics = Metrics(collectors=[ProcessesCollector(lambda: pids)])
        one = read(metrics, "process_resident_memory_bytes")
        started = read(metrics, "process_start_time_seconds")
        pids.append(child.pid)
        assert read(metrics, "process_resident_memory_bytes") > one
        assert read(metrics, "process_start_time_seconds") == started
    finally:
        child.communicate(b"\n")
    read(metrics, "process_resident_memory_bytes")  # a process that ended breaks nothing


def read(metrics, name):
    lines = metrics.render()[0].decode().splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith(f"{name} ")]
    return float(value)
