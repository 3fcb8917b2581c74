import io

import numpy as np
import pytest
import torch
from PIL import Image

from training.config import recipe_from_dict
from training.data import decode_views, load_folder
from training.errors import TrainingError
from training.streaming import StreamedViews, StreamLoader
from training.train import train
from training.trained_run import load_run

CROP = 24


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "images" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        # The red level says which image a cut came from.
        pixels = rng.integers(0, 256, (30 + number, 40, 3), dtype=np.uint8)
        pixels[..., 0] = 20 * number
        Image.fromarray(pixels).save(path)
    return tmp_path / "images"


def recipe_for(folder, **tables):
    return recipe_from_dict(
        {
            "name": "stream",
            "data": {
                "source": "folder",
                "train": str(folder),
                "validation": str(folder),
                "loading": "stream",
                "decode_workers": 0,
            },
            "input": {
                "preprocess": {
                    "resize": {"policy": "shorter_side", "size": 28, "interpolation": "bicubic"},
                    "crop": {"height": CROP, "width": CROP},
                    "background": [0, 0, 0],
                },
                "normalisation": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
            },
            "model": {"architecture": "timm:test_resnet"},
            "optim": {"lr": 0.01},
            "train": {"epochs": 1, "batch_size": 4, "cpu_threads": 1},
            **tables,
        }
    )


def read_epoch(loader, epoch):
    views, labels = zip(*loader.batches(epoch), strict=True)
    return torch.cat(views), torch.cat(labels)


def test_every_image_comes_once_cut_to_size(folder):
    dataset = load_folder(folder, split="train")
    loader = StreamLoader(dataset, recipe_for(folder))
    views, labels = read_epoch(loader, 0)
    assert loader.batches_per_epoch == 3
    assert views.shape == (12, CROP, CROP, 3)
    assert views.dtype == torch.uint8
    reds = views[..., 0].flatten(1).float().mean(dim=1) / 20
    assert sorted(reds.round().int().tolist()) == list(range(12))
    assert torch.equal(reds.round().long() % 2, labels)


def test_cuts_differ_between_epochs_and_repeat_exactly(folder):
    dataset = load_folder(folder, split="train")
    augment = {"flip": "random", "is_trivial_augment_on": True, "erase_probability": 0.5}
    recipe = recipe_for(folder, augment=augment)
    before = torch.get_rng_state()
    first = read_epoch(StreamLoader(dataset, recipe), 1)
    assert torch.equal(torch.get_rng_state(), before)
    again = read_epoch(StreamLoader(dataset, recipe), 1)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not torch.equal(first[0], read_epoch(StreamLoader(dataset, recipe), 2)[0])


def test_streamed_images_take_every_other_augmentation_too(folder):
    dataset = load_folder(folder, split="train")
    plain, _ = read_epoch(StreamLoader(dataset, recipe_for(folder)), 0)
    augment = {"noise_std": 0.1, "fancy_pca_std": 0.1, "randaugment_magnitude": 9}
    for key, value in augment.items():
        changed, _ = read_epoch(StreamLoader(dataset, recipe_for(folder, augment={key: value})), 0)
        assert changed.shape == plain.shape
        assert changed.dtype == torch.uint8
        assert not torch.equal(changed, plain)


def test_worker_processes_change_nothing(folder):
    dataset = load_folder(folder, split="train")
    alone = recipe_for(folder)
    data = {"source": "folder", "train": str(folder), "loading": "stream", "decode_workers": 1}
    helped = recipe_for(folder, data=data)
    for one, other in zip(
        read_epoch(StreamLoader(dataset, alone), 0),
        read_epoch(StreamLoader(dataset, helped), 0),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_validation_sees_the_served_views_in_order(folder):
    dataset = load_folder(folder, split="validation")
    preprocess = recipe_for(folder).input.preprocess
    views, labels = next(iter(StreamedViews(dataset, preprocess, workers=0)))
    assert np.array_equal(views.numpy(), decode_views(dataset, preprocess))
    assert labels.tolist() == dataset.labels.tolist()


def test_an_unreadable_image_is_named(folder):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, "PNG")
    (folder / "class0" / "0.png").write_bytes(buffer.getvalue()[:40])
    dataset = load_folder(folder, split="train")
    with pytest.raises(TrainingError, match="images: image 0: "):
        read_epoch(StreamLoader(dataset, recipe_for(folder)), 0)


def test_a_streamed_recipe_trains_and_loads(folder, tmp_path):
    run_dir = train(recipe_for(folder), run_dir=tmp_path / "run", is_progress_shown=False)
    run = load_run(run_dir)
    assert run.class_names == ("class0", "class1")
    assert run.net(torch.zeros(1, 3, CROP, CROP)).shape == (1, 2)
