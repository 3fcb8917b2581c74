"""Files of this machine, and of whatever fsspec opens by URL."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, Final, TypeVar

from service.errors import ErrorCode, FivecropError, RequestError
from service.score.entry import Broken, Entry, File, Inline, Span
from service.score.errors import ReadCode, ScoreError

# A remote read is tried this often; the pauses between grow from the first, and are spread.
_ATTEMPTS: Final = 4
_FIRST_PAUSE_S: Final = 0.25
_CERTAIN: Final = (FileNotFoundError, PermissionError, IsADirectoryError, ScoreError)
# What says that a store cannot do it; what is derived from them may be an answer cut short (JSON).
_CANNOT: Final = (ValueError, TypeError)
# What a web server says for certain; asked again it would say the same.
_REFUSALS: Final[dict[object, type[OSError]]] = {
    HTTPStatus.UNAUTHORIZED: PermissionError,
    HTTPStatus.FORBIDDEN: PermissionError,  # an address that was signed for a time, too
    HTTPStatus.NOT_FOUND: FileNotFoundError,
    HTTPStatus.GONE: FileNotFoundError,
}

_T = TypeVar("_T")


class Unreachable(FivecropError):  # noqa: N818 - an answer, not an error, is what is missing
    """A store that did not answer however often it was asked."""


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
        Unreachable: A store does not answer, now or at a later read.
        ScoreError: As `open_file_system`; or a store cannot do what is asked of it.
    """
    if not is_url(address):
        return Path(address).open("rb")
    return io.BufferedReader(_RemoteFile(address, block_bytes))


def tell(error: BaseException) -> str:
    """Returns what a library's error says, on one line."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    return text or type(error).__name__


class _RemoteFile(io.RawIOBase):
    """A file behind a URL; where a read fails it is opened again and read on from there.

    What a store says for certain, that there is no such file, is an OSError. One that does not
    answer ends the job: if it went on without the rest of a shard, all images behind would have
    other places in the next run.
    """

    def __init__(self, url: str, block_bytes: int) -> None:
        self._url = url
        self._block_bytes = block_bytes
        self._file: IO[bytes] | None = None
        self._at = 0
        self._try(lambda file: file.seek(0))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._try(lambda file: file.read(len(buffer)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            self._at = self._try(lambda file: file.seek(offset, whence))
            return self._at
        place = offset + (self._at if whence == io.SEEK_CUR else 0)
        if place != self._at:  # a stream that cannot seek can stay where it is
            self._try(lambda file: file.seek(place))
            self._at = place
        return place

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()

    def _try(self, action: Callable[[IO[bytes]], _T]) -> _T:
        def attempt() -> _T:
            file, self._file = self._file, None
            if file is None:
                files, path = open_file_system(self._url)
                file = files.open(path, "rb", block_size=self._block_bytes, cache_type="readahead")
                file.seek(self._at)
            result = action(file)
            self._file = file  # one that failed is not used again
            return result

        try:
            return _try_again(attempt, _FIRST_PAUSE_S)
        except Unreachable as error:
            raise Unreachable(f"{self._url}: {error}") from error
        except (ValueError, TypeError) as error:
            raise ScoreError(f"{self._url}: {tell(error)}") from error


def _try_again(attempt: Callable[[], _T], first_pause_s: float) -> _T:
    """Returns what an attempt at a store does, which is made again with growing pauses.

    Raises:
        OSError, ScoreError, ValueError, TypeError: What another attempt would not change.
        Unreachable: It fails for some other reason again and again.
    """
    last: Exception | None = None
    for number in range(_ATTEMPTS):
        if number:
            time.sleep(first_pause_s * 2 ** (number - 1) * random.uniform(1.0, 1.5))
        try:
            return attempt()
        except Exception as error:  # those of these libraries share no base class
            answer = _find_answer(error)
            if refusal := _REFUSALS.get(getattr(answer, "status", None)):
                raise refusal(tell(answer)) from error
            if isinstance(answer, _CERTAIN):
                raise
            if type(error) in _CANNOT:
                if last is None:
                    raise
                break  # a stream that broke cannot be read on; the next run reads it again
            last = answer
    assert last is not None
    raise Unreachable(tell(last)) from last


def _find_answer(error: Exception) -> Exception:
    """Returns the HTTP answer behind an error; fsspec makes a FileNotFoundError of any."""
    cause = error.__cause__
    return cause if isinstance(cause, Exception) and hasattr(cause, "status") else error


@dataclass(slots=True)
class Reader:
    """Reads the bytes of entries, no more than `max_bytes` of each."""

    max_bytes: int
    first_pause_s: float = _FIRST_PAUSE_S

    def read(self, entry: Entry) -> bytes:
        """Returns the encoded image.

        Remote reads are tried again, with growing pauses, unless the store says no for certain.

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
        def attempt() -> bytes:
            files, path = open_file_system(url)
            data: bytes = files.cat_file(path, end=self.max_bytes + 1)
            return data

        try:
            return _try_again(attempt, self.first_pause_s)
        except FileNotFoundError as error:
            raise ReadError(ReadCode.NOT_FOUND) from error
        except (OSError, ScoreError, ValueError, TypeError, Unreachable) as error:
            raise ReadError(ReadCode.UNREADABLE) from error


def code_of(error: Exception) -> str:
    """Returns what an error row says of an image that could not be read or scored."""
    if isinstance(error, ReadError | RequestError):
        return str(error.code)
    return str(ErrorCode.INFERENCE_FAILED)
