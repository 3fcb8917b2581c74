"""How far a job is."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from service.score.messages import Spent
from service.score.row import ABSTAINED, OK, Row


@dataclass(slots=True)
class Progress:
    """How far a job is.

    Attributes:
        total: Images of the job; None as long as nobody knows.
        is_total_exact: Or told from the part of the shards that was read.
        resumed: Images that were done before.
        counts: Statuses and error codes of all images that are done.
        workers: Processes at work.
        committed: Images whose part is written.
    """

    total: int | None
    resumed: int
    counts: Counter[str]
    workers: int
    committed: int = 0
    is_total_exact: bool = True
    began: float = field(default_factory=time.monotonic)
    spent: Spent = field(default_factory=Spent)

    def add(self, rows: list[Row], spent: Spent) -> None:
        """Counts what was scored."""
        self.counts.update(row.error_code or row.status for row in rows)
        self.spent += spent

    @property
    def done(self) -> int:
        """Images that are done, now and before."""
        return self.counts.total()

    @property
    def errors(self) -> int:
        """Images that failed, now and before."""
        return self.done - self.counts[OK] - self.counts[ABSTAINED]

    @property
    def seconds(self) -> float:
        """Since the job began, or went on."""
        return time.monotonic() - self.began

    @property
    def images_per_second(self) -> float:
        """Over this run of the job."""
        return (self.done - self.resumed) / max(1e-9, self.seconds)

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end, at the rate so far; None when that cannot be said."""
        if self.total is None or self.done == self.resumed:
            return None
        return max(0.0, (self.total - self.done) / self.images_per_second)

    def share(self, stage: str) -> float:
        """Returns which part of the workers' time went into `read`, `decode` or `infer`, 0..1."""
        spent: float = getattr(self.spent, f"{stage}_s")
        return min(1.0, spent / max(1e-9, self.seconds * self.workers))

    def describe(self) -> dict[str, object]:
        """Returns the facts for a program."""
        return {
            "done": self.done,
            "total": self.total,
            "is_total_exact": self.is_total_exact,
            "resumed": self.resumed,
            "committed": self.committed,
            "errors": self.errors,
            "counts": dict(sorted(self.counts.items())),
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 2),
            "eta_s": None if self.eta_s is None else round(self.eta_s, 1),
            "utilisation": {
                stage: round(self.share(stage), 3) for stage in ("read", "decode", "infer")
            },
        }
