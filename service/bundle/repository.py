"""The folder of bundles: find them, verify them, publish a new one atomically."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from service.bundle.manifest import (
    NAME_PATTERN,
    FileRecord,
    Golden,
    Manifest,
    Variant,
)
from service.errors import BundleError, tell_invalid

MANIFEST_FILE = "bundle.json"
GOLDEN_FILE = "golden/golden.json"
CARD_FILE = "MODEL_CARD.md"
# No leading zeros: 01 would be a second folder of version 1.
VERSION_PATTERN = re.compile(r"[1-9][0-9]{0,17}")
# Work in progress starts with a dot, which no model name does, so it is never picked up.
_STAGING_PREFIX = ".staging-"

_M = TypeVar("_M", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle whose manifest was read.

    Attributes:
        folder: That it is in.
        manifest: What its `bundle.json` says.
        digest: The sha256 of that file.
        lease: What keeps the folder from being removed for as long as it lives, if anything could.
    """

    folder: Path
    manifest: Manifest
    digest: str
    lease: object = field(default=None, compare=False, repr=False)

    @property
    def reference(self) -> str:
        """NAME@VERSION, as users write it."""
        return f"{self.manifest.name}@{self.manifest.version}"

    def variant(self, precision: str) -> Variant | None:
        """Returns the variant of that precision, if the bundle has it."""
        return next((v for v in self.manifest.variants if v.precision == precision), None)


def list_versions(repository: Path, file: str = MANIFEST_FILE) -> dict[str, list[int]]:
    """Returns the versions of every model in a repository, oldest first; nothing is opened.

    Args:
        repository: The folder.
        file: What makes a folder a version.

    Raises:
        BundleError: The repository is not a readable folder.
    """
    try:
        names = [p for p in repository.iterdir() if NAME_PATTERN.fullmatch(p.name) and p.is_dir()]
        found = {
            folder.name: sorted(
                int(p.name)
                for p in folder.iterdir()
                if VERSION_PATTERN.fullmatch(p.name) and (p / file).is_file()
            )
            for folder in sorted(names)
        }
    except OSError as error:
        raise BundleError(f"model repository {repository}: {error.strerror}") from error
    return {name: versions for name, versions in found.items() if versions}


def resolve(repository: Path, reference: str) -> Path:
    """Returns the folder of NAME (its newest version) or NAME@VERSION.

    Raises:
        BundleError: The repository has no such bundle.
    """
    name, _, version = reference.partition("@")
    versions = list_versions(repository).get(name, [])
    if not versions:
        raise BundleError(f"no bundle {name!r} in {repository}")
    if not version:
        return repository / name / str(versions[-1])
    if version not in map(str, versions):
        known = ", ".join(map(str, versions))
        raise BundleError(f"bundle {name!r} has no version {version!r}; it has {known}")
    return repository / name / version


def find_bundle(repository: Path, reference: str) -> Bundle:
    """Returns the bundle in the folder `reference`, or NAME[@VERSION] of the repository.

    Raises:
        BundleError: There is none, or its manifest is not right.
    """
    folder = Path(reference)
    if not (folder / MANIFEST_FILE).is_file():
        folder = resolve(repository, reference)
    # Its parent names are part of what is checked, so "." has to become a real path.
    return read_bundle(folder.resolve())


def read_bundle(folder: Path) -> Bundle:
    """Returns the bundle in `folder` after parsing and cross-checking its manifest.

    Raises:
        BundleError: The manifest is absent, does not parse, or contradicts itself or the folder.
    """
    content, manifest = _read(folder / MANIFEST_FILE, Manifest)
    if (folder.parent.name, folder.name) != (manifest.name, str(manifest.version)):
        raise BundleError(
            f"{folder} holds {manifest.name}@{manifest.version}; folders are NAME/VERSION"
        )
    return Bundle(folder=folder, manifest=manifest, digest=hashlib.sha256(content).hexdigest())


def read_golden(bundle: Bundle) -> Golden:
    """Returns the golden samples of a bundle.

    Raises:
        BundleError: `golden.json` does not parse, or contradicts the manifest.
    """
    _, golden = _read(bundle.folder / GOLDEN_FILE, Golden)
    classes = len(bundle.manifest.labels)
    for sample in golden.samples:
        if sample.file not in bundle.manifest.files:
            raise BundleError(f"{bundle.reference}: {sample.file} is not in the manifest")
        if len(sample.probabilities) != classes or max(sample.top) >= classes:
            raise BundleError(f"{bundle.reference}: {sample.file} is not about {classes} classes")
    return golden


