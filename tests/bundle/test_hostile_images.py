"""Malformed images, bombs and what is no image at all: one clear error each, and little work."""

from __future__ import annotations

import io
import tracemalloc
import warnings
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.bundle import decode as decode_module
from service.bundle.decode import Limits, decode
from service.errors import ErrorCode, RequestError

BLACK = (0, 0, 0)


def code_of(data: bytes, limits: Limits) -> ErrorCode | None:
    """Returns the code that an image is refused with, or None when it is decoded."""
    try:
        decode(data, limits, background=BLACK)
    except RequestError as error:
        caught = error
    else:
        return None
    assert "\n" not in caught.detail
    assert len(caught.detail) < 120
    return caught.code


def test_every_hostile_image_gets_its_code(hostile_image):
    data, code = hostile_image
    assert code_of(data, Limits()) == code


def test_every_hostile_image_of_the_other_formats_gets_its_code(hostile_images, all_formats):
    table = hostile_images.OPT_IN_HOSTILE_IMAGES
    found = {name: code_of(make(), all_formats) for name, (make, _) in table.items()}
    assert found == {name: code for name, (_, code) in table.items()}
    for make, _ in table.values():
        assert code_of(make(), Limits()) is ErrorCode.UNSUPPORTED_MEDIA


def _tables(hostile_images: ModuleType):
    return {**hostile_images.HOSTILE_IMAGES, **hostile_images.OPT_IN_HOSTILE_IMAGES}


def _refuse_to_work(*_):
    raise AssertionError("a decoder was started")


def test_bombs_are_refused_before_a_decoder_sees_them(hostile_images, all_formats, monkeypatch):
    decoders = dict.fromkeys(decode_module._DECODERS, _refuse_to_work)
    monkeypatch.setattr(decode_module, "_DECODERS", decoders)
    for sound in (hostile_images.jpeg(), hostile_images.png()):
        with pytest.raises(AssertionError, match="decoder was started"):
            code_of(sound, all_formats)
    for name in hostile_images.BOMBS:
        make, code = _tables(hostile_images)[name]
        assert code_of(make(), all_formats) == code, name


def test_refusing_a_bomb_takes_little_memory(hostile_images, all_formats):
    for name in hostile_images.BOMBS:
        data = _tables(hostile_images)[name][0]()
        if len(data) > 1_000_000:
            # Tracing half a million small allocations takes seconds and finds no large one.
            continue
        tracemalloc.start()
        code_of(data, all_formats)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4_000_000, name


# What a plain `Image.open(...).load()` makes of some bombs: it takes them.
NAIVELY_DECODED = (
    "jpeg of 1000 scans",
    "jpeg of 101 scans",
    "jpeg of 300000 comments",
    "jpeg of 300000 restarts",
    "png of 1 x 10000",
    "png of 100000 chunks",
    "png animation of 2000 frames",
    "webp animation of 2000 frames",
    "gif of 200000 comments",
)


@pytest.mark.parametrize("name", NAIVELY_DECODED)
def test_the_bombs_are_images_that_a_naive_decoder_takes(name, hostile_images):
    with Image.open(io.BytesIO(_tables(hostile_images)[name][0]())) as image:
        image.load()


def test_a_naive_decoder_allocates_for_a_header_that_lies(hostile_images):
    with Image.open(io.BytesIO(hostile_images.jpeg_sized(8200, 5000))) as image:
        assert image.size == (8200, 5000)


def test_as_many_scans_segments_chunks_and_frames_as_allowed_are_decoded(hostile_images):
    f = hostile_images
    scans = f.jpeg(progressive=True).count(b"\xff\xda")
    assert code_of(f.jpeg(progressive=True), Limits(max_jpeg_scans=scans)) is None
    assert code_of(f.jpeg(progressive=True), Limits(max_jpeg_scans=scans - 1))
    assert code_of(f.animation("WEBP", 64, lossless=True), Limits()) is None
    assert code_of(f.animation("PNG", 64), Limits()) is None
    assert code_of(f.png(before=f.png_chunk(b"tEXt", b"a\0b") * 4093), Limits()) is None
    assert code_of(f.png(before=f.png_chunk(b"tEXt", b"a\0b") * 4094), Limits())
    assert code_of(f.jpeg_with(b"\xff\xfe\0\2" * 4000), Limits()) is None


def test_the_larger_the_image_the_fewer_scans_are_allowed(hostile_images):
    """40 megapixels take 33 ms a scan; the header is enough to know."""
    scans = hostile_images.jpeg(progressive=True).replace(
        b"\x00\x11\x00\x18\x03", b"\x18\x6a\x19\x00\x03", 1
    )
    start = scans.rindex(b"\xff\xda")
    repeated = scans[:start] + scans[start:-2] * 40 + b"\xff\xd9"
    assert code_of(repeated, Limits()) is ErrorCode.IMAGE_TOO_COMPLEX
    small = repeated.replace(b"\x18\x6a\x19\x00\x03", b"\x00\x11\x00\x18\x03", 1)
    assert code_of(small, Limits()) is None


