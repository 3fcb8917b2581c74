"""Bad data, recipes and disks: one clear line, exit code 2, and nothing is lost."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import training.checkpoint
from service.cli import main
from training.checkpoint import load_weights, save_weights

RECIPE = """
name = "bad"
[data]
source = "folder"
train = "{folder}"
loading = "{loading}"
decode_workers = 0
[input.preprocess]
resize = {{ policy = "shorter_side", size = 32, interpolation = "bilinear" }}
crop = {{ height = 32, width = 32 }}
background = [0, 0, 0]
[input.normalisation]
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
[model]
architecture = "seed:lenet5"
[optim]
lr = 0.01
[train]
epochs = 1
batch_size = 4
precision = "fp32"
cpu_threads = 1
"""


@pytest.fixture
def folder(tmp_path):
    """Ten images each of two classes."""
    for number in range(20):
        path = tmp_path / "images" / f"class{number % 2}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "images"


def train(folder, *overrides, loading="memory", run_dir=None, options=()):
    recipe = folder.parent / "bad.toml"
    recipe.write_text(RECIPE.format(folder=folder, loading=loading))
    run_dir = folder.parent / "run" if run_dir is None else run_dir
    sets = [part for one in overrides for part in ("--set", one)]
    arguments = ["train", str(recipe), "--run-dir", str(run_dir), "--quiet", *sets, *options]
    return CliRunner().invoke(main, arguments)


def refused(done):
    """Returns the one line that a person reads."""
    assert done.exit_code == 2, (done.exit_code, done.output, done.exception)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_a_corrupt_image_stops_the_run_and_is_named(folder, loading):
    (folder / "class0" / "00.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    # Batches that leave no image out.
    overrides = ("data.validation_fraction=0.1", "train.batch_size=2")
    assert "image 0: " in refused(train(folder, *overrides, loading=loading))


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_up_to_a_share_corrupt_images_are_left_out_counted_and_listed(folder, loading):
    (folder / "class0" / "00.png").write_bytes(b"no image")
    (folder / "class1" / "01.png").write_bytes(b"")
    done = train(folder, "data.max_unreadable_fraction=0.4", loading=loading)
    assert done.exit_code == 0, done.output
    run_dir = folder.parent / "run"
    listed = json.loads((run_dir / "unreadable.json").read_text())["images"]
    assert {Path(one["image"]).name for one in listed} == {"00.png", "01.png"}
    assert all(one["problem"] for one in listed)
    counts = json.loads((run_dir / "run.json").read_text())["data"]
    assert counts["train"]["images"] + counts["validation"]["images"] == 18


def test_too_many_corrupt_images_stop_the_run(folder):
    for number in range(0, 20, 2):
        (folder / "class0" / f"{number:02}.png").write_bytes(b"no image")
    told = refused(train(folder, "data.max_unreadable_fraction=0.1"))
    assert "images cannot be read, first " in told


def test_an_empty_class_is_named(folder):
    (folder / "class2").mkdir()
    assert "no training image of class2" in refused(train(folder))


def test_one_class_is_no_classification(folder):
    shutil.rmtree(folder / "class1")
    assert "one class alone" in refused(train(folder))


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ([0, 1, 2, 3] * 5, "labels run from 0 to 3, but there are 3 classes"),
        ([0, 2] * 10, "no training image of b (1 such classes)"),
        ([0, -1] * 10, "labels run from -1 to 0"),
    ],
)
def test_labels_out_of_range_and_with_gaps_are_refused(folder, labels, complaint):
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(folder.rglob("*.png"))
    rows = [{"bytes": file.read_bytes(), "path": None} for file in files]
    pq.write_table(pa.table({"image": rows, "label": labels}), folder / "d.parquet")
    (folder / "names.json").write_text('["a", "b", "c"]')
    source = ("data.source=parquet", f"data.classes={folder}/names.json")
    assert complaint in refused(train(folder, *source, f"data.train={folder}/d.parquet"))


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_odd_images_are_taken_as_they_are_served(folder, loading):
    odd = {
        "grey": Image.new("L", (40, 40), 90),
        "alpha": Image.new("RGBA", (40, 40), (200, 0, 0, 128)),
        "palette": Image.new("P", (40, 40), 3),
        "deep": Image.fromarray(np.full((40, 40), 40_000, np.uint16)),
        "tiny": Image.new("RGB", (3, 5), "red"),
    }
    for name, image in odd.items():
        image.save(folder / "class0" / f"{name}.png")
    done = train(folder, loading=loading)
    assert done.exit_code == 0, done.output


def test_a_folder_that_cannot_be_made_is_named(folder):
    (folder.parent / "file").write_text("in the way")
    told = refused(train(folder, run_dir=folder.parent / "file" / "run"))
    assert "cannot be made" in told


def test_a_full_disk_leaves_the_last_checkpoint_whole(folder, monkeypatch):
    """The disk is full in the middle of the second checkpoint."""
    run_dir = folder.parent / "run"
    saved = training.checkpoint.torch.save
    count = 0

    def fill(state, path):
        nonlocal count
        count += 1
        if count == 2:
            Path(path).write_bytes(b"half of a file")
            raise OSError(28, "No space left on device")
        saved(state, path)

    whole = train(folder, "train.epochs=2", run_dir=folder.parent / "whole")
    assert whole.exit_code == 0
    monkeypatch.setattr(training.checkpoint.torch, "save", fill)
    told = refused(train(folder, "train.epochs=2"))
    assert "resume.pt: cannot be written: " in told
    assert "No space left" in told
    assert not list(run_dir.glob("*.partial"))
    assert not (run_dir / "result.json").exists()
    monkeypatch.undo()
    assert train(folder, "train.epochs=2", options=["--resume"]).exit_code == 0
    one, other = (
        load_weights(where / "last.safetensors") for where in (run_dir, folder.parent / "whole")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_an_interrupted_run_says_how_to_go_on(folder, monkeypatch):
    import training.trainer

    original = training.trainer.Trainer.train_step

    def interrupt(self, views, labels):
        if self.step == 5:
            raise KeyboardInterrupt
        return original(self, views, labels)

    monkeypatch.setattr(training.trainer.Trainer, "train_step", interrupt)
    told = refused(train(folder, "train.epochs=3"))
    assert "interrupted at step 5; --resume goes on" in told
    monkeypatch.undo()
    assert train(folder, "train.epochs=3", options=["--resume"]).exit_code == 0


def test_a_checkpoint_of_another_architecture_is_refused(folder, tmp_path):
    save_weights(tmp_path / "other.safetensors", torch.nn.Linear(3, 2).state_dict())
    told = refused(train(folder, f"model.weights={tmp_path}/other.safetensors"))
    assert "weights of another network" in told
    assert train(folder, "train.epochs=2").exit_code == 0
    run_dir = folder.parent / "run"
    state = training.checkpoint.load_state(run_dir / "resume.pt")
    state["net"].pop("c1.weight")
    training.checkpoint.save_state(run_dir / "resume.pt", state)
    told = refused(train(folder, "train.epochs=2", options=["--resume"]))
    assert "resume.pt: of another architecture: " in told


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("optim.learning_rate=1", "optim.learning_rate: unknown key"),
        ("train.batch_size=100", "batch_size 100 is more than the 16 images"),
        ("train.accumulation_parts=64", "accumulation_parts 64 is more than the 4 images"),
        ("model.architecture=seed:lenet9", "unknown, close are lenet5"),
        ("data.train=nowhere", "no such folder"),
        ("augment.cutout_px=40", "cutout_px 40 is more than the image has"),
    ],
)
def test_a_wrong_recipe_is_one_line(folder, override, complaint):
    assert complaint in refused(train(folder, override))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_absent_is_one_line(folder):
    assert "finds no GPU" in refused(train(folder, options=["--device", "cuda"]))
