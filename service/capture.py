"""A share of the images that were answered, kept to train on, and never at a request's expense.

They are chosen on the event loop and written by a thread of its own, with a bounded queue between
them. What finds no room there, and what cannot be written, is counted and forgotten.
"""

from __future__ import annotations

import logging
import queue
import random
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from service.bundle.image_source import ImageSource, NormalisedView, PixelImage, encode_pixels
from service.classification import Classification
from service.errors import RequestError, StartError
from service.metrics import Metrics
from service.request_id import REQUEST_ID
from service.settings import Settings

if TYPE_CHECKING:
    from service.capture_parts import CapturedImage, CaptureParts

_MIB: Final = 1024 * 1024
_MOST_WAITING: Final = 256
_MOST_WAITING_BYTES: Final = 32 * _MIB
_MOST_PART_BYTES: Final = 32 * _MIB
_CLOSE_S: Final = 5.0

# Returns the class names of a NAME@VERSION.
FindClasses = Callable[[str], Sequence[str]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    """An image on its way to the writer."""

    image: bytes | PixelImage
    answer: Classification
    classes: Sequence[str]
    request_id: str
    at: float


class Capture:
    """Chooses images, and writes them. `offer` is for one event loop."""

    def __init__(
        self,
        parts: CaptureParts,
        settings: Settings,
        metrics: Metrics,
        find_classes: FindClasses,
    ) -> None:
        """Starts the writer.

        Args:
            parts: What writes part files.
            settings: Which images are kept, and when they are written.
            metrics: Where they are counted.
            find_classes: Names the classes of a model that answered.
        """
        self._parts = parts
        self._share = settings.capture_share
        self._below_score = settings.capture_below_score or 0.0
        self._part_bytes = min(_MOST_PART_BYTES, settings.capture_max_mib * _MIB // 4)
        self._part_s = settings.capture_part_s
        self._metrics = metrics.capture
        self._find_classes = find_classes
        self._queue: queue.SimpleQueue[_Chosen | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0
        self._waiting_bytes = 0
        self._is_failing = False
        # Not of a lower priority than the others: it would hold the interpreter's lock for long
        # whenever the machine is busy, and what it does is little.
        self._thread = threading.Thread(target=self._run, name="fivecrop-capture", daemon=True)
        self._thread.start()

    @classmethod
    def build(
        cls, settings: Settings, metrics: Metrics, find_classes: FindClasses
    ) -> Capture | None:
        """Returns what the settings ask for, or None when they ask for nothing.

        Raises:
            StartError: The packages for it are not installed.
        """
        if settings.capture_folder is None:
            return None
        try:
            from service.capture_parts import CaptureParts
        except ModuleNotFoundError:
            raise StartError("capture needs more packages: install fivecrop[capture]") from None
        parts = CaptureParts(settings.capture_folder, settings.capture_max_mib * _MIB)
        return cls(parts, settings, metrics, find_classes)

    def offer(self, image: ImageSource, answer: Classification) -> None:
        """Keeps an image that was answered, if it is one of those to keep; returns at once."""
        if answer.predictions[0].score >= self._below_score and random.random() >= self._share:
            return
        size = len(image)
        # What a client preprocessed is cropped already: a crop of a crop is no image to train on.
        if isinstance(image, NormalisedView) or size > self._part_bytes:
            self._metrics.count("skipped")
            return
        try:
            classes = self._find_classes(f"{answer.model}@{answer.version}")
        except RequestError:  # unloaded since
            self._metrics.count("skipped")
            return
        with self._lock:
            if self._waiting >= _MOST_WAITING or self._waiting_bytes + size > _MOST_WAITING_BYTES:
                self._metrics.count("dropped")
                return
            self._waiting += 1
            self._waiting_bytes += size
        if isinstance(image, PixelImage):
            # It may be a view of a whole message, which is not to be kept for it.
            image = replace(image, content=bytes(image.content))
        self._queue.put(
            _Chosen(
                image=image,
                answer=answer,
                classes=classes,
                request_id=REQUEST_ID.get(),
                at=time.time(),
            )
        )

    def close(self) -> None:
        """Writes what was kept, for a few seconds at most."""
        self._queue.put(None)
        self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        rows = _Rows()
        while True:
            try:
                chosen = self._queue.get(timeout=rows.seconds_left())
            except queue.Empty:
                self._write(rows)
                continue
            if chosen is None:
                self._write(rows)
                return
            with self._lock:
                self._waiting -= 1
                self._waiting_bytes -= len(chosen.image)
            try:
                rows.add(chosen, due_at=time.monotonic() + self._part_s)
            except Exception:  # noqa: BLE001 - no image ends the thread that keeps the others
                self._fail(1)
            if rows.bytes >= self._part_bytes or rows.seconds_left() == 0:
                self._write(rows)

    def _write(self, rows: _Rows) -> None:
        """Writes a part of each model; what cannot be written is gone."""
        for (reference, classes), of_model in rows.take().items():
            try:
                size = self._parts.write(reference, classes, of_model)
            except Exception:  # noqa: BLE001 - no image ends the thread that keeps the others
                self._fail(len(of_model))
                continue
            self._metrics.count("written", len(of_model))
            self._metrics.show_size(size)
            if self._is_failing:
                logger.warning("images are kept for training again")
                self._is_failing = False

    def _fail(self, images: int) -> None:
        """Counts images that are lost, and says why once, until something is written again."""
        self._metrics.count("failed", images)
        if not self._is_failing:
            logger.exception("images for training cannot be written; serving goes on without")
            self._is_failing = True


class _Rows:
    """What waits to be written, by model."""

    def __init__(self) -> None:
        self.bytes = 0
        self._due_at: float | None = None
        self._rows: dict[tuple[str, Sequence[str]], list[CapturedImage]] = defaultdict(list)

    def seconds_left(self) -> float | None:
        """Returns how long the first row may still wait; None when there is none."""
        return None if self._due_at is None else max(0.0, self._due_at - time.monotonic())

    def add(self, chosen: _Chosen, due_at: float) -> None:
        row = _make_row(chosen)
        self._rows[f"{row.model}@{row.version}", tuple(chosen.classes)].append(row)
        self.bytes += len(row)
        if self._due_at is None:
            self._due_at = due_at

    def take(self) -> dict[tuple[str, Sequence[str]], list[CapturedImage]]:
        """Returns everything, and forgets it."""
        rows, self._rows = self._rows, defaultdict(list)
        self.bytes, self._due_at = 0, None
        return rows


def _make_row(chosen: _Chosen) -> CapturedImage:
    from service.capture_parts import CapturedImage

    image, answer = chosen.image, chosen.answer
    best = answer.predictions[0]
    at = datetime.fromtimestamp(chosen.at, UTC)
    suffix = answer.format
    if isinstance(image, PixelImage):
        image, suffix = encode_pixels(image), "png"
    return CapturedImage(
        image={"bytes": image, "path": f"{at:%Y%m%dT%H%M%S}-{secrets.token_hex(8)}.{suffix}"},
        predicted=best.index,
        prediction=best.label,
        score=best.score,
        is_abstained=answer.verdict.abstained,
        model=answer.model,
        version=answer.version,
        time=at,
        request_id=chosen.request_id,
    )
