"""Images that are read when they are needed, out of archives and tables."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

# Row groups held in memory by each process; the loader shuffles within windows of fewer.
_KEPT_ROW_GROUPS = 6


class StoredImage(Protocol):
    """An encoded image somewhere; a `Path` is one."""

    def read_bytes(self) -> bytes:
        """Return the encoded image."""


@dataclass(frozen=True, slots=True)
class FileSlice:
    """An image that is a part of a file, as of an uncompressed tar."""

    path: Path
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        """Return the encoded image."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True, slots=True)
class ParquetCell:
    """An image in a Parquet file, local or behind a URL; its whole row group is fetched."""

    url: str
    row_group: int
    row: int

    def read_bytes(self) -> bytes:
        """Return the encoded image."""
        return _row_group(self.url, self.row_group)[self.row]


@lru_cache(maxsize=_KEPT_ROW_GROUPS)
def _row_group(url: str, index: int) -> list[bytes]:
    import fsspec
    import pyarrow.parquet as pq

    with fsspec.open(url, "rb") as file:
        table = pq.ParquetFile(file).read_row_group(index, ["image"], use_threads=False)
    found: list[bytes] = table.column("image").combine_chunks().field("bytes").to_pylist()
    return found
