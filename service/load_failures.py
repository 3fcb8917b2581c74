"""Why versions do not serve: counted, told in the log, and remembered until they do."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

from service.bundle_source import BundleSource
from service.errors import (
    BundleError,
    GoldenError,
    MemoryBudgetError,
    ProviderError,
    StartError,
)
from service.metrics import LoadFailure, Metrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a version does not serve, and the state of its files that this is about."""

    error: StartError
    reason: str
    fingerprint: Hashable


class LoadFailures:
    """The failures of one worker, by name and version."""

    def __init__(self, source: BundleSource, metrics: Metrics) -> None:
        """Remembers nothing yet, and logs nothing before `start_log`."""
        self._source = source
        self._metrics = metrics
        self._failures: dict[tuple[str, int], Failure] = {}
        self._is_logged = False

    def __iter__(self) -> Iterator[tuple[tuple[str, int], Failure]]:
        """Every failure with its name and version."""
        return iter(self._failures.items())

    def start_log(self) -> None:
        """Logs what failed until now, and from now on whatever fails.

        Until then a failure may be why the server does not start: one line, not two.
        """
        if not self._is_logged:
            for key, failure in self._failures.items():
                _log(key, failure)
        self._is_logged = True

    def get(self, name: str, version: int) -> Failure | None:
        """Returns why a version does not serve, if that is so."""
        return self._failures.get((name, version))

    def find(self, name: str, version: int | None) -> Failure | None:
        """Returns why a version, or the newest that failed of a model, does not serve."""
        keys = [key for key in self._failures if key[0] == name and version in (None, key[1])]
        return self._failures[max(keys)] if keys else None

    def count(
        self, name: str, version: int, error: BaseException, fingerprint: Hashable
    ) -> Failure:
        """Returns the failure of a version, counted and told; `replace` remembers it."""
        self._metrics.count_load_failure(f"{name}@{version}", _classify(error))
        known = error if isinstance(error, StartError) else BundleError(str(error))
        failure = Failure(
            error=known,
            reason=self._source.hide_place(known.without_cause),
            # Room may be made, and a machine may recover, without a change of the files.
            fingerprint=fingerprint if isinstance(error, BundleError) else None,
        )
        if self._is_logged:
            _log((name, version), failure)
        return failure

    def replace(self, name: str, failures: Mapping[int, Failure]) -> None:
        """Lets exactly these versions of a model be those that failed."""
        self._failures = {key: one for key, one in self._failures.items() if key[0] != name}
        self.add(name, failures)

    def add(self, name: str, failures: Mapping[int, Failure]) -> None:
        """Lets these versions of a model be among those that failed."""
        self._failures |= {(name, version): one for version, one in failures.items()}


def _classify(error: BaseException) -> LoadFailure:
    match error:
        case GoldenError():
            return "golden"
        case BundleError():
            return "bundle"
        case ProviderError():
            return "provider"
        case MemoryBudgetError() | MemoryError():
            return "memory"
        case _:
            return "other"


def _log(key: tuple[str, int], failure: Failure) -> None:
    logger.error("%s@%d is not served: %s", *key, failure.error)