def read_card(bundle: Bundle) -> str | None:
    """Returns the model card of a bundle whose files were verified, as Markdown; None without."""
    if CARD_FILE not in bundle.manifest.files:
        return None
    return (bundle.folder / CARD_FILE).read_text(encoding="utf-8", errors="replace")


def list_files(manifest: Manifest) -> dict[str, FileRecord | Variant]:
    """Returns the files of a bundle besides the manifest, by their names."""
    return {**manifest.files, **{variant.file: variant for variant in manifest.variants}}


def verify_files(bundle: Bundle) -> None:
    """Proves that every file of the bundle is the one that was published.

    One flipped bit in the weights loads in ONNX Runtime and changes answers; this is why it never
    serves.

    A file that the manifest does not know is refused too: a graph could read its weights from it.

    Raises:
        BundleError: A file is missing, unknown, lies outside the folder, or has another size or
            sha256.
    """
    records = list_files(bundle.manifest)
    for path in sorted(bundle.folder.rglob("*")):
        name = path.relative_to(bundle.folder).as_posix()
        is_folder = path.is_dir() and not path.is_symlink()
        if not is_folder and name not in records and name != MANIFEST_FILE:
            raise BundleError(f"{bundle.reference}: {name!r} is not in the manifest")
    for name, record in sorted(records.items()):
        found = _record_inner_file(bundle, name)
        if (found.bytes, found.sha256) != (record.bytes, record.sha256):
            raise BundleError(f"{bundle.reference}: {name} is not the file that was published")


def _record_inner_file(bundle: Bundle, name: str) -> FileRecord:
    path = bundle.folder / name
    if not Path(os.path.realpath(path)).is_relative_to(bundle.folder.resolve()):
        raise BundleError(f"{bundle.reference}: {name} lies outside the bundle")
    if not path.is_file():
        raise BundleError(f"{bundle.reference}: there is no file {name}")
    try:
        return record_file(path)
    except OSError as error:
        raise BundleError(f"{bundle.reference}: {name}: {error.strerror}") from error


def record_file(path: Path) -> FileRecord:
    """Returns the size and sha256 of a file.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileRecord(sha256=digest.hexdigest(), bytes=file.tell())


@contextlib.contextmanager
def publishing(
    repository: Path, name: str, check: Callable[[Path], object] | None = None
) -> Iterator[tuple[Path, int]]:
    """Yields an empty staging folder and the next version; publishes the folder when all went well.

    The body writes the whole bundle, `bundle.json` included. The folder is checked, synced to disk
    and renamed; when anything raises, nothing appears in the repository.

    Args:
        repository: The folder of bundles.
        name: Of the model.
        check: Raises when the folder is not what it should be; by default a bundle.

    Raises:
        BundleError: The name is not allowed, or what was written is not a bundle.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise BundleError(f"{name!r} is not a model name: {NAME_PATTERN.pattern}")
    repository.mkdir(parents=True, exist_ok=True)
    # A folder without a manifest is invisible, but its number is taken.
    numbers = [p.name for p in (repository / name).glob("*") if VERSION_PATTERN.fullmatch(p.name)]
    version = max(map(int, numbers), default=0) + 1
    with tempfile.TemporaryDirectory(prefix=_STAGING_PREFIX, dir=repository) as parent:
        staging = Path(parent) / name / str(version)
        staging.mkdir(parents=True)
        yield staging, version
        (check or _check_bundle)(staging)
        _sync(staging)
        final = repository / name / str(version)
        final.parent.mkdir(exist_ok=True)
        try:
            staging.rename(final)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            raise BundleError(f"{name}@{version} was published by someone else") from error
        _sync_folder(final.parent)
        _sync_folder(repository)


def _check_bundle(folder: Path) -> None:
    bundle = read_bundle(folder)
    verify_files(bundle)
    read_golden(bundle)


def _read(path: Path, kind: type[_M]) -> tuple[bytes, _M]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error
    try:
        return content, kind.model_validate_json(content)
    except ValidationError as error:
        raise BundleError(tell_invalid(path, error)) from error


def _sync(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            _sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
