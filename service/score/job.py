"""READ FIRST. A scoring job from its arguments to its last part file.

Inputs are listed in one order (`inputs`), cut into chunks (`chunker`), scored by worker processes
(`pool`, `worker`, `scorer`), and written in ranges of positions (`dataset`). A row depends on its
image, the bundle and the options alone, and a part appears whole or not; so any number of workers,
kills and resumes leaves the same rows.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from service.environment import load_settings
from service.score.census import Census
from service.score.chunker import Chunker
from service.score.dataset import Dataset, check_empty, read_manifest
from service.score.engines import ScoringEngine, open_engine
from service.score.errors import JobFailed, ScoreError
from service.score.folder import Folder, open_folder
from service.score.inputs import Inputs
from service.score.lock import Lock
from service.score.needs import Needs
from service.score.options import ScoreOptions
from service.score.pool import Scored
from service.score.progress import Progress
from service.score.row import Row, Stamp, tabulate
from service.score.storage import Unreachable
from service.score.tables import import_pyarrow
from service.score.transport import Connect
from service.settings import Settings

# An error rate says little about fewer images than that.
_FEW_IMAGES: Final = 1_000
_PART_BYTES: Final = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How a job ended.

    Attributes:
        state: `done`, `stopped` (it was asked to) or `failed` (too many errors).
        out: The output.
        progress: What it had done by then.
    """

    state: str
    out: str
    progress: Progress


def score_dataset(
    inputs: str | Sequence[str],
    out: str,
    options: ScoreOptions,
    *,
    resume: bool = False,
    watch: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    connect: Connect | None = None,
) -> Summary:
    """Scores every image of the inputs into the folder `out`, and returns how that ended.

    Args:
        inputs: Folders, globs, image files, tar shards, tables and lists; paths or URLs.
        out: Folder or URL; there is nothing in it yet, or with `resume` an unfinished job.
        options: The model, and what the rows have.
        resume: Go on with an unfinished job over the same input with the same options.
        watch: Called now and then from the thread that calls this.
        should_stop: Asked now and then; when it says so, what is at work is finished and written.
        connect: Asks the service of the options; None does over HTTP, for gRPC it is
            `service.grpc_transport.GrpcTransport`.

    Raises:
        StartError: The job cannot be begun like this; one line.
        JobFailed: It could not go on; what it wrote stays and it can be resumed.
    """
    given = [inputs] if isinstance(inputs, str) else list(inputs)
    settings = _load_settings(options)
    folder = open_folder(out)
    if resume:
        read_manifest(folder)  # there has to be one
    else:
        check_empty(folder)
    with open_engine(options, settings, connect) as (engine, stamp):
        if options.format == "parquet":
            import_pyarrow()  # while the workers load
        found = Inputs(given, column=options.column, max_bytes=settings.max_body_bytes)
        job = _Job(found, folder, options, stamp, engine)
        return job.run(resume=resume, watch=watch, should_stop=should_stop)


