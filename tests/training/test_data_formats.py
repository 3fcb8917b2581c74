"""Every format that data come in, written here byte by byte and read back."""

import gzip
import io
import json
import struct
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from training.config import DataRecipe
from training.data import load_splits
from training.data_formats import (
    encode_png,
    read_cifar,
    read_csv,
    read_idx,
    read_shards,
    read_torchvision,
    read_webdataset,
)
from training.errors import TrainingError
from training.loading import shuffled_batches

SUFFIXES = frozenset({".png", ".jpg"})


def pixels(image):
    with Image.open(io.BytesIO(image if isinstance(image, bytes) else image.read_bytes())) as found:
        return np.asarray(found)


def picture(number, size=32):
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    path.write_bytes(
        gzip.compress(header + array.tobytes())
        if path.suffix == ".gz"
        else header + array.tobytes()
    )


def write_tar(path, entries):
    with tarfile.open(path, "w") as archive:
        for name, content in entries.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_shard(path, numbers, labels, row_group_size=2):
    rows = [{"bytes": encode_png(picture(one)), "path": None} for one in numbers]
    pq.write_table(pa.table({"image": rows, "label": labels}), path, row_group_size=row_group_size)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_mnist_idx(tmp_path, ending):
    images = np.stack([picture(number)[..., 0] for number in range(3)])
    path = tmp_path / f"train-images-idx3-ubyte{ending}"
    write_idx(path, images)
    write_idx(tmp_path / f"train-labels-idx1-ubyte{ending}", np.array([2, 0, 1], np.uint8))
    found = read_idx(path)
    assert found.labels.tolist() == [2, 0, 1]
    assert all((pixels(one) == own).all() for one, own in zip(found.images, images, strict=True))


@given(st.binary(max_size=40))
def test_no_bytes_break_the_idx_reader(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("idx") / "x-images-idx3-ubyte"
    path.write_bytes(b"\0\0\x08" + content)
    with pytest.raises(TrainingError):
        read_idx(path)


@pytest.mark.parametrize("coarse", [b"", b"\x07"], ids=["cifar10", "cifar100"])
def test_cifar_binaries(tmp_path, coarse):
    for batch in (1, 2):
        record = coarse + bytes([batch]) + picture(batch).transpose(2, 0, 1).tobytes()
        (tmp_path / f"data_batch_{batch}.bin").write_bytes(record)
    (tmp_path / "batches.meta.txt").write_text("plane\ncar\nbird\n")
    found = read_cifar(tmp_path)
    assert found.labels.tolist() == [1, 2]
    assert found.class_names == ("plane", "car", "bird")
    assert (pixels(found.images[1]) == picture(2)).all()
    one = read_cifar(tmp_path / "data_batch_2.bin")
    assert one.labels.tolist() == [2]
    (tmp_path / "data_batch_2.bin").write_bytes(b"\0" * 100)
    with pytest.raises(TrainingError, match="no whole number"):
        read_cifar(tmp_path / "data_batch_2.bin")


def test_webdataset_tars_are_read_where_they_lie(tmp_path):
    first = {"a/0.png": encode_png(picture(0)), "a/0.cls": b"1", "a/0.json": b"{}"}
    second = {"1.cls": b"0\n", "1.png": encode_png(picture(1))}
    write_tar(tmp_path / "x-0.tar", first)
    write_tar(tmp_path / "x-1.tar", second)
    found = read_webdataset(tmp_path, SUFFIXES)
    assert found.labels.tolist() == [1, 0]
    assert [one.read_bytes() for one in found.images] == [first["a/0.png"], second["1.png"]]
    write_tar(tmp_path / "x-1.tar", {"1.png": b""})
    with pytest.raises(TrainingError, match=r"1 has no \.cls"):
        read_webdataset(tmp_path, SUFFIXES)
    (tmp_path / "x-1.tar").write_bytes(b"no tar, but long enough" * 100)
    with pytest.raises(TrainingError, match="no WebDataset tar"):
        read_webdataset(tmp_path, SUFFIXES)


def test_a_csv_names_files_labels_and_groups(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encode_png(picture(number)))
    manifest = tmp_path / "all.csv"
    manifest.write_text("file,label,group\n0.png,cat,x\n1.png,ant,x\n2.png,cat,y\n")
    found = read_csv(manifest)
    assert found.class_names == ("ant", "cat")
    assert found.labels.tolist() == [1, 0, 1]
    assert list(found.groups) == ["x", "x", "y"]
    for wrong, complaint in (
        ("file,label\n9.png,cat\n", "line 2: no file 9.png"),
        ("file,label\n0.png,\n", "line 2 needs a file and a label"),
        ("picture,label\n0.png,cat\n", "line 2 needs a file and a label"),
    ):
        manifest.write_text(wrong)
        with pytest.raises(TrainingError, match=complaint):
            read_csv(manifest)


def test_a_torchvision_data_set_is_read_from_the_disk(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 4), ("t10k", 2)):
        write_idx(
            raw / f"{name}-images-idx3-ubyte",
            np.stack([picture(n, 28)[..., 0] for n in range(count)]),
        )
        write_idx(raw / f"{name}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8))
    train = read_torchvision("FashionMNIST", tmp_path, "train", is_download_allowed=False)
    assert train.labels.tolist() == [0, 1, 2, 3]
    assert train.class_names[:2] == ("T-shirt/top", "Trouser")
    assert (pixels(train.images[3]) == picture(3, 28)[..., 0]).all()
    test = read_torchvision("FashionMNIST", tmp_path, "validation", is_download_allowed=False)
    assert len(test.images) == 2
    with pytest.raises(TrainingError, match="torchvision's CIFAR10 in"):
        read_torchvision("CIFAR10", tmp_path, "train", is_download_allowed=False)
    with pytest.raises(TrainingError, match="no data set VisionDataset"):
        read_torchvision("VisionDataset", tmp_path, "train", is_download_allowed=False)


@pytest.mark.parametrize("scheme", ["path", "url", "memory"])
def test_parquet_shards_are_read_by_row_groups(tmp_path, scheme):
    write_shard(tmp_path / "d-0.parquet", range(5), [0, 1, 0, 1, 0])
    write_shard(tmp_path / "d-1.parquet", range(5, 8), [1, 1, 0])
    where = {"path": f"{tmp_path}/d-*.parquet", "url": f"file://{tmp_path}/d-*.parquet"}.get(scheme)
    if where is None:
        import fsspec

        where = "memory://shards/d-*.parquet"
        for name in ("d-0.parquet", "d-1.parquet"):
            with fsspec.open(f"memory://shards/{name}", "wb") as file:
                file.write((tmp_path / name).read_bytes())
    found = read_shards([where])
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 1, 1, 0]
    assert found.blocks.tolist() == [0, 0, 1, 1, 2, 3, 3, 4]
    assert all((pixels(one) == picture(number)).all() for number, one in enumerate(found.images))
    with pytest.raises(TrainingError, match=r"no such file|needs columns"):
        read_shards([f"{tmp_path}/none-*.parquet"])


