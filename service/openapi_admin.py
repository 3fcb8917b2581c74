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
    ErrorCode.PROMOTION_REFUSED,
    ErrorCode.BODY_TOO_LARGE,
    ErrorCode.REQUEST_TIMEOUT,
    ErrorCode.UNSUPPORTED_ENCODING,
    ErrorCode.INTERNAL,
)


def _body(properties: Document, required: list[str]) -> Document:
    return {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": properties,
                    "required": required,
                    "additionalProperties": False,
                }
            }
        },
    }


_LABEL_BODY: Document = _body({"version": {"type": "integer", "minimum": 1}}, ["version"])
_SPLIT_BODY: Document = _body(
    {
        "shares": {
            "type": "object",
            "description": "By label or version; together at most 1.",
            "additionalProperties": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            "minProperties": 1,
            "maxProperties": 8,
        },
        "max_error_excess": {"type": ["number", "null"], "minimum": 0, "exclusiveMaximum": 1},
    },
    required=["shares"],
)
_TARGET: Document = {"type": "string", "description": "A label or a version."}
_SHARE: Document = {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 1}
_SHADOW_BODY: Document = _body({"target": _TARGET, "share": _SHARE}, required=["target"])
_GATE_BODY: Document = _body(
    {
        "target": {**_TARGET, "default": "canary"},
        "min_samples": {"type": "integer", "minimum": 0, "maximum": 10**9, "default": 200},
        "min_agreement": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.9},
    },
    required=[],
) | {"required": False}


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
        "/v1/models/{name}/split": {
            "put": {
                **_operation("splitTraffic", "Let versions answer shares of the requests.", "name"),
                "requestBody": _SPLIT_BODY,
            },
            "delete": _operation("endSplit", "Let the stable version answer all.", "name"),
        },
        "/v1/models/{name}/shadow": {
            "put": {
                **_operation("shadowTraffic", "Also ask a version, and compare.", "name"),
                "requestBody": _SHADOW_BODY,
            },
            "delete": _operation("endShadow", "Ask no version besides.", "name"),
        },
        "/v1/models/{name}/report": {
            "get": _operation("reportTrial", "Tell how a trial goes.", "name", answer="TrialReport")
        },
        "/v1/models/{name}:promote": {
            "post": {
                **_operation("promoteVersion", "Make a tried version the stable one.", "name"),
                "requestBody": _GATE_BODY,
            }
        },
    }


def _operation(name: str, summary: str, *parameters: str, answer: str = "Models") -> Document:
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
                "description": "What was done, as it is now.",
                "content": {"application/json": {"schema": refer(answer)}},
            },
            **describe_problems(_CODES),
        },
    }
