"""One row of the output: what the model says of one image, or why it says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from service.score.entry import Entry

if TYPE_CHECKING:
    from service.bundle.postprocess import Prediction

# In the order of the output; `sha256`, `embedding` and `probabilities` only when asked for.
COLUMNS: Final = (
    *("id", "path", "sha256", "status", "error_code", "label", "index", "score"),
    *("top_labels", "top_indices", "top_scores", "width", "height", "format"),
    *("model", "version", "bundle_digest", "embedding", "probabilities"),
)
OPTIONAL_COLUMNS: Final = frozenset({"sha256", "embedding", "probabilities"})

OK, ABSTAINED, ERROR = "ok", "abstained", "error"


@dataclass(slots=True, kw_only=True)
class Row:
    """What the model says of one image.

    Attributes:
        id: Position of the image in the input.
        path: What it is called.
        status: `ok`, `abstained` (the best class is under its threshold) or `error`.
        error_code: Why there is no answer; None unless `status` is `error`.
        label, index, score: The best class.
        top_labels, top_indices, top_scores: The best classes, best first.
        width, height, format: Of the image file.
        sha256: Of the image file, when asked for.
        embedding: float32 [D] as a list, when asked for.
        probabilities: float32 [C] as a list, when asked for.
    """

    id: int
    path: str
    status: str
    error_code: str | None = None
    label: str | None = None
    index: int | None = None
    score: float | None = None
    top_labels: list[str] | None = None
    top_indices: list[int] | None = None
    top_scores: list[float] | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    sha256: str | None = None
    embedding: list[float] | None = None
    probabilities: list[float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What every row of a job says about the model that made it."""

    model: str
    version: int
    bundle_digest: str


def answered_row(entry: Entry, top: Sequence[Prediction], *, is_sure: bool) -> Row:
    """Returns the row of an image whose best classes are known, best first."""
    best = top[0]
    return Row(
        id=entry.position,
        path=printable(entry.path),
        status=OK if is_sure else ABSTAINED,
        label=best.label,
        index=best.index,
        score=best.score,
        top_labels=[one.label for one in top],
        top_indices=[one.index for one in top],
        top_scores=[one.score for one in top],
    )


def failed_row(entry: Entry, code: str) -> Row:
    """Returns the row of an image that there is no answer for."""
    return Row(id=entry.position, path=printable(entry.path), status=ERROR, error_code=code)


def tabulate(rows: list[Row], stamp: Stamp, columns: tuple[str, ...]) -> dict[str, list[Any]]:
    """Returns the rows as columns, with the model in each."""
    constant = {
        "model": stamp.model,
        "version": stamp.version,
        "bundle_digest": stamp.bundle_digest,
    }
    return {
        name: [constant[name]] * len(rows)
        if name in constant
        else [getattr(row, name) for row in rows]
        for name in columns
    }


def printable(path: str) -> str:
    """Returns the path as text that every format can hold: bytes that are no UTF-8 are replaced."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
