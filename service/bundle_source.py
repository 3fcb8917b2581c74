"""Where bundles come from: the model repository as the live set sees it."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from pathlib import Path
from typing import Protocol

from service.bundle.combination import COMBINATION_FILE, FoundCombination, read_combination
from service.bundle.repository import (
    MANIFEST_FILE,
    Bundle,
    list_versions,
    read_bundle,
    resolve,
)
from service.bundle_cache import BundleCache
from service.errors import BundleError
from service.settings import Settings


class BundleSource(Protocol):
    """A repository of bundles. Its calls may take long; their errors are StartErrors."""

    def list_versions(self) -> dict[str, list[int]]:
        """Returns the versions of every model, oldest first."""

    def read_digest(self, name: str, version: int) -> str:
        """Returns the sha256 of a bundle's manifest, which tells whether it is another bundle."""

    def fetch(self, name: str, version: int) -> Bundle:
        """Returns a bundle whose files are on this machine; they are not verified yet."""

    def fingerprint(self, name: str, version: int) -> Hashable:
        """Returns what changes when the bundle may have changed; None when that is unknown."""

    def list_combinations(self) -> dict[str, list[int]]:
        """Returns the versions of every combination, oldest first."""

    def read_combination(self, name: str, version: int) -> FoundCombination:
        """Returns a combination; its members may not be there."""

    def hide_place(self, text: str) -> str:
        """Returns the text without the places of this machine that it names."""


class FolderSource:
    """A folder of this machine: NAME/VERSION/bundle.json, or combination.json."""

    def __init__(self, folder: Path) -> None:
        """Names the folder; nothing is read yet."""
        self._folder = folder

    def list_versions(self) -> dict[str, list[int]]:
        """Returns the versions of every model, oldest first.

        Raises:
            BundleError: The folder cannot be read.
        """
        return list_versions(self._folder)

    def read_digest(self, name: str, version: int) -> str:
        """Returns the sha256 of the manifest.

        Raises:
            BundleError: There is none.
        """
        try:
            content = (self._folder / name / str(version) / MANIFEST_FILE).read_bytes()
        except OSError as error:
            raise BundleError(f"{name}@{version}: {MANIFEST_FILE}: {error.strerror}") from error
        return hashlib.sha256(content).hexdigest()

    def fetch(self, name: str, version: int) -> Bundle:
        """Returns the bundle after reading its manifest.

        Raises:
            BundleError: It is not there, or its manifest does not parse.
        """
        return read_bundle(resolve(self._folder, f"{name}@{version}"))

    def fingerprint(self, name: str, version: int) -> Hashable:
        """Returns the names, sizes and times of the bundle's files; None when it is not there."""
        folder = self._folder / name / str(version)
        try:
            facts = [(path.as_posix(), path.stat()) for path in folder.rglob("*")]
        except OSError:
            return None
        files = sorted((path, stat.st_size, stat.st_mtime_ns) for path, stat in facts)
        return tuple(files) or None

    def list_combinations(self) -> dict[str, list[int]]:
        """Returns the versions of every combination, oldest first.

        Raises:
            BundleError: The folder cannot be read.
        """
        return list_versions(self._folder, COMBINATION_FILE)

    def read_combination(self, name: str, version: int) -> FoundCombination:
        """Returns a combination.

        Raises:
            BundleError: It is not there, or does not parse.
        """
        return read_combination(self._folder / name / str(version))

    def hide_place(self, text: str) -> str:
        """Returns the text without the path of the repository."""
        return text.replace(f"{self._folder}/", "").replace(str(self._folder), "the repository")


def open_source(settings: Settings) -> BundleSource:
    """Returns the repository of the settings.

    Raises:
        RepositoryError: It is a URL of a kind that cannot be opened.
    """
    if isinstance(settings.model_repository, Path):
        return FolderSource(settings.model_repository)
    from service.remote_source import RemoteSource  # costs nothing where there is no URL

    return RemoteSource(settings.model_repository, open_cache(settings))


def open_cache(settings: Settings) -> BundleCache:
    """Returns the cache of the settings; nothing is made yet."""
    folder = settings.model_cache or Path.home() / ".cache" / "fivecrop"
    return BundleCache(folder, settings.model_cache_mib * 1024 * 1024)
