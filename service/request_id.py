"""The name of one request, the same in the answer, the log and the metadata of either transport."""

from __future__ import annotations

import random
import re
from contextvars import ContextVar
from typing import Final

HEADER = "x-request-id"

# Of the request at work. Each has a task, and so a context, of its own.
REQUEST_ID: Final[ContextVar[str]] = ContextVar("request_id", default="")

# Narrow on purpose: the value is echoed in a header and written to logs, so it must not be able to
# hold a line break, a quote or a terminal escape.
_VALID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


def take_request_id(offered: str | None) -> str:
    """Returns the id that the client offered when it is a valid one, else a new one.

    From then on it is `REQUEST_ID` of this task, and of those that it makes.
    """
    if offered is not None and _VALID.fullmatch(offered):
        request_id = offered
    else:
        # A name, not a secret: asking the kernel for each one is a system call a request.
        request_id = f"{random.getrandbits(128):032x}"
    REQUEST_ID.set(request_id)
    return request_id
