"""What no answer may hold: words of the machine, and of what the service is made of."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import socket

# The service's own name and version are no secret.
WORDS = re.compile(
    "uvicorn|starlette|bentoml|python|httptools|uvloop|asyncio|onnxruntime|pillow|linux|traceback"
    "|site-packages|/(usr|home|root|tmp|work)\\b|\\.py\\b|0x[0-9a-f]{8}|<class|exception"
    f"|{re.escape(socket.gethostname())}|{re.escape(platform.release())}"
    f"|{re.escape(importlib.metadata.version('uvicorn'))}",
    re.IGNORECASE,
)
