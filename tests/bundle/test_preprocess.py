"""Views equal torchvision's PIL pipeline, pixel for pixel; what may differ differs by little."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, five_crop, resize, ten_crop

from service.bundle.decode import Limits, decode
from service.bundle.preprocess import (
    TTA_POLICIES,
    count_views,
    cut_views,
    is_tta_policy,
    prepare,
    resized_size,
)

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


def torchvision_view(image: Image.Image, size: int, crop: tuple[int, int], interpolation: str):
    """The pixels of torchvision's `Resize(size)` and `CenterCrop(crop)`."""
    resized = resize(image, size, InterpolationMode(interpolation))
    return np.asarray(center_crop(resized, list(crop)))


sizes = st.tuples(st.integers(1, 160), st.integers(1, 160))


@example(image_size=(1, 1), size=8, crop=8, interpolation="bilinear")
@example(image_size=(1, 64), size=8, crop=8, interpolation="bicubic")
@example(image_size=(64, 1), size=8, crop=8, interpolation="bilinear")
@example(image_size=(160, 53), size=53, crop=52, interpolation="bilinear")
@example(image_size=(53, 160), size=53, crop=53, interpolation="bicubic")
@example(image_size=(64, 64), size=64, crop=64, interpolation="bicubic")
@given(
    image_size=sizes,
    size=st.integers(1, 90),
    crop=st.integers(1, 90),
    interpolation=st.sampled_from(INTERPOLATIONS),
)
def test_views_equal_torchvision_on_any_size(
    image_size, size, crop, interpolation, make_photograph, make_preprocess
):
    crop = min(crop, size)
    image = make_photograph(160, 160).crop((0, 0, *image_size))
    preprocess = make_preprocess(size, crop, interpolation=interpolation)
    expected = torchvision_view(image, size, (crop, crop), interpolation)
    assert np.array_equal(cut_views(image, preprocess)[0], expected)


@given(image_size=sizes, height=st.integers(1, 60), width=st.integers(1, 60))
def test_crops_need_not_be_square(image_size, height, width, make_photograph, make_preprocess):
    image = make_photograph(160, 160).crop((0, 0, *image_size))
    size = max(height, width)
    views = cut_views(image, make_preprocess(size, (height, width)))
    assert np.array_equal(views[0], torchvision_view(image, size, (height, width), "bilinear"))


@pytest.mark.data
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_views_equal_torchvision_on_photographs(interpolation, photographs, make_preprocess):
    for name, data in photographs.items():
        image = Image.open(io.BytesIO(data)).convert("RGB")
        rgb = decode(data, Limits(), background=(0, 0, 0)).rgb
        for size, crop in ((256, 224), (232, 224), (256, 227), (224, 224)):
            preprocess = make_preprocess(size, crop, interpolation=interpolation)
            expected = torchvision_view(image, size, (crop, crop), interpolation)
            assert np.array_equal(cut_views(rgb, preprocess)[0], expected), name


@pytest.mark.data
def test_preparing_a_photograph_is_decoding_and_cutting_it(photographs, make_preprocess):
    for data in photographs.values():
        prepared = prepare(data, make_preprocess(256, 224), tta="hflip", limits=Limits())
        image = Image.open(io.BytesIO(data)).convert("RGB")
        expected = torchvision_view(image, 256, (224, 224), "bilinear")
        assert np.array_equal(prepared.views, [expected, expected[:, ::-1]])
        assert (prepared.width, prepared.height, prepared.format) == (*image.size, "jpeg")


def test_views_are_uint8_rgb_with_a_batch_dimension(make_photograph, make_preprocess):
    for policy in TTA_POLICIES:
        views = cut_views(make_photograph(90, 70), make_preprocess(40, (30, 36)), tta=policy)
        assert views.dtype == np.uint8
        assert views.shape == (count_views(policy), 30, 36, 3)


def test_only_known_policies_are_policies():
    assert is_tta_policy("five_crop")
    assert not is_tta_policy("six_crop")
    assert set(TTA_POLICIES) == {"none", "hflip", "five_crop", "ten_crop", "multi_scale"}
    assert {policy: count_views(policy) for policy in TTA_POLICIES} == {
        "none": 1,
        "hflip": 2,
        "five_crop": 5,
        "ten_crop": 10,
        "multi_scale": 6,
    }


