"""What a worker of a job and whoever gives it work say to each other; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from service.score.entry import Entry
from service.score.row import Row

if TYPE_CHECKING:
    from service.score.options import ScoreOptions
    from service.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a worker is started with.

    Attributes:
        bundle_folder: Of the model; its files have been verified.
        options: Of the job.
        settings: Of this process.
        golden: Which of the bundle's golden samples the worker has to reproduce.
    """

    bundle_folder: Path
    options: ScoreOptions
    settings: Settings
    golden: slice


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What a worker that can begin says: where the model runs, and which file of the bundle."""

    provider: str
    variant: str

    def __str__(self) -> str:
        return f"{self.variant} on {self.provider}"


@dataclass(frozen=True, slots=True)
class Refused:
    """What a worker that cannot begin says, in one line."""

    reason: str


@dataclass(slots=True)
class Chunk:
    """Entries that travel to a worker together; `number` tells chunks apart."""

    number: int
    entries: list[Entry]


@dataclass(slots=True)
class Spent:
    """Where the time of a worker went, in seconds; `read_s` is waiting for bytes."""

    read_s: float = 0.0
    decode_s: float = 0.0
    infer_s: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.read_s + other.read_s,
            self.decode_s + other.decode_s,
            self.infer_s + other.infer_s,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """The rows of a chunk, in its order, and where the time went."""

    number: int
    rows: list[Row]
    spent: Spent
