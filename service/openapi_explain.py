"""The part of the OpenAPI document about explanations: classification's, but for what differs."""

from __future__ import annotations

from typing import Any, Final

from service.explain import METHODS

_SHARED: Final = ("model", "X-Request-Id", "X-Request-Timeout-Ms")
_PARAMETERS: Final = [
    {
        "name": "index",
        "in": "query",
        "required": False,
        "description": "The class to explain; the best one when left out.",
        "schema": {"type": "integer", "minimum": 0},
    },
    {
        "name": "method",
        "in": "query",
        "required": False,
        "description": "The class activation map of the graph, or covering places one by one.",
        "schema": {"type": "string", "enum": list(METHODS), "default": "auto"},
    },
]
_CONTENT: Final = {
    "application/json": {"schema": {"$ref": "#/components/schemas/Explanation"}},
    "image/png": {"schema": {"type": "string", "contentMediaType": "image/png"}},
}


def describe_explain_path(classify: dict[str, Any]) -> dict[str, Any]:
    """Returns the path item, given the operation of `/v1/classify`: bodies and errors are its."""
    shared = [one for one in classify["parameters"] if one["name"] in _SHARED]
    answer = {**classify["responses"]["200"], "description": "The evidence.", "content": _CONTENT}
    operation = {
        **classify,
        "summary": "Show where in one image the evidence for a class lies.",
        "description": "JSON, or with `Accept: image/png` a picture of the crop that the model saw "
        "with the evidence over it. `occlusion` costs fifty views.",
        "parameters": [*shared[:1], *_PARAMETERS, *shared[1:]],
        "responses": {**classify["responses"], "200": answer},
    }
    return {
        "post": {**operation, "operationId": "explain"},
        "put": {**operation, "operationId": "explainByPut"},
    }
