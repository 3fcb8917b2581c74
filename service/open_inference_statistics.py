"""The statistics extension of the Open Inference Protocol, read from the metrics.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
An image counts as one request, because it is decoded, queued and answered by itself, whichever
protocol it came by.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client.samples import Sample

from service.classification import ModelDescription

Document = dict[str, Any]
_Key = tuple[str, frozenset[tuple[str, str]]]


def describe_statistics(models: Sequence[ModelDescription], samples: Iterable[Sample]) -> Document:
    """Returns the statistics of these models, cumulative since the server started."""
    values = defaultdict[_Key, float](float)
    for sample in samples:
        values[sample.name, frozenset(sample.labels.items())] += sample.value
    return {"model_stats": [_describe(model, _Reader(model, values)) for model in models]}


class _Reader:
    """The values of one model."""

    def __init__(self, model: ModelDescription, values: Mapping[_Key, float]) -> None:
        self._labels = {"model": model.name, "version": str(model.version)}
        self._values = values

    def value(self, name: str, **labels: str) -> float:
        """Returns a value; what was never counted is 0."""
        return self._values.get((name, frozenset((self._labels | labels).items())), 0.0)

    def duration(self, name: str, **labels: str) -> Document:
        """Returns count and sum of a histogram or summary as Triton writes them."""
        count, seconds = (self.value(f"{name}_{what}", **labels) for what in ("count", "sum"))
        return _tell(count, seconds)

    def batch_sizes(self) -> list[int]:
        """Returns the sizes of the batches that ran."""
        mine = self._labels.items()
        return sorted(
            int(dict(labels)["views"])
            for name, labels in self._values
            if name == "fivecrop_batches_total" and mine <= labels
        )


def _describe(model: ModelDescription, read: _Reader) -> Document:
    stages = {
        ours: read.duration("fivecrop_stage_seconds", stage=stage)
        for ours, stage in (
            ("queue", "queue"),
            ("compute_input", "decode"),
            ("compute_infer", "infer"),
            ("compute_output", "postprocess"),
        )
    }
    batches = [_describe_batches(read, size) for size in read.batch_sizes()]
    last_s = read.value("fivecrop_last_image_timestamp_seconds")
    return {
        "name": model.name,
        "version": str(model.version),
        "last_inference": round(last_s * 1000),
        "inference_count": stages["compute_infer"]["count"],
        "execution_count": sum(batch["compute_infer"]["count"] for batch in batches),
        "inference_stats": {
            "success": read.duration("fivecrop_image_seconds", result="ok"),
            "fail": read.duration("fivecrop_image_seconds", result="failed"),
            **stages,
            "cache_hit": _add_cache(read, "hit", "shared"),
            "cache_miss": _add_cache(read, "miss"),
        },
        "response_stats": {},
        "batch_stats": batches,
        "memory_usage": [
            {
                "type": "GPU" if model.provider == "cuda" else "CPU",
                "id": 0,
                "byte_size": model.memory_bytes,
            }
        ],
    }


def _describe_batches(read: _Reader, size: int) -> Document:
    views = str(size)
    count = read.value("fivecrop_batches_total", views=views)
    leaves = {
        ours: _tell(count, read.value("fivecrop_batch_seconds_total", views=views, stage=stage))
        for ours, stage in (
            ("compute_input", "decode"),
            ("compute_infer", "infer"),
            ("compute_output", "postprocess"),
        )
    }
    return {"batch_size": size, **leaves}


def _add_cache(read: _Reader, *results: str) -> Document:
    count = sum(read.value("fivecrop_cache_requests_total", result=one) for one in results)
    seconds = sum(read.value("fivecrop_cache_seconds_total", result=one) for one in results)
    return _tell(count, seconds)


def _tell(count: float, seconds: float) -> Document:
    return {"count": int(count), "ns": round(seconds * 1e9)}
