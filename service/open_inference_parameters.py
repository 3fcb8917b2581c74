"""The `parameters` of Open Inference Protocol requests and outputs.

Parameters that nobody knows are ignored, as the protocol says; known ones must make sense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Never

from service.errors import ErrorCode, RequestError
from service.priority import Priority

_RESERVED_PREFIX: Final = "triton_"
_LAYOUTS: Final = ("", "NHWC", "NCHW")
# With this a client asks to be told that an answer is the last one to its request; outside of
# streams, where Triton's perf_analyzer sends it too, every answer is.
TELL_LAST: Final = "triton_enable_empty_final_response"


def read_timeout_ms(parameters: Mapping[str, object]) -> float | None:
    """Returns the deadline of a request in milliseconds; None is the server's default.

    Raises:
        RequestError: `invalid_argument` for a timeout that is no whole number above or at 0, or a
            parameter that is Triton's own.
    """
    if any(name.startswith(_RESERVED_PREFIX) and name != TELL_LAST for name in parameters):
        _refuse(f"parameters that begin with {_RESERVED_PREFIX} are reserved")
    timeout_us = _read_count(parameters, "timeout")
    return timeout_us / 1000 if timeout_us else None


def read_priority(parameters: Mapping[str, object]) -> Priority:
    """Returns the priority of a request: 1 is the highest, 0 the default.

    Raises:
        RequestError: `invalid_argument`.
    """
    return Priority.from_level(_read_count(parameters, "priority"))


def read_classes(parameters: Mapping[str, object]) -> int:
    """Returns how many classes the classification extension is asked for; 0 is the tensor itself.

    Raises:
        RequestError: `invalid_argument`.
    """
    if "shared_memory_region" in parameters:
        refuse_shared_memory()
    return _read_count(parameters, "classification")


def read_layout(parameters: Mapping[str, object]) -> str:
    """Returns the layout of an input's pixels, NHWC or NCHW, or nothing when it is not told.

    Triton's names of formats, `FORMAT_NHWC` and `FORMAT_NCHW`, are understood as well.

    Raises:
        RequestError: `invalid_argument`.
    """
    if "shared_memory_region" in parameters:
        refuse_shared_memory()
    layout = parameters.get("layout", "")
    if not isinstance(layout, str) or layout.removeprefix("FORMAT_") not in _LAYOUTS:
        _refuse("parameter layout is NHWC or NCHW")
    return layout.removeprefix("FORMAT_")


def read_flag(parameters: Mapping[str, object], name: str, default: bool) -> bool:
    """Returns a parameter that is true or false.

    Raises:
        RequestError: `invalid_argument`.
    """
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        _refuse(f"parameter {name} is true or false")
    return value


def refuse_shared_memory() -> Never:
    """Refuses tensors in memory that server and client would share."""
    _refuse("shared memory is not offered: send tensors in the request")


def _read_count(parameters: Mapping[str, object], name: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value < 2**64:
        _refuse(f"parameter {name} is a whole number, at least 0")
    return value


def _refuse(detail: str) -> Never:
    raise RequestError(ErrorCode.INVALID_ARGUMENT, detail)