def test_blocks_are_shuffled_and_images_among_a_few_of_them():
    import torch

    blocks = torch.arange(100) // 5
    order = shuffled_batches(100, 10, seed=0, epoch=0, blocks=blocks).flatten()
    assert sorted(order.tolist()) == list(range(100))
    for start in range(0, 100, 20):
        assert len(blocks[order[start : start + 20]].unique()) == 4
    assert not torch.equal(order, order.sort().values)
    again = shuffled_batches(100, 10, seed=0, epoch=1, blocks=blocks).flatten()
    assert not torch.equal(order, again)


def test_groups_stay_on_one_side_of_the_split(tmp_path):
    rows = ["file,label,group"]
    for number in range(60):
        (tmp_path / f"{number}.png").write_bytes(encode_png(picture(number, 4)))
        rows.append(f"{number}.png,{'ab'[number % 2]},{number // 4}")
    (tmp_path / "all.csv").write_text("\n".join(rows))
    splits = load_splits(
        DataRecipe(source="csv", train=tmp_path / "all.csv", validation_fraction=0.2)
    )
    assert not set(splits.train.groups) & set(splits.validation.groups)
    assert len(splits.validation) == 12
    assert np.bincount(splits.validation.labels).tolist() == [6, 6]


def test_a_pattern_finds_groups_in_the_names_of_files(tmp_path):
    for number in range(24):
        path = tmp_path / "ab"[number % 2] / f"film{number // 6}_{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_png(picture(number, 4)))
    recipe = DataRecipe(
        source="folder", train=tmp_path, validation_fraction=0.25, group_pattern=r"/(film\d+)_"
    )
    splits = load_splits(recipe)
    assert set(splits.validation.groups).isdisjoint(splits.train.groups)
    assert len(set(splits.validation.groups)) == 1
    for pattern, complaint in ((r"x(", "group_pattern: "), ("clip", "does not match")):
        with pytest.raises(TrainingError, match=complaint):
            load_splits(DataRecipe(source="folder", train=tmp_path, group_pattern=pattern))


def test_recipes_reach_every_format(tmp_path):
    write_tar(
        tmp_path / "x.tar",
        {
            f"{n}.{end}": content
            for n in range(10)
            for end, content in (("png", encode_png(picture(n, 4))), ("cls", str(n % 2).encode()))
        },
    )
    (tmp_path / "names.json").write_text(json.dumps(["no", "yes"]))
    splits = load_splits(
        DataRecipe(source="webdataset", train=tmp_path / "x.tar", classes=tmp_path / "names.json")
    )
    assert (len(splits.train), len(splits.validation)) == (8, 2)
    write_shard(tmp_path / "d-0.parquet", range(4), [0, 1, 0, 1])
    shards = (f"{tmp_path}/d-*.parquet",)
    splits = load_splits(
        DataRecipe(
            source="parquet",
            train_shards=shards,
            validation_shards=shards,
            classes=tmp_path / "names.json",
            loading="stream",
        )
    )
    assert splits.train.fingerprint == splits.validation.fingerprint
    assert splits.train.subset([1, 2]).blocks.tolist() == [0, 1]
