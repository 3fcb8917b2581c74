"""The cost of decoding, read from headers: it follows the pixels, and nothing can hide from it."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.bundle.decode_cost import estimate_decode_s
from service.bundle.structure import read_webp_canvas

MAX_PIXELS = 40_000_000
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]


def encode(form, size, **options):
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def estimate(data):
    return estimate_decode_s(data, MAX_PIXELS)


@pytest.mark.parametrize("form", FORMATS)
def test_sixteen_times_the_pixels_cost_up_to_sixteen_times_as_much(form):
    small, large = (estimate(encode(form, (side, side + 3))) for side in (256, 1024))
    fixed = 0.5e-3
    assert 14 <= (large - fixed) / (small - fixed) <= 18


def test_a_progressive_jpeg_costs_more_and_more_with_each_scan():
    plain = encode("JPEG", (640, 480))
    progressive = encode("JPEG", (640, 480), progressive=True)
    bomb = progressive[:-2] + b"\xff\xda" * 90
    assert 1.2 * estimate(plain) < estimate(progressive) < estimate(bomb) / 2


def test_sixteen_bits_cost_more_than_eight():
    grey = np.zeros((500, 500), np.uint16)
    files = [io.BytesIO(), io.BytesIO()]
    Image.fromarray(grey).save(files[0], "PNG")
    Image.fromarray(grey.astype(np.uint8)).save(files[1], "PNG")
    assert estimate(files[0].getvalue()) > 1.4 * estimate(files[1].getvalue())


def test_what_is_refused_for_its_size_costs_nothing():
    jpeg = bytearray(encode("JPEG", (64, 64)))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65_000, 65_000)
    assert estimate(bytes(jpeg)) == 0


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1", b"%PDF-1.7", b"RIFF\0\0\0\0WEBPVP9 "])
def test_what_is_no_image_costs_nothing(data):
    assert estimate(data) == 0


def test_a_frame_header_cannot_be_hidden_behind_segments():
    jpeg = encode("JPEG", (64, 64))
    hidden = jpeg[:2] + b"\xff\xfe\x00\x02" * 300 + jpeg[2:]
    assert estimate(hidden) > 100 * estimate(jpeg)
    assert estimate(jpeg[:2] + b"\xff" * 40 + jpeg[2:]) == pytest.approx(estimate(jpeg), rel=0.01)


def test_a_header_that_is_cut_off_is_charged_for_the_most():
    assert estimate(b"\xff\xd8\xff\xe0\x00\x10JFIF") > 0.1
    assert estimate(b"\x89PNG\r\n\x1a\n") > 0


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0II*\0"}])
def test_the_canvas_of_every_kind_of_webp_is_read(options):
    assert read_webp_canvas(encode("WEBP", (70, 31), **options)) == (70, 31)


@settings(max_examples=300, deadline=None)
@given(
    form=st.sampled_from(FORMATS),
    cuts=st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=9)), max_size=6),
    length=st.integers(0, 3000),
)
def test_no_file_makes_it_fail_or_answer_nonsense(form, cuts, length):
    data = bytearray(encode(form, (20, 13)))
    for at, junk in cuts:
        data[at : at + len(junk)] = junk
    # No byte of a file can make it dearer than the dearest format, bytes and scans included.
    assert 0 <= estimate(bytes(data[:length])) < 2.0
