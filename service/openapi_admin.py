"""The part of the OpenAPI document about the routes that change what serves."""

from __future__ import annotations

from typing import Any

from service.errors import ErrorCode
from service.openapi import Document, describe_problems, refer
from service.openapi_options import describe_parameter

_CODES = (
    ErrorCode.INVALID_ARGUMENT,
    ErrorCode.MODEL_NOT_FOUND,
    ErrorCode.MODEL_LOAD_FAILED,
    ErrorCode.MEMORY_EXCEEDED,
    ErrorCode.BODY_TOO_LARGE,
    ErrorCode.REQUEST_TIMEOUT,
    ErrorCode.UNSUPPORTED_ENCODING,
    ErrorCode.INTERNAL,
)
_LABEL_BODY: Document = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {"version": {"type": "integer", "minimum": 1}},
                "required": ["version"],
                "additionalProperties": False,
            }
        }
    },
}


def describe_admin_paths() -> Document:
    """Returns the path items, to be added to the document where these routes exist."""
    version = "/v1/models/{name}/versions/{version}"
    return {
        "/v1/models/{name}:load": {
            "post": _operation("loadModel", "Serve the versions that the policy chooses.", "name")
        },
        "/v1/models/{name}:unload": {
            "post": _operation("unloadModel", "Serve no version of a model.", "name")
        },
        "/v1/models/{name}:reload": {
            "post": _operation("reloadModel", "Serve what the repository holds now.", "name")
        },
        f"{version}:load": {
            "post": _operation("loadVersion", "Serve a version.", "name", "version")
        },
        f"{version}:unload": {
            "post": _operation("unloadVersion", "Serve a version no more.", "name", "version")
        },
        "/v1/models/{name}/labels/{label}": {
            "put": {
                **_operation("setLabel", "Let NAME@LABEL mean a version.", "name", "label"),
                "requestBody": _LABEL_BODY,
            },
            "delete": _operation("removeLabel", "Take a label away.", "name", "label"),
        },
    }


def _operation(name: str, summary: str, *parameters: str) -> Document:
    about: dict[str, tuple[str, dict[str, Any]]] = {
        "name": ("NAME of a model.", {"type": "string"}),
        "version": ("A version.", {"type": "integer", "minimum": 1}),
        "label": ("`stable` is what NAME alone means.", {"type": "string"}),
    }
    return {
        "tags": ["models"],
        "operationId": name,
        "summary": summary,
        "parameters": [describe_parameter(one, "path", *about[one]) for one in parameters],
        "responses": {
            "200": {
                "description": "Done; the versions of the model as they are now.",
                "content": {"application/json": {"schema": refer("Models")}},
            },
            **describe_problems(_CODES),
        },
    }
