"""One image to score: its place in the input's order, its name, and where its bytes are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class File:
    """A whole file: a path of this machine or a URL."""

    address: str


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a local file: a member of a tar shard."""

    address: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Inline:
    """Bytes that came with the listing: a cell of a table, a member of a remote shard."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Broken:
    """What a listing could not read; it becomes an error row, so that the loss is seen."""

    reason: str


Place = File | Span | Inline | Broken


@dataclass(frozen=True, slots=True)
class Entry:
    """One image to score.

    Attributes:
        position: From 0, in the order of the input; the same in every run over the same input.
        path: What the image is called: its path, or that of what holds it, `#` and its name there.
        place: Where its bytes are.
    """

    position: int
    path: str
    place: Place
