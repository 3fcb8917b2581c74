"""Offline scoring: the service's answers for any number of images, resumable.

`score_dataset` is the whole of it; `service/score/job.py` is where to begin to read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.score.job import Summary, score_dataset
    from service.score.options import ScoreOptions

__all__ = ["ScoreOptions", "Summary", "score_dataset"]


def __getattr__(name: str) -> object:
    """Returns what is exported, imported now: a worker process needs little of the package."""
    if name not in __all__:
        raise AttributeError(name)
    from service.score import job

    return getattr(job, name)