class _Job:
    def __init__(
        self,
        inputs: Inputs,
        folder: Folder,
        options: ScoreOptions,
        stamp: Stamp,
        engine: ScoringEngine,
    ) -> None:
        self._inputs = inputs
        self._folder = folder
        self._options = options
        self._engine = engine
        self._stamp = stamp

    def run(
        self,
        *,
        resume: bool,
        watch: Callable[[Progress], None],
        should_stop: Callable[[], bool],
    ) -> Summary:
        fingerprint = self._inputs.fingerprint()
        everything = Needs(limit=self._options.limit, shard=self._options.split_shard())
        try:
            first = next(self._inputs.entries(everything), None)
        except Unreachable as error:
            raise ScoreError(str(error)) from error
        if first is None:
            raise ScoreError("no inputs found: the tables or shards are empty")
        ready = self._engine.wait_ready()
        identity = {
            "model": {
                "name": self._stamp.model,
                "version": self._stamp.version,
                "bundle_digest": self._stamp.bundle_digest,
                "provider": ready.provider,
                "variant": ready.variant,
            },
            "options": self._options.identity,
            "input": {"fingerprint": fingerprint.digest, "files": fingerprint.files},
        }
        lock = Lock(self._folder)
        lock.acquire()
        try:
            dataset = _open_dataset(self._folder, identity, resume=resume)
            total = fingerprint.images
            counts = dataset.count_done() if resume else Counter()
            progress = Progress(
                total=None if total is None else everything.count_mine(total),
                resumed=counts.total(),
                committed=counts.total(),
                counts=counts,
                workers=self._engine.size,
            )
            state = self._score(dataset, progress, watch, lambda: lock.is_lost or should_stop())
            if lock.is_lost:
                raise JobFailed(f"{self._folder.address}: another job took it over")
            return Summary(state=state, out=self._folder.address, progress=progress)
        except Unreachable as error:
            raise JobFailed(f"{error}; what was written stays, go on with --resume") from error
        finally:
            lock.release()

    def _score(
        self,
        dataset: Dataset,
        progress: Progress,
        watch: Callable[[Progress], None],
        should_stop: Callable[[], bool],
    ) -> str:
        needs = Needs(
            [(part.start, part.stop) for part in dataset.parts()],
            limit=self._options.limit,
            shard=self._options.split_shard(),
        )
        part = _PartBuilder(dataset, self._options, self._stamp)
        stopped = False

        def asked_to_stop() -> bool:
            nonlocal stopped
            stopped = stopped or should_stop()
            return stopped

        state = "failed"
        census = Census(self._inputs, needs) if progress.total is None else None
        try:
            chunker = Chunker(self._inputs.entries(needs), needs)
            for scored in self._engine.run(chunker, asked_to_stop):
                part.add(scored)
                progress.add(scored.rows, scored.spent)
                progress.committed = progress.done - len(part)
                if census is not None:
                    progress.total, progress.is_total_exact = census.total()
                watch(progress)
                if self._is_hopeless(progress, at_end=False):
                    break
            else:
                state = "stopped" if stopped else "done"
            part.flush()
            progress.committed = progress.done
            if state == "done":
                progress.total, progress.is_total_exact = progress.done, True
            if state == "done" and self._is_hopeless(progress, at_end=True):
                state = "failed"
        except KeyboardInterrupt:
            state = "stopped"
            raise
        finally:
            if census is not None:
                census.close()
            if progress.committed < progress.done:
                progress.counts = dataset.count_done()
            dataset.finish(state, progress.counts, {"last_run": progress.describe()})
        watch(progress)
        return state

    def _is_hopeless(self, progress: Progress, *, at_end: bool) -> bool:
        seen = progress.done if at_end else max(progress.done, _FEW_IMAGES)
        return progress.errors > self._options.max_error_rate * seen


class _PartBuilder:
    """Collects rows until they make a part."""

    def __init__(self, dataset: Dataset, options: ScoreOptions, stamp: Stamp) -> None:
        self._dataset = dataset
        self._options = options
        self._stamp = stamp
        self._rows: list[Row] = []
        self._start = self._stop = 0
        self._bytes = 0
        self._began = time.monotonic()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, scored: Scored) -> None:
        """Adds rows, and writes a part when there are enough of them, or it is time."""
        if not scored.stretch.follows:
            self.flush()
        if not self._rows:
            self._start = scored.stretch.start
        self._rows += scored.rows
        self._stop = scored.stretch.stop
        for row in scored.rows:
            # About what a row takes in memory; only long lists and names make a difference.
            self._bytes += 500 + len(row.path) + 8 * len(row.embedding or ())
            self._bytes += 8 * len(row.probabilities or ())
        is_full = len(self._rows) >= self._options.part_rows or self._bytes >= _PART_BYTES
        if is_full or time.monotonic() - self._began >= self._options.part_seconds:
            self.flush()

    def flush(self) -> None:
        """Writes what there is."""
        if self._rows:
            columns: dict[str, list[Any]] = tabulate(self._rows, self._stamp, self._options.columns)
            self._dataset.commit(columns, self._start, self._stop)
        self._rows, self._bytes = [], 0
        self._began = time.monotonic()


def _open_dataset(folder: Folder, identity: dict[str, Any], *, resume: bool) -> Dataset:
    if resume:
        return Dataset.resume(folder, identity)
    check_empty(folder)  # looked at before, but without the lock
    return Dataset.create(folder, identity)


def _load_settings(options: ScoreOptions) -> Settings:
    given = {"model_repository": options.model_repository, "variant": options.variant}
    return load_settings(**{name: value for name, value in given.items() if value is not None})
