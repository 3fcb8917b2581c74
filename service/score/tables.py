"""Images that a table names or holds: Parquet, CSV, or a list with an address a line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any, Final

from service.score.entry import Broken, File, Inline, Place
from service.score.errors import ScoreError
from service.score.needs import Needs
from service.score.storage import open_file, tell

LISTS: Final = (".txt", ".list")
CSVS: Final = (".csv", ".tsv")
PARQUET: Final = ".parquet"
# Looked for in this order when no column was named.
_COLUMNS: Final = ("image", "bytes", "image_bytes", "path", "file", "filename", "url", "image_path")
_BATCH_ROWS: Final = 64


def list_lines(address: str) -> Iterator[tuple[str, Place]]:
    """Yields what a text file names, a path or URL a line; empty lines are passed over.

    Relative paths are taken from the folder that the command runs in, as `find` writes them.

    Raises:
        ScoreError: The file cannot be read, or is no UTF-8 text.
    """
    try:
        with open_file(address) as file:
            for raw in file:
                line = raw.decode().rstrip("\r\n")
                if line:
                    yield line, File(line)
    except UnicodeDecodeError as error:
        raise ScoreError(f"{address} is not a list: it is no UTF-8 text") from error
    except OSError as error:
        raise ScoreError(f"{address}: {tell(error)}") from error


def list_csv(address: str, column: str | None) -> Iterator[tuple[str, Place]]:
    """Yields what the rows of a CSV (or, by its name, TSV) file with a header name.

    Raises:
        ScoreError: It cannot be read, or has no such column.
    """
    try:
        with open_file(address) as file:
            lines = (line.decode("utf-8-sig" if number == 0 else "utf-8")
                     for number, line in enumerate(file))  # fmt: skip
            delimiter = "\t" if address.endswith(".tsv") else ","
            rows = csv.reader(lines, delimiter=delimiter)
            header = next(rows, [])
            place = header.index(_choose(address, column, header))
            for row in rows:
                if not row:
                    continue
                name = row[place] if place < len(row) else ""
                yield name, File(name)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ScoreError(f"{address} is no CSV file in UTF-8: {tell(error)}") from error
    except OSError as error:
        raise ScoreError(f"{address}: {tell(error)}") from error


def list_parquet(
    address: str, column: str | None, start: int, needs: Needs
) -> Iterator[tuple[str, Place]]:
    """Yields what the rows of a Parquet file name, or the images that they hold.

    A column of bytes holds images, one of text names them, and a struct with `bytes` and `path`
    (Hugging Face's Image) does either. Row groups of which nothing is needed are not read.

    Raises:
        ScoreError: It cannot be read, has no such column, or that holds something else.
    """
    parquet, arrow = import_pyarrow()
    try:
        with open_file(address) as file:
            table = parquet.ParquetFile(file)
            name = _choose(address, column, table.schema_arrow.names)
            kind = table.schema_arrow.field(name).type
            inner = None
            if arrow.types.is_struct(kind):
                inner = {field.name for field in kind}
            elif not (_is_text(arrow, kind) or _is_binary(arrow, kind)):
                raise ScoreError(f"{address}: column {name!r} is {kind}, not bytes or text")
            if inner is not None and not inner & {"bytes", "path"}:
                raise ScoreError(f"{address}: column {name!r} has neither bytes nor path")
            position, row = start, 0
            for group in range(table.num_row_groups):
                count = table.metadata.row_group(group).num_rows
                if needs.needs_any(position, position + count):
                    # Arrow's threads would need Python for every read of this file.
                    batches = table.iter_batches(_BATCH_ROWS, [group], [name], use_threads=False)
                    for batch in batches:
                        for cell in batch.column(0).to_pylist():
                            yield _place(address, row, cell)
                            row += 1
                else:
                    for skipped in range(row, row + count):
                        yield f"{address}#{skipped}", Inline(b"")
                    row += count
                position += count
    except (OSError, arrow.ArrowException) as error:
        raise ScoreError(f"{address} cannot be read as Parquet: {tell(error)}") from error


def import_pyarrow() -> tuple[Any, Any]:
    """Returns the modules `pyarrow.parquet` and `pyarrow`.

    Raises:
        ScoreError: They are not installed; says what to install.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ScoreError(
            "Parquet needs pyarrow: pip install 'fivecrop[score]', or --format jsonl"
        ) from error
    return pyarrow.parquet, pyarrow


def _place(address: str, row: int, cell: object) -> tuple[str, Place]:
    where = f"{address}#{row}"
    if isinstance(cell, dict):
        data, path = cell.get("bytes"), cell.get("path")
        if data is None and path is not None:
            return str(path), File(str(path))
        cell, where = data, f"{where}/{path}" if path else where
    match cell:
        case bytes():
            return where, Inline(cell)
        case str():
            return cell, File(cell)
        case _:
            return where, Broken("an empty cell")


def _is_text(arrow: Any, kind: Any) -> bool:
    return bool(arrow.types.is_string(kind) or arrow.types.is_large_string(kind))


def _is_binary(arrow: Any, kind: Any) -> bool:
    return bool(arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind))


def _choose(address: str, column: str | None, header: list[str]) -> str:
    known = ", ".join(map(repr, header)) or "none"
    if column is not None:
        if column not in header:
            raise ScoreError(f"{address} has no column {column!r}; it has {known}")
        return column
    found = next((name for name in _COLUMNS if name in header), None)
    if found is None:
        raise ScoreError(f"{address}: which column holds the images? --column is one of {known}")
    return found
