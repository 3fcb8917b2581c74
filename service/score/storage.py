"""Files of this machine, and of whatever fsspec opens by URL."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from service.errors import ErrorCode, RequestError
from service.score.entry import Broken, Entry, File, Inline, Span
from service.score.errors import ReadCode, ScoreError

# A remote read is tried this often; the pauses between grow from the first, and are spread.
_ATTEMPTS: Final = 4
_FIRST_PAUSE_S: Final = 0.25


class ReadError(Exception):
    """An image whose bytes cannot be had; `code` goes into its row."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def is_url(address: str) -> bool:
    """Whether the address is for fsspec; everything else is a path of this machine."""
    return "://" in address


def open_file_system(url: str) -> tuple[Any, str]:
    """Returns the file system of a URL and the path of the URL in it.

    Raises:
        ScoreError: The packages for this kind of URL are not installed, or there is no such kind.
    """
    try:
        import fsspec

        # What was listed a minute ago is not what is there now.
        files, root = fsspec.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise ScoreError(f"{url} needs more packages: pip install 'fivecrop[remote]'") from error
    except ValueError as error:
        raise ScoreError(f"{url} is not an address that fsspec knows") from error
    return files, root


def open_file(address: str, block_bytes: int = 2**20) -> IO[bytes]:
    """Returns a file that is open for reading; what fails is an OSError.

    Raises:
        ScoreError: As `open_file_system`.
    """
    if not is_url(address):
        return Path(address).open("rb")
    files, path = open_file_system(address)
    try:
        opened: IO[bytes] = files.open(path, "rb", block_size=block_bytes, cache_type="readahead")
    except OSError:
        raise
    except Exception as error:
        # Errors of these libraries share no base class.
        raise OSError(f"{type(error).__name__}: {tell(error)}") from error
    return opened


def tell(error: BaseException) -> str:
    """Returns what a library's error says, on one line."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    return text or type(error).__name__


@dataclass(slots=True)
class Reader:
    """Reads the bytes of entries, no more than `max_bytes` of each."""

    max_bytes: int
    first_pause_s: float = _FIRST_PAUSE_S

    def read(self, entry: Entry) -> bytes:
        """Returns the encoded image.

        Remote reads are tried again, with growing pauses, unless the file is not there.

        Raises:
            ReadError: It cannot be read; or `body_too_large`, as the service would say.
        """
        match entry.place:
            case Inline(data):
                return self._within(data)
            case Broken():
                raise ReadError(ReadCode.UNREADABLE)
            case Span(address, offset, size):
                if size > self.max_bytes:
                    raise ReadError(ErrorCode.BODY_TOO_LARGE)
                return self._read_local(address, offset, size)
            case File(address) if is_url(address):
                return self._within(self._read_remote(address))
            case File(address):
                return self._within(self._read_local(address, 0, self.max_bytes + 1))

    def _within(self, data: bytes) -> bytes:
        if len(data) > self.max_bytes:
            raise ReadError(ErrorCode.BODY_TOO_LARGE)
        return data

    def _read_local(self, address: str, offset: int, size: int) -> bytes:
        try:
            with Path(address).open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except FileNotFoundError as error:
            raise ReadError(ReadCode.NOT_FOUND) from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise ReadError(ReadCode.UNREADABLE) from error

    def _read_remote(self, url: str) -> bytes:
        for attempt in range(_ATTEMPTS):
            if attempt:
                pause_s = self.first_pause_s * 2 ** (attempt - 1)
                time.sleep(pause_s * random.uniform(1.0, 1.5))
            try:
                files, path = open_file_system(url)
                data: bytes = files.cat_file(path, end=self.max_bytes + 1)
            except FileNotFoundError as error:
                raise ReadError(ReadCode.NOT_FOUND) from error
            except Exception:  # noqa: BLE001 - errors of these libraries share no base class
                continue
            return data
        raise ReadError(ReadCode.UNREADABLE)


def code_of(error: Exception) -> str:
    """Returns what an error row says of an image that could not be read or scored."""
    if isinstance(error, ReadError | RequestError):
        return str(error.code)
    return str(ErrorCode.INFERENCE_FAILED)
