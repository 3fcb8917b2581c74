from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from service.bundle.manifest import Preprocess, Resize, Size
from training.data import Dataset
from training.evaluate import image_views
from training.perturbations import (
    CORRUPTIONS,
    corrupt,
    leave,
    mask_circle,
    mirror,
    perturbed,
    rotate,
    shift,
    shrink,
)


@pytest.fixture(scope="module")
def photograph():
    return Image.fromarray(load_sample_image("flower.jpg"))


@pytest.fixture(scope="module")
def dataset(photograph):
    file = io.BytesIO()
    photograph.save(file, "JPEG", quality=90)
    return Dataset(
        name="flower",
        split="validation",
        images=[file.getvalue()],
        labels=np.zeros(1, np.int64),
        class_names=("flower", "other"),
    )


def preprocess_of(policy, **changes):
    return Preprocess(
        resize=Resize(policy=policy, size=96, interpolation="bicubic"),
        crop=Size(height=80, width=72),
        background=(10, 20, 30),
        **changes,
    )


def chance():
    return np.random.default_rng(0)


@pytest.mark.parametrize("policy", ["shorter_side", "squash", "longer_side_pad"])
def test_what_is_left_alone_reaches_the_model_unchanged(dataset, policy):
    preprocess = preprocess_of(policy)
    again = perturbed(dataset, preprocess, leave)
    assert (image_views(again, 0, preprocess) == image_views(dataset, 0, preprocess)).all()


def distance(perturb, image):
    changed = np.asarray(perturb(image, chance()), np.float64)
    return np.abs(changed - np.asarray(image, np.float64)).mean()


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("pixels", [32, 224])
def test_each_severity_changes_more_than_the_one_before(photograph, kind, pixels):
    image = photograph.resize((pixels, pixels))
    distances = [distance(corrupt(kind, severity, pixels), image) for severity in range(1, 6)]
    assert distances[0] > 0.1
    assert distances == sorted(distances)
    assert distances[4] > 1.2 * distances[0]


def test_noise_has_the_published_deviation_and_is_the_same_each_time():
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    noisy = np.asarray(corrupt("noise", 1, 32)(grey, chance()), np.float64)
    assert noisy.std() == pytest.approx(0.04 * 255, rel=0.02)
    assert (noisy == np.asarray(corrupt("noise", 1, 32)(grey, chance()))).all()


def test_brightness_raises_the_value_and_keeps_the_hue():
    image = Image.new("RGB", (2, 1), (100, 50, 25))
    image.putpixel((1, 0), (0, 0, 0))
    changed = np.asarray(corrupt("brightness", 2, 224)(image, chance()))
    assert changed[0, 0].tolist() == [151, 76, 38]
    assert changed[0, 1].tolist() == [51, 51, 51]


def test_contrast_pulls_towards_the_mean():
    image = Image.fromarray(np.array([[[0, 0, 0], [200, 200, 200]]], np.uint8))
    changed = np.asarray(corrupt("contrast", 1, 224)(image, chance()))
    assert changed[0, :, 0].tolist() == [60, 140]


def test_nothing_outside_the_circle_can_tell_how_far_an_image_was_turned():
    noise = Image.fromarray(chance().integers(0, 256, (40, 60, 3), np.uint8))
    for angle in (0, 45, 90):
        turned = np.asarray(rotate(angle, 32)(noise, chance()))
        down, across = np.mgrid[:40, :60] - np.array([19.5, 29.5])[:, None, None]
        outside = turned[down**2 + across**2 > 16**2]
        assert (outside == outside[0]).all()


def test_a_quarter_turn_is_one():
    image = Image.fromarray(chance().integers(0, 256, (32, 32, 3), np.uint8))
    expected = mask_circle(image.transpose(Image.Transpose.ROTATE_90), 32)
    assert (np.asarray(rotate(90, 32)(image, chance())) == np.asarray(expected)).all()


@pytest.mark.parametrize(
    ("axes", "flipped"), [("horizontal", (1,)), ("vertical", (0,)), ("both", (0, 1)), ("none", ())]
)
def test_reflections_are_those_of_the_masked_image(axes, flipped):
    image = Image.fromarray(chance().integers(0, 256, (31, 32, 3), np.uint8))
    expected = np.flip(np.asarray(mask_circle(image, 20)), flipped)
    assert (np.asarray(mirror(axes, 20)(image, chance())) == expected).all()


def test_a_shift_moves_the_content_by_whole_pixels_to_some_side():
    image = Image.fromarray(chance().integers(0, 256, (32, 32, 3), np.uint8))
    # So wide a circle masks nothing.
    plain = np.asarray(image)
    sides = set()
    for seed in range(12):
        moved = np.asarray(shift(3, 100)(image, np.random.default_rng(seed)))
        found = [
            (axis, sign)
            for axis in (0, 1)
            for sign in (-1, 1)
            if (np.roll(plain, 3 * sign, axis)[3:-3, 3:-3] == moved[3:-3, 3:-3]).all()
        ]
        assert len(found) == 1
        sides.add(found[0])
    assert len(sides) == 4


def test_the_border_of_a_shifted_image_is_its_reflection():
    image = Image.fromarray(np.arange(12, dtype=np.uint8).repeat(3).reshape(1, 12, 3).repeat(9, 0))
    rows = {
        tuple(np.asarray(shift(2, 100)(image, np.random.default_rng(seed)))[4, :, 0].tolist())
        for seed in range(12)
    }
    assert rows == {
        (2, 1, *range(10)),
        (*range(2, 12), 10, 9),
        tuple(range(12)),
    }


def test_a_smaller_image_is_enlarged_by_the_served_path(dataset):
    preprocess = preprocess_of("shorter_side")
    small = perturbed(dataset, preprocess, shrink(0.25))
    with Image.open(io.BytesIO(small.image_bytes(0))) as image:
        assert min(image.size) == 24
    assert image_views(small, 0, preprocess).shape == (1, 80, 72, 3)


def test_a_slice_of_the_perturbed_images_is_a_list(dataset):
    twice = dataset.subset([0, 0, 0])
    images = perturbed(twice, preprocess_of("squash"), leave).images
    assert images[1:] == [images[1], images[2]]
