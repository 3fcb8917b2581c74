"""Transparent images are laid over the bundle's background, whatever says what is transparent."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

BACKGROUND = (10, 20, 30)


def test_a_transparent_picture_is_laid_over_the_background(hostile_images, decode_pixels):
    alpha = Image.linear_gradient("L").resize(hostile_images.picture().size)
    for mode, save in (
        ("RGBA", {"format": "PNG"}),
        ("LA", {"format": "PNG"}),
        ("RGBA", {"format": "WEBP", "lossless": True, "exact": True}),
        ("RGBA", {"format": "TIFF"}),
        ("LA", {"format": "TIFF"}),
    ):
        image = hostile_images.picture().convert("L" if mode == "LA" else "RGB")
        share = np.asarray(alpha)[..., None] / 255
        expected = np.asarray(image.convert("RGB")) * share + np.array(BACKGROUND) * (1 - share)
        image.putalpha(alpha)
        assert image.mode == mode
        pixels = decode_pixels(hostile_images.encoded(image, **save), background=BACKGROUND)
        assert np.abs(pixels - expected).max() <= 1, (mode, save)


# name -> (depth, colour type, one row of two pixels, chunks): the second pixel is transparent
_TRANSPARENT_SECOND = {
    "1-bit grey": (1, 0, b"\x80", {b"tRNS": b"\0\0"}),
    "2-bit grey": (2, 0, b"\xc0", {b"tRNS": b"\0\0"}),
    "2-bit white": (2, 0, b"\x30", {b"tRNS": b"\0\3"}),
    "4-bit white": (4, 0, b"\x0f", {b"tRNS": b"\0\x0f"}),
    "8-bit grey": (8, 0, b"\x08\x09", {b"tRNS": b"\0\x09"}),
    "16-bit grey": (16, 0, b"\x90\0\x90\1", {b"tRNS": b"\x90\1"}),
    "8-bit RGB": (8, 2, b"\1\2\3\1\2\4", {b"tRNS": b"\0\1\0\2\0\4"}),
    "palette": (8, 3, b"\0\1", {b"PLTE": b"\1\2\3\4\5\6", b"tRNS": b"\xff\0"}),
    "1-bit palette": (1, 3, b"\x40", {b"PLTE": b"\1\2\3\4\5\6", b"tRNS": b"\xff\0"}),
    "8-bit grey with alpha": (8, 4, b"\x08\xff\x08\0", {}),
    "16-bit RGB with alpha": (16, 6, b"\1\1\2\2\3\3\xff\xff\1\1\2\2\3\3\0\0", {}),
}


@pytest.mark.parametrize("name", _TRANSPARENT_SECOND)
def test_every_kind_of_png_transparency_shows_the_background(name, hostile_images, decode_pixels):
    depth, colour, row, chunks = _TRANSPARENT_SECOND[name]
    before = b"".join(hostile_images.png_chunk(*chunk) for chunk in chunks.items())
    data = hostile_images.png(2, 1, depth=depth, colour=colour, rows=b"\0" + row, before=before)
    first, second = decode_pixels(data, background=(200, 100, 50))[0].tolist()
    assert second == [200, 100, 50]
    assert first != second


def test_half_transparent_palette_entries_are_mixed(hostile_images, decode_pixels):
    before = hostile_images.png_chunk(b"PLTE", b"\xff\0\0\0\xff\0")
    before += hostile_images.png_chunk(b"tRNS", b"\x80")
    data = hostile_images.png(2, 1, colour=3, rows=b"\0\0\1", before=before)
    assert decode_pixels(data, background=(0, 0, 255))[0].tolist() == [[128, 0, 127], [0, 255, 0]]


def test_transparent_gif_and_a_frame_smaller_than_its_canvas(hostile_images, decode_pixels):
    image = Image.new("P", (4, 4), 1)
    image.putpixel((0, 0), 0)
    image.putpalette(bytes([9, 9, 9, 200, 0, 0]))
    data = hostile_images.encoded(image, "GIF", transparency=0)
    screen = data[:6] + struct.pack("<HH", 8, 4) + data[10:]
    pixels = decode_pixels(screen, background=BACKGROUND)
    assert (pixels[1:, :4] == (200, 0, 0)).all()
    assert (pixels[0, 0] == BACKGROUND).all()
    assert (pixels[:, 4:] == BACKGROUND).all()
