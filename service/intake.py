"""What the edges hold in memory: requests under way and the bytes of their bodies, within bounds.

The queue counts images that are ready to be decoded. Before that their bodies are already in memory
here, and a thousand clients may be sending ten megabytes each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from service.errors import ErrorCode, RequestError
from service.metrics import Metrics
from service.settings import Settings

_RETRY_AFTER_S: Final = 1.0


class Held:
    """What one request holds."""

    __slots__ = ("_bytes", "_intake")

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._bytes = 0

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

    def release(self) -> None:
        """Gives everything back."""
        self._intake.held_bytes -= self._bytes
        self._bytes = 0


class Intake:
    """The bounds, and what is held now. For one event loop.

    Attributes:
        max_bytes: Most bytes of bodies.
        held_bytes: Of requests that are not answered yet.
    """

    def __init__(self, *, max_requests: int, max_bytes: int, metrics: Metrics) -> None:
        self._max_requests = max_requests
        self._requests = 0
        self._metrics = metrics
        self.max_bytes = max_bytes
        self.held_bytes = 0

    @classmethod
    def build(cls, settings: Settings, metrics: Metrics) -> Intake:
        """Returns the intake of one protocol."""
        return cls(
            max_requests=settings.max_inflight_requests,
            max_bytes=settings.max_inflight_bytes,
            metrics=metrics,
        )

    @contextmanager
    def admit(self) -> Iterator[Held]:
        """Counts a request while the block runs.

        Raises:
            RequestError: `overloaded`.
        """
        if self._requests >= self._max_requests or self.held_bytes >= self.max_bytes:
            raise self.refusal()
        self._requests += 1
        held = Held(self)
        try:
            yield held
        finally:
            self._requests -= 1
            held.release()

    def refusal(self) -> RequestError:
        """Returns the error for a request that there is no room for, and counts it."""
        self._metrics.count_rejected("intake_full")
        return RequestError(
            ErrorCode.OVERLOADED,
            "too many requests are being received",
            retry_after_s=_RETRY_AFTER_S,
        )
