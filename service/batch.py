"""One batch: the views of its jobs through their model, and what became of each job."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from service.job import Job, Outcome
from service.lane import Lane
from service.metrics import Metrics


def run_batch(lane: Lane, jobs: list[Job], start: float, metrics: Metrics) -> list[Outcome]:
    """Returns the outcomes of decoded jobs, in their order.

    Outputs that any of them wants are run for all, and given to those that want them. `start` is
    when the batch was formed, on `time.monotonic`'s clock.
    """
    extra = tuple({name: None for job in jobs for name in job.outputs})
    probabilities, *others = _run_views(lane, [job.decoded.views for job in jobs], extra)
    infer_s = time.monotonic() - start
    lane.note_run(infer_s, len(probabilities))
    metrics.models.observe_batch(
        lane.name,
        len(probabilities),
        decode_s=sum(job.decode_s for job in jobs),
        infer_s=infer_s,
    )
    outcomes = []
    first = 0
    for job in jobs:
        rows = slice(first, first + job.view_count)
        first += job.view_count
        outcomes.append(
            Outcome(
                probabilities=probabilities[rows],
                prepared=job.decoded,
                extra={
                    name: other[rows]
                    for name, other in zip(extra, others, strict=True)
                    if name in job.outputs
                },
                batch_views=len(probabilities),
                decode_s=job.decode_s,
                queue_s=start - job.admitted_at - job.decode_s,
                infer_s=infer_s,
            )
        )
    return outcomes


def _run_views(
    lane: Lane, views: list[NDArray[np.uint8]], extra: tuple[str, ...]
) -> list[NDArray[np.float32]]:
    """Returns probabilities [N, C] and the extra outputs of all views, in parts if need be."""
    batch = views[0] if len(views) == 1 else np.concatenate(views)
    parts = []
    for start in range(0, len(batch), lane.max_batch_views):
        part = batch[start : start + lane.max_batch_views]
        if extra:
            assert lane.run_outputs is not None
            parts.append(lane.run_outputs(part, ("probabilities", *extra)))
        else:
            parts.append([lane.run(part)])
    if len(parts) == 1:
        return parts[0]
    return [np.concatenate(same) for same in zip(*parts, strict=True)]
