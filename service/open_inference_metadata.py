"""What v2 clients may read of the server and its models."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Final

from service.classifier import ModelDescription

INPUT: Final = "image"
OUTPUT: Final = "probabilities"
SERVER_NAME: Final = "fivecrop"
# Triton's name for a model that ONNX Runtime runs; some clients look at it.
PLATFORM: Final = "onnxruntime_onnx"
# Clients decide by this list what to ask for, so it holds what works and nothing else.
EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "parameters",
    "schedule_policy",
)

Document = dict[str, Any]


def describe_server() -> Document:
    """Returns the metadata of the server."""
    return {
        "name": SERVER_NAME,
        "version": version("fivecrop"),
        "extensions": list(EXTENSIONS),
    }


def describe_model(model: ModelDescription, versions: Sequence[int]) -> Document:
    """Returns the metadata of a model; the first size of each shape is the batch's."""
    return {
        "name": model.name,
        "versions": [str(number) for number in versions],
        "platform": PLATFORM,
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1, 1]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, model.classes]}],
    }
