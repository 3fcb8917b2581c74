"""A model repository behind a URL: s3://, gs://, https:// and whatever else fsspec opens.

Bundles are fetched into a cache of this machine (`bundle_cache`), so a server that starts again,
and every further worker, takes them from there. Who uploads a bundle uploads `bundle.json` last: a
version without one is not there yet.
"""

from __future__ import annotations

import hashlib
import logging
import posixpath
from collections.abc import Callable, Hashable
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pydantic import ValidationError

from service.bundle.combination import (
    COMBINATION_FILE,
    FoundCombination,
    parse_combination,
)
from service.bundle.manifest import NAME_PATTERN, Manifest
from service.bundle.repository import (
    MANIFEST_FILE,
    VERSION_PATTERN,
    Bundle,
    list_files,
)
from service.bundle_cache import BundleCache
from service.errors import BundleError, RepositoryError, tell_invalid

# What tells that a file was replaced; which of them there are depends on the kind of server.
_FACTS: Final = ("size", "ETag", "LastModified", "etag", "mtime", "generation")

logger = logging.getLogger(__name__)


class RemoteSource:
    """The bundles below a URL, each at URL/NAME/VERSION."""

    def __init__(self, url: str, cache: BundleCache) -> None:
        """Opens the file system of the URL; nothing is read yet.

        Args:
            url: Of the repository.
            cache: What bundles are kept in.

        Raises:
            RepositoryError: The packages for this kind of URL are not installed.
        """
        self._url = url.rstrip("/")
        self._cache = cache
        # What makes a version one, of those that were seen: a manifest or a combination.
        self._known: dict[tuple[str, int], str] = {}
        try:
            import fsspec

            # What was listed a minute ago is not what is there now.
            self._files, self._root = fsspec.url_to_fs(self._url, use_listings_cache=False)
        except ImportError as error:
            raise RepositoryError(f"{url} needs more packages: fivecrop[remote]") from error
        except ValueError as error:
            raise RepositoryError(f"{url} is not an address that fsspec knows") from error

    def list_versions(self) -> dict[str, list[int]]:
        """Returns the versions of every model that have a manifest, oldest first.

        Raises:
            RepositoryError: The repository cannot be reached.
        """
        return self._list_versions(MANIFEST_FILE)

    def list_combinations(self) -> dict[str, list[int]]:
        """Returns the versions of every combination, oldest first.

        Raises:
            RepositoryError: The repository cannot be reached.
        """
        return self._list_versions(COMBINATION_FILE)

    def read_combination(self, name: str, version: int) -> FoundCombination:
        """Returns a combination.

        Raises:
            BundleError: It does not parse.
            RepositoryError: It cannot be read.
        """
        content: bytes = self._ask(
            self._files.cat_file, self._place(name, str(version), COMBINATION_FILE)
        )
        return parse_combination(content, PurePosixPath(name, str(version)))

    def read_digest(self, name: str, version: int) -> str:
        """Returns the sha256 of the manifest.

        Raises:
            RepositoryError: It cannot be read.
        """
        return hashlib.sha256(self._read_manifest(name, version)).hexdigest()

    def fetch(self, name: str, version: int) -> Bundle:
        """Returns the bundle, after copying its files here unless they are here already.

        Raises:
            BundleError: It is not a bundle, or not the files that its manifest lists.
            RepositoryError: It cannot be read, or the cache cannot be written.
        """
        content = self._read_manifest(name, version)
        manifest = _parse(content, f"{name}@{version}")
        if (manifest.name, manifest.version) != (name, version):
            raise BundleError(f"{name}/{version} holds {manifest.name}@{manifest.version}")

        def copy(folder: Path) -> None:
            for file in list_files(manifest):
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                place = self._place(name, str(version), file)
                self._ask(self._files.get_file, place, str(target))
            (folder / MANIFEST_FILE).write_bytes(content)
            logger.info("fetched %s@%d", name, version)

        try:
            return self._cache.keep(manifest, hashlib.sha256(content).hexdigest(), copy)
        except OSError as error:
            place = self._cache.folder
            raise RepositoryError(f"{place} cannot keep a model: {error.strerror}") from error

    def fingerprint(self, name: str, version: int) -> Hashable:
        """Returns sizes, times and tags of the bundle's files; None when they are not to be had."""
        place = self._place(name, str(version))
        try:
            found: dict[str, dict[str, Any]] = self._ask(self._files.find, place, detail=True)
        except RepositoryError:
            return None
        facts = [
            (path, *(str(about.get(fact)) for fact in _FACTS)) for path, about in found.items()
        ]
        return tuple(sorted(facts)) or None

    def hide_place(self, text: str) -> str:
        """Returns the text without the address of the repository and the path of the cache."""
        for place in (self._url, self._root, str(self._cache.folder)):
            text = text.replace(f"{place}/", "").replace(place, "the repository")
        return text

    def _read_manifest(self, name: str, version: int) -> bytes:
        place = self._place(name, str(version), MANIFEST_FILE)
        content: bytes = self._ask(self._files.cat_file, place)
        return content

    def _list_versions(self, file: str) -> dict[str, list[int]]:
        """Returns the versions that have a file, oldest first."""
        found = {
            name: sorted(
                int(text)
                for text in self._list(name)
                if VERSION_PATTERN.fullmatch(text) and self._is_there(name, int(text), file)
            )
            for name in sorted(self._list())
            if NAME_PATTERN.fullmatch(name)
        }
        others = {known: kind for known, kind in self._known.items() if kind != file}
        self._known = others | {(name, at): file for name, of in found.items() for at in of}
        return {name: versions for name, versions in found.items() if versions}

    def _is_there(self, name: str, version: int, file: str) -> bool:
        if (known := self._known.get((name, version))) is not None:
            return known == file
        return bool(self._ask(self._files.exists, self._place(name, str(version), file)))

    def _list(self, *parts: str) -> list[str]:
        """Returns the names in a folder."""
        try:
            entries: list[str] = self._ask(self._files.ls, self._place(*parts) + "/", detail=False)
        except RepositoryError as error:
            if parts and isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return []  # a file beside the models
            raise
        return [posixpath.basename(entry.rstrip("/")) for entry in entries]

    def _place(self, *parts: str) -> str:
        return "/".join((self._root.rstrip("/"), *parts))

    def _ask(self, read: Callable[..., Any], *arguments: object, **options: object) -> Any:
        """Returns what the file system does; its libraries' errors have no base class in common."""
        try:
            return read(*arguments, **options)
        except Exception as error:
            told = " ".join(str(error).split())[:200]
            raise RepositoryError(f"{self._url}: {type(error).__name__}: {told}") from error


def _parse(content: bytes, reference: str) -> Manifest:
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise BundleError(tell_invalid(f"{reference}: {MANIFEST_FILE}", error)) from error
