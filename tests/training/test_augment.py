"""Each key of a recipe's augmentation does to an image what it says, and nothing when it is off."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from service.bundle.manifest import Normalisation
from training.augment import FancyPCA, build_augmentation, principal_colours
from training.config import AugmentRecipe
from training.hardware import cpu_threads

SIZE = 64
FILL = (51, 102, 153)
NORMALISATION = Normalisation(mean=(0.2, 0.4, 0.6), std=(0.25, 0.25, 0.25))


@pytest.fixture(autouse=True)
def single_thread():
    # Threads of tiny operations mostly wait for each other.
    with cpu_threads(1):
        yield


@pytest.fixture(scope="module")
def photograph():
    """uint8 [3, 64, 64]: a flower before leaves."""
    pixels = load_sample_images().images[1][100:356, 200:456]
    return torch.from_numpy(
        np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE))).copy()
    ).permute(2, 0, 1)


def build(colours=None, **augment):
    return build_augmentation(AugmentRecipe(**augment), NORMALISATION, colours)


def looks(transform, image, count=12):
    torch.manual_seed(0)
    return [transform(image) for _ in range(count)]


def grey(image):
    return image.float().mean(dim=0)


def filled(image):
    """Where the picture shows nothing but the mean colour."""
    return (image == torch.tensor(FILL, dtype=torch.uint8)[:, None, None]).all(dim=0)


def sharpness(image):
    return float(grey(image).diff(dim=1).abs().mean())


def saturation(image):
    return float((image.amax(dim=0).float() - image.amin(dim=0)).mean())


def test_a_recipe_without_augmentation_has_no_transform():
    assert build() is None


def test_a_vertical_flip_turns_the_image_over(photograph):
    (shown,) = looks(build(vertical_flip_probability=1.0), photograph, 1)
    assert torch.equal(shown, photograph.flip(1))


@pytest.mark.parametrize(
    ("augment", "moved"),
    [
        ({"rotate_degrees": 40}, "corners"),
        ({"shift_fraction": 0.3}, "sides"),
        ({"zoom_fraction": 0.5}, "rim"),
        ({"shear_degrees": 30}, "corners"),
        ({"perspective_distortion": 0.8}, "corners"),
        ({"elastic_alpha": 50.0}, "inside"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_geometry_moves_the_picture_and_fills_with_the_mean_colour(photograph, augment, moved):
    shown = looks(build(**augment), photograph)
    assert all(one.shape == photograph.shape and one.dtype == torch.uint8 for one in shown)
    assert len({one.numpy().tobytes() for one in shown}) > 4
    gaps = [filled(one) for one in shown]
    assert not filled(photograph).any()
    if moved == "inside":
        # A distortion: rows and columns no longer move as one.
        assert all(not torch.equal(one, photograph) for one in shown)
        assert all(gap.float().mean() < 0.1 for gap in gaps)
        return
    corners = [bool(gap[[0, 0, -1, -1], [0, -1, 0, -1]].any()) for gap in gaps]
    assert any(corners)
    middle = [bool(gap[24:40, 24:40].any()) for gap in gaps]
    assert not any(middle)
    if moved == "rim":
        # Zoomed out, a frame is free on all sides; zoomed in, none is.
        framed = [bool(gap[0].all() and gap[:, 0].all()) for gap in gaps]
        assert any(framed)
        assert not all(framed)
    if moved == "sides":
        # Nothing is turned: whole rows or columns are free.
        assert all(bool(gap.all(dim=0).any() or gap.all(dim=1).any()) for gap in gaps if gap.any())


def test_a_rotation_turns_about_the_middle_and_no_further_than_it_may(photograph):
    disc = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
    disc[:, 30:34, 54:58] = 255  # a spot to the right of the middle
    angles = []
    for shown in looks(build(rotate_degrees=20), disc, 40):
        rows, columns = (grey(shown) - grey(shown).min() > 100).nonzero().T.float()
        angles.append(float(torch.rad2deg(torch.atan2(31.5 - rows.mean(), columns.mean() - 31.5))))
    assert max(map(abs, angles)) < 21.5
    assert min(angles) < -10
    assert max(angles) > 10


@pytest.mark.parametrize(
    ("augment", "measure"),
    [
        ({"brightness": 0.5}, lambda image: float(image.float().mean())),
        ({"contrast": 0.5}, lambda image: float(grey(image).std())),
        ({"saturation": 0.8}, saturation),
    ],
    ids=["brightness", "contrast", "saturation"],
)
def test_colour_jitter_goes_both_ways(photograph, augment, measure):
    values = [measure(one) for one in looks(build(**augment), photograph)]
    assert min(values) < 0.9 * measure(photograph)
    assert max(values) > 1.05 * measure(photograph)


def test_hue_turns_colours_and_keeps_their_brightest_level(photograph):
    red = torch.zeros(3, 8, 8, dtype=torch.uint8)
    red[0] = 200
    tones = {tuple(one[:, 0, 0].tolist()) for one in looks(build(hue=0.5), red)}
    assert len(tones) > 6
    assert all(abs(max(tone) - 200) <= 2 for tone in tones)
    assert any(tone[2] > tone[0] for tone in tones)


def test_blur_takes_the_sharpness_of_about_half_of_the_images(photograph):
    shown = looks(build(blur_max_sigma=3.0), photograph, 40)
    untouched = [torch.equal(one, photograph) for one in shown]
    assert 10 < sum(untouched) < 30
    assert min(sharpness(one) for one in shown) < 0.5 * sharpness(photograph)


def test_noise_has_the_deviation_that_was_asked_for():
    flat = torch.full((3, SIZE, SIZE), 128, dtype=torch.uint8)
    (shown,) = looks(build(noise_std=0.1), flat, 1)
    assert float(shown.float().std()) == pytest.approx(25.5, rel=0.05)
    assert float(shown.float().mean()) == pytest.approx(128, abs=1)


def test_fancy_pca_moves_all_pixels_along_the_principal_colours(photograph):
    views = photograph.permute(1, 2, 0)[None]
    colours = principal_colours(views)
    covariance = np.cov(views.reshape(-1, 3).numpy().T.astype(np.float64))
    assert np.allclose((colours @ colours.T).numpy(), covariance, rtol=1e-4)
    flat = torch.full((3, 4, 4), 128, dtype=torch.uint8)
    transform = FancyPCA(colours, 0.1)
    torch.manual_seed(0)
    shifts = torch.stack([transform(flat)[:, 0, 0].float() - 128 for _ in range(4000)])
    found = np.cov(shifts.numpy().T)
    assert np.allclose(found, 0.01 * covariance, atol=0.1 * 0.01 * covariance.max() + 0.1)


def test_fancy_pca_is_one_shift_for_the_whole_image(photograph):
    colours = principal_colours(photograph.permute(1, 2, 0)[None])
    flat = torch.full((3, 4, 4), 128, dtype=torch.uint8)
    (shown,) = looks(build(colours, fancy_pca_std=0.5), flat, 1)
    assert not torch.equal(shown, flat)
    assert torch.equal(shown, shown[:, :1, :1].expand(3, 4, 4))


@pytest.mark.parametrize(
    "augment",
    [
        {"is_trivial_augment_on": True},
        {"randaugment_magnitude": 9},
        {"augmix_severity": 3},
    ],
    ids=lambda augment: next(iter(augment)),
)
def test_policies_show_an_image_in_many_ways(photograph, augment):
    shown = looks(build(**augment), photograph, 30)
    assert len({one.numpy().tobytes() for one in shown}) > 15
    assert all(one.shape == photograph.shape for one in shown)


def test_randaugment_gets_stronger_with_its_magnitude(photograph):
    def change(**augment):
        shown = looks(build(**augment), photograph, 24)
        return np.mean([float((one.float() - photograph).abs().mean()) for one in shown])

    weak = change(randaugment_magnitude=2)
    assert change(randaugment_magnitude=20) > 1.2 * weak
    assert change(randaugment_magnitude=2, randaugment_operations=4) > 1.2 * weak


def test_erasing_paints_a_rectangle_in_the_mean_colour(photograph):
    for shown in looks(build(erase_probability=1.0), photograph):
        hole = filled(shown)
        assert 0.01 < hole.float().mean() < 0.34
        rows, columns = hole.any(dim=1).sum(), hole.any(dim=0).sum()
        assert int(hole.sum()) == int(rows * columns)
        assert torch.equal(shown[:, ~hole], photograph[:, ~hole])


@pytest.mark.parametrize("form", ["tensor", "pil"])
def test_everything_at_once_takes_tensors_and_pil_images(photograph, form):
    everything = AugmentRecipe(
        vertical_flip_probability=0.5,
        rotate_degrees=10,
        shift_fraction=0.1,
        zoom_fraction=0.1,
        shear_degrees=5,
        perspective_distortion=0.2,
        elastic_alpha=20.0,
        brightness=0.2,
        contrast=0.2,
        saturation=0.2,
        hue=0.05,
        fancy_pca_std=0.1,
        blur_max_sigma=1.0,
        noise_std=0.05,
        augmix_severity=3,
        erase_probability=0.5,
    )
    transform = build_augmentation(everything, NORMALISATION, torch.eye(3))
    image = photograph if form == "tensor" else Image.fromarray(photograph.permute(1, 2, 0).numpy())
    shown = transform(image)
    assert shown.shape == (3, SIZE, SIZE)
    assert shown.dtype == torch.uint8
