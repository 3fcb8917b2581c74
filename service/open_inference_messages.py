"""The messages of the Open Inference Protocol v2, whichever wire they came by.

https://github.com/kserve/open-inference-protocol and Triton's extensions of it
(https://github.com/triton-inference-server/server/tree/main/docs/protocol).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.classification import Classification, find_slowest
from service.priority import Priority

# Row-major little-endian bytes, or the elements themselves: flat, or nested as the shape says.
Content = memoryview | Sequence[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputTensor:
    """A tensor that a client sent; nothing about it has been checked against its content.

    `layout` is that of pixels, NHWC or NCHW, where the client tells it.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: Content
    layout: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedOutput:
    """An output that a client wants.

    Attributes:
        name: Of the output.
        classes: How many of the best classes to give as text, instead of the tensor, when above 0:
            the classification extension.
        is_binary: Whether it is wanted as bytes after the JSON; gRPC has no other way.
    """

    name: str
    classes: int = 0
    is_binary: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """What to infer from what.

    Attributes:
        model: Name of the model.
        version: Its version in digits; empty lets the server choose.
        id: Echoed.
        timeout_ms: Time left until the answer is worthless; None is the server's default.
        priority: How urgent it is.
        inputs: Tensors, at least one.
        outputs: What is wanted; None is every output of the model.
        has_binary_outputs: Whether outputs that `outputs` does not name are wanted as bytes.
    """

    model: str
    version: str
    id: str = ""
    timeout_ms: float | None = None
    priority: Priority = Priority.NORMAL
    inputs: tuple[InputTensor, ...]
    outputs: tuple[RequestedOutput, ...] | None = None
    has_binary_outputs: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTensor:
    """A tensor of the answer: float32 of `shape`, or, as BYTES, one byte string an element."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: NDArray[np.float32] | list[bytes]
    is_binary: bool

    def pack(self) -> bytes:
        """Returns the content as it stands on the wire."""
        if isinstance(self.values, list):
            return pack_elements(self.values)
        return self.values.astype("<f4", copy=False).tobytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class InferResponse:
    """The answer to an `InferRequest`; `results` is what became of its images."""

    model: str
    version: int
    id: str
    outputs: tuple[OutputTensor, ...]
    results: Sequence[Classification]

    def describe_work(self) -> dict[str, float]:
        """Returns how the slowest image was answered, for the answer's parameters."""
        slowest = find_slowest(self.results)
        timings = slowest.timings
        return {
            "batch_views": slowest.batch_views,
            "decode_ms": round(timings.decode_s * 1000, 3),
            "queue_ms": round(timings.queue_s * 1000, 3),
            "infer_ms": round(timings.infer_s * 1000, 3),
            "total_ms": round(timings.total_s * 1000, 3),
        }


def pack_elements(elements: Sequence[bytes]) -> bytes:
    """Returns BYTES elements as raw content: each after its length, uint32 little-endian."""
    return b"".join(
        part for element in elements for part in (len(element).to_bytes(4, "little"), element)
    )
