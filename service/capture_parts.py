"""Captured images on the disk: Parquet part files that training reads, within a size of their own.

    FOLDER/NAME@VERSION/20261121T101500-4f0c1e77.parquet

The columns `image` and `label` are those of training's own Parquet files. `label` is empty: nobody
has said yet what the image shows; what the model said stands beside it. Several processes may write
to one folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

# In the metadata of each file: the class names, by index, as a JSON list.
CLASSES: Final = b"classes"

_PART = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}\.parquet")
_TEMPORARY: Final = ".writing-"
# Making a table of images holds the interpreter's lock, 1.2 ms for so much of them; and training
# reads one group at a time.
_GROUP_BYTES: Final = 4 * 1024 * 1024
_SCHEMA: Final = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("label", pa.int64()),
        ("predicted", pa.int64()),
        ("prediction", pa.string()),
        ("score", pa.float32()),
        ("is_abstained", pa.bool_()),
        ("model", pa.string()),
        ("version", pa.int64()),
        ("time", pa.timestamp("us", tz="UTC")),
        ("request_id", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedImage:
    """One row.

    Attributes:
        image: `bytes`, the encoded image, and `path`, a name for it that no other has.
        predicted: Index of the best class.
        prediction: Its name.
        score: Its probability.
        is_abstained: Whether the model's threshold forbids to act on it.
        model: Name of the model that answered.
        version: Its version.
        time: When it answered.
        request_id: As the client was told.
    """

    image: dict[str, bytes | str]
    predicted: int
    prediction: str
    score: float
    is_abstained: bool
    model: str
    version: int
    time: datetime
    request_id: str

    def __len__(self) -> int:
        """Returns the size of the encoded image in bytes."""
        return len(self.image["bytes"])


class CaptureParts:
    """The part files of one folder."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Names the folder, and how large its parts may be together."""
        self._folder = folder
        self._max_bytes = max_bytes

    def write(self, reference: str, classes: Sequence[str], rows: Sequence[CapturedImage]) -> int:
        """Writes a part of the images of one NAME@VERSION; returns the size of all parts then.

        The oldest parts make room. A part appears whole, under its name, or not at all.

        Raises:
            OSError: It cannot be written.
        """
        folder = self._folder / reference
        for one in (self._folder, folder):
            one.mkdir(parents=True, exist_ok=True, mode=0o700)
        schema = _SCHEMA.with_metadata({CLASSES: json.dumps(list(classes)).encode()})
        name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}.parquet"
        temporary = folder / f"{_TEMPORARY}{name}"
        with self._locked():
            self._clear()
            try:
                _write(temporary, schema, rows)
                size = self._make_room(temporary.stat().st_size)
                temporary.rename(folder / name)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        return size

    def _make_room(self, needed: int) -> int:
        """Removes the oldest parts until so many bytes fit beside the rest; returns their sum."""
        parts = sorted(
            (path for path in self._folder.glob("*@*/*.parquet") if _PART.fullmatch(path.name)),
            key=lambda path: path.name,
        )
        sizes = [path.stat().st_size for path in parts]
        size = sum(sizes) + needed
        for path, freed in zip(parts, sizes, strict=True):
            if size <= self._max_bytes:
                break
            path.unlink()
            size -= freed
        return size

    def _clear(self) -> None:
        """Removes what a process that was killed left half written."""
        for path in self._folder.glob(f"*@*/{_TEMPORARY}*"):
            path.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _write(path: Path, schema: Any, rows: Sequence[CapturedImage]) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        # Images do not get smaller, and no two are the same.
        with pq.ParquetWriter(
            file, schema, compression="none", use_dictionary=False, write_statistics=["time"]
        ) as writer:
            for group in _groups(rows):
                records = [{"label": None, **asdict(row)} for row in group]
                writer.write_table(pa.Table.from_pylist(records, schema=schema))
        file.flush()
        os.fsync(file.fileno())


def _groups(rows: Sequence[CapturedImage]) -> Iterator[list[CapturedImage]]:
    group: list[CapturedImage] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row)
        if size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
