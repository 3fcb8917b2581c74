"""Bundles copied to this machine, each in a folder named by the sha256 of its manifest.

    CACHE/DIGEST/NAME/VERSION/bundle.json

What has a name is whole and was verified when it got it. The cache holds to a size: those that were
used least recently go, never one that a process has in hand. A process shows that by a lock on the
folder, which the system takes away when it ends, however it ends.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from service.bundle.manifest import Manifest
from service.bundle.repository import Bundle, list_files, read_bundle, verify_files
from service.errors import BundleError

_DIGEST = re.compile(r"[0-9a-f]{64}")
_STAGING: Final = ".staging-"

logger = logging.getLogger(__name__)


class BundleCache:
    """The copies in one folder, which any number of processes may share."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Names the folder, and how large its copies may be together."""
        self.folder = folder
        self._max_bytes = max_bytes

    def keep(self, manifest: Manifest, digest: str, copy: Callable[[Path], None]) -> Bundle:
        """Returns a verified bundle that stays where it is for as long as the object lives.

        Args:
            manifest: Of the bundle.
            digest: The sha256 of its file.
            copy: Fills an empty folder with the bundle, if it is not here already.

        Raises:
            BundleError: What was copied is not what the manifest lists.
            OSError: The cache cannot be written.
        """
        place = Path(manifest.name, str(manifest.version))
        if found := self._find(digest, place):
            return found
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if found := self._find(digest, place):  # another process was faster
                return found
            self._clear(digest)
            self._make_room(sum(one.bytes for one in list_files(manifest).values()))
            with tempfile.TemporaryDirectory(prefix=_STAGING, dir=self.folder) as parent:
                staging = Path(parent, "bundle")
                (staging / place).mkdir(parents=True)
                copy(staging / place)
                bundle = read_bundle(staging / place)
                if bundle.digest != digest:
                    raise BundleError(f"{bundle.reference} changed while it was copied")
                verify_files(bundle)
                lease = _Lease.take(staging)
                staging.rename(self.folder / digest)
        return replace(bundle, folder=self.folder / digest / place, lease=lease)

    def _find(self, digest: str, place: Path) -> Bundle | None:
        """Returns a copy that is here, and whole."""
        try:
            lease = _Lease.take(self.folder / digest)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            bundle = read_bundle(self.folder / digest / place)
            verify_files(bundle)
        except BundleError as error:
            logger.warning("%s; copying it again", error)
            return None
        return replace(bundle, lease=lease)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lets one process at a time add or remove copies."""
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks: as good as it gets
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _clear(self, digest: str) -> None:
        """Removes a damaged copy, and what a process that was killed left half copied."""
        for left in (self.folder / digest, *self.folder.glob(f"{_STAGING}*")):
            shutil.rmtree(left, ignore_errors=True)

    def _make_room(self, needed: int) -> None:
        """Removes copies until so many bytes fit beside the rest, or all others are in hand."""
        kept = [path for path in self.folder.iterdir() if _DIGEST.fullmatch(path.name)]
        sizes = {path: _count_bytes(path) for path in kept}
        size = needed + sum(sizes.values())
        for path in sorted(kept, key=lambda path: path.stat().st_mtime_ns):
            if size <= self._max_bytes:
                return
            if self._remove(path):
                size -= sizes[path]
                logger.info("removed %s from the cache of models", path.name[:12])

    def _remove(self, kept: Path) -> bool:
        """Removes a copy, unless a process has it in hand."""
        handle = os.open(kept, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with tempfile.TemporaryDirectory(prefix=_STAGING, dir=self.folder) as parent:
                kept.rename(Path(parent, "removed"))
        except OSError:
            return False
        finally:
            os.close(handle)
        return True


class _Lease:
    """The use of one copy, until nobody holds this object any more."""

    __slots__ = ("__weakref__",)

    def __init__(self, handle: int) -> None:
        weakref.finalize(self, os.close, handle)

    @classmethod
    def take(cls, kept: Path) -> _Lease:
        """Returns a lease of a folder, which is the most recently used from then on.

        Raises:
            FileNotFoundError: It is not there, or was removed just now.
        """
        handle = os.open(kept, os.O_RDONLY | os.O_DIRECTORY)
        lease = cls(handle)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(handle), kept.stat()):
            raise FileNotFoundError(kept)
        with suppress(OSError):  # a cache that may only be read
            os.utime(handle)
        return lease


def _count_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
