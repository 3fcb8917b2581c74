"""Everything that a job scores, in one order: what its arguments name, opened where need be."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from service.score import tables, tar_shards
from service.score.entry import Entry, File, Place
from service.score.errors import ScoreError
from service.score.listing import FoundFile, list_files
from service.score.needs import Needs


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What tells one input from another.

    Attributes:
        digest: sha256 over the name, size and time (or tag) of every file.
        files: How many files there are.
        images: How many images, if every file is one; None when shards or tables are among them.
    """

    digest: str
    files: int
    images: int | None


@dataclass(slots=True)
class Streamed:
    """Images and bytes of the shards that were read from front to back."""

    images: int = 0
    bytes: int = 0


class Inputs:
    """What the arguments of a job name.

    Attributes:
        streamed: What was read so far of shards that cannot be walked.
    """

    def __init__(self, given: Sequence[str], *, column: str | None, max_bytes: int) -> None:
        """Remembers the arguments; nothing is opened yet.

        Args:
            given: Folders, globs, images, tar shards, tables and lists; paths or URLs.
            column: Of tables; None finds it by its name.
            max_bytes: Images of more bytes need not be read.
        """
        self._given = tuple(given)
        self._column = column
        self._max_bytes = max_bytes
        self.streamed = Streamed()

    def fingerprint(self) -> Fingerprint:
        """Returns the fingerprint; every folder is listed, no file is opened.

        Raises:
            ScoreError: Something cannot be listed, or there is no file at all.
        """
        digest, files, has_shards = hashlib.sha256(), 0, False
        for found in self.files():
            name = found.address.encode("utf-8", "surrogateescape")
            digest.update(name + b"\0" + found.facts.encode() + b"\0")
            files += 1
            has_shards = has_shards or _kind(found) != "image"
        if not files:
            raise ScoreError(f"no inputs found in {', '.join(self._given)}")
        return Fingerprint(
            digest=digest.hexdigest(), files=files, images=None if has_shards else files
        )

    def entries(self, needs: Needs) -> Iterator[Entry]:
        """Yields every image in the order of its position, needed or not, up to the limit.

        Of images that are not needed the bytes may be missing.

        Raises:
            ScoreError: A list or table cannot be read.
        """
        position = 0
        for found in self.files():
            start = position
            for path, place in self.open(found, position, needs):
                if needs.limit is not None and position >= needs.limit:
                    return
                yield Entry(position, path, place)
                position += 1
            if is_streamed(found):
                self.streamed.images += position - start
                self.streamed.bytes += found.size

    def files(self) -> Iterator[FoundFile]:
        """Yields every file, in order; ScoreError when something cannot be listed."""
        for given in self._given:
            yield from list_files(given)

    def open(self, found: FoundFile, position: int, needs: Needs) -> Iterator[tuple[str, Place]]:
        """Yields (path, place) of what is in a file whose first image is at `position`."""
        address = found.address
        match _kind(found):
            case "tar":
                for name, place in tar_shards.list_members(
                    address, position, needs, self._max_bytes
                ):
                    yield f"{address}#{name}", place
            case "parquet":
                yield from tables.list_parquet(address, self._column, position, needs)
            case "csv":
                yield from tables.list_csv(address, self._column)
            case "list":
                yield from tables.list_lines(address)
            case _:
                yield address, File(address)


def is_streamed(found: FoundFile) -> bool:
    """Whether a file is a shard whose images are only known when all of it was read."""
    return _kind(found) == "tar" and not tar_shards.is_walkable(found.address)


def _kind(found: FoundFile) -> str:
    """Returns what a file is by its name; a text beside the images of a folder is no list."""
    name = found.address.lower()
    if name.endswith(tar_shards.SUFFIXES):
        return "tar"
    if name.endswith(tables.PARQUET):
        return "parquet"
    if found.is_named and name.endswith(tables.CSVS):
        return "csv"
    if found.is_named and name.endswith(tables.LISTS):
        return "list"
    return "image"
