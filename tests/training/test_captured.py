"""From a server that keeps its images to a network that was trained on them."""

import asyncio
import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from documents import documented

from service.classifier import Classifier, Options
from service.metrics import Metrics
from service.settings import Settings
from training.captured import label, name_folders
from training.config import load_recipe
from training.data import decode_views, load_digits_images, load_parquet
from training.data_cli import data
from training.data_formats import read_shards
from training.errors import TrainingError
from training.loading import split_views
from training.models.normalise import Normalise
from training.train import train
from training.trained_run import load_run
from training.validation import evaluate_views

RECIPE = Path(__file__).parents[2] / "training/recipes/digits-lenet5.toml"
COUNT = 400


@pytest.fixture(scope="module")
def served(tiny_bundle_repository, tmp_path_factory):
    """What a server captured of 400 digits: (folder, the digits)."""
    folder = tmp_path_factory.mktemp("server") / "captured"
    digits = load_digits_images().subset(range(COUNT))

    async def serve():
        settings = Settings(
            model_repository=tiny_bundle_repository,
            capture_folder=folder,
            capture_share=1.0,
            max_queue_views=COUNT,
        )
        classifier = Classifier.build(settings, Metrics())
        for index in range(COUNT):
            await classifier.classify(digits.image_bytes(index), Options())
            await asyncio.sleep(0)
        await classifier.close()

    asyncio.run(serve())
    return folder / "digits-linear@1", digits


def do(*arguments, code=0):
    done = CliRunner().invoke(data, [str(one) for one in arguments])
    assert done.exit_code == code, done.output
    return done.output


def guide(step, places):
    """The words of a step of the guide, with the places of this test for those that it names."""
    _, *words = documented("docs/train.md", f"data {step}")
    return [places.get(word, word) for word in words]


def rows_of(path):
    return pq.read_table(path).to_pylist()


def truth(served):
    """The right class of each captured file."""
    folder, digits = served
    right = {digits.image_bytes(index): str(digits.labels[index]) for index in range(COUNT)}
    return {
        row["image"]["path"]: right[row["image"]["bytes"]]
        for part in folder.glob("*.parquet")
        for row in rows_of(part)
    }


def test_what_a_server_captured_is_reviewed_labelled_and_trained_on(served, tmp_path):
    folder, digits = served
    review, out = tmp_path / "review", tmp_path / "new.parquet"
    places = {"captured/digits-lenet5@1": folder, "review/": review, "new.parquet": out}
    assert do(*guide("unpack", places)) == f"{COUNT} images in {review}\n"
    assert sorted(path.name for path in review.iterdir()) == [str(digit) for digit in range(10)]
    # What a person does: moves what is wrong, deletes what is of no use.
    right = truth(served)
    moved = 0
    for file in list(review.glob("*/*.png")):
        if right[file.name] != file.parent.name:
            file.rename(review / right[file.name] / file.name)
            moved += 1
    assert 0 < moved < COUNT / 5
    gone = min(review.glob("3/*.png"))
    gone.unlink()
    assert do(*guide("label", places)) == (f"{COUNT - 1} images in {out}, 1 without a label\n")
    assert {row["image"]["path"]: str(row["label"]) for row in rows_of(out)} == {
        name: of_class for name, of_class in right.items() if name != gone.name
    }
    assert list(tmp_path.glob(".*")) == []

    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps(digits.class_names))
    of_captured = [
        f"data.train={out}",
        f"data.classes={classes}",
        "data.source=parquet",
        "train.epochs=10",
        "train.precision=fp32",
    ]
    recipe = load_recipe(RECIPE, of_captured)
    trained = load_run(train(recipe, run_dir=tmp_path / "run", is_progress_shown=False))
    others = load_digits_images().subset(range(COUNT, 1797))
    measured = evaluate_views(
        trained.net,
        Normalise(recipe.input.normalisation),
        split_views(decode_views(others, recipe.input.preprocess), others.labels),
    )
    assert measured.top1 > 0.8  # 0.1 without learning


def test_a_table_labels_what_it_names(served, tmp_path):
    folder, _ = served
    right = truth(served)
    table, out = tmp_path / "labels.csv", tmp_path / "new.parquet"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        writer.writerows([("review/7/" + name, right[name]) for name in sorted(right)[:50]])
        writer.writerow(["removed-since.png", "7"])
    told = do("label", folder, table, "--out", out)
    assert told == (f"50 images in {out}, 350 without a label, 1 labels are of no captured image\n")
    assert all(str(row["label"]) == right[row["image"]["path"]] for row in rows_of(out))


def test_the_model_is_believed_only_where_it_was_sure(served, tmp_path):
    folder, _ = served
    out = tmp_path / "new.parquet"
    do("label", folder, "--predicted", "--min-score", "0.9", "--out", out)
    rows = rows_of(out)
    assert 100 < len(rows) < COUNT
    assert all(row["score"] >= 0.9 and row["label"] == row["predicted"] for row in rows)
    right = truth(served)
    share = np.mean([str(row["label"]) == right[row["image"]["path"]] for row in rows])
    assert share > 0.97


def test_images_without_labels_are_refused_with_a_way_on(served):
    (part,) = served[0].glob("*.parquet")
    classes = tuple(str(digit) for digit in range(10))
    for read in (lambda: load_parquet(part, classes, split="train"), lambda: read_shards([part])):
        with pytest.raises(TrainingError, match="400 images have no label; `fivecrop data label`"):
            read()


def test_each_fault_is_one_line(served, tmp_path):
    folder, _ = served
    out = tmp_path / "new.parquet"
    name = next(iter(truth(served)))
    for labels, told in (({name: "cat"}, "no class 'cat'"), ({"x.png": "3"}, "none of the 400")):
        with pytest.raises(TrainingError, match=told):
            label(folder, labels, out)
    for wrong, told in (
        (tmp_path, "holds no .parquet"),
        (tmp_path / "absent.parquet", "no such file"),
        (RECIPE, "digits-lenet5.toml"),
    ):
        with pytest.raises(TrainingError, match=told):
            label(wrong, {}, out)
    assert not out.exists()
    assert "either LABELS or --predicted" in do("label", folder, "--out", out, code=2)


def test_folders_of_classes_with_odd_names_are_told_apart():
    names = ("crane", "black/white", "crane", "..", "Bär")
    assert name_folders(names) == ["crane 0", "black_white", "crane 2", ".. 3", "Bär"]