@given(image_size=sizes)
def test_hflip_is_the_view_and_its_mirror_image(image_size, make_photograph, make_preprocess):
    image = make_photograph(160, 160).crop((0, 0, *image_size))
    preprocess = make_preprocess(48, 40)
    view, mirrored = cut_views(image, preprocess, tta="hflip")
    assert np.array_equal(view, cut_views(image, preprocess)[0])
    assert np.array_equal(mirrored, np.asarray(ImageOps.mirror(Image.fromarray(view))))


@given(image_size=sizes, interpolation=st.sampled_from(["bilinear", "bicubic"]))
def test_five_and_ten_crops_are_torchvisions(
    image_size, interpolation, make_photograph, make_preprocess
):
    image = make_photograph(160, 160).crop((0, 0, *image_size))
    preprocess = make_preprocess(48, (40, 36), interpolation=interpolation)
    resized = resize(image, 48, InterpolationMode(interpolation))
    five = [np.asarray(crop) for crop in five_crop(resized, [40, 36])]
    assert np.array_equal(cut_views(image, preprocess, tta="five_crop"), five)
    ten = [np.asarray(crop) for crop in ten_crop(resized, [40, 36])]
    assert np.array_equal(cut_views(image, preprocess, tta="ten_crop"), ten)


def test_multi_scale_is_three_resizes_and_their_mirror_images(make_photograph, make_preprocess):
    image = make_photograph(131, 97)
    views = cut_views(image, make_preprocess(48, 40), tta="multi_scale")
    expected = [torchvision_view(image, size, (40, 40), "bilinear") for size in (48, 55, 62)]
    assert np.array_equal(views[0::2], expected)
    assert np.array_equal(views[1::2], [view[:, ::-1] for view in expected])


@given(image_size=sizes)
def test_squash_makes_a_square_of_any_image(image_size, make_photograph, make_preprocess):
    image = make_photograph(160, 160).crop((0, 0, *image_size))
    views = cut_views(image, make_preprocess(48, 40, policy="squash"))
    squashed = resize(image, [48, 48], InterpolationMode.BILINEAR)
    assert np.array_equal(views[0], np.asarray(center_crop(squashed, [40, 40])))


@given(image_size=sizes)
def test_longer_side_pad_keeps_all_of_the_image(image_size, make_photograph, make_preprocess):
    image = make_photograph(160, 160).crop((0, 0, *image_size))
    preprocess = make_preprocess(48, 48, policy="longer_side_pad", background=(255, 0, 9))
    (view,) = cut_views(image, preprocess)
    width, height = resized_size(*image_size, preprocess, 1.0)
    assert max(width, height) == 48
    top, left = (48 - height) // 2, (48 - width) // 2
    inside = image if image.size == (width, height) else image.resize((width, height), 2)
    assert np.array_equal(view[top : top + height, left : left + width], np.asarray(inside))
    outside = np.ones((48, 48), bool)
    outside[top : top + height, left : left + width] = False
    assert (view[outside] == (255, 0, 9)).all()


def test_longer_side_pad_is_the_same_with_crop_only_resize(make_photograph, make_preprocess):
    image = make_photograph(90, 61)
    plain, only = (
        make_preprocess(48, 40, policy="longer_side_pad", crop_only_resize=flag)
        for flag in (False, True)
    )
    assert np.array_equal(cut_views(image, plain), cut_views(image, only))


# docs/decisions.md: Pillow 13 chooses the order of its passes by the sizes that it is asked for.
# Where that differs, so does the rounding between the passes; bicubic and lanczos also overshoot.
_CROP_ONLY_LEVELS = {"bilinear": 2, "bicubic": 40, "lanczos": 50}


