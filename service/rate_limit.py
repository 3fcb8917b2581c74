"""A rate limit for each client: so much a second, with a burst, forgotten when it is not needed.

The generic cell rate algorithm (ITU-T I.371): a client has one number, the time at which it would
have used up everything that it was given. It equals a bucket of tokens and needs no refilling.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from service.access import CALLER
from service.errors import ErrorCode, RequestError
from service.job import Job
from service.metrics import Metrics
from service.settings import Settings

# Only clients that are in arrears are remembered; beyond this many, those longest silent are not.
_MAX_CLIENTS: Final = 100_000
# An image that decodes no longer counts once: a JPEG of up to about a megapixel.
_ORDINARY_DECODE_S: Final = 0.010


class RateLimit:
    """The same limit for every client, whoever they are. Not thread-safe."""

    def __init__(self, *, units_per_s: float, burst_units: float) -> None:
        """Makes a limit that nobody has used yet.

        Args:
            units_per_s: What a client may use in the long run.
            burst_units: What a client that was silent may use at once.
        """
        self._seconds_per_unit = 1.0 / units_per_s
        self._burst_s = burst_units / units_per_s
        self._used_up_at: OrderedDict[str, float] = OrderedDict()

    def take(self, client: str, units: float, now: float) -> float:
        """Takes from a client's allowance; returns 0, or the seconds until there is enough.

        More than a burst at once is allowed when the client was silent, and then waited off: it
        could never be otherwise.

        Args:
            client: Any name for the client.
            units: How much it wants to use.
            now: On a monotonic clock, in seconds.
        """
        used_up_at = max(now, self._used_up_at.get(client, now))
        needed_s = min(units * self._seconds_per_unit, self._burst_s)
        wait_s = used_up_at + needed_s - self._burst_s - now
        if wait_s > 1e-9:
            return wait_s
        self._used_up_at[client] = used_up_at + units * self._seconds_per_unit
        self._used_up_at.move_to_end(client)
        self._forget(now)
        return 0.0

    def _forget(self, now: float) -> None:
        """Forgets a few of those longest silent: who has all again, or when there are too many."""
        for _ in range(2):
            client, used_up_at = next(iter(self._used_up_at.items()))
            if used_up_at > now and len(self._used_up_at) <= _MAX_CLIENTS:
                return
            del self._used_up_at[client]
            if not self._used_up_at:
                return


class Allowances:
    """What each API key may still use: an ordinary image of one view is one unit.

    An image that takes longer to decode counts as more, and each view of an augmented one counts.
    """

    def __init__(self, limit: RateLimit, metrics: Metrics) -> None:
        self._limit = limit
        self._metrics = metrics

    @classmethod
    def build(cls, settings: Settings, metrics: Metrics) -> Allowances | None:
        """Returns the allowances, or None when the settings limit nobody."""
        if settings.rate_limit_per_s is None:
            return None
        limit = RateLimit(
            units_per_s=settings.rate_limit_per_s, burst_units=settings.rate_limit_burst
        )
        return cls(limit, metrics)

    def take(self, job: Job, now: float) -> None:
        """Takes a job from the allowance of the key at work; without keys nobody is limited.

        Raises:
            RequestError: `rate_limited`.
        """
        caller = CALLER.get()
        if caller is None:
            return
        units = max(job.view_count, job.decode_cost_s / _ORDINARY_DECODE_S)
        if wait_s := self._limit.take(caller, units, now):
            self._metrics.count_rejected("rate_limited")
            raise RequestError(
                ErrorCode.RATE_LIMITED, "the API key is over its rate", retry_after_s=wait_s
            )
