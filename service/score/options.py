"""What a scoring job is asked to do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from service.bundle.manifest import TtaPolicy
from service.score.errors import ScoreError
from service.score.row import COLUMNS, OPTIONAL_COLUMNS

Format = Literal["parquet", "jsonl", "csv"]
Engine = Literal["local", "http", "grpc", "ray"]
ENGINES: Final[tuple[Engine, ...]] = ("local", "http", "grpc", "ray")
FORMATS: Final[tuple[Format, ...]] = ("parquet", "jsonl", "csv")
TTA_POLICIES: Final[tuple[TtaPolicy, ...]] = get_args(TtaPolicy)
_SHARD = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """What a scoring job is asked to do; what changes its rows is in `identity`.

    Attributes:
        model: NAME or NAME@VERSION.
        model_repository: Folder or URL of bundles; None is the setting.
        top_k: Best classes in each row, at least 1.
        tta: Test-time augmentation policy.
        min_score: A best class under it is `abstained`, in place of the bundle's own thresholds.
        embedding: Add the features that the classifier reads.
        probabilities: Add the probability of every class.
        sha256: Add the digest of each image file.
        variant: Precision of the bundle to run; None is the setting.
        column: Of a table, what holds paths or images; None finds it by its name.
        format: Of the output.
        limit: Only the first so many images of the input.
        shard: I/N: every N-th image, from the I-th on.
        workers: Processes; None takes the cores of this process. With `url` images at a time.
        engine: `local` worker processes, a service over `http` or `grpc`, or actors on `ray`.
        url: Of the service that answers.
        key: API key for it.
        address: Of the Ray cluster; None starts a Ray of this machine.
        max_error_rate: Share of images that may fail before the job gives up.
        part_rows: Rows in a part file at most.
        part_seconds: A part is written after so long even when it is not full.
    """

    model: str
    model_repository: str | None = None
    top_k: int = 5
    tta: str = "none"
    min_score: float | None = None
    embedding: bool = False
    probabilities: bool = False
    sha256: bool = False
    variant: str | None = None
    column: str | None = None
    format: Format = "parquet"
    limit: int | None = None
    shard: str | None = None
    workers: int | None = None
    engine: Engine = "local"
    url: str | None = None
    key: str | None = None
    address: str | None = None
    max_error_rate: float = 0.1
    part_rows: int = 2_000
    part_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Refuses what has no meaning.

        Raises:
            ScoreError: One line.
        """
        wrong = [
            (self.top_k < 1, "--top-k is at least 1"),
            (self.tta not in TTA_POLICIES, f"--tta is one of {', '.join(TTA_POLICIES)}"),
            (not 0 <= (self.min_score or 0) <= 1, "--min-score lies between 0 and 1"),
            (self.format not in FORMATS, f"--format is one of {', '.join(FORMATS)}"),
            (self.limit is not None and self.limit < 1, "--limit is at least 1"),
            (self.workers is not None and self.workers < 1, "--workers is at least 1"),
            (not 0 <= self.max_error_rate <= 1, "--max-error-rate lies between 0 and 1"),
            (
                (self.engine in ("http", "grpc")) != (self.url is not None),
                "--engine http or grpc and --url go together",
            ),
            (self.address is not None and self.engine != "ray", "--address is for --engine ray"),
            (self.part_rows < 1, "--part-rows is at least 1"),
            (not self.part_seconds > 0, "--part-seconds is more than 0"),
        ]
        for is_wrong, text in wrong:
            if is_wrong:
                raise ScoreError(text)
        self.split_shard()

    def split_shard(self) -> tuple[int, int]:
        """Returns (i, n): images whose position is i modulo n are this job's; (0, 1) is all.

        Raises:
            ScoreError: It is not I/N with 1 <= I <= N.
        """
        if self.shard is None:
            return 0, 1
        found = _SHARD.fullmatch(self.shard)
        if found is None or int(found[1]) > int(found[2]):
            raise ScoreError(f"--shard {self.shard!r} is not I/N with I from 1 to N")
        return int(found[1]) - 1, int(found[2])

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the output."""
        asked = {name for name in OPTIONAL_COLUMNS if getattr(self, name)}
        return tuple(name for name in COLUMNS if name not in OPTIONAL_COLUMNS or name in asked)

    @property
    def identity(self) -> dict[str, Any]:
        """What two runs that write to the same output must have in common."""
        names = (
            *("top_k", "tta", "min_score", "embedding", "probabilities", "sha256"),
            *("column", "format", "limit", "shard"),
        )
        return {name: getattr(self, name) for name in names}
