"""How the images of one request share what decoding them may cost, in time and in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final, Never, cast

from service.bundle.image_source import ImageSource, estimate_prepare_s
from service.classification import Classification, Options
from service.errors import ErrorCode, RequestError

# What is decoded side by side, however many cores there are: a photograph of 40 megapixels takes
# 0.24 s and, if it is to be turned, 315 MB.
_TOGETHER_S: Final = 0.25

Ask = Callable[[ImageSource, Options], Awaitable[Classification]]


async def ask_each(
    ask: Ask,
    images: Sequence[ImageSource],
    options: Options,
    *,
    timeout_s: float,
    budget_s: float,
    max_pixels: int,
) -> list[Classification | RequestError]:
    """Returns an answer or an error for each image; one bad image never fails its neighbours.

    Args:
        ask: Asks for one image, until the timeout of the options.
        images: Of one request, in its order.
        options: Of all of them.
        timeout_s: Until the deadline of the request.
        budget_s: What decoding the images may cost in all; what goes beyond is refused, never the
            first.
        max_pixels: Of an image that is decoded.
    """
    deadline = time.monotonic() + timeout_s
    costs = [estimate_prepare_s(image, max_pixels) for image in images]
    results: list[Classification | RequestError | BaseException] = []
    for wave in make_waves(costs, budget_s):
        if results:
            options = replace(options, timeout_ms=(deadline - time.monotonic()) * 1000)
        work = [
            ask(image, options) if is_fitting else _refuse()
            for image, is_fitting in zip(images[len(results) :], wave, strict=False)
        ]
        results += await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, RequestError):
            raise result
    return cast("list[Classification | RequestError]", results)


def make_waves(costs: Sequence[float], budget_s: float) -> list[list[bool]]:
    """Returns which images are decoded, in groups of those that are side by side."""
    waves: list[list[bool]] = [[]]
    spent_s = wave_s = 0.0
    for cost_s in costs:
        is_fitting = spent_s == 0 or spent_s + cost_s <= budget_s
        if is_fitting:
            if wave_s > 0 and wave_s + cost_s > _TOGETHER_S:
                waves.append([])
                wave_s = 0.0
            spent_s += cost_s
            wave_s += cost_s
        waves[-1].append(is_fitting)
    return waves


async def _refuse() -> Never:
    raise RequestError(
        ErrorCode.IMAGE_TOO_COMPLEX,
        "decoding it and the images before it would take too long; send it in another request",
    )
