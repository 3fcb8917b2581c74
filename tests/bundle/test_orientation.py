"""Images are turned upright, by EXIF or XMP, and damaged EXIF stops none of them."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from service.bundle.decode import Limits, decode


def _exif_as_text(exif: bytes) -> PngInfo:
    info = PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(exif)}\n{exif.hex()}", zip=True)
    return info


def _jpeg_with_exif(f, exif: bytes) -> bytes:
    return f.encoded(f.picture(), "JPEG", quality=95, exif=b"Exif\0\0" + exif)


# Where an orientation may stand: name -> function of (makers, EXIF data).
_EXIF_PLACES = {
    "jpeg": _jpeg_with_exif,
    "png": lambda f, exif: f.encoded(f.picture(), "PNG", exif=exif),
    "webp": lambda f, exif: f.encoded(f.picture(), "WEBP", lossless=True, exif=exif),
    "ImageMagick's text in png": lambda f, exif: f.encoded(
        f.picture(), "PNG", pnginfo=_exif_as_text(exif)
    ),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("place", _EXIF_PLACES)
@pytest.mark.parametrize(("order", "kind"), [("<", 3), (">", 3), ("<", 4)])
def test_images_are_turned_upright(
    orientation, place, order, kind, hostile_images, decode_pixels, exif_block
):
    data = _EXIF_PLACES[place](hostile_images, exif_block(orientation, order=order, kind=kind))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    pixels = decode_pixels(data)
    assert np.array_equal(pixels, np.asarray(upright))
    assert (orientation > 1) == (
        not np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(data))))
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_in_xmp_and_in_tiff_counts(orientation, hostile_images, decode_pixels):
    xmp = f'<rdf:Description tiff:Orientation="{orientation}"/>'.encode()
    itxt = PngInfo()
    itxt.add_itxt("XML:com.adobe.xmp", xmp.decode(), zip=True)
    for data in (
        hostile_images.encoded(hostile_images.picture(), "WEBP", lossless=True, xmp=xmp),
        hostile_images.encoded(hostile_images.picture(), "PNG", pnginfo=itxt),
        hostile_images.encoded(hostile_images.picture(), "TIFF", tiffinfo={0x0112: orientation}),
    ):
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert np.array_equal(decode_pixels(data), np.asarray(upright))


def test_the_size_is_that_of_the_file_not_of_the_turned_image(hostile_images, exif_block):
    decoded = decode(_jpeg_with_exif(hostile_images, exif_block(6)), Limits(), background=(0, 0, 0))
    assert (decoded.width, decoded.height) == (24, 17)
    assert decoded.rgb.size == (17, 24)


def _exif_damages(block: bytes) -> dict[str, bytes]:
    return {
        "orientation 0": block.replace(struct.pack("<I", 1) + b"\6", struct.pack("<I", 1) + b"\0"),
        "orientation 99": block.replace(struct.pack("<I", 1) + b"\6", struct.pack("<I", 1) + b"c"),
        "orientation as text": block.replace(b"\x12\1\3\0", b"\x12\1\2\0"),
        "many orientations": block.replace(b"\x12\1\3\0\1", b"\x12\1\3\0\2"),
        "cut off": block[:22],
        "only its start": block[:4],
        "not EXIF": b"hello, world",
        "a directory outside": b"II*\0\xff\xff\xff\xff",
        "more tags than bytes": b"II*\0\x08\0\0\0\xff\xff" + bytes(50),
        "65,000 tags": b"II*\0\x08\0\0\0\xff\xff" + bytes(60_000),
        "values far outside": b"II*\0\x08\0\0\0\1\0\x10\1\2\0\xff\xff\xff\x7f\xff\xff\xff\x7f",
        "a thumbnail": block[:34] + b"\xff\xd8" * 20_000,
    }


@pytest.mark.parametrize("name", _exif_damages(bytes(40)))
def test_a_photograph_with_damaged_exif_is_still_one(
    name, hostile_images, decode_pixels, exif_block
):
    exif = _exif_damages(exif_block(6))[name]
    for place in ("jpeg", "webp"):
        pixels = decode_pixels(_EXIF_PLACES[place](hostile_images, exif))
        turned = name == "a thumbnail"
        assert pixels.shape == ((24, 17, 3) if turned else (17, 24, 3))


@given(exif=st.binary(max_size=200))
def test_no_exif_whatever_stops_a_photograph(exif, hostile_images, decode_pixels):
    for start in (b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"):
        assert decode_pixels(_jpeg_with_exif(hostile_images, start + exif)).size
