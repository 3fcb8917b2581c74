"""What v2 clients may read of the server and its models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

from service.classifier import ModelDescription
from service.open_inference_tensors import FORMS

INPUT: Final = "image"
OUTPUT: Final = "probabilities"
SERVER_NAME: Final = "fivecrop"
# Triton's name for a model that ONNX Runtime runs; some clients look at it.
PLATFORM: Final = "onnxruntime_onnx"
# Clients decide by this list what to ask for, so it holds what works and nothing else.
EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "parameters",
    "schedule_policy",
    "statistics",
)

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Form:
    """The one form of the input that there is room for in metadata and configuration."""

    datatype: str
    config_type: str
    format: str
    dims: tuple[int, ...]


_FILE_FORM: Final = _Form("BYTES", "TYPE_STRING", "FORMAT_NONE", (1,))


def _pixel_form(model: ModelDescription) -> _Form:
    # Clients resize to what they are told; told this size, they leave nothing to resize here.
    side = model.resized_side
    return _Form("UINT8", "TYPE_UINT8", "FORMAT_NHWC", (side, side, 3))


def describe_server(*, has_repository: bool) -> Document:
    """Returns the metadata of the server; models can be loaded where somebody may order it."""
    repository = ("model_repository",) if has_repository else ()
    return {
        "name": SERVER_NAME,
        "version": version("fivecrop"),
        "extensions": sorted((*EXTENSIONS, *repository)),
    }


def describe_model(
    model: ModelDescription, versions: Sequence[int], *, takes_pixels: bool
) -> Document:
    """Returns the metadata of a model; the first size of each shape is the batch's.

    Args:
        model: The model.
        versions: Its versions that serve.
        takes_pixels: Whether to tell of its input as pixels instead of files.
    """
    form = _pixel_form(model) if takes_pixels else _FILE_FORM
    return {
        "name": model.name,
        "versions": [str(number) for number in versions],
        "platform": PLATFORM,
        "inputs": [{"name": INPUT, "datatype": form.datatype, "shape": [-1, *form.dims]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, model.classes]}],
    }


def describe_config(
    model: ModelDescription,
    versions: Sequence[int],
    *,
    max_request_images: int,
    takes_pixels: bool,
) -> Document:
    """Returns Triton's ModelConfig of a model, with the names of its protobuf fields.

    It says what clients go by; what it leaves out has the meaning of the protobuf's default.
    """
    form = _pixel_form(model) if takes_pixels else _FILE_FORM
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": list(versions)}},
        "max_batch_size": max_request_images,
        "input": [
            {
                "name": INPUT,
                "data_type": form.config_type,
                "format": form.format,
                "dims": list(form.dims),
                "is_shape_tensor": False,
                "allow_ragged_batch": False,
                "optional": False,
            }
        ],
        "output": [
            {
                "name": OUTPUT,
                "data_type": "TYPE_FP32",
                "dims": [model.classes],
                "label_filename": "bundle.json",
                "is_shape_tensor": False,
            }
        ],
        "instance_group": [
            {
                "name": model.provider,
                "kind": "KIND_GPU" if model.provider == "cuda" else "KIND_CPU",
                "count": 1,
            }
        ],
        "dynamic_batching": {
            "preferred_batch_size": [model.good_batch_views],
            "max_queue_delay_microseconds": round(model.max_batch_delay_ms * 1000),
        },
        "model_transaction_policy": {"decoupled": False},
        "response_cache": {"enable": False},
        "default_model_filename": "model.onnx",
        # The protocol has one datatype for an input; these are what this one takes besides.
        "parameters": {
            f"{INPUT}_{datatype}": {"string_value": shape} for datatype, shape in FORMS.items()
        },
    }
