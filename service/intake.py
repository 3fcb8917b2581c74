"""What the edges hold in memory: requests under way and the bytes of their bodies, within bounds.

The queue counts images that are ready to be decoded. Before that their bodies are already in memory
here, and a thousand clients may be sending ten megabytes each.
"""

from __future__ import annotations

from typing import Final, Self

from service.errors import ErrorCode, RequestError
from service.metrics import Metrics
from service.settings import Settings

_RETRY_AFTER_S: Final = 1.0


class Held:
    """What one request holds, from the beginning of a `with` block to its end."""

    __slots__ = ("_bytes", "_intake")

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._bytes = 0

    def __enter__(self) -> Self:
        intake = self._intake
        if intake.requests >= intake.max_requests or intake.held_bytes >= intake.max_bytes:
            raise intake.refusal()
        intake.requests += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._intake.requests -= 1
        self._intake.held_bytes -= self._bytes

    def add(self, size: int) -> None:
        """Counts bytes that arrived, not bytes that are promised: a promise is free to make.

        Raises:
            RequestError: `overloaded`.
        """
        intake = self._intake
        if intake.held_bytes + size > intake.max_bytes:
            raise intake.refusal()
        intake.held_bytes += size
        self._bytes += size


class Intake:
    """The bounds, and what is held now. For one event loop.

    Attributes:
        max_requests: Most requests.
        max_bytes: Most bytes of bodies.
        requests: Not answered yet.
        held_bytes: Of their bodies.
    """

    def __init__(self, *, max_requests: int, max_bytes: int, metrics: Metrics) -> None:
        self._metrics = metrics
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self.requests = 0
        self.held_bytes = 0

    @classmethod
    def build(cls, settings: Settings, metrics: Metrics) -> Intake:
        """Returns the intake of one protocol."""
        return cls(
            max_requests=settings.max_inflight_requests,
            max_bytes=settings.max_inflight_bytes,
            metrics=metrics,
        )

    def admit(self) -> Held:
        """Returns what counts a request while it is entered; `overloaded` is raised then."""
        return Held(self)

    def refusal(self) -> RequestError:
        """Returns the error for a request that there is no room for, and counts it."""
        self._metrics.count_rejected("intake_full")
        return RequestError(
            ErrorCode.OVERLOADED,
            "too many requests are being received",
            retry_after_s=_RETRY_AFTER_S,
        )
