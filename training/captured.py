"""Images that a server kept for training: unpacked for a person to look at, then labelled.

A server does not know what its images show, so the labels of its part files are empty and training
refuses them. `label` writes them again with labels, as one more Parquet file to train on.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.errors import TrainingError

# What `service/capture_parts.py` writes.
_CLASSES = b"classes"
_COLUMNS = {"image", "label", "predicted", "score"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """What became of the captured images.

    Attributes:
        images: that have a label now.
        left_out: that have none.
        missing: labels of images that are not among the captured ones.
    """

    images: int
    left_out: int
    missing: int


def unpack(captured: Path, out: Path) -> int:
    """Write every image to OUT/CLASS/FILE by what the model said; return how many there are.

    Every class has its folder, with or without images, so that a person can move one there.

    Raises:
        TrainingError: `captured` holds no part files, or `out` cannot be written.
    """
    parts = _list_parts(captured)
    folders = [out / name for name in name_folders(_read_classes(parts))]
    count = 0
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for table in _read_groups(parts):
            for row in table.select(["image", "predicted"]).to_pylist():
                file = folders[row["predicted"]] / _file_name(row["image"])
                file.write_bytes(row["image"]["bytes"])
                count += 1
    except OSError as error:
        raise TrainingError(f"{out}: {error.strerror}") from error
    return count


def label_by_folder(captured: Path, folder: Path, out: Path) -> Labelled:
    """Write the images that are in a folder of `unpack`, with the class that they lie in now.

    Raises:
        TrainingError: a folder is of no class, or nothing has a label.
    """
    if not folder.is_dir():
        raise TrainingError(f"{folder}: no such folder")
    labels = {
        file.name: of_class.name
        for of_class in sorted(folder.iterdir())
        if of_class.is_dir()
        for file in of_class.iterdir()
    }
    return label(captured, labels, out)


def label_by_table(captured: Path, table: Path, out: Path) -> Labelled:
    """Write the images that a CSV names, with its labels; its columns are `file` and `label`.

    Raises:
        TrainingError: it cannot be read, names no class of the model, or labels nothing.
    """
    try:
        with table.open(encoding="utf-8", newline="") as text:
            labels = {Path(row["file"]).name: row["label"] for row in csv.DictReader(text)}
    except FileNotFoundError:
        raise TrainingError(f"{table}: no such file") from None
    except (KeyError, TypeError):
        raise TrainingError(f"{table}: needs the columns file and label") from None
    except (OSError, ValueError, csv.Error) as error:
        raise TrainingError(f"{table}: {error}") from error
    return label(captured, labels, out)


def label_as_predicted(captured: Path, min_score: float, out: Path) -> Labelled:
    """Write the images that the model was as sure of, with what it said of them.

    Raises:
        TrainingError: it was as sure of none.
    """

    def choose(rows: Any) -> list[int | None]:
        columns = rows["predicted"].to_pylist(), rows["score"].to_pylist()
        return [
            index if score >= min_score else None for index, score in zip(*columns, strict=True)
        ]

    return _write(_list_parts(captured), choose, out, labels=0)


def label(captured: Path, labels: Mapping[str, str], out: Path) -> Labelled:
    """Write the images whose file names have a label.

    Raises:
        TrainingError: a label is no class of the model, or no image has one.
    """
    parts = _list_parts(captured)
    index = {name: number for number, name in enumerate(name_folders(_read_classes(parts)))}
    for name, of_class in labels.items():
        if _plain(of_class) not in index:
            raise TrainingError(f"{name}: the model has no class {of_class!r}")
    by_file = {name: index[_plain(of_class)] for name, of_class in labels.items()}

    def choose(rows: Any) -> list[int | None]:
        return [by_file.get(_file_name(image)) for image in rows["image"].to_pylist()]

    return _write(parts, choose, out, labels=len(by_file))


def name_folders(classes: tuple[str, ...]) -> list[str]:
    """Return a folder name for each class: its name, with its index where two have the same."""
    plain = [_plain(name) for name in classes]
    return [
        f"{name} {index}".strip() if plain.count(name) > 1 or name in ("", ".", "..") else name
        for index, name in enumerate(plain)
    ]


def _plain(name: str) -> str:
    return name.replace("/", "_")


def _file_name(image: Mapping[str, Any]) -> str:
    return Path(image["path"]).name


def _list_parts(captured: Path) -> list[Path]:
    parts = sorted(captured.glob("*.parquet")) if captured.is_dir() else [captured]
    if not parts:
        raise TrainingError(f"{captured}: holds no .parquet; a folder NAME@VERSION is expected")
    return parts


def _read_classes(parts: list[Path]) -> tuple[str, ...]:
    found = {_open(part).schema_arrow.metadata[_CLASSES] for part in parts}
    if len(found) > 1:
        raise TrainingError(f"{parts[0].parent}: its parts are of models with different classes")
    return tuple(json.loads(found.pop()))


def _open(part: Path) -> Any:
    try:
        parquet = pq.ParquetFile(part)
        schema = parquet.schema_arrow
        if _CLASSES not in (schema.metadata or {}) or not set(schema.names) >= _COLUMNS:
            raise TrainingError(f"{part}: no images that a server captured")
    except FileNotFoundError:
        raise TrainingError(f"{part}: no such file") from None
    except (OSError, pa.ArrowException) as error:
        raise TrainingError(f"{part}: {error}") from error
    return parquet


def _read_groups(parts: list[Path]) -> Iterator[Any]:
    for part in parts:
        parquet = _open(part)
        for group in range(parquet.num_row_groups):
            yield parquet.read_row_group(group)


def _write(parts: list[Path], choose: Any, out: Path, *, labels: int) -> Labelled:
    """Write the rows that `choose` gives a label."""
    images = total = 0
    schema = _open(parts[0]).schema_arrow
    staging = out.with_name(f".{out.name}.writing")
    try:
        with pq.ParquetWriter(staging, schema, compression="none", use_dictionary=False) as writer:
            for table in _read_groups(parts):
                chosen = pa.array(choose(table), pa.int64())
                total += len(table)
                at = table.schema.get_field_index("label")
                kept = table.set_column(at, "label", chosen).filter(chosen.is_valid())
                images += len(kept)
                if len(kept):
                    writer.write_table(kept.cast(schema))
        if images:
            staging.replace(out)
    except OSError as error:
        raise TrainingError(f"{out}: {error.strerror or error}") from error
    finally:
        staging.unlink(missing_ok=True)
    if not images:
        raise TrainingError(f"none of the {total} captured images has a label")
    return Labelled(images=images, left_out=total - images, missing=max(0, labels - images))
