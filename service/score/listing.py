"""The files that an input names: a folder, a glob, a file, on this machine or behind a URL."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.score.errors import ScoreError
from service.score.storage import is_url, open_file_system, tell

_GLOB = re.compile(r"[*?\[]")
# What tells that a remote file was replaced; which of them there are depends on the server.
_FACTS = ("ETag", "etag", "generation", "LastModified", "mtime")


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file of an input.

    Attributes:
        address: Path or URL.
        size: In bytes; 0 when the server does not say.
        facts: What changes when its content does: its size, and its time or tag.
        is_named: Whether it was named or globbed for, not met while a folder was walked.
    """

    address: str
    size: int
    facts: str
    is_named: bool


def list_files(given: str) -> Iterator[FoundFile]:
    """Yields the files of one input in an order that depends on their names alone.

    Of a folder all files below it, except those whose name, or whose folder's, starts with a dot.

    Raises:
        ScoreError: There is nothing of that name, or it cannot be listed.
    """
    return _list_remote(given) if is_url(given) else _list_local(given)


def _list_local(given: str) -> Iterator[FoundFile]:
    path = Path(given)
    try:
        if path.is_dir():
            yield from _walk(given)
        elif path.exists():
            yield _found(given, path.stat(), is_named=True)
        elif _GLOB.search(given):
            # Path.glob takes no absolute pattern.
            for name in sorted(glob.glob(given, recursive=True)):  # noqa: PTH207
                if Path(name).is_file():
                    yield _found(name, Path(name).stat(), is_named=True)
        else:
            raise ScoreError(f"there is no {given}")
    except (OSError, ValueError) as error:
        raise ScoreError(f"{given}: {tell(error)}") from error


def _walk(folder: str) -> Iterator[FoundFile]:
    with os.scandir(folder) as found:
        # Sorted folder by folder, so that no more than one folder's names are in memory.
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        elif entry.is_file():
            yield _found(entry.path, entry.stat(), is_named=False)


def _found(address: str, stat: os.stat_result, *, is_named: bool) -> FoundFile:
    return FoundFile(address, stat.st_size, f"{stat.st_size} {stat.st_mtime_ns}", is_named)


def _list_remote(given: str) -> Iterator[FoundFile]:
    files, path = open_file_system(given)
    try:
        is_glob = _GLOB.search(path) is not None
        found: dict[str, dict[str, Any]] = (
            files.glob(path, detail=True) if is_glob else files.find(path, detail=True)
        )
        if not found and not is_glob:
            # Some file systems find nothing where they cannot even look; this one says why.
            found = {path: files.info(path)}
    except FileNotFoundError as error:
        why = "" if error.__cause__ is None else f": {tell(error.__cause__)}"
        raise ScoreError(f"there is no {given}{why}") from error
    except Exception as error:
        # Errors of these libraries share no base class.
        raise ScoreError(f"{given}: {type(error).__name__}: {tell(error)}") from error
    for name in sorted(found):
        about = found[name]
        if about.get("type", "file") != "file":
            continue
        facts = " ".join(str(about[fact]) for fact in ("size", *_FACTS) if fact in about)
        is_named = is_glob or name.rstrip("/") == path.rstrip("/")
        if is_named or not _is_hidden(name.removeprefix(path)):
            yield FoundFile(files.unstrip_protocol(name), about.get("size") or 0, facts, is_named)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
