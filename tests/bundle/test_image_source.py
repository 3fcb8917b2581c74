"""An image gives the same views in whichever form it comes, or it is refused."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.bundle.image_source import (
    NormalisedView,
    PixelImage,
    digest_source,
    estimate_prepare_s,
    prepare_source,
)
from service.bundle.manifest import Normalisation, Preprocess
from service.bundle.structure import Limits
from service.errors import ErrorCode, RequestError

IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALF = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CIFAR = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
LIMITS = Limits()


def make_manifest(size=16, resize=20, normalisation=IMAGENET):
    return SimpleNamespace(
        input=SimpleNamespace(height=size, width=size),
        normalisation=normalisation,
        preprocess=Preprocess.model_validate(
            {
                "resize": {
                    "policy": "shorter_side",
                    "size": resize,
                    "interpolation": "bilinear",
                },
                "crop": {"height": size, "width": size},
                "background": (0, 0, 0),
            }
        ),
    )


def encode(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def as_pixels(pixels):
    height, width, _ = pixels.shape
    return PixelImage(content=memoryview(pixels.tobytes()), width=width, height=height)


def as_planes(pixels):
    height, width, _ = pixels.shape
    content = memoryview(pixels.transpose(2, 0, 1).tobytes())
    return PixelImage(content=content, width=width, height=height, is_planar=True)


def normalise(view, normalisation, dtype=np.float32):
    """As torchvision does: ToTensor, Normalize; float32 or half throughout."""
    scaled = view.astype(dtype) / dtype(255)
    mean, std = (np.array(one, dtype) for one in (normalisation.mean, normalisation.std))
    return ((scaled - mean) / std).transpose(2, 0, 1).astype("<f4")


def as_tensor(values):
    _, height, width = values.shape
    return NormalisedView(content=memoryview(values.tobytes()), width=width, height=height)


def refused(source, manifest, tta="none"):
    with pytest.raises(RequestError) as caught:
        prepare_source(source, manifest, tta=tta, limits=LIMITS)
    return caught.value.code


@pytest.mark.parametrize("tta", ["none", "ten_crop", "multi_scale"])
@settings(max_examples=20, deadline=None)
@given(width=st.integers(5, 60), height=st.integers(5, 60), seed=st.integers(0, 2**32 - 1))
def test_pixels_give_the_views_of_their_png(tta, width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    manifest = make_manifest()
    by_pixels = prepare_source(as_pixels(pixels), manifest, tta=tta, limits=LIMITS)
    by_planes = prepare_source(as_planes(pixels), manifest, tta=tta, limits=LIMITS)
    by_file = prepare_source(encode(pixels), manifest, tta=tta, limits=LIMITS)
    np.testing.assert_array_equal(by_pixels.views, by_file.views)
    np.testing.assert_array_equal(by_planes.views, by_file.views)
    assert (by_pixels.width, by_pixels.height) == (width, height)


@pytest.mark.parametrize("normalisation", [IMAGENET, HALF, CIFAR])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_level_comes_back_exactly(normalisation, dtype):
    view = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    manifest = make_manifest(normalisation=normalisation)
    source = as_tensor(normalise(view, normalisation, dtype))
    prepared = prepare_source(source, manifest, tta="none", limits=LIMITS)
    np.testing.assert_array_equal(prepared.views, view[None])


def test_a_tensor_that_no_8_bit_image_gives_is_refused():
    view = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    values = normalise(view, IMAGENET)
    between = values.copy()
    between[1, 2, 3] += 0.5 / 255 / IMAGENET.std[1]
    nan, huge, dark = values.copy(), values.copy(), values.copy()
    nan[0, 0, 0], huge[0, 0, 0], dark[0, 0, 0] = np.nan, np.inf, -3
    manifest = make_manifest()
    for wrong in (between, nan, huge, dark, normalise(view, HALF), values[:, :8], values * 255):
        assert refused(as_tensor(wrong), manifest) is ErrorCode.INVALID_ARGUMENT
    assert refused(as_tensor(values), manifest, "hflip") is ErrorCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("width", "height", "code"),
    [(0, 4, "image_corrupt"), (20_000, 1, "image_too_large"), (300, 1, "image_too_complex")],
)
def test_pixels_keep_to_the_limits_of_images(width, height, code):
    source = PixelImage(content=bytes(3 * width * height), width=width, height=height)
    assert refused(source, make_manifest()).value == code


def test_what_is_remembered_of_an_image_tells_form_and_shape():
    content = bytes(48)
    sources = [
        content,
        PixelImage(content=content, width=4, height=4),
        PixelImage(content=content, width=2, height=8),
        NormalisedView(content=content, width=2, height=2),
    ]
    assert len({digest_source(source) for source in sources}) == len(sources)
    assert digest_source(sources[1]) == digest_source(
        PixelImage(content=memoryview(content), width=4, height=4)
    )


def test_the_layout_does_not_tell_images_apart():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    assert digest_source(as_planes(pixels)) == digest_source(as_pixels(pixels))


def test_more_pixels_are_expected_to_take_longer():
    small, large = (PixelImage(content=bytes(n), width=1, height=1) for n in (3, 3_000_000))
    assert 0 < estimate_prepare_s(small, 1) < estimate_prepare_s(large, 1)
