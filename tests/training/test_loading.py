import numpy as np
import pytest
import torch

from training.config import AugmentRecipe
from training.data import Dataset
from training.errors import TrainingError
from training.imbalance import sampling_weights
from training.loading import MemoryLoader, seeded, split_views

COUNT, SIZE = 40, 6


@pytest.fixture
def views():
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8))


def make_loader(views, *, seed=0, batch_size=8, **augment):
    # Each label is the image's own number, so that a batch tells which image became what.
    labels = torch.arange(len(views))
    return MemoryLoader(views, labels, AugmentRecipe(**augment), batch_size=batch_size, seed=seed)


def read_epoch(loader, epoch):
    views, labels = zip(*loader.batches(epoch), strict=True)
    return torch.cat(views), torch.cat(labels)


def test_without_augmentation_every_image_comes_once_unchanged(views):
    shown, labels = read_epoch(make_loader(views), 0)
    assert sorted(labels.tolist()) == list(range(COUNT))
    assert torch.equal(shown, views[labels])
    assert shown.dtype == torch.uint8


def test_a_last_batch_that_is_not_full_is_left_out(views):
    loader = make_loader(views, batch_size=16)
    assert loader.batches_per_epoch == 2
    assert len(list(loader.batches(0))) == 2


def test_epochs_and_seeds_differ_and_each_repeats_exactly(views):
    options = {"flip": "random", "translate_px": 2}
    first = read_epoch(make_loader(views, **options), 3)
    again = read_epoch(make_loader(views, **options), 3)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    for other in (
        read_epoch(make_loader(views, **options), 4),
        read_epoch(make_loader(views, seed=1, **options), 3),
    ):
        assert not torch.equal(first[1], other[1])


def test_alternating_flips_show_both_sides_in_two_epochs(views):
    loader = make_loader(views, flip="alternating")
    sides = []
    for epoch in range(4):
        shown, labels = read_epoch(loader, epoch)
        order = labels.argsort()
        flipped = (shown[order] == views.flip(2)).flatten(1).all(dim=1)
        assert torch.equal(shown[order][~flipped], views[~flipped])
        sides.append(flipped)
    assert 0 < int(sides[0].sum()) < COUNT
    assert torch.equal(sides[1], ~sides[0])
    assert torch.equal(sides[2], sides[0])
    assert torch.equal(sides[3], ~sides[0])


@pytest.mark.parametrize("fill", ["reflect", "zero"])
def test_shifts_are_crops_of_the_padded_image(views, fill):
    mode = {"reflect": "reflect", "zero": "constant"}[fill]
    padded = np.pad(views.numpy(), ((0, 0), (2, 2), (2, 2), (0, 0)), mode=mode)
    loader = make_loader(views, translate_px=2, translate_fill=fill)
    seen = set()
    for epoch in range(6):
        shown, labels = read_epoch(loader, epoch)
        for view, label in zip(shown.numpy(), labels.tolist(), strict=True):
            places = [
                (top, left)
                for top in range(5)
                for left in range(5)
                if (padded[label, top : top + SIZE, left : left + SIZE] == view).all()
            ]
            assert len(places) == 1
            seen.update(places)
    assert len(seen) == 25


def test_a_cut_out_is_one_square_of_the_mean_colour_somewhere_inside(views):
    labels = torch.arange(COUNT)
    augment = AugmentRecipe(cutout_px=3)
    mean = (0.0, 0.5, 1.0)
    loader = MemoryLoader(views, labels, augment, batch_size=8, seed=0, mean=mean)
    places = set()
    for epoch in range(3):
        shown, labels = read_epoch(loader, epoch)
        painted = (shown == torch.tensor([0, 128, 255], dtype=torch.uint8)).all(dim=3)
        assert torch.equal(shown[~painted], views[labels][~painted])
        for mask in painted:
            rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
            assert len(rows) == len(columns) == 3
            assert int(mask.sum()) == 9
            places.add((int(rows[0]), int(columns[0])))
    assert len(places) == 16


def test_a_cut_out_larger_than_the_image_is_refused(views):
    with pytest.raises(TrainingError, match="cutout_px 7"):
        make_loader(views, cutout_px=7)


def test_drawing_batches_leaves_the_global_generator_alone(views):
    before = torch.get_rng_state()
    read_epoch(make_loader(views, flip="random", translate_px=1), 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_seeded_repeats_and_no_generator_is_touched_for_good(monkeypatch):
    """That of a GPU neither, which `torch.manual_seed` seeds as well."""

    def refuse(seed):
        raise AssertionError(f"every GPU would draw from {seed} on")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    before = torch.get_rng_state()

    def draw(*parts):
        with seeded(*parts):
            return torch.rand(3)

    first = draw(0, "augment", 1)
    assert torch.equal(draw(0, "augment", 1), first)
    assert not torch.equal(draw(0, "augment", 2), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_batches_keep_the_order_and_the_rest():
    views = np.arange(5 * 3, dtype=np.uint8).reshape(5, 1, 1, 3)
    batches = split_views(views, np.arange(5), batch_size=2)
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1, 2, 3, 4]


def test_balanced_sampling_shows_all_classes_equally_often(views):
    labels = torch.tensor([0] * 36 + [1] * 4)
    dataset = Dataset(
        name="few",
        split="train",
        images=[b""] * COUNT,
        labels=labels.numpy(),
        class_names=("a", "b"),
    )
    weights = sampling_weights(dataset)
    loader = MemoryLoader(views, labels, AugmentRecipe(), batch_size=8, seed=0, weights=weights)
    shown = torch.cat([read_epoch(loader, epoch)[1] for epoch in range(20)])
    assert 0.45 < float((shown == 1).float().mean()) < 0.55
    assert torch.equal(read_epoch(loader, 3)[1], read_epoch(loader, 3)[1])
