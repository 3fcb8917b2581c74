"""API keys: made once, shown once, kept as hashes in a file.

A key is `fc_ID_SECRET`. The id is public: it names the key in lists, logs and limits. The secret is
256 random bits, so its SHA-256 cannot be searched for and needs no slow hash, which would only give
attackers a way to burn our time.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from service.errors import SettingsError
from service.watched_files import WatchedFiles

_PREFIX: Final = "fc"
_SECRET_BYTES: Final = 32
_NO_DIGEST: Final = "-" * 64

logger = logging.getLogger(__name__)


class KeyScope(StrEnum):
    """What a key may be used for; each is given by itself, none includes another."""

    INFER = "infer"
    ADMIN = "admin"
    METRICS = "metrics"


class ApiKey(BaseModel):
    """What is kept of a key: enough to know it again, nothing to use it with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern="^[a-z0-9]{1,32}$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    scopes: tuple[KeyScope, ...] = Field(min_length=1)
    created: datetime.date
    expires: datetime.date | None = None
    note: str = ""

    @property
    def has_expired(self) -> bool:
        """Whether its last day, by UTC, is over."""
        return self.expires is not None and _today() > self.expires


class KeyRing(BaseModel):
    """The content of a key file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[ApiKey, ...] = ()

    @field_validator("keys")
    @classmethod
    def _check_ids(cls, keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        if len({key.id for key in keys}) != len(keys):
            raise ValueError("two keys have the same id")
        return keys


def make_key(
    scopes: Iterable[KeyScope], note: str = "", expires: datetime.date | None = None
) -> tuple[str, ApiKey]:
    """Returns a new key in full, which nothing else will ever tell again, and what to keep."""
    key_id = secrets.token_hex(4)
    text = f"{_PREFIX}_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    kept = ApiKey(
        id=key_id,
        sha256=_digest(text),
        scopes=tuple(sorted(set(scopes))),
        created=_today(),
        expires=expires,
        note=note,
    )
    return text, kept


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(path: Path) -> KeyRing:
    """Returns the keys of a file.

    Raises:
        SettingsError: It cannot be read, or is not a key file.
    """
    try:
        return KeyRing.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"cannot read the key file {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"{path} is not a key file: {place} {first['msg']}") from error


def write_keys(path: Path, ring: KeyRing) -> None:
    """Replaces the file at once; it keeps its mode, and a new one is only for its owner."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(ring.model_dump_json(indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, name)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keeps other holders of the folder out, so that two changes never lose one of them."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class KeyFile:
    """The keys of a file, as they are now: a key added or revoked counts within a second."""

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Raises:
            SettingsError: It cannot be read, or is not a key file.
        """
        self._path = path
        self._watched = WatchedFiles([path])
        self._keys = _by_id(read_keys(path))

    def find(self, text: str) -> ApiKey | None:
        """Returns the key that this is in full, else None; the time taken tells nothing."""
        if self._watched.have_changed():
            self._read_again()
        key = self._keys.get(text.split("_", 2)[1] if "_" in text else "")
        # An unknown id takes as long as a wrong secret.
        is_right = hmac.compare_digest(_digest(text), key.sha256 if key else _NO_DIGEST)
        return key if is_right else None

    def _read_again(self) -> None:
        try:
            self._keys = _by_id(read_keys(self._path))
        except SettingsError as error:
            logger.error("%s; the keys read before stay in force", error)
        else:
            logger.info("read the key file again: %d keys", len(self._keys))


def _by_id(ring: KeyRing) -> dict[str, ApiKey]:
    return {key.id: key for key in ring.keys}
