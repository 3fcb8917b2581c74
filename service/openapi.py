"""The OpenAPI 3.1 document of the HTTP routes; a test holds it to what they do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import TypeAdapter

from service import http_schema
from service.access import Access
from service.errors import ErrorCode
from service.http_answer import STATUS
from service.http_trial import TrialReport
from service.openapi_explain import describe_explain_path
from service.openapi_options import describe_options, describe_parameter
from service.settings import Settings

Document = dict[str, Any]

# The version of the interface, not of the software: it changes when a client would have to.
_API_VERSION: Final = "1.0.0"

_ABOUT: Final = """Image classification by calibrated models.

Send an image as the body (`curl -T photo.jpg URL/v1/classify`), in a form, or in JSON. The answer
names the model and its exact version. Errors are `application/problem+json` whose `code` never
changes its meaning; gRPC answers with the same codes."""

_SCHEMAS: Final = (
    http_schema.Single,
    http_schema.Several,
    http_schema.Explanation,
    http_schema.Problem,
    http_schema.Models,
    http_schema.Model,
    http_schema.Labels,
    TrialReport,
    http_schema.Alive,
    http_schema.Ready,
)

_KEY_CODES: Final = (ErrorCode.UNAUTHENTICATED, ErrorCode.FORBIDDEN)
_PROBE_CODES: Final = (ErrorCode.NOT_READY, ErrorCode.DRAINING)
# What only the routes of later versions, or routing itself, answer.
_NOT_OF_CLASSIFY: Final = frozenset(
    {
        ErrorCode.UNAUTHENTICATED,
        ErrorCode.FORBIDDEN,
        ErrorCode.NOT_FOUND,
        ErrorCode.METHOD_NOT_ALLOWED,
        ErrorCode.MODEL_LOAD_FAILED,
        ErrorCode.MEMORY_EXCEEDED,
        ErrorCode.PROMOTION_REFUSED,
    }
)
_MODEL_CODES: Final = (ErrorCode.INVALID_ARGUMENT, ErrorCode.MODEL_NOT_FOUND)


def build_openapi(
    settings: Settings, access: Mapping[str, Access], further_paths: Document
) -> Document:
    """Returns the document, with the limits of this server in its descriptions.

    Args:
        settings: Of the server.
        access: What each path asks of its caller.
        further_paths: Path items of routes that are described elsewhere.
    """
    document: Document = {
        "openapi": "3.1.0",
        "info": {"title": "fivecrop", "version": _API_VERSION, "description": _ABOUT},
        # Relative to this document, so that it holds behind any proxy or prefix.
        "servers": [{"url": "./"}],
        "tags": [
            {"name": "classify", "description": "Images in, predictions out."},
            {"name": "models", "description": "What is served."},
            {"name": "operations", "description": "For probes, dashboards and clients' tools."},
        ],
        "paths": _paths(settings) | further_paths,
        "components": {"schemas": _schemas()},
    }
    if settings.api_keys is not None:
        _lock(document, access)
    else:
        _close_admin(document, access)
    return document


def _lock(document: Document, access: Mapping[str, Access]) -> None:
    """Adds the keys to the operations that ask for one."""
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    for path, item in document["paths"].items():
        if access[path] is not Access.OPEN:
            for operation in item.values():
                operation["security"] = [{"bearer": []}, {"apiKey": []}]
                operation["responses"] |= describe_problems(_KEY_CODES)


def _close_admin(document: Document, access: Mapping[str, Access]) -> None:
    """Says that operations for administrators are refused: there are no keys to be one with."""
    for path, item in document["paths"].items():
        if access[path] is Access.ADMIN:
            for operation in item.values():
                operation["responses"] |= describe_problems((ErrorCode.FORBIDDEN,))


def _schemas() -> Document:
    inputs: list[Any] = [(one.__name__, "serialization", TypeAdapter(one)) for one in _SCHEMAS]
    _, document = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")
    schemas: Document = document["$defs"]
    return schemas


def _paths(settings: Settings) -> Document:
    paths = _own_paths(settings)
    paths["/v1/explain"] = describe_explain_path(paths["/v1/classify"]["post"])
    if settings.tfserving:
        del paths["/v1/models/{name}"]  # answered in a form that is not ours
    if settings.api_keys is not None:
        paths["/debug/config"] = _get(
            "operations",
            "showConfig",
            "The settings, secrets masked.",
            "application/json",
            codes=(ErrorCode.INVALID_ARGUMENT,),
        )
    return paths


def _own_paths(settings: Settings) -> Document:
    about = "NAME, NAME@VERSION or NAME@LABEL."
    name = [describe_parameter("name", "path", about, {"type": "string"})]
    return {
        "/v1/classify": {
            "post": _classify(settings, "classify"),
            "put": _classify(settings, "classifyByPut"),
        },
        "/v1/models": _get(
            "models",
            "listModels",
            "List the models that are served, and versions that are not.",
            "Models",
            codes=(ErrorCode.INVALID_ARGUMENT,),
        ),
        "/v1/models/{name}": _get(
            "models",
            "showModel",
            "Describe one model.",
            "Model",
            parameters=name,
            codes=_MODEL_CODES,
        ),
        "/v1/models/{name}/labels": _get(
            "models",
            "showLabels",
            "List the labels of a model, by class id.",
            "Labels",
            parameters=name,
            codes=_MODEL_CODES,
        ),
        "/v1/models/{name}/card": _get(
            "models",
            "showCard",
            "Show the model card: what the model is for, how well it does, where it came from.",
            "text/markdown",
            parameters=name,
            codes=(*_MODEL_CODES, ErrorCode.NOT_FOUND),
        ),
        "/livez": _get(
            "operations",
            "tellAlive",
            "Whether the process works; if not, only a new one will.",
            "Alive",
            codes=(ErrorCode.NOT_READY,),
        ),
        "/readyz": _get(
            "operations",
            "tellReady",
            "Whether requests should be sent here.",
            "Ready",
            codes=_PROBE_CODES,
        ),
        "/metrics": _get(
            "operations", "renderMetrics", "Metrics in Prometheus' text format.", "text/plain"
        ),
        "/openapi.json": _get("operations", "showOpenapi", "This document.", "application/json"),
    }


def _get(
    tag: str,
    name: str,
    summary: str,
    answer: str,
    *,
    parameters: list[Document] | None = None,
    codes: Iterable[ErrorCode] = (),
) -> Document:
    """Returns the path item of a GET; `answer` is the name of a schema or else a media type."""
    if "/" in answer:
        kind = "object" if answer == "application/json" else "string"
        content: Document = {answer: {"schema": {"type": kind}}}
    else:
        content = {"application/json": {"schema": refer(answer)}}
    operation: Document = {
        "tags": [tag],
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {"description": "OK", "content": content},
            **describe_problems((*codes, ErrorCode.INTERNAL)),
        },
    }
    if parameters:
        operation["parameters"] = parameters
    return {"get": operation}


def _classify(settings: Settings, name: str) -> Document:
    return {
        "tags": ["classify"],
        "operationId": name,
        "summary": "Classify one image, or several.",
        "description": (
            f"At most {settings.max_body_bytes:,} bytes and {settings.max_request_images} images a "
            f"request; formats: {', '.join(settings.image_formats)}. A form or a list is answered "
            "with `results`, each with its own `status`: one bad image never fails the others."
        ),
        "parameters": describe_options(settings),
        "requestBody": {"required": True, "content": _classify_bodies(settings)},
        "responses": {
            "200": {
                "description": "The predictions.",
                "headers": {
                    "Server-Timing": _header("decode, queue, infer and total, in milliseconds."),
                    "X-Request-Id": _header("The id of the request, as given or a new one."),
                },
                "content": {
                    "application/json": {"schema": {"oneOf": [refer("Single"), refer("Several")]}}
                },
            },
            **describe_problems(code for code in ErrorCode if code not in _NOT_OF_CLASSIFY),
        },
    }


def _classify_bodies(settings: Settings) -> Document:
    several = {"type": "array", "minItems": 1, "maxItems": settings.max_request_images}
    encoded = {
        "type": "string",
        "contentEncoding": "base64",
        "description": "Base64, alone or as a data: URI.",
    }
    binary = {"type": "string", "contentMediaType": "application/octet-stream"}
    return {
        "image/*": {"schema": binary},
        "application/octet-stream": {"schema": binary},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {name: {**several, "items": binary} for name in ("image", "file")},
                "anyOf": [{"required": ["image"]}, {"required": ["file"]}],
                "additionalProperties": False,
            }
        },
        "application/json": {
            "schema": {
                "oneOf": [
                    _object("image", encoded),
                    _object("images", {**several, "items": encoded}),
                ]
            }
        },
    }


def _object(name: str, schema: Document) -> Document:
    return {
        "type": "object",
        "properties": {name: schema},
        "required": [name],
        "additionalProperties": False,
    }


def _header(description: str) -> Document:
    return {"description": description, "schema": {"type": "string"}}


def refer(schema: str) -> Document:
    """Returns the reference to a schema of the document."""
    return {"$ref": f"#/components/schemas/{schema}"}


def describe_problems(codes: Iterable[ErrorCode]) -> Document:
    """Returns a response for each HTTP status that the codes map to, naming its codes."""
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(STATUS[code], []).append(f"`{code}`")
    return {
        str(status): {
            "description": ", ".join(names),
            "content": {"application/problem+json": {"schema": refer("Problem")}},
        }
        for status, names in sorted(by_status.items())
    }
