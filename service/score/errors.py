"""What goes wrong with a scoring job, and with an image before the service's code sees it.

FivecropError
├── StartError
│   └── ScoreError      the job cannot be begun, or not in that way; exit code 2
└── JobFailed           a job that ran could not go on; what it committed stays; exit code 1

`ReadCode` stands in error rows beside `service.errors.ErrorCode`.
"""

from __future__ import annotations

from enum import StrEnum, unique

from service.errors import FivecropError, StartError


class ScoreError(StartError):
    """A scoring job cannot be begun, or not in that way; the text is one line for its owner."""


class JobFailed(FivecropError):  # noqa: N818 - it failed, and what it did is still there
    """A job that ran could not go on; what it has committed stays and it can be resumed."""


@unique
class ReadCode(StrEnum):
    """Why an image never reached the decoder; beside `service.errors.ErrorCode` in error rows."""

    NOT_FOUND = "not_found"
    UNREADABLE = "unreadable"
    WORKER_KILLED = "worker_killed"
