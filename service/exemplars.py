"""Exemplars: for each bucket of a histogram the trace of the latest request that fell into it.

prometheus_client keeps exemplars only for a process that shares its metrics with no other. These
are kept beside the metrics and attached when they are shown, so a server of several workers has
them too: those of the worker that answers the scrape, on the buckets of all.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import Metric
from prometheus_client.samples import Exemplar, Sample

_Key = tuple[str, frozenset[tuple[str, str]], float]


class Exemplars:
    """The latest exemplar of each bucket; bounded by the number of buckets."""

    def __init__(self) -> None:
        self._latest: dict[_Key, Exemplar] = {}

    def note(
        self,
        name: str,
        labels: Mapping[str, str],
        bounds: Sequence[float],
        value: float,
        trace_id: str,
    ) -> None:
        """Remembers the trace behind a value of the histogram `name` with these upper bounds."""
        index = bisect_left(bounds, value)
        bound = bounds[index] if index < len(bounds) else math.inf
        # A time of day, not a duration: Prometheus puts the exemplar on its time axis with it.
        exemplar = Exemplar({"trace_id": trace_id}, value, time.time())
        self._latest[name, frozenset(labels.items()), bound] = exemplar

    def attach(self, families: Iterable[Metric]) -> Iterator[Metric]:
        """Yields the families, the buckets of histograms with their exemplars."""
        for family in families:
            if family.type == "histogram":
                family.samples = [self._attach(family.name, one) for one in family.samples]
            yield family

    def _attach(self, name: str, sample: Sample) -> Sample:
        bound = sample.labels.get("le")
        if bound is None:
            return sample
        labels = frozenset(item for item in sample.labels.items() if item[0] != "le")
        exemplar = self._latest.get((name, labels, float(bound)))
        return sample if exemplar is None else sample._replace(exemplar=exemplar)
