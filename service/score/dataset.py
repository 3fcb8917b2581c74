"""The output of a job: part files that each hold a range of positions, and `_manifest.json`.

A part is written when all of its rows are there, so the names of the parts say what is done, and
a job that was killed goes on from them. What ranges the parts hold differs from run to run; which
rows there are does not.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from service.score.errors import JobFailed, ScoreError
from service.score.folder import Folder, open_folder, unwritable
from service.score.lock import LOCK_FILE
from service.score.options import Format
from service.score.part_format import encode_part, read_part
from service.score.storage import tell

MANIFEST_FILE: Final = "_manifest.json"
_PART = re.compile(r"part-([0-9]{12})-([0-9]{12})\.(parquet|jsonl|csv)")
_SPEC_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Part:
    """A part file: it has every row of this job with a position in [start, stop)."""

    name: str
    start: int
    stop: int
    format: Format


class Dataset:
    """The output of one job.

    Attributes:
        manifest: What `_manifest.json` says.
    """

    def __init__(self, folder: Folder, manifest: dict[str, Any]) -> None:
        """Takes what `create` or `resume` made."""
        self._folder = folder
        self.manifest = manifest

    @classmethod
    def create(cls, folder: Folder, identity: dict[str, Any]) -> Dataset:
        """Returns the output of a new job, whose manifest is written.

        Raises:
            ScoreError: The folder holds something already, or cannot be written.
        """
        manifest = {"spec_version": _SPEC_VERSION, "state": "running", **identity, "counts": {}}
        dataset = cls(folder, manifest)
        try:
            dataset.write_manifest()
        except OSError as error:
            raise unwritable(folder, error) from error
        return dataset

    @classmethod
    def resume(cls, folder: Folder, identity: dict[str, Any]) -> Dataset:
        """Returns the output of a job that is to go on.

        Raises:
            ScoreError: There is no job, or it was another one; says in what they differ.
        """
        manifest = read_manifest(folder)
        differences = list(_differences(manifest, identity, ""))
        if differences:
            raise ScoreError(f"{folder.address} is of another job: {'; '.join(differences)}")
        dataset = cls(folder, manifest)
        dataset.manifest["state"] = "running"
        try:
            _remove_leftovers(folder)
            dataset.write_manifest()
        except OSError as error:
            raise unwritable(folder, error) from error
        return dataset

    def parts(self) -> list[Part]:
        """Returns the parts that are there, by position."""
        return list_parts(self._folder)

    def count_done(self) -> Counter[str]:
        """Returns the statuses and error codes of all rows that are there.

        Raises:
            ScoreError: A part cannot be read.
        """
        return count_rows(self._folder)

    def commit(self, columns: dict[str, list[Any]], start: int, stop: int) -> None:
        """Writes a part; when this returns, its rows survive whatever happens.

        Raises:
            JobFailed: It cannot be written.
        """
        form: Format = self.manifest["options"]["format"]
        name = f"part-{start:012d}-{stop:012d}.{form}"
        try:
            self._folder.write(name, encode_part(columns, form))
        except OSError as error:
            raise JobFailed(
                f"cannot write {self._folder.address}/{name}: {tell(error)}; "
                "what was written stays, go on with --resume"
            ) from error

    def finish(self, state: str, counts: Counter[str], facts: dict[str, Any]) -> None:
        """Writes how the job ended: `done`, `stopped` or `failed`."""
        self.manifest |= {"state": state, "counts": dict(sorted(counts.items())), **facts}
        if state == "done":
            self.manifest["parts"] = [part.name for part in self.parts()]
        # The parts are what counts: a full disk must not turn a stop into another error.
        with contextlib.suppress(OSError):
            self.write_manifest()

    def write_manifest(self) -> None:
        """Writes `_manifest.json`; OSError when that cannot be."""
        text = json.dumps(self.manifest, indent=1, ensure_ascii=False)
        self._folder.write(MANIFEST_FILE, text.encode() + b"\n")


def open_output(address: str) -> Folder:
    """Returns the folder of a finished or unfinished output.

    Raises:
        ScoreError: There is none.
    """
    folder = open_folder(address)
    read_manifest(folder)
    return folder


def read_manifest(folder: Folder) -> dict[str, Any]:
    """Returns `_manifest.json`.

    Raises:
        ScoreError: There is none, or none of ours.
    """
    try:
        manifest = json.loads(folder.read(MANIFEST_FILE))
        if manifest["spec_version"] != _SPEC_VERSION:
            raise ScoreError(f"{folder.address}/{MANIFEST_FILE} is of another version of fivecrop")
    except FileNotFoundError as error:
        raise ScoreError(f"{folder.address} holds no scores: no {MANIFEST_FILE}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ScoreError(f"{folder.address}/{MANIFEST_FILE}: {tell(error)}") from error
    return dict(manifest)


def check_empty(folder: Folder) -> None:
    """Raises ScoreError when the folder holds anything but a lock."""
    try:
        found = [name for name in folder.names() if not name.startswith(("." + LOCK_FILE, "_lock"))]
    except OSError as error:
        raise unwritable(folder, error) from error
    if MANIFEST_FILE in found:
        raise ScoreError(f"{folder.address} holds scores already: --resume goes on with them")
    if found:
        raise ScoreError(f"{folder.address} is not empty")


def list_parts(folder: Folder) -> list[Part]:
    """Returns the parts in a folder, by position."""
    found = [
        Part(name, int(match[1]), int(match[2]), match[3])  # type: ignore[arg-type]
        for name in folder.names()
        if (match := _PART.fullmatch(name))
    ]
    return sorted(found, key=lambda part: part.start)


def iterate_rows(folder: Folder, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields the rows in a folder by their id, one part in memory at a time.

    Raises:
        ScoreError: A part cannot be read.
    """
    for part in list_parts(folder):
        try:
            rows = read_part(folder.read(part.name), part.format, list(columns))
        except (OSError, ValueError, KeyError) as error:
            raise ScoreError(f"{folder.address}/{part.name}: {tell(error)}") from error
        yield from rows


def count_rows(folder: Folder) -> Counter[str]:
    """Returns the statuses and error codes of all rows in a folder.

    Raises:
        ScoreError: A part cannot be read.
    """
    rows = iterate_rows(folder, ("status", "error_code"))
    return Counter(row["error_code"] or row["status"] for row in rows)


def _remove_leftovers(folder: Folder) -> None:
    """Removes what a killed job was writing."""
    for name in folder.names():
        if name.startswith((".part-", f".{MANIFEST_FILE}")):
            folder.remove(name)


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            yield from _differences(before, value, f"{prefix}{name} ")
        elif before != value:
            yield f"{prefix}{name} is {_short(value)}, was {_short(before)}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12]
