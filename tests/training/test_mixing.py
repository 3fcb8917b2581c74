import torch

from training.config import AugmentRecipe
from training.mixing import Mixing

CLASSES = 8


def batch():
    # Image i is i everywhere, so a mixed pixel tells the shares of both its images.
    labels = torch.arange(CLASSES)
    return labels.float().view(-1, 1, 1, 1).expand(-1, 3, 16, 16).clone(), labels


def mix(step=0, seed=0, **augment):
    return Mixing(AugmentRecipe(**augment), classes=CLASSES, seed=seed).mix(*batch(), step)


def test_without_mixing_the_batch_goes_through_untouched():
    images, labels = batch()
    same, targets = mix()
    assert torch.equal(same, images)
    assert torch.equal(targets, labels)


def test_mixup_blends_images_in_the_shares_of_their_targets():
    images, targets = mix(mixup_alpha=1.0)
    assert torch.allclose(targets.sum(dim=1), torch.ones(CLASSES))
    assert ((targets > 0).sum(dim=1) == 2).all()
    expected = targets @ torch.arange(CLASSES).float()
    assert torch.allclose(images, expected.view(-1, 1, 1, 1).expand_as(images), atol=1e-5)


def test_cutmix_pastes_one_rectangle_in_the_share_of_the_target():
    images, labels = batch()
    mixed, targets = mix(cutmix_alpha=1.0)
    pasted = mixed != images
    for image, label, target in zip(pasted[:, 0], labels, targets, strict=True):
        rows, columns = image.any(dim=1).sum(), image.any(dim=0).sum()
        assert 0 < int(image.sum()) == int(rows * columns) < 256
        assert torch.isclose(1 - target[label], image.float().mean())
    assert {value.item() for value in mixed.unique()} == set(range(CLASSES))


def test_with_both_each_batch_takes_either_in_some_steps():
    kinds = set()
    for step in range(12):
        images, _ = mix(step, mixup_alpha=1.0, cutmix_alpha=1.0)
        kinds.add("cutmix" if torch.equal(images, images.round()) else "mixup")
    assert kinds == {"mixup", "cutmix"}


def test_a_share_of_the_batches_is_mixed():
    mixing = Mixing(AugmentRecipe(mixup_alpha=1.0, mix_probability=0.25), classes=CLASSES, seed=0)
    mixed = [mixing.mix(*batch(), step)[1].ndim == 2 for step in range(200)]
    assert 30 < sum(mixed) < 70


def test_the_same_step_mixes_alike_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    first, again = (mix(3, mixup_alpha=0.4)[1] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, mix(4, mixup_alpha=0.4)[1])
    assert not torch.equal(first, mix(3, seed=1, mixup_alpha=0.4)[1])
    assert torch.equal(torch.get_rng_state(), before)
