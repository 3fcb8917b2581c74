"""Which of two models is better, and whether the images are enough to say so."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.scores import wilson_interval

_SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two models on the same images, which ones they get right.

    Attributes:
        both: Images that both get right; `first_only`, `second_only` and `neither` likewise.
        difference: Top-1 of the second model less that of the first.
        interval: Of the difference, at 95 % (Newcombe 1998, paired, method 10).
        p_value: Of McNemar's exact test: how likely a split of the images that only one gets right
            is at least this uneven, were the models equally good.
    """

    both: int
    first_only: int
    second_only: int
    neither: int
    difference: float
    interval: tuple[float, float]
    p_value: float

    @property
    def images(self) -> int:
        """How many images both have answered."""
        return self.both + self.first_only + self.second_only + self.neither

    @property
    def is_significant(self) -> bool:
        """Whether the difference is more than chance would give one time in twenty."""
        return self.p_value < _SIGNIFICANT


def compare(first_hits: NDArray[np.bool_], second_hits: NDArray[np.bool_]) -> Comparison:
    """Returns the comparison of two models by which of the same images [N] each gets right."""
    both = int((first_hits & second_hits).sum())
    first_only = int((first_hits & ~second_hits).sum())
    second_only = int((~first_hits & second_hits).sum())
    neither = len(first_hits) - both - first_only - second_only
    counts = both, first_only, second_only, neither
    return Comparison(
        both=both,
        first_only=first_only,
        second_only=second_only,
        neither=neither,
        difference=(second_only - first_only) / len(first_hits),
        interval=paired_interval(*counts),
        p_value=mcnemar_p_value(first_only, second_only),
    )


def mcnemar_p_value(first_only: int, second_only: int) -> float:
    """Returns the two-sided p-value of McNemar's exact test (a binomial test at one half)."""
    tosses, fewer = first_only + second_only, min(first_only, second_only)
    term, tail = 1, 0
    for heads in range(fewer + 1):
        tail += term
        term = term * (tosses - heads) // (heads + 1)
    return min(1.0, tail / (1 << tosses) * 2)


def paired_interval(
    both: int, first_only: int, second_only: int, neither: int
) -> tuple[float, float]:
    """Returns the 95 % interval of second less first (Newcombe 1998, Statistics in Medicine 17)."""
    images = both + first_only + second_only + neither
    first, second = both + first_only, both + second_only
    low1, high1 = wilson_interval(first, images)
    low2, high2 = wilson_interval(second, images)
    share1, share2 = first / images, second / images
    margins = first * (images - first) * second * (images - second)
    agreement: float = both * neither - first_only * second_only
    if agreement > 0:
        agreement = max(0.0, agreement - images / 2)
    phi = agreement / math.sqrt(margins) if margins else 0.0

    def half(up: float, down: float) -> float:
        return math.sqrt(max(0.0, up**2 - 2 * phi * up * down + down**2))

    difference = share2 - share1
    return (
        max(-1.0, difference - half(share2 - low2, high1 - share1)),
        min(1.0, difference + half(high2 - share2, share1 - low1)),
    )


def format_comparison(found: Comparison, first: str, second: str) -> str:
    """Returns a comparison as a few lines for a terminal, the verdict last."""
    low, high = found.interval
    better = second if found.difference > 0 else first
    verdict = (
        f"{better} is better"
        if found.is_significant
        else f"no difference shown on {found.images} images; more of them might show one"
    )
    return "\n".join(
        [
            f"A       {first}: top-1 {(found.both + found.first_only) / found.images:.2%}",
            f"B       {second}: top-1 {(found.both + found.second_only) / found.images:.2%}",
            f"images  {found.images}: both right {found.both}, only A {found.first_only}, "
            f"only B {found.second_only}, neither {found.neither}",
            f"B - A   {100 * found.difference:+.2f} points "
            f"(95 %: {100 * low:+.2f} to {100 * high:+.2f})",
            f"McNemar p = {found.p_value:.3g}: {verdict}",
        ]
    )
