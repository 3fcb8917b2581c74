import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from service.bundle.manifest import Preprocess
from training.config import DataRecipe
from training.data import (
    decode_views,
    load_class_names,
    load_digits_images,
    load_folder,
    load_parquet,
    load_splits,
    split_stratified,
)
from training.errors import TrainingError

PREPROCESS = Preprocess.model_validate(
    {
        "resize": {"policy": "shorter_side", "size": 32, "interpolation": "bilinear"},
        "crop": {"height": 32, "width": 32},
        "background": (0, 0, 0),
    }
)


def encode(colour, size=(32, 32), form="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, form)
    return buffer.getvalue()


def write_parquet(path, images, labels):
    rows = [{"bytes": image, "path": None} for image in images]
    pq.write_table(pa.table({"image": rows, "label": labels}), path)


@pytest.fixture(scope="module")
def digits():
    return load_digits_images()


def test_digits_are_decodable_32x32_images_of_ten_classes(digits):
    assert len(digits) == 1797
    assert digits.class_names == tuple("0123456789")
    views = decode_views(digits.subset(range(8)), PREPROCESS)
    assert views.shape == (8, 32, 32, 3)
    assert views.dtype == np.uint8
    assert (views[..., 0] == views[..., 2]).all()
    assert views.max() > 200


def test_a_split_is_stratified_deterministic_and_without_overlap(digits):
    first, again, other = (split_stratified(digits, 0.2, seed=seed) for seed in (0, 0, 1))
    assert first.train.fingerprint == again.train.fingerprint
    assert first.train.fingerprint != other.train.fingerprint
    assert len(first.train) + len(first.validation) == len(digits)
    assert (first.train.split, first.validation.split) == ("train", "validation")
    shares = np.bincount(first.validation.labels) / np.bincount(digits.labels)
    assert np.abs(shares - 0.2).max() < 0.02


def test_parquet_yields_the_very_bytes_and_labels(tmp_path):
    images = [encode("red"), encode("green", form="JPEG")]
    write_parquet(tmp_path / "d.parquet", images, [1, 0])
    dataset = load_parquet(tmp_path / "d.parquet", ("a", "b"), split="train")
    assert [dataset.image_bytes(index) for index in range(2)] == images
    assert dataset.labels.tolist() == [1, 0]
    assert dataset.labels.dtype == np.int64


def test_the_fingerprint_follows_images_labels_and_order(tmp_path):
    red, green = encode("red"), encode("green")

    def fingerprint(images, labels):
        write_parquet(tmp_path / "d.parquet", images, labels)
        return load_parquet(tmp_path / "d.parquet", ("a", "b"), split="train").fingerprint

    variants = {
        fingerprint([red, green], [0, 1]),
        fingerprint([green, red], [0, 1]),
        fingerprint([red, green], [1, 0]),
    }
    assert len(variants) == 3
    assert fingerprint([red, green], [0, 1]) in variants


def test_a_folder_gives_one_class_a_sub_folder(tmp_path):
    for name, files in {"cat": ["b.jpg", "deep/a.png"], "ant": ["c.JPEG"]}.items():
        for file in files:
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode("red", form="PNG" if file.endswith("png") else "JPEG"))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    dataset = load_folder(tmp_path, split="train")
    assert dataset.class_names == ("ant", "cat")
    assert dataset.labels.tolist() == [0, 1, 1]
    assert decode_views(dataset, PREPROCESS).shape == (3, 32, 32, 3)


def test_without_a_validation_file_a_share_is_kept_aside(tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps(["a", "b"]))
    write_parquet(tmp_path / "d.parquet", [encode((i, 0, 0)) for i in range(20)], [0, 1] * 10)
    recipe = DataRecipe(
        source="parquet",
        train=tmp_path / "d.parquet",
        classes=tmp_path / "classes.json",
        validation_fraction=0.3,
    )
    splits = load_splits(recipe)
    assert (len(splits.train), len(splits.validation)) == (14, 6)


def test_class_names_come_from_a_list_of_names_or_of_objects(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps([{"index": 0, "name": "tench"}, {"index": 1, "name": "goldfish"}]))
    assert load_class_names(path) == ("tench", "goldfish")
    path.write_text(json.dumps(["tench", "goldfish"]))
    assert load_class_names(path) == ("tench", "goldfish")
    for wrong in ("[]", "{}", "[1, 2]", '[{"wnid": "n1"}]', "nonsense"):
        path.write_text(wrong)
        with pytest.raises(TrainingError, match=r"classes\.json: no list of class names"):
            load_class_names(path)


def test_malformed_data_is_told_in_one_line(tmp_path):
    path = tmp_path / "d.parquet"
    with pytest.raises(TrainingError, match="no such file"):
        load_parquet(path, ("a",), split="train")
    path.write_bytes(b"not parquet at all")
    with pytest.raises(TrainingError, match="needs columns"):
        load_parquet(path, ("a",), split="train")
    pq.write_table(pa.table({"picture": [b""], "label": [0]}), path)
    with pytest.raises(TrainingError, match="needs columns"):
        load_parquet(path, ("a",), split="train")
    write_parquet(path, [encode("red"), None], [0, 0])
    with pytest.raises(TrainingError, match="1 images have no bytes"):
        load_parquet(path, ("a",), split="train")
    write_parquet(path, [encode("red")], [3])
    with pytest.raises(TrainingError, match="labels run from 3 to 3, but there are 2 classes"):
        load_parquet(path, ("a", "b"), split="train")
    with pytest.raises(TrainingError, match="no such folder"):
        load_folder(tmp_path / "none", split="train")
    with pytest.raises(TrainingError, match="holds no images"):
        load_folder(tmp_path, split="train")


def test_an_image_that_serving_would_refuse_stops_training_by_its_index(tmp_path):
    write_parquet(tmp_path / "d.parquet", [encode("red"), b"GIF89a nonsense"], [0, 0])
    dataset = load_parquet(tmp_path / "d.parquet", ("a",), split="train")
    with pytest.raises(TrainingError, match=r"d\.parquet: image 1: "):
        decode_views(dataset, PREPROCESS)


def test_a_file_that_cannot_be_read_is_told_by_its_index(tmp_path):
    for name in ("cat", "dog"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "a.png").symlink_to(tmp_path / "gone.png")
    dataset = load_folder(tmp_path, split="train")
    with pytest.raises(TrainingError, match=r"image 0: .*No such file"):
        decode_views(dataset, PREPROCESS)
    with pytest.raises(TrainingError, match=r"image 0: .*No such file"):
        _ = dataset.fingerprint


@pytest.mark.data
def test_cifar10_validation_reads_whole(shared_data):
    names = load_class_names(shared_data / "cifar10-classes.json")
    path = shared_data / "cifar10-validation.parquet"
    dataset = load_parquet(path, names, split="validation")
    assert len(dataset) == 4905
    with Image.open(io.BytesIO(dataset.image_bytes(0))) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert (decode_views(dataset.subset([0]), PREPROCESS)[0] == pixels).all()