def test_sides_and_pixels_are_limited_to_the_last_one(hostile_images):
    image = hostile_images.picture(40, 30)
    for format in ("JPEG", "PNG", "WEBP"):
        data = hostile_images.encoded(image, format)
        assert code_of(data, Limits(max_pixels=1200, max_side=40)) is None
        assert code_of(data, Limits(max_pixels=1199)) is ErrorCode.IMAGE_TOO_LARGE
        assert code_of(data, Limits(max_side=39)) is ErrorCode.IMAGE_TOO_LARGE
        assert code_of(data, Limits(max_aspect=1)) is ErrorCode.IMAGE_TOO_COMPLEX


def test_metadata_of_a_sane_size_is_no_bomb(hostile_images):
    f = hostile_images
    text = f.png_chunk(b"zTXt", b"k\0\0" + f._deflated_zeros(1))
    assert code_of(f.png(before=text * 4), Limits()) is None
    assert code_of(f.png(before=text * 5), Limits()) is ErrorCode.IMAGE_TOO_COMPLEX


def _formats(f: ModuleType) -> dict[str, bytes]:
    image = f.picture()
    moving = {"save_all": True, "append_images": [image.rotate(180)]}
    exif = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
    return {
        "jpeg": f.jpeg(exif=exif),
        "progressive jpeg": f.jpeg(progressive=True),
        "cmyk jpeg": f.encoded(image.convert("CMYK"), "JPEG"),
        "png": f.encoded(image, "PNG", exif=exif),
        "palette png": f.encoded(image.quantize(16), "PNG", transparency=3),
        "16-bit png": f.encoded(image.convert("I;16"), "PNG"),
        "apng": f.encoded(image, "PNG", **moving),
        "webp": f.encoded(image, "WEBP"),
        "lossless webp": f.encoded(image.convert("RGBA"), "WEBP", lossless=True, exif=exif),
        "animated webp": f.encoded(image, "WEBP", **moving),
        "gif": f.encoded(image.quantize(16), "GIF"),
        "bmp": f.encoded(image, "BMP"),
        "tiff": f.encoded(image, "TIFF"),
        "lzw tiff": f.encoded(image, "TIFF", compression="tiff_lzw"),
    }


@pytest.fixture(scope="session")
def sound_images(hostile_images) -> dict[str, bytes]:
    """A small sound image of each kind."""
    return _formats(hostile_images)


KINDS = (
    *("jpeg", "progressive jpeg", "cmyk jpeg", "png", "palette png", "16-bit png", "apng", "webp"),
    *("lossless webp", "animated webp", "gif", "bmp", "tiff", "lzw tiff"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_cut_off_at_sixteen_places_is_refused(kind, sound_images, all_formats):
    data = sound_images[kind]
    assert code_of(data, all_formats) is None
    for sixteenth in range(16):
        code = code_of(data[: len(data) * sixteenth // 16], all_formats)
        if sixteenth == 0:
            assert code is ErrorCode.EMPTY_BODY
        elif kind == "gif" and sixteenth == 15:
            # All the pixels may be there: only the trailer is cut off.
            assert code in (None, ErrorCode.IMAGE_CORRUPT)
        else:
            assert code is ErrorCode.IMAGE_CORRUPT, sixteenth


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_flipped_bits_give_pixels_or_a_clear_error(kind, data, sound_images, all_formats):
    damaged = bytearray(sound_images[kind])
    flips = st.integers(0, 8 * len(damaged) - 1)
    for bit in data.draw(st.lists(flips, min_size=1, max_size=12)):
        damaged[bit // 8] ^= 1 << bit % 8
    with warnings.catch_warnings():
        if "tiff" in kind:
            # Off by default; Pillow warns about its tags.
            warnings.simplefilter("ignore")
        code = code_of(bytes(damaged), all_formats)
    assert code in (
        None,
        ErrorCode.IMAGE_CORRUPT,
        ErrorCode.IMAGE_TOO_LARGE,
        ErrorCode.IMAGE_TOO_COMPLEX,
        ErrorCode.UNSUPPORTED_MEDIA,
        ErrorCode.UNSUPPORTED_CODEC,
    )


@settings(max_examples=200)
@given(
    start=st.sampled_from(
        [
            b"\xff\xd8\xff",
            b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR",
            b"RIFF\x40\0\0\0WEBPVP8X",
            b"GIF89a",
            b"BM",
        ]
    ),
    rest=st.binary(max_size=300),
)
def test_garbage_after_a_good_start_is_a_clear_error(start, rest, all_formats):
    assert code_of(start + rest, all_formats) is not None


@pytest.mark.parametrize("kind", ["png", "palette png", "apng"])
def test_no_flipped_bit_of_png_pixels_goes_unnoticed(kind, sound_images):
    """Browsers refuse it too; Pillow alone may show other pixels."""
    data = sound_images[kind]
    start = data.index(b"IDAT") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big")
    for at in range(start, start + length + 4):
        assert code_of(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :], Limits())


def test_an_allocation_that_fails_is_the_images_fault(hostile_images, monkeypatch):
    def load(self):
        raise MemoryError

    monkeypatch.setattr(decode_module._JpegImageFile, "load", load)
    assert code_of(hostile_images.jpeg(), Limits()) is ErrorCode.IMAGE_CORRUPT
