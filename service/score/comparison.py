"""Two outputs over the same images: where two models, or two versions, disagree."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from service.score.dataset import iterate_rows, open_output, read_manifest
from service.score.errors import ScoreError
from service.score.folder import Folder
from service.score.row import ERROR

_COLUMNS: Final = ("id", "path", "status", "error_code", "label", "score")
_KEPT: Final = 24
_SHOWN_FLIPS: Final = 20
# Score shifts are counted in bins of this width from -1 to 1, so that their quantiles take no list.
_SHIFT_BINS: Final = 400

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class Disagreement:
    """An image that two models answer differently; sorts by how sure the less sure one is."""

    sureness: float
    path: str
    first: str = field(compare=False)
    first_score: float = field(compare=False)
    second: str = field(compare=False)
    second_score: float = field(compare=False)


@dataclass(slots=True)
class Comparison:
    """What two outputs say of the images that both have.

    Attributes:
        names: NAME@VERSION of the two.
        images: In both.
        only: In one of them alone: first, second.
        answered: Answered by both.
        agreed: Of these, with the same label.
        flips: (label, other label) of those that are not, by how often.
        statuses: (status, other status) of images whose status changed.
        worst: Disagreements, those that both were surest about first.
        shifts: Second score less first, where both gave the same label, in bins.
        shift_sum: Of these, exactly.
    """

    names: tuple[str, str]
    images: int = 0
    only: list[int] = field(default_factory=lambda: [0, 0])
    answered: int = 0
    agreed: int = 0
    flips: Counter[tuple[str, str]] = field(default_factory=Counter)
    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    worst: list[Disagreement] = field(default_factory=list)
    shifts: list[int] = field(default_factory=lambda: [0] * _SHIFT_BINS)
    shift_sum: float = 0.0

    def add(self, first: Row, second: Row) -> None:
        """Counts an image that both outputs have."""
        self.images += 1
        states = first["status"], second["status"]
        if states[0] != states[1]:
            self.statuses[states] += 1
        if ERROR in states:
            return
        self.answered += 1
        if first["label"] == second["label"]:
            self.agreed += 1
            shift = second["score"] - first["score"]
            self.shift_sum += shift
            self.shifts[min(_SHIFT_BINS - 1, int((shift + 1) / 2 * _SHIFT_BINS))] += 1
            return
        self.flips[first["label"], second["label"]] += 1
        found = Disagreement(
            sureness=min(first["score"], second["score"]),
            path=first["path"],
            first=first["label"],
            first_score=first["score"],
            second=second["label"],
            second_score=second["score"],
        )
        if len(self.worst) < _KEPT:
            heapq.heappush(self.worst, found)
        else:
            heapq.heappushpop(self.worst, found)

    def shift_quantile(self, share: float) -> float | None:
        """Returns the score shift that `share` of the agreeing images lie under, to 0.005."""
        wanted, seen = share * self.agreed, 0
        for index, count in enumerate(self.shifts):
            seen += count
            if count and seen >= wanted:
                return (index + 0.5) / _SHIFT_BINS * 2 - 1
        return None

    def describe(self) -> dict[str, Any]:
        """Returns the comparison for a program."""
        return {
            "first": self.names[0],
            "second": self.names[1],
            "images": self.images,
            "only_first": self.only[0],
            "only_second": self.only[1],
            "answered": self.answered,
            "agreement": self.agreed / self.answered if self.answered else None,
            "flips": [
                {"from": old, "to": new, "images": count}
                for (old, new), count in self.flips.most_common()
            ],
            "status_changes": [
                {"from": old, "to": new, "images": count}
                for (old, new), count in self.statuses.most_common()
            ],
            "score_shift": {
                "mean": self.shift_sum / self.agreed if self.agreed else None,
                **{f"p{share}": self.shift_quantile(share / 100) for share in (5, 50, 95)},
            },
            "worst": [
                {
                    "path": one.path,
                    "first": {"label": one.first, "score": one.first_score},
                    "second": {"label": one.second, "score": one.second_score},
                }
                for one in sorted(self.worst, reverse=True)
            ],
        }


def compare_outputs(first: str, second: str) -> Comparison:
    """Returns the comparison of two outputs.

    Images are matched by position when both jobs had the same input, and read side by side;
    otherwise by path, for which the first output has to fit into memory.

    Raises:
        ScoreError: One of them is no output, or they have no image in common.
    """
    folders = open_output(first), open_output(second)
    manifests = [read_manifest(folder) for folder in folders]
    comparison = Comparison((_name(manifests[0]), _name(manifests[1])))
    same = manifests[0]["input"] == manifests[1]["input"]
    for one, other in (_match_positions if same else _match_paths)(*folders):
        if one is None or other is None:
            comparison.only[one is None] += 1
        else:
            comparison.add(one, other)
    if not comparison.images:
        raise ScoreError(f"{first} and {second} have no image in common")
    return comparison


def tell_comparison(comparison: Comparison) -> str:
    """Returns the comparison as lines for people."""
    first, second = comparison.names
    told = comparison.describe()
    shift = told["score_shift"]
    lines = [f"{first} against {second}: {comparison.images:,} images in both"]
    if any(comparison.only):
        lines.append(f"only in one: {comparison.only[0]:,} and {comparison.only[1]:,}")
    if comparison.answered:
        lines.append(
            f"agreement   {told['agreement']:.2%} of {comparison.answered:,} answered by both"
        )
    if comparison.agreed:
        lines.append(
            f"score shift {shift['mean']:+.4f} on average where they agree "
            f"(5 % {shift['p5']:+.3f}, median {shift['p50']:+.3f}, 95 % {shift['p95']:+.3f})"
        )
    lines += [
        f"{change['images']:>8,}  status {change['from']} -> {change['to']}"
        for change in told["status_changes"]
    ]
    lines += [
        f"{flip['images']:>8,}  {flip['from']} -> {flip['to']}"
        for flip in told["flips"][:_SHOWN_FLIPS]
    ]
    if len(comparison.flips) > _SHOWN_FLIPS:
        lines.append(f"          and {len(comparison.flips) - _SHOWN_FLIPS} rarer flips")
    return "\n".join(lines)


def _name(manifest: dict[str, Any]) -> str:
    tta = manifest["options"]["tta"]
    name = f"{manifest['model']['name']}@{manifest['model']['version']}"
    return name if tta == "none" else f"{name} {tta}"


def _match_positions(one: Folder, other: Folder) -> Iterator[tuple[Row | None, Row | None]]:
    first, second = iterate_rows(one, _COLUMNS), iterate_rows(other, _COLUMNS)
    left, right = next(first, None), next(second, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left["id"] < right["id"]):
            yield left, None
            left = next(first, None)
        elif left is None or right["id"] < left["id"]:
            yield None, right
            right = next(second, None)
        else:
            yield left, right
            left, right = next(first, None), next(second, None)


def _match_paths(one: Folder, other: Folder) -> Iterator[tuple[Row | None, Row | None]]:
    # A path may be there several times; then they are matched in their order.
    waiting: dict[str, list[Row]] = {}
    for row in iterate_rows(one, _COLUMNS):
        waiting.setdefault(row["path"], []).append(row)
    for row in iterate_rows(other, _COLUMNS):
        found = waiting.get(row["path"])
        yield (found.pop(0) if found else None), row
    for rows in waiting.values():
        for row in rows:
            yield row, None
