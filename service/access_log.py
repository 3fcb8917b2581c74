"""The access log: a line for each answered request, over either transport.

What a line holds comes from the service, never from the client: no address, no query, no name of a
file, nothing of an image. So it can be kept without holding personal data.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from service.classification import Classification, Explanation
from service.errors import RequestError
from service.log import FACTS

logger = logging.getLogger(__name__)

Result = Classification | Explanation | RequestError


def log_access(
    *,
    transport: str,
    route: str,
    status: int | str,
    code: str,
    seconds: float,
    request_id: str,
    results: Sequence[Result] = (),
    trace_id: str | None = None,
) -> None:
    """Writes the line of one request.

    Args:
        transport: `http` or `grpc`.
        route: The method and the template of the path, or the name of the rpc.
        status: As the transport gives it.
        code: An error code or `ok`.
        seconds: From the head of the request to its answer.
        request_id: As the client was told.
        results: What became of its images; the slowest one's timings are shown.
        trace_id: Of its trace, when it is traced.
    """
    facts: dict[str, object] = {
        "transport": transport,
        "route": route,
        "status": status,
        "code": code,
        "total_ms": _to_ms(seconds),
        "request_id": request_id,
    }
    if trace_id is not None:
        facts["trace_id"] = trace_id
    answers = [one for one in results if not isinstance(one, RequestError)]
    if results:
        facts |= {"images": len(results), "failed": len(results) - len(answers)}
    if answers:
        slowest = max(answers, key=lambda one: one.timings.total_s)
        facts |= {"model": slowest.model, "version": slowest.version}
        if isinstance(slowest, Classification):
            facts |= {"views": slowest.views, "batch_views": slowest.batch_views}
        facts |= {
            "decode_ms": _to_ms(slowest.timings.decode_s),
            "queue_ms": _to_ms(slowest.timings.queue_s),
            "infer_ms": _to_ms(slowest.timings.infer_s),
        }
    text = " ".join(f"{name}={value}" for name, value in facts.items())
    logger.info("%s", text, extra={FACTS: facts})


def _to_ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
