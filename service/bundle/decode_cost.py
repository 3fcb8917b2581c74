"""What decoding an image should cost, read from its header before anything is decoded.

A photograph of 40 megapixels takes as long as two hundred ordinary ones, so a queue that counts
images knows nothing. The figures are seconds of decode and resize on one core of an AMD EPYC with
Pillow 13, fitted to files of 64 x 64 to 3000 x 2000 pixels (docs/decisions.md); on other machines
they are out by one factor, which the server measures. The truth is within half and twice.
"""

from __future__ import annotations

import struct
from typing import Final

from service.bundle.structure import Format, read_webp_canvas, sniff
from service.errors import RequestError

_EACH_S: Final = 0.5e-3
_NS_A_PIXEL: Final[dict[Format, float]] = {
    "jpeg": 5.5,
    "png": 0.0,  # by samples, below
    "webp": 15.0,
    "gif": 10.0,
    "bmp": 4.5,
    "tiff": 13.0,
}
_NS_A_BYTE: Final[dict[Format, float]] = {
    "jpeg": 9.0,
    "png": 14.0,
    "webp": 8.0,
    "gif": 0.0,
    "bmp": 0.0,
    "tiff": 0.0,
}
# A progressive JPEG is entropy-decoded in small pieces, and each scan passes over all its blocks.
_PROGRESSIVE_NS_A_BYTE: Final = 20.0
_NS_A_PIXEL_AND_SCAN: Final = 0.37
_PNG_NS_A_SAMPLE_BYTE: Final = 3.5
_PNG_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}

# Photographs have about ten segments before the frame header. Who hides it deeper is charged for
# the most pixels that there may be, and so is a file without one that can be read.
_MAX_JPEG_SEGMENTS: Final = 256
_JPEG_FRAMES: Final = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_JPEG_PROGRESSIVE: Final = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_JPEG_START_OF_SCAN: Final = b"\xff\xda"
_MAX_TIFF_TAGS: Final = 256
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257

_segment = struct.Struct(">BBH").unpack_from
_frame_size = struct.Struct(">HH").unpack_from


def estimate_decode_s(data: bytes, max_pixels: int) -> float:
    """Returns the CPU-seconds that `prepare` should take for an encoded image.

    Files that are refused undecoded, as by their size, cost next to nothing. Nothing is raised: a
    damaged file is for the decoder to find.
    """
    form = sniff(data)
    if form is None:
        return 0.0
    try:
        pixels, extra_ns = _read_header(data, form, max_pixels)
    except (struct.error, IndexError):
        pixels, extra_ns = max_pixels, 0.0
    except RequestError:
        return 0.0
    if pixels > max_pixels:
        return 0.0
    ns = pixels * _NS_A_PIXEL[form] + len(data) * _NS_A_BYTE[form] + extra_ns
    return _EACH_S + ns * 1e-9


def _read_header(data: bytes, form: Format, max_pixels: int) -> tuple[int, float]:
    """Returns the pixels, and the nanoseconds beyond the format's usual ones for them."""
    match form:
        case "jpeg":
            return _read_jpeg(data, max_pixels)
        case "png":
            width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
            sample_bytes = width * height * _PNG_CHANNELS.get(colour, 4) * depth / 8
            return width * height, sample_bytes * _PNG_NS_A_SAMPLE_BYTE
        case "webp":
            width, height = read_webp_canvas(data)
        case "gif":
            width, height = struct.unpack_from("<HH", data, 6)
        case "bmp":
            width, height = struct.unpack_from("<ii", data, 18)
        case "tiff":
            width, height = _read_tiff_size(data)
    return abs(width * height), 0.0


def _read_jpeg(data: bytes, max_pixels: int) -> tuple[int, float]:
    at = 2
    for _ in range(_MAX_JPEG_SEGMENTS):
        prefix, marker, length = _segment(data, at)
        if prefix != 0xFF:
            break
        if marker in _JPEG_FRAMES:
            height, width = _frame_size(data, at + 5)
            pixels = height * width
            if marker not in _JPEG_PROGRESSIVE:
                return pixels, 0.0
            bytes_ns = len(data) * (_PROGRESSIVE_NS_A_BYTE - _NS_A_BYTE["jpeg"])
            scans = data.count(_JPEG_START_OF_SCAN)
            return pixels, bytes_ns + scans * pixels * _NS_A_PIXEL_AND_SCAN
        at += 1 if marker == 0xFF else 2 + length
    return max_pixels, 0.0


def _read_tiff_size(data: bytes) -> tuple[int, int]:
    order = "<" if data.startswith(b"II") else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    (tags,) = struct.unpack_from(order + "H", data, at)
    sizes = {_TIFF_WIDTH: 0, _TIFF_HEIGHT: 0}
    for start in range(at + 2, at + 2 + 12 * min(tags, _MAX_TIFF_TAGS), 12):
        tag, kind = struct.unpack_from(order + "HH", data, start)
        if tag in sizes:
            # A number has 16 bits (type 3) or 32.
            (sizes[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, start + 8)
    return sizes[_TIFF_WIDTH], sizes[_TIFF_HEIGHT]
