"""The folder that a job writes to: on this machine or behind a URL; files appear whole or not."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Any, Protocol

from service.score.errors import ScoreError
from service.score.storage import is_url, open_file_system, tell


class Folder(Protocol):
    """A folder of files that are written once and whole. What fails is an OSError."""

    address: str

    def names(self) -> list[str]:
        """Returns the names of the files in it; empty when there is no such folder."""

    def read(self, name: str) -> bytes:
        """Returns a file; FileNotFoundError when it is not there."""

    def write(self, name: str, data: bytes) -> None:
        """Writes or replaces a file; no reader ever sees a part of it."""

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file unless it is there; returns whether it did."""

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""


def open_folder(address: str) -> Folder:
    """Returns the folder; it need not exist yet.

    Raises:
        ScoreError: The packages for this kind of URL are not installed, or there is no such kind.
    """
    return RemoteFolder(address) if is_url(address) else LocalFolder(address)


class LocalFolder:
    """A folder of this machine."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._path = Path(address)

    def names(self) -> list[str]:
        """Returns the names of the files in it; empty when there is no such folder."""
        try:
            return sorted(one.name for one in self._path.iterdir())
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        """Returns a file."""
        return (self._path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Writes a file under a temporary name, to the disk, and renames it."""
        self._path.mkdir(parents=True, exist_ok=True)
        staging = self._path / _staging_name(name)
        try:
            with staging.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            staging.rename(self._path / name)
        except OSError:
            with contextlib.suppress(OSError):
                staging.unlink()
            raise

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file unless it is there, whole: a link to a finished file is made at once."""
        self._path.mkdir(parents=True, exist_ok=True)
        staging = self._path / _staging_name(name)
        try:
            staging.write_bytes(data)
            os.link(staging, self._path / name)
        except FileExistsError:
            return False
        finally:
            staging.unlink(missing_ok=True)
        return True

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        (self._path / name).unlink(missing_ok=True)


class RemoteFolder:
    """A folder behind a URL. Object stores publish an object when all of it has arrived."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._files, root = open_file_system(address)
        self._root = root.rstrip("/")

    def names(self) -> list[str]:
        """Returns the names of the files in it; empty when there is no such folder."""
        try:
            found = self._ask(self._files.ls, self._root, detail=False)
        except FileNotFoundError:
            return []
        return sorted(name.rstrip("/").rpartition("/")[2] for name in found)

    def read(self, name: str) -> bytes:
        """Returns a file."""
        data: bytes = self._ask(self._files.cat_file, f"{self._root}/{name}")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Writes or replaces a file."""
        with contextlib.suppress(OSError, NotImplementedError):
            self._files.makedirs(self._root, exist_ok=True)
        self._ask(self._files.pipe_file, f"{self._root}/{name}", data)

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file unless it is there.

        Between the look and the write another job may do the same: object stores differ too much
        in what they offer against that.
        """
        if self._ask(self._files.exists, f"{self._root}/{name}"):
            return False
        self.write(name, data)
        return True

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._ask(self._files.rm_file, f"{self._root}/{name}")

    def _ask(self, call: Any, *arguments: object, **options: object) -> Any:
        """Returns what the file system does; its libraries' errors have no base class in common."""
        try:
            return call(*arguments, **options)
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {tell(error)}") from error


def _staging_name(name: str) -> str:
    """Returns a hidden name that no other writer of the file uses."""
    return f".{name}.{os.getpid()}-{threading.get_ident()}"


def unwritable(folder: Folder, error: OSError) -> ScoreError:
    """Returns the error for an output that cannot be written."""
    return ScoreError(f"cannot write to {folder.address}: {tell(error)}")
