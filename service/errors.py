"""The errors that fivecrop raises on purpose.

    FivecropError
    ├── RequestError(code, detail)      one request cannot be answered; every edge maps its code
    └── StartError                      the service cannot start, or a model cannot be loaded
        ├── SettingsError               an unknown or impossible setting
        ├── BundleError                 a bundle that is absent, damaged or not what it claims
        │   └── GoldenError             a whole bundle that answers its golden samples otherwise
        ├── ProviderError               the asked-for ONNX Runtime provider is not there
        ├── MemoryBudgetError           a model does not fit beside those that are loaded
        └── RepositoryError             a repository behind a URL that cannot be reached

`ErrorCode` knows neither HTTP nor gRPC: `http_api.STATUS` and `grpc_api.STATUS` are total tables
over it, and a test holds them to that. The `detail` of an error is shown to clients, so it never
holds a path, a cause or the input; the cause goes to the log.
"""

from __future__ import annotations

from enum import StrEnum, unique
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


@unique
class ErrorCode(StrEnum):
    """Stable machine-readable reasons; clients match on them, so values never change."""

    INVALID_ARGUMENT = "invalid_argument"
    BAD_JSON = "bad_json"
    BAD_BASE64 = "bad_base64"
    EMPTY_BODY = "empty_body"
    URL_NOT_ALLOWED = "url_not_allowed"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_LOAD_FAILED = "model_load_failed"
    MEMORY_EXCEEDED = "memory_exceeded"
    PROMOTION_REFUSED = "promotion_refused"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TIMEOUT = "request_timeout"
    BODY_TOO_LARGE = "body_too_large"
    HEADERS_TOO_LARGE = "headers_too_large"
    IMAGE_TOO_LARGE = "image_too_large"
    UNSUPPORTED_MEDIA = "unsupported_media"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    IMAGE_CORRUPT = "image_corrupt"
    IMAGE_TOO_COMPLEX = "image_too_complex"
    UNSUPPORTED_CODEC = "unsupported_codec"
    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    NOT_READY = "not_ready"
    DRAINING = "draining"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    INFERENCE_FAILED = "inference_failed"
    NONFINITE_OUTPUT = "nonfinite_output"
    INTERNAL = "internal"


class FivecropError(Exception):
    """Any error that fivecrop raises on purpose."""


class RequestError(FivecropError):
    """One request cannot be answered; `detail` is one sentence that is safe to show its sender."""

    def __init__(self, code: ErrorCode, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s


class StartError(FivecropError):
    """The service cannot start, or a model cannot be loaded; the text is one line for its owner.

    `cause` is what a library says of it: at the end of that line, and for the owner alone.
    """

    def __init__(self, text: str, cause: object = None) -> None:
        super().__init__(text if cause is None else f"{text}: {' '.join(str(cause).split())}")
        self.without_cause = text


class SettingsError(StartError):
    """A setting is unknown or impossible."""


class BundleError(StartError):
    """A bundle is absent, damaged, or does not reproduce its own golden samples."""


class GoldenError(BundleError):
    """A bundle whose files are whole gives other answers here than those it was published with."""


class ProviderError(StartError):
    """The asked-for ONNX Runtime execution provider cannot be used on this machine."""


class MemoryBudgetError(StartError):
    """A model does not fit into the memory budget beside those that are loaded."""


class RepositoryError(StartError):
    """A model repository behind a URL cannot be reached, or not in that way."""


def tell_invalid(place: object, error: ValidationError) -> str:
    """Returns the first thing that is wrong with a document, and where in `place`, as one line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    where = f" at {where}" if where else ""
    # One line, whatever the keys of the document hold.
    return " ".join(f"{place}{where}: {first['msg']}".split())
