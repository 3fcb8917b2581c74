"""Rows as the bytes of a part file, and back: Parquet, JSON lines or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from service.score.options import Format
from service.score.tables import import_pyarrow

_LISTS = frozenset({"top_labels", "top_indices", "top_scores", "embedding", "probabilities"})


def encode_part(columns: dict[str, list[Any]], form: Format) -> bytes:
    """Returns a part file; equal columns give equal bytes.

    Scores are float32 in Parquet, and the shortest digits of that number as a double elsewhere, as
    in the service's JSON. In CSV lists are JSON and nothing is the empty string.
    """
    if form == "parquet":
        return _encode_parquet(columns)
    text = io.StringIO(newline="")
    rows = zip(*columns.values(), strict=True)
    if form == "jsonl":
        encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        for row in rows:
            text.write(encoder.encode(dict(zip(columns, row, strict=True))) + "\n")
    else:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        lists = [name in _LISTS for name in columns]
        for row in rows:
            writer.writerow(
                json.dumps(cell, ensure_ascii=False) if is_list and cell is not None else cell
                for is_list, cell in zip(lists, row, strict=True)
            )
    return text.getvalue().encode()


def read_part(data: bytes, form: Format, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Returns the rows of a part file, of Parquet only the named columns."""
    if form == "parquet":
        parquet, arrow = import_pyarrow()
        part = parquet.ParquetFile(arrow.BufferReader(data))
        # A thread of Arrow's that lets go of the bytes while Python ends aborts the program.
        rows: list[dict[str, Any]] = part.read(columns, use_threads=False).to_pylist()
        return rows
    if form == "jsonl":
        return [json.loads(line) for line in data.splitlines()]
    return list(_read_csv(data))


def _read_csv(data: bytes) -> Iterator[dict[str, Any]]:
    for row in csv.DictReader(io.StringIO(data.decode(), newline="")):
        read: dict[str, Any] = {}
        for name, cell in row.items():
            if cell == "":
                read[name] = None
            elif name in _LISTS:
                read[name] = json.loads(cell)
            elif name in ("id", "index", "width", "height", "version"):
                read[name] = int(cell)
            else:
                read[name] = float(cell) if name == "score" else cell
        yield read


def _encode_parquet(columns: dict[str, list[Any]]) -> bytes:
    parquet, arrow = import_pyarrow()
    text, number, real = arrow.string(), arrow.int32(), arrow.float32()
    repeated = arrow.dictionary(arrow.int32(), text)
    kinds = {
        **dict.fromkeys(("path", "sha256", "label"), text),
        **dict.fromkeys(("status", "error_code", "format", "model", "bundle_digest"), repeated),
        **dict.fromkeys(("index", "width", "height", "version"), number),
        **dict.fromkeys(("embedding", "probabilities", "top_scores"), arrow.list_(real)),
        "id": arrow.int64(),
        "score": real,
        "top_labels": arrow.list_(text),
        "top_indices": arrow.list_(number),
    }
    schema = arrow.schema([(name, kinds[name]) for name in columns])
    target = io.BytesIO()
    parquet.write_table(arrow.table(columns, schema=schema), target, compression="zstd")
    return target.getvalue()
