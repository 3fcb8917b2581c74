"""Data sets in the formats that others publish: shards, tars, IDX, CIFAR's binaries, manifests."""

from __future__ import annotations

import csv
import gzip
import inspect
import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.errors import TrainingError
from training.stored_images import FileSlice, ParquetCell, StoredImage

# CIFAR-10 has a label before the 3,072 bytes of an image, CIFAR-100 a coarse one before the fine.
_CIFAR_RECORDS = {3073: 0, 3074: 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Images as they were found.

    Attributes:
        images: encoded, or what reads them.
        labels: int64 [N].
        class_names: None if the format names none.
        groups: of images that belong together, one a image; empty if it knows none.
        blocks: which images are cheap to read together, int64 [N]; None if all are.
    """

    images: Sequence[bytes | StoredImage]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...] | None = None
    groups: Sequence[str] = ()
    blocks: NDArray[np.int64] | None = None


def read_shards(urls: Sequence[str]) -> Found:
    """Read the labels of Parquet files, the images later, a row group at a time.

    Args:
        urls: paths or URLs that fsspec opens; `*` stands for anything in a name.

    Raises:
        TrainingError: there is no such file, or it lacks the columns `image {bytes}` and `label`.
    """
    import fsspec
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells: list[bytes | StoredImage] = []
    labels: list[NDArray[np.int64]] = []
    blocks: list[NDArray[np.int64]] = []
    for url in urls:
        try:
            opened = fsspec.open_files(url, "rb")
        except (OSError, ValueError, ImportError) as error:
            raise TrainingError(f"{url}: {error}") from error
        if not opened:
            raise TrainingError(f"{url}: no such file")
        for one in opened:
            try:
                with one as file:
                    parquet = pq.ParquetFile(file)
                    for group in range(parquet.num_row_groups):
                        table = parquet.read_row_group(group, ["label"], use_threads=False)
                        check_labelled(one.full_name, table)
                        labels.append(table.column("label").to_numpy().astype(np.int64))
                        blocks.append(np.full(len(table), len(blocks)))
                        cells += [
                            ParquetCell(one.full_name, group, row) for row in range(len(table))
                        ]
                    if "image" not in parquet.schema_arrow.names:
                        raise KeyError("image")
            except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
                problem = f"needs columns image {{bytes}} and label: {error}"
                raise TrainingError(f"{one.full_name}: {problem}") from error
    return Found(images=cells, labels=np.concatenate(labels), blocks=np.concatenate(blocks))


def check_labelled(name: object, table: Any) -> None:
    """Raise TrainingError when an image of a Parquet table has no label, as what servers keep."""
    if count := table.column("label").null_count:
        raise TrainingError(
            f"{name}: {count} of {len(table)} images have no label; `fivecrop data label` gives "
            "those that a server captured one"
        )


def read_webdataset(path: Path, suffixes: frozenset[str]) -> Found:
    """Read a tar of `KEY.jpg` beside `KEY.cls`, which holds a number, or a folder of such tars.

    Raises:
        TrainingError: there are none, an image has no label, or a tar cannot be read.
    """
    tars = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not tars:
        raise TrainingError(f"{path}: holds no .tar")
    images: list[bytes | StoredImage] = []
    labels: list[int] = []
    for tar in tars:
        slices: dict[str, FileSlice] = {}
        classes: dict[str, int] = {}
        try:
            with tarfile.open(tar, "r:") as archive:
                for member in filter(tarfile.TarInfo.isfile, archive):
                    folder, _, name = member.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    key = f"{folder}/{stem}"
                    if f".{suffix.lower()}" in suffixes:
                        slices[key] = FileSlice(tar, member.offset_data, member.size)
                    elif suffix == "cls":
                        content = archive.extractfile(member)
                        assert content is not None
                        classes[key] = int(content.read())
        except FileNotFoundError:
            raise TrainingError(f"{tar}: no such file") from None
        except (OSError, tarfile.TarError, ValueError) as error:
            raise TrainingError(f"{tar}: no WebDataset tar: {error}") from error
        if missing := sorted(slices.keys() - classes):
            raise TrainingError(f"{tar}: {missing[0]} has no .cls ({len(missing)} such)")
        images += slices.values()
        labels += [classes[key] for key in slices]
    return Found(images=images, labels=np.array(labels, np.int64))


def read_idx(path: Path) -> Found:
    """Read MNIST's format: `path` holds the images, the file with `labels` in its name the labels.

    Raises:
        TrainingError: a file is missing, or is not of that format.
    """
    pixels = _read_idx_array(path)
    name = path.name.replace("images", "labels").replace("idx3", "idx1")
    labels = _read_idx_array(path.with_name(name))
    if pixels.ndim != 3 or labels.shape != pixels.shape[:1] or name == path.name:
        raise TrainingError(f"{path}: {pixels.shape} images, but {labels.shape} labels in {name}")
    return Found(images=[encode_png(one) for one in pixels], labels=labels.astype(np.int64))


def read_cifar(path: Path) -> Found:
    """Read CIFAR's binary version: a `.bin` file, or a folder with the training files.

    Raises:
        TrainingError: there are none, or their size is not that of whole records.
    """
    folder = path if path.is_dir() else path.parent
    files = [path]
    if path.is_dir():
        files = sorted([*path.glob("data_batch_*.bin"), *path.glob("train.bin")])
    if not files or not files[0].is_file():
        raise TrainingError(f"{path}: no .bin files of CIFAR")
    content = np.concatenate([np.fromfile(file, np.uint8) for file in files])
    sizes = [size for size in _CIFAR_RECORDS if len(content) and len(content) % size == 0]
    if not sizes:
        raise TrainingError(f"{path}: {len(content)} bytes are no whole number of CIFAR's records")
    records = content.reshape(-1, sizes[0])
    at = _CIFAR_RECORDS[sizes[0]]
    pixels = records[:, at + 1 :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    names = None
    for file in ("batches.meta.txt", "fine_label_names.txt"):
        if (folder / file).is_file():
            names = tuple((folder / file).read_text(encoding="utf-8").split())
    return Found(
        images=[encode_png(one) for one in pixels],
        labels=records[:, at].astype(np.int64),
        class_names=names,
    )


def read_csv(path: Path) -> Found:
    """Read a manifest: columns `file` (from the manifest's folder), `label`, and at will `group`.

    Raises:
        TrainingError: it cannot be read, lacks a column or a value, or names a file that is not
            there.
    """
    try:
        with path.open(encoding="utf-8", newline="") as text:
            rows = list(csv.DictReader(text))
    except FileNotFoundError:
        raise TrainingError(f"{path}: no such file") from None
    except (OSError, ValueError, csv.Error) as error:
        raise TrainingError(f"{path}: {error}") from error
    for number, row in enumerate(rows, start=2):
        if not row.get("file") or not row.get("label"):
            raise TrainingError(f"{path}: line {number} needs a file and a label")
        if not (path.parent / row["file"]).is_file():
            raise TrainingError(f"{path}: line {number}: no file {row['file']}")
    names = tuple(sorted({row["label"] for row in rows}))
    index = {name: number for number, name in enumerate(names)}
    has_groups = bool(rows) and rows[0].get("group") is not None
    return Found(
        images=[path.parent / row["file"] for row in rows],
        labels=np.array([index[row["label"]] for row in rows], np.int64),
        class_names=names,
        groups=[row["group"] for row in rows] if has_groups else (),
    )


def read_torchvision(name: str, root: Path, split: str, *, is_download_allowed: bool) -> Found:
    """Read one of `torchvision.datasets` by its name, from where torchvision keeps it.

    Raises:
        TrainingError: torchvision has no such classification data, or it is not on the disk.
    """
    from torchvision import datasets

    kind = getattr(datasets, name, None)
    parameters = inspect.signature(kind).parameters if inspect.isclass(kind) else {}
    if not {"root"} < set(parameters) or not {"train", "split"} & set(parameters):
        raise TrainingError(f"torchvision has no data set {name} with splits")
    options: dict[str, Any] = {"root": root}
    if "download" in parameters:
        options["download"] = is_download_allowed
    is_training = split == "train"
    ways: list[dict[str, Any]] = [{"train": is_training}]
    if "split" in parameters:
        ways = [{"split": one} for one in (("train",) if is_training else ("val", "valid", "test"))]
    problem: Exception = ValueError("no such split")
    assert kind is not None
    for way in ways:
        try:
            found = kind(**options, **way)
        except (RuntimeError, OSError, ValueError) as error:
            problem = error
            continue
        return _of_torchvision(found)
    raise TrainingError(f"torchvision's {name} in {root}: {str(problem).splitlines()[0]}")


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return uint8 [H, W] or [H, W, 3] as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def groups_by_pattern(images: Sequence[bytes | StoredImage], pattern: str) -> list[str]:
    """Return what the first group of `pattern`, or all of it, matches in each file's path.

    Raises:
        TrainingError: it is no pattern, the images are no files, or one of them does not match.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise TrainingError(f"data.group_pattern: {error}") from error
    return list(_matches(images, compiled))


def _matches(images: Sequence[bytes | StoredImage], pattern: re.Pattern[str]) -> Iterator[str]:
    for image in images:
        if not isinstance(image, Path):
            raise TrainingError("data.group_pattern needs images in files of their own")
        match = pattern.search(image.as_posix())
        if match is None:
            raise TrainingError(f"data.group_pattern does not match {image}")
        yield match[1] if pattern.groups else match[0]


@dataclass(frozen=True, slots=True)
class _Item:
    """An image that torchvision decodes; given on as a PNG, which loses nothing."""

    dataset: Any
    index: int

    def read_bytes(self) -> bytes:
        return encode_png(np.asarray(self.dataset[self.index][0]))


def _of_torchvision(found: Any) -> Found:
    names = getattr(found, "classes", None)
    labels = next(
        (getattr(found, key) for key in ("targets", "labels", "_labels") if hasattr(found, key)),
        None,
    )
    if labels is None:
        labels = [found[index][1] for index in range(len(found))]
    samples = getattr(found, "samples", None)
    images: list[bytes | StoredImage] = [_Item(found, index) for index in range(len(found))]
    if samples is not None and isinstance(samples[0][0], str):
        images = [Path(sample[0]) for sample in samples]
    return Found(
        images=images,
        labels=np.asarray(labels, np.int64),
        class_names=tuple(map(_plain_name, names)) if names is not None else None,
    )


def _plain_name(name: Any) -> str:
    # ImageNet's are tuples of synonyms.
    return name[0] if isinstance(name, tuple) else str(name)


def _read_idx_array(path: Path) -> NDArray[np.uint8]:
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        # Two zero bytes, the type (8 is uint8), the number of dimensions, then each as 32 bits.
        if content[:3] != b"\0\0\x08":
            raise ValueError("no IDX file of bytes")
        dimensions = np.frombuffer(content, ">i4", content[3], 4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(dimensions)
    except FileNotFoundError:
        raise TrainingError(f"{path}: no such file") from None
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise TrainingError(f"{path}: {error}") from error
