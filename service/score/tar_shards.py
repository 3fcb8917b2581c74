"""Images in tar files (WebDataset shards)."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Final, Self

from service.score.entry import Broken, Inline, Place, Span
from service.score.errors import ScoreError
from service.score.needs import Needs
from service.score.storage import Unreachable, is_url, open_file

SUFFIXES = (".tar", ".tar.gz", ".tgz")
# A sample of a shard has more members, its class or caption for example; these are the images.
_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
# A remote shard is read ahead in pieces of this size.
_BLOCK_BYTES: Final = 8 * 2**20


class _StrictHeader(tarfile.TarInfo):
    """A header that ends a shard only where the shard says so; tarfile stops at any damage."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Returns the header; raises ReadError for what is neither a header nor the end."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                raise
            raise OSError(f"a damaged shard: {error}") from error


def list_members(
    address: str, start: int, needs: Needs, max_bytes: int
) -> Iterator[tuple[str, Place]]:
    """Yields (name, place) of the images in a shard, in their order.

    A local shard that is not compressed is only walked, and its images are read by the workers;
    any other is read from front to back here, once. What cannot be read further ends with a
    `Broken` place, never silently.

    Args:
        address: Path or URL of the shard.
        start: Position of its first image.
        needs: Positions whose bytes are wanted.
        max_bytes: Members larger than that are not read.

    Raises:
        Unreachable: A store stopped answering.
        ScoreError: A store cannot give the shard from front to back.
    """
    try:
        if is_walkable(address):
            with Path(address).open("rb") as file:
                yield from _walk(address, file)
        else:
            with open_file(address, block_bytes=_BLOCK_BYTES) as file:
                yield from _read(file, start, needs, max_bytes)
    except (ScoreError, Unreachable):
        raise
    except Exception as error:  # noqa: BLE001 - a damaged shard is a row, like a damaged image
        yield "", Broken(f"{type(error).__name__}: {error}")


def is_walkable(address: str) -> bool:
    """Whether the images of a shard can be found without reading them."""
    return address.endswith(".tar") and not is_url(address)


def _walk(address: str, file: IO[bytes]) -> Iterator[tuple[str, Place]]:
    with tarfile.open(fileobj=file, mode="r:", tarinfo=_StrictHeader) as shard:
        for member in _images(shard):
            yield member.name, Span(address, member.offset_data, member.size)


def _read(file: IO[bytes], start: int, needs: Needs, max_bytes: int) -> Iterator[tuple[str, Place]]:
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=_StrictHeader) as shard:
        for position, member in enumerate(_images(shard), start):
            data = b""
            if needs.needs(position):
                content = shard.extractfile(member)
                # One byte more than is allowed tells that there was more.
                data = b"" if content is None else content.read(max_bytes + 1)
                if len(data) < min(member.size, max_bytes + 1):
                    raise tarfile.ReadError("unexpected end of data")
            yield member.name, Inline(data)


def _images(shard: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in shard:
        # tarfile remembers every member it has seen.
        shard.members = []  # type: ignore[attr-defined]
        if member.isfile() and PurePosixPath(member.name).suffix.lower() in _IMAGES:
            yield member
