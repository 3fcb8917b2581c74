"""Colour profiles are ignored unless the bundle asks for sRGB, and never stop an image."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

BACKGROUND = (10, 20, 30)


def _profile(name: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


def test_profiles_are_ignored_unless_asked_for(hostile_images, decode_pixels):
    swapped = _swapped_channels_profile()
    plain = hostile_images.encoded(hostile_images.picture(), "PNG")
    tagged = hostile_images.encoded(hostile_images.picture(), "PNG", icc_profile=swapped)
    assert np.array_equal(decode_pixels(plain), decode_pixels(tagged))
    assert np.abs(decode_pixels(tagged, to_srgb=True) - decode_pixels(plain)).mean() > 20


def _swapped_channels_profile() -> bytes:
    """The sRGB profile with the colours of red and blue exchanged: easy to see when applied."""
    profile = bytearray(_profile("sRGB"))
    (count,) = struct.unpack_from(">I", profile, 128)
    entries = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = entries[b"rXYZ"], entries[b"bXYZ"]
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


def test_converting_keeps_transparency_and_palettes(hostile_images, decode_pixels):
    profile = _swapped_channels_profile()
    opaque = hostile_images.picture()
    alpha = Image.new("L", opaque.size, 255)
    alpha.paste(0, (0, 0, 5, 5))
    clear = opaque.copy()
    clear.putalpha(alpha)
    expected = decode_pixels(
        hostile_images.encoded(opaque, "PNG", icc_profile=profile), to_srgb=True
    )
    expected[:5, :5] = BACKGROUND
    pixels = decode_pixels(
        hostile_images.encoded(clear, "PNG", icc_profile=profile),
        to_srgb=True,
        background=BACKGROUND,
    )
    assert np.array_equal(pixels, expected)
    palette = opaque.quantize(16)
    pixels = decode_pixels(
        hostile_images.encoded(palette, "PNG", icc_profile=profile), to_srgb=True
    )
    rgb = hostile_images.encoded(palette.convert("RGB"), "PNG", icc_profile=profile)
    assert np.array_equal(pixels, decode_pixels(rgb, to_srgb=True))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "I;16"])
@pytest.mark.parametrize(
    "profile", [b"not a profile", b"", _profile("LAB"), _profile("sRGB")[:200]]
)
def test_profiles_that_do_not_fit_are_ignored(mode, profile, hostile_images, decode_pixels):
    image = (
        Image.new(mode, (8, 8), 40_000)
        if mode == "I;16"
        else hostile_images.picture().convert(mode)
    )
    format = "TIFF" if mode == "CMYK" else "PNG"
    tagged = hostile_images.encoded(image, format, icc_profile=profile)
    plain = hostile_images.encoded(image, format)
    assert np.array_equal(decode_pixels(tagged, to_srgb=True), decode_pixels(plain))


def test_an_srgb_profile_changes_nothing_when_converted(hostile_images, decode_pixels):
    picture = hostile_images.picture()
    data = hostile_images.encoded(picture, "JPEG", icc_profile=_profile("sRGB"))
    assert np.abs(decode_pixels(data, to_srgb=True) - decode_pixels(data)).max() <= 1
