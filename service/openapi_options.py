"""The part of the OpenAPI document about the options of a request: its query and its headers."""

from __future__ import annotations

from typing import Any, get_args

from service.bundle.manifest import TtaPolicy
from service.priority import Priority
from service.settings import Settings

Document = dict[str, Any]


def describe_options(settings: Settings) -> list[Document]:
    """Returns the parameters of `/v1/classify`."""
    policies = list(get_args(TtaPolicy))
    return [
        describe_parameter(
            "model",
            "query",
            "NAME, NAME@VERSION or NAME@LABEL; the default model when left out.",
            {"type": "string"},
        ),
        describe_parameter(
            "top_k",
            "query",
            "Predictions to return, best first; never more than classes.",
            {"type": "integer", "minimum": 1, "default": 5},
        ),
        describe_parameter(
            "tta",
            "query",
            "Test-time augmentation: more views of the image, averaged.",
            {"type": "string", "enum": policies, "default": "none"},
        ),
        describe_parameter(
            "priority",
            "query",
            "Under load more urgent requests get more of the machine; none of it waits for ever.",
            {"type": "string", "enum": list(Priority), "default": Priority.NORMAL},
        ),
        describe_parameter(
            "coverage",
            "query",
            "Also return the fewest labels that hold the right one with this probability.",
            {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        ),
        describe_parameter(
            "embedding",
            "query",
            "Also return the features that the classifier reads, if the model offers them.",
            {"type": "boolean", "default": False},
        ),
        describe_parameter(
            "views",
            "query",
            "Also return a picture of each view that the network saw, cropped and upright.",
            {"type": "boolean", "default": False},
        ),
        describe_parameter(
            "X-Request-Id",
            "header",
            "Echoed, and written to the log; one that is not [A-Za-z0-9._-]{1,64} is replaced.",
            {"type": "string"},
        ),
        describe_parameter(
            "X-Request-Timeout-Ms",
            "header",
            "Deadline in milliseconds from the request's head on; an image that waits longer is "
            "never computed.",
            {"type": "number", "exclusiveMinimum": 0, "default": settings.default_timeout_ms},
        ),
    ]


def describe_parameter(name: str, place: str, description: str, schema: Document) -> Document:
    """Returns the description of a parameter; those of a path are required."""
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "description": description,
        "schema": schema,
    }
