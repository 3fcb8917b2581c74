"""One picture through every encoding that people really send gives nearly the same pixels."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from service.bundle.decode import Limits, decode, sniff
from service.errors import ErrorCode, RequestError

BACKGROUND = (10, 20, 30)

# The seven passes of Adam7 (W3C PNG, 8.2): first column, first row, step across, step down.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
_ADAM7 += ((0, 1, 1, 2),)


def _interlaced_png(f) -> bytes:
    pixels = np.asarray(f.picture())
    rows = b""
    for left, top, across, down in _ADAM7:
        part = pixels[top::down, left::across]
        rows += b"".join(b"\0" + row.tobytes() for row in part if row.size)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    data = f.png_chunk(b"IDAT", zlib.compress(rows))
    return f.PNG_SIGNATURE + f.png_chunk(b"IHDR", header) + data + f.png_chunk(b"IEND")


def _rgb_png_of_16_bits(f) -> bytes:
    samples = np.asarray(f.picture()).astype(np.uint16) * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return f.png(*f.picture().size, depth=16, rows=rows)


def _ycck_jpeg(f) -> bytes:
    """As Photoshop saves CMYK: C, M and Y as luminance and chrominance, all of it inverted."""
    cyan, magenta, yellow, black = f.picture().convert("CMYK").split()
    luminance = np.asarray(Image.merge("RGB", (cyan, magenta, yellow)).convert("YCbCr"))
    bands = np.dstack([255 - luminance, np.asarray(black)]).astype(np.uint8)
    image = Image.frombytes("CMYK", f.picture().size, bands.tobytes())
    data = f.encoded(image, "JPEG", quality=95)
    transform = data.index(b"Adobe") + 11
    return data[:transform] + b"\2" + data[transform + 1 :]


def _jpeg_without_huffman_tables(f) -> bytes:
    data = f.encoded(f.picture(), "JPEG", quality=95)
    return data[: data.index(b"\xff\xc4")] + data[data.index(b"\xff\xda") :]


def _turned(f) -> Image.Image:
    return f.picture().rotate(180)


def _profile(name: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


def _jpeg(**options):
    return lambda f: f.encoded(f.picture(), "JPEG", **{"quality": 95, "subsampling": 0, **options})


def _saved(format, **options):
    return lambda f: f.encoded(f.picture(), format, **options)


# name -> (function that encodes the picture, largest mean difference in levels of 255)
SAME_PICTURE = {
    "jpeg": (_jpeg(), 2),
    "jpeg, progressive": (_jpeg(progressive=True), 2),
    "jpeg, optimised": (_jpeg(optimize=True), 2),
    "jpeg, 4:2:2": (_jpeg(subsampling=1), 6),
    "jpeg, 4:2:0": (_jpeg(subsampling=2), 6),
    "jpeg, restart markers": (_jpeg(restart_marker_blocks=1), 2),
    "jpeg, RGB inside (Adobe transform 0)": (_jpeg(keep_rgb=True), 2),
    "jpeg, CMYK": (lambda f: f.encoded(f.picture().convert("CMYK"), "JPEG", quality=95), 1),
    "jpeg, YCCK": (_ycck_jpeg, 2),
    "jpeg, the huffman tables left out (film frames)": (_jpeg_without_huffman_tables, 6),
    "jpeg, then html": (lambda f: _jpeg()(f) + b"<html><script>alert(1)</script>", 2),
    "jpeg, then a film": (lambda f: _jpeg()(f) + b"ftypmp42" + b"\xff\xda\0\x0c" * 500, 2),
    "jpeg, then a zip": (lambda f: _jpeg()(f) + f.HOSTILE_IMAGES["a zip"][0](), 2),
    "jpeg, scan markers in a comment": (_jpeg(comment=b"\xff\xda" * 500), 2),
    "jpeg, broken profile": (_jpeg(icc_profile=b"not a profile"), 2),
    "jpeg, sRGB profile": (_jpeg(icc_profile=_profile("sRGB")), 2),
    "mpo": (lambda f: f.encoded(
        f.picture(), "MPO", save_all=True, append_images=[_turned(f)], quality=95
    ), 6),
    "png": (_saved("PNG"), 0),
    "png, interlaced": (_interlaced_png, 0),
    "png, 16 bits": (_rgb_png_of_16_bits, 0),
    "png, opaque alpha": (lambda f: f.encoded(f.picture().convert("RGBA"), "PNG"), 0),
    "png, trailing bytes": (lambda f: f.encoded(f.picture(), "PNG") + bytes(99), 0),
    "png, broken profile": (_saved("PNG", icc_profile=b"not a profile"), 0),
    "png, a text called exif": (
        lambda f: f.encoded(f.picture(), "PNG", pnginfo=_text("exif", "hello")), 0
    ),
    "apng": (lambda f: f.encoded(
        f.picture(), "PNG", save_all=True, append_images=[_turned(f)]
    ), 0),
    "apng, default picture apart": (lambda f: f.encoded(
        f.picture(), "PNG", save_all=True, default_image=True, append_images=[_turned(f)]
    ), 0),
    "webp": (_saved("WEBP", quality=95), 6),
    "webp, lossless": (_saved("WEBP", lossless=True), 0),
    "webp, opaque alpha": (
        lambda f: f.encoded(f.picture().convert("RGBA"), "WEBP", lossless=True), 0
    ),
    "webp, animated": (lambda f: f.encoded(
        f.picture(), "WEBP", save_all=True, append_images=[_turned(f)], lossless=True
    ), 0),
    "webp, broken profile": (_saved("WEBP", lossless=True, icc_profile=b"not a profile"), 0),
    "bmp": (_saved("BMP"), 0),
    "bmp, alpha": (lambda f: f.encoded(f.picture().convert("RGBA"), "BMP"), 0),
    "tiff": (_saved("TIFF"), 0),
    "tiff, lzw": (_saved("TIFF", compression="tiff_lzw"), 0),
    "tiff, deflate": (_saved("TIFF", compression="tiff_adobe_deflate"), 0),
    "tiff, CMYK": (lambda f: f.encoded(f.picture().convert("CMYK"), "TIFF"), 0),
    "tiff, strips of one row": (_saved("TIFF", tiffinfo={278: 1}), 0),
    "tiff, big-endian tiles of deflate": (_saved("TIFF", compression="packbits"), 0),
}  # fmt: skip


def _text(key: str, text: str, **options) -> PngInfo:
    info = PngInfo()
    info.add_text(key, text, **options)
    return info


@pytest.mark.parametrize("name", SAME_PICTURE)
def test_the_same_picture_gives_nearly_the_same_pixels(name, hostile_images, decode_pixels):
    make, tolerance = SAME_PICTURE[name]
    pixels = decode_pixels(make(hostile_images))
    assert np.abs(pixels - np.asarray(hostile_images.picture())).mean() <= tolerance


def test_the_tolerances_would_notice_a_turned_picture(hostile_images):
    difference = np.asarray(hostile_images.picture()).astype(int) - _turned(hostile_images)
    assert np.abs(difference).mean() > 40


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("colours", [2, 4, 16, 256])
def test_palettes_are_looked_up(format, colours, hostile_images, decode_pixels):
    image = hostile_images.picture().quantize(colours)
    pixels = decode_pixels(hostile_images.encoded(image, format))
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_becomes_grey_rgb(format, mode, hostile_images, decode_pixels):
    image = hostile_images.picture().convert(mode)
    options = {"lossless": True} if format == "WEBP" else {"quality": 95}
    pixels = decode_pixels(hostile_images.encoded(image, format, **options))
    assert np.abs(pixels - np.asarray(image.convert("RGB"))).mean() <= 4 * (format == "JPEG")
    assert (pixels[..., :1] == pixels).all()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_small_greys_reach_from_black_to_white(depth, hostile_images, decode_pixels):
    row = np.packbits(np.arange(2**depth, dtype=np.uint8)[:, None] >> np.arange(depth)[::-1] & 1)
    data = hostile_images.png(2**depth, 1, depth=depth, colour=0, rows=b"\0" + row.tobytes())
    assert decode_pixels(data)[0, :, 0].tolist() == np.linspace(0, 255, 2**depth).tolist()


def _png_of_all_16_bit_greys(f) -> bytes:
    rows = np.arange(65_536, dtype=">u2").reshape(256, 256)
    return f.png(256, 256, depth=16, colour=0, rows=b"".join(b"\0" + row.tobytes() for row in rows))


def _tiff_of_all_16_bit_greys(f) -> bytes:
    return f.encoded(Image.fromarray(np.arange(65_536, dtype=np.uint16).reshape(256, 256)), "TIFF")


@pytest.mark.parametrize("make", [_png_of_all_16_bit_greys, _tiff_of_all_16_bit_greys])
def test_16_bit_grey_is_scaled_not_clipped(make, hostile_images, decode_pixels):
    data = make(hostile_images)
    grey = decode_pixels(data)[..., 0].ravel()
    assert np.array_equal(grey, np.round(np.arange(65_536) / 257))
    naive = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[..., 0].ravel()
    assert (naive == 255).mean() > 0.9


def test_the_first_frame_of_a_gif_is_taken(hostile_images, decode_pixels):
    first, second = (
        image.quantize(16) for image in (hostile_images.picture(), _turned(hostile_images))
    )
    options = {"save_all": True, "append_images": [second, first, second], "disposal": 2}
    data = hostile_images.encoded(first, "GIF", **options)
    assert Image.open(io.BytesIO(data)).n_frames == 4
    assert np.array_equal(decode_pixels(data), np.asarray(first.convert("RGB")))


@pytest.mark.parametrize("size", [(1, 1), (1, 64), (64, 1), (3, 2)])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_tiny_images_have_their_size(format, size, hostile_images, all_formats):
    image = Image.new("RGB", size, (90, 60, 30))
    decoded = decode(hostile_images.encoded(image, format), all_formats, background=BACKGROUND)
    assert (decoded.width, decoded.height) == decoded.rgb.size == size
    assert decoded.format == format.lower()


def test_formats_that_are_off_are_refused_by_name(hostile_images):
    data = hostile_images.encoded(hostile_images.picture(), "GIF")
    with pytest.raises(RequestError, match=r"jpeg, png, webp$") as caught:
        decode(data, Limits(), background=BACKGROUND)
    assert caught.value.code is ErrorCode.UNSUPPORTED_MEDIA


def test_the_format_comes_from_the_first_bytes(hostile_images):
    for form in ("jpeg", "png", "webp", "gif", "bmp", "tiff"):
        assert sniff(hostile_images.encoded(hostile_images.picture(), form.upper())) == form
    assert sniff(b"") is None
    assert sniff(b"<html>") is None
