"""The spans of one image: decode, queue, infer, postprocess."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from service.classification import Classification
from service.job import Job

if TYPE_CHECKING:
    from service.tracing import Tracing


def trace_image(tracing: Tracing, job: Job, result: Classification, resumed_at: float) -> None:
    """Adds the spans of an image that was answered."""
    if tracing.current_trace_id() is None:
        return
    timings = result.timings
    decoding_at = job.ready_at - job.decode_s
    ran_at = job.admitted_at + job.decode_s + timings.queue_s
    stages = (
        ("queue", job.admitted_at, decoding_at),
        ("decode", decoding_at, job.ready_at),
        ("queue", job.ready_at, ran_at),
        ("infer", ran_at, ran_at + timings.infer_s),
        ("postprocess", resumed_at, time.monotonic()),
    )
    tracing.record_image(
        stages,
        {
            "fivecrop.model": result.model,
            "fivecrop.version": result.version,
            "fivecrop.views": result.views,
            "fivecrop.batch_views": result.batch_views,
        },
    )