@given(
    image_size=sizes,
    size=st.integers(8, 90),
    interpolation=st.sampled_from(["bilinear", "bicubic", "lanczos"]),
    tta=st.sampled_from(["none", "five_crop", "multi_scale"]),
    policy=st.sampled_from(["shorter_side", "squash"]),
)
def test_crop_only_resize_differs_by_rounding_only(
    image_size, size, interpolation, tta, policy, make_photograph, make_preprocess
):
    image = make_photograph(160, 160).crop((0, 0, *image_size))
    plain, only = (
        cut_views(
            image,
            make_preprocess(
                size,
                size * 7 // 8,
                interpolation=interpolation,
                policy=policy,
                crop_only_resize=flag,
            ),
            tta=tta,
        ).astype(int)
        for flag in (False, True)
    )
    difference = np.abs(plain - only)
    assert difference.max() <= _CROP_ONLY_LEVELS[interpolation]
    assert difference.mean() < 0.7


@pytest.mark.data
def test_crop_only_resize_on_photographs_differs_by_rounding_only(photographs, make_preprocess):
    for data in photographs.values():
        rgb = decode(data, Limits(), background=(0, 0, 0)).rgb
        for interpolation in ("bilinear", "bicubic"):
            plain, only = (
                cut_views(
                    rgb,
                    make_preprocess(256, 224, interpolation=interpolation, crop_only_resize=flag),
                ).astype(int)
                for flag in (False, True)
            )
            assert np.abs(plain - only).max() <= {"bilinear": 1, "bicubic": 15}[interpolation]
            assert np.abs(plain - only).mean() < 0.4


@pytest.fixture(scope="module")
def big_jpeg(make_photograph) -> bytes:
    """A photograph of 3 megapixels, 2000 x 1500."""
    file = io.BytesIO()
    make_photograph(2000, 1500).save(file, "JPEG", quality=90)
    return file.getvalue()


def test_scaled_decoding_looks_the_same(big_jpeg, make_preprocess):
    plain, scaled = (
        prepare(big_jpeg, make_preprocess(128, 112, jpeg_scaled_decode=flag), limits=Limits())
        for flag in (False, True)
    )
    assert (scaled.width, scaled.height) == (plain.width, plain.height) == (2000, 1500)
    difference = np.abs(plain.views.astype(int) - scaled.views)
    assert 0 < difference.mean() < 2
    assert difference.max() <= 24


def test_scaled_decoding_keeps_twice_the_pixels_that_are_needed(
    big_jpeg, make_preprocess, monkeypatch
):
    from service.bundle import preprocess as module

    seen = []

    def record(rgb, *args, **options):
        seen.append(rgb.size)
        return cut_views(rgb, *args, **options)

    monkeypatch.setattr(module, "cut_views", record)
    for size in (60, 90, 128, 350, 700):
        preprocess = make_preprocess(size, 56, jpeg_scaled_decode=True)
        prepare(big_jpeg, preprocess, tta="multi_scale", limits=Limits())
    assert seen == [(250, 188), (250, 188), (500, 375), (1000, 750), (2000, 1500)]


def test_scaled_decoding_leaves_other_formats_alone(hostile_images, make_preprocess):
    data = hostile_images.encoded(hostile_images.picture(300, 200), "PNG")
    plain, scaled = (
        prepare(data, make_preprocess(24, 20, jpeg_scaled_decode=flag), limits=Limits()).views
        for flag in (False, True)
    )
    assert np.array_equal(plain, scaled)


def test_a_turned_photograph_gives_turned_views(make_photograph, make_preprocess, exif_block):
    image = make_photograph(120, 90)
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif_block(6))
    (view,) = prepare(file.getvalue(), make_preprocess(64, 56), limits=Limits()).views
    upright = image.transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(view, torchvision_view(upright, 64, (56, 56), "bilinear"))


@pytest.mark.parametrize("size", [(1, 100), (100, 1)])
def test_images_of_the_longest_aspect_are_cut_as_any_other(size, hostile_images, make_preprocess):
    """The shorter side of 1 x 100 grows to 256, the longer one to 25,600; no more than that."""
    image = hostile_images.picture(*size)
    data = hostile_images.encoded(image, "PNG")
    preprocess = make_preprocess(256, 224)
    assert sorted(resized_size(*size, preprocess, 1.0)) == [256, 25_600]
    views = prepare(data, preprocess, tta="multi_scale", limits=Limits()).views
    assert np.array_equal(views[0], torchvision_view(image, 256, (224, 224), "bilinear"))
