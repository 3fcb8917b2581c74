"""Files that must be answered with a clear error: name -> (function that makes it, its code).

`HOSTILE_IMAGES` goes with the formats that are on by default, `OPT_IN_HOSTILE_IMAGES` with GIF,
BMP and TIFF on as well. `BOMBS` are those that have to be refused before a decoder sees them. No
file is over 3 MB. Other tests take them from the fixture `hostile_images` (tests/conftest.py).
"""

from __future__ import annotations

import base64
import gzip
import io
import pickle
import struct
import zlib
from collections.abc import Callable
from functools import cache, partial

import numpy as np
from PIL import Image

from service.errors import ErrorCode

Maker = Callable[[], bytes]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MEGABYTE = 1 << 20


def picture(width: int = 24, height: int = 17) -> Image.Image:
    """A colourful picture with hard and soft edges."""
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    planes = [across * 255, down * 255, (np.sin(9 * across * down) + 1) * 127]
    pixels = np.stack(planes, axis=2).astype(np.uint8)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = (200, 30, 90)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_chunk(kind: bytes, content: bytes = b"") -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(
    width: int = 1,
    height: int = 1,
    *,
    depth: int = 8,
    colour: int = 2,
    rows: bytes = b"\0\xff\0\0",
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A PNG from its filtered rows; `before` and `after` are chunks around the image data."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + before + png_chunk(b"IDAT", zlib.compress(rows)) + after
    return PNG_SIGNATURE + chunks + png_chunk(b"IEND")


def jpeg(**options: object) -> bytes:
    return encoded(picture(), "JPEG", **options)


def jpeg_with(segments: bytes) -> bytes:
    """A JPEG with something between its first marker and the others."""
    return jpeg()[:2] + segments + jpeg()[2:]


def jpeg_sized(width: int, height: int, *, marker: int = 0xC0, bits: int = 8) -> bytes:
    """A JPEG whose header claims another size, coding process or precision."""
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0")
    data[at + 1] = marker
    data[at + 4 : at + 9] = struct.pack(">BHH", bits, height, width)
    return bytes(data)


def webp_chunk(kind: bytes, content: bytes = b"") -> bytes:
    return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def webp(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def animation(format: str, frames: int, **options: object) -> bytes:
    first, *others = (Image.new("RGB", (2, 2), (i % 251, i // 251, 0)) for i in range(frames))
    return encoded(first, format, save_all=True, append_images=others, **options)


def gif_with(blocks: bytes, *, frame: tuple[int, int] = (24, 17)) -> bytes:
    """A GIF with blocks before its first frame, and another size of that frame."""
    data = encoded(picture().quantize(16), "GIF")
    at = data.index(b",", 13 + 3 * 16)
    return data[:at] + blocks + data[at : at + 5] + struct.pack("<HH", *frame) + data[at + 9 :]


def tiff(tags: dict[int, tuple[int, int]], tail: bytes = b"") -> bytes:
    """A little-endian TIFF; tags are number -> (count, value), 32 bits each."""
    entries = b"".join(struct.pack("<HHII", tag, 4, *tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + tail


def tiff_with(extra: dict[int, tuple[int, int]], tail: bytes = b"") -> bytes:
    grey = {256: (1, 64), 257: (1, 64), 258: (1, 8), 259: (1, 1), 262: (1, 1), 277: (1, 1)}
    return tiff({**grey, 273: (1, 8), 279: (1, 4096), **extra}, tail)


def _scan_bomb(scans: int) -> bytes:
    data = jpeg(progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


@cache
def _deflated_zeros(megabytes: int) -> bytes:
    return zlib.compress(bytes(megabytes * _MEGABYTE))


def _without(data: bytes, start: bytes, stop: bytes) -> bytes:
    return data[: data.index(start)] + data[data.index(stop) :]


def _bmp_sized(width: int, height: int) -> bytes:
    data = encoded(picture(), "BMP")
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


def _run_length_bmp() -> bytes:
    start = b"BM" + struct.pack("<IHHI", 198, 0, 0, 118)
    header = struct.pack("<IiiHHIIiiII", 40, 24, 17, 1, 4, 2, 80, 0, 0, 16, 16)
    return start + header + bytes(64 + 80)


def _with_codes(code: ErrorCode, makers: dict[str, Maker]) -> dict[str, tuple[Maker, ErrorCode]]:
    return {name: (maker, code) for name, maker in makers.items()}


_CORRUPT: dict[str, Maker] = {
    "jpeg start only": lambda: jpeg()[:3],
    "jpeg without scan": lambda: jpeg()[: jpeg().index(b"\xff\xda")] + b"\xff\xd9",
    "jpeg without end": lambda: jpeg()[:-2],
    "progressive jpeg without end": lambda: jpeg(progressive=True)[:-2],
    "jpeg with impossible huffman table": lambda: jpeg().replace(
        b"\xff\xc4\x00\x1f\x00", b"\xff\xc4\x00\x1f\x00\xff\xff\xff", 1
    ),
    "jpeg without quantization tables": lambda: _without(jpeg(), b"\xff\xdb", b"\xff\xc0"),
    "jpeg of height 0 (DNL)": lambda: jpeg_sized(24, 0),
    "jpeg of 12 bits": lambda: jpeg_sized(24, 17, marker=0xC1, bits=12),
    "lossless jpeg": lambda: jpeg_sized(24, 17, marker=0xC3),
    "hierarchical jpeg": lambda: jpeg_sized(24, 17, marker=0xC5),
    "jpeg with two frames": lambda: jpeg_with(jpeg()[(at := jpeg().index(b"\xff\xc0")) : at + 19]),
    "jpeg with 100 kB of padding": lambda: jpeg_with(b"\xff" * 100_000),
    "png signature only": lambda: PNG_SIGNATURE,
    "png of size 0": lambda: png(0, 0, rows=b""),
    "png of height 0": lambda: png(5, 0, rows=b""),
    "png without header": lambda: PNG_SIGNATURE + png()[33:],
    "png of an iPhone application (CgBI)": lambda: (
        PNG_SIGNATURE + png_chunk(b"CgBI", bytes(4)) + png()[8:]
    ),
    "png without image data": lambda: png()[:33] + png_chunk(b"IEND"),
    "png without end": lambda: png()[:-12],
    "png with a wrong header checksum": lambda: _flipped(png(), 30),
    "png with a wrong data checksum": lambda: _flipped(png(), len(png()) - 14),
    "png with a flipped bit of data": lambda: _flipped(encoded(picture(), "PNG"), 200),
    "png with too little data": lambda: png(4, 4, rows=b"\0\xff\0\0"),
    "png of an unknown colour type": lambda: png(colour=5),
    "png of 3 bits": lambda: png(depth=3),
    "png with an unknown filter": lambda: png(rows=b"\x09\xff\0\0"),
    "png with a profile of an unknown compression": lambda: png(
        before=png_chunk(b"iCCP", b"k\0\x05abc")
    ),
    "png with short transparency": lambda: png(before=png_chunk(b"tRNS", b"\0")),
    "png that says it is animated twice": lambda: png(
        before=png_chunk(b"acTL", struct.pack(">II", 1, 0)) * 2
    ),
    "png animation of no frames": lambda: png(before=png_chunk(b"acTL", bytes(8))),
    "png animation with a frame outside": lambda: png(
        before=png_chunk(b"acTL", struct.pack(">II", 2, 0))
        + png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 1, 1, 7, 7, 1, 1, 0, 0))
    ),
    "webp signature only": lambda: b"RIFF\x04\0\0\0WEBP",
    "webp of an unknown kind": lambda: webp(webp_chunk(b"VP9 ", bytes(40))),
    "webp that claims to be longer": lambda: b"RIFF\xff\xff\0\0" + encoded(picture(), "WEBP")[8:],
    "webp of garbage": lambda: webp(webp_chunk(b"VP8 ", b"\x9d\x01\x2a" * 30)),
    "webp canvas without a picture": lambda: webp(
        webp_chunk(b"VP8X", bytes(4) + b"\x07\0\0\x07\0\0")
    ),
}

_TOO_LARGE: dict[str, Maker] = {
    "png of 2**31 - 1 pixels wide": lambda: png(2**31 - 1, 1),
    "png of 100000 x 100000": lambda: png(100_000, 100_000),
    "png of 41 megapixels": lambda: png(8200, 5000),
    "png of 16385 x 200": lambda: png(16_385, 200),
    "jpeg of 65500 x 65500": lambda: jpeg_sized(65_500, 65_500),
    "jpeg of 41 megapixels": lambda: jpeg_sized(8200, 5000),
    "jpeg of 13000 x 13000": lambda: jpeg_sized(13_000, 13_000),
    "webp of 16384 x 16384": lambda: webp(
        webp_chunk(b"VP8X", bytes(4) + b"\xff\x3f\0\xff\x3f\0") + bytes(20)
    ),
    "lossless webp of 16384 x 16384": lambda: webp(webp_chunk(b"VP8L", b"\x2f" + b"\xff" * 20)),
    "lossy webp of 16383 x 16383": lambda: webp(
        webp_chunk(b"VP8 ", b"\x50\0\0\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(20))
    ),
}

_TOO_COMPLEX: dict[str, Maker] = {
    "png of 1 x 10000": lambda: encoded(picture(1, 10_000), "PNG"),
    "jpeg of 10000 x 1": lambda: encoded(picture(10_000, 1), "JPEG"),
    "webp of 1 x 10000": lambda: encoded(picture(1, 10_000), "WEBP"),
    "jpeg of 1000 scans": lambda: _scan_bomb(1000),
    "jpeg of 101 scans": lambda: _scan_bomb(101 - 9),
    "jpeg of 300000 comments": lambda: jpeg_with(b"\xff\xfe\0\2" * 300_000),
    "jpeg of 300000 restarts": lambda: jpeg_with(b"\xff\xd0" * 300_000),
    "png of 100000 chunks": lambda: png(before=png_chunk(b"tEXt", b"a\0b") * 100_000),
    "png of 100000 empty data chunks": lambda: png(before=png_chunk(b"IDAT") * 100_000),
    "png with 100 MB of text (zTXt)": lambda: png(
        before=png_chunk(b"zTXt", b"k\0\0" + _deflated_zeros(100))
    ),
    "png with 100 MB of text (iTXt)": lambda: png(
        before=png_chunk(b"iTXt", b"k\0\1\0en\0k\0" + _deflated_zeros(100))
    ),
    "png with a profile of 100 MB": lambda: png(
        before=png_chunk(b"iCCP", b"k\0\0" + _deflated_zeros(100))
    ),
    "png with text of 100 MB at its end": lambda: png(
        after=png_chunk(b"zTXt", b"k\0\0" + _deflated_zeros(100))
    ),
    "png with 1000 profiles of 1 MB": lambda: png(
        before=png_chunk(b"iCCP", b"k\0\0" + _deflated_zeros(1)) * 1000
    ),
    "png animation of 2**31 frames": lambda: png(
        before=png_chunk(b"acTL", struct.pack(">II", 2**31, 0))
    ),
    "png animation of 2000 frames": lambda: animation("PNG", 2000),
}

# Its decoder counts the frames, so it is opened.
_TOO_COMPLEX_INSIDE: dict[str, Maker] = {
    "webp animation of 2000 frames": lambda: animation("WEBP", 2000, lossless=True),
    "webp animation of 65 frames": lambda: animation("WEBP", 65, lossless=True),
}

_ENCODED = ("AVIF", "BMP", "DDS", "EPS", "GIF", "ICO", "JPEG2000", "PDF", "QOI", "TGA", "TIFF")

_UNSUPPORTED: dict[str, Maker] = {
    **{name.lower(): partial(lambda name: encoded(picture(), name), name) for name in _ENCODED},
    "random bytes": lambda: np.random.default_rng(5).bytes(5000),
    "zeros": lambda: bytes(1000),
    "text": lambda: b"a photograph of a cat\n",
    "UTF-16 text": lambda: "a photograph".encode("utf-16"),
    "a url": lambda: b"http://169.254.169.254/latest/meta-data/",
    "json": lambda: b'{"image": "abc"}',
    "a base64 jpeg": lambda: base64.b64encode(jpeg()),
    "a gzipped jpeg": lambda: gzip.compress(jpeg()),
    "a zip": lambda: b"PK\3\4\x14\0\0\0" + bytes(22) + jpeg(),
    "html": lambda: b"<!DOCTYPE html><html><script>alert(1)</script></html>",
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "svg that reads a file (XXE)": lambda: (
        b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
        b'<svg xmlns="http://www.w3.org/2000/svg"><text>&x;</text></svg>'
    ),
    "svg of a billion laughs": lambda: (
        b'<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><svg>&b;</svg>'
    ),
    "gif that is a script": lambda: b"GIF89a/*" + bytes(40) + b"*/=1;alert(1)",
    "big tiff": lambda: encoded(picture(), "TIFF", big_tiff=True),
    "heic": lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50),
    "mp4": lambda: b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(50),
    "jpeg xl": lambda: b"\xff\x0a" + bytes(50),
    "psd": lambda: b"8BPS\0\1" + bytes(50),
    "fits": lambda: b"SIMPLE  =                    T" + bytes(50),
    "wmf": lambda: b"\xd7\xcd\xc6\x9a" + bytes(50),
    "xpm": lambda: b'/* XPM */\nstatic char *a[] = {"1 1 1 1", "a c #fff", "a"};',
    "pickle": lambda: pickle.dumps({"image": jpeg()}),
    "npy of objects": lambda: b"\x93NUMPY\1\0v\0{'descr': '|O'}" + pickle.dumps({}),
    "a jpeg after a space": lambda: b" " + jpeg(),
}

HOSTILE_IMAGES: dict[str, tuple[Maker, ErrorCode]] = {
    "empty": (lambda: b"", ErrorCode.EMPTY_BODY),
    **_with_codes(ErrorCode.UNSUPPORTED_MEDIA, _UNSUPPORTED),
    **_with_codes(ErrorCode.IMAGE_CORRUPT, _CORRUPT),
    **_with_codes(ErrorCode.IMAGE_TOO_LARGE, _TOO_LARGE),
    **_with_codes(ErrorCode.IMAGE_TOO_COMPLEX, _TOO_COMPLEX | _TOO_COMPLEX_INSIDE),
}

_OPT_IN_TOO_LARGE: dict[str, Maker] = {
    "gif canvas of 65535 x 65535": lambda: b"GIF89a\xff\xff\xff\xff" + gif_with(b"")[10:],
    "gif frame outside its canvas": lambda: gif_with(b"", frame=(65_535, 65_535)),
    "gif frame to be painted over 13000 x 13000": lambda: gif_with(
        b"!\xf9\4\x08\0\0\0\0", frame=(13_000, 13_000)
    ),
    "tiff of one tile of 30000 x 30000": lambda: tiff_with(
        {259: (1, 8), 322: (1, 30_000), 323: (1, 30_000), 324: (1, 8)}
    ),
    "tiff of 41 megapixels": lambda: tiff_with({256: (1, 8200), 257: (1, 5000)}),
}

_OPT_IN_TOO_COMPLEX: dict[str, Maker] = {
    "gif of 200000 comments": lambda: gif_with(b"!\xfe\1a\0" * 200_000),
    "gif of one comment in 200000 blocks": lambda: gif_with(b"!\xfe" + b"\1a" * 200_000 + b"\0"),
    "tiff of 60000 tags": lambda: tiff_with({tag: (1, 0) for tag in range(1000, 61_000)}),
    "tiff of 100000 strips": lambda: tiff_with({273: (100_000, 8), 278: (1, 1)}, bytes(400_000)),
    "tiff that repeats its tiles": lambda: tiff_with(
        {322: (1, 63), 323: (1, 64), 324: (5000, 8)}, bytes(20_000)
    ),
}

_OPT_IN_CORRUPT: dict[str, Maker] = {
    "gif without a frame": lambda: b"GIF89a\4\0\4\0\0\0\0;",
    "gif of garbage blocks": lambda: gif_with(b"\0\1\2\3"),
    "gif with an empty extension": lambda: gif_with(b"!\xf9\0"),
    "gif of size 0": lambda: b"GIF89a\0\0\0\0" + gif_with(b"", frame=(0, 0))[10:],
    "tiff without a directory": lambda: b"II*\0\xff\xff\0\0",
    "tiff with a tag twice": lambda: tiff_with({}).replace(b"\2\1\4\0", b"\1\1\4\0"),
    "bmp of an unknown header": lambda: b"BM" + bytes(12) + b"\x11\0\0\0" + bytes(50),
}

OPT_IN_HOSTILE_IMAGES: dict[str, tuple[Maker, ErrorCode]] = {
    **_with_codes(ErrorCode.IMAGE_TOO_LARGE, _OPT_IN_TOO_LARGE),
    **_with_codes(ErrorCode.IMAGE_TOO_COMPLEX, _OPT_IN_TOO_COMPLEX),
    **_with_codes(ErrorCode.IMAGE_CORRUPT, _OPT_IN_CORRUPT),
    "bmp of 41 megapixels": (lambda: _bmp_sized(8200, 5000), ErrorCode.IMAGE_TOO_LARGE),
    "bmp with run-length encoding": (_run_length_bmp, ErrorCode.UNSUPPORTED_CODEC),
    "tiff of floating-point samples": (
        lambda: encoded(picture().convert("F"), "TIFF"),
        ErrorCode.UNSUPPORTED_CODEC,
    ),
}

# Refused before a decoder is made, whatever it would do with them.
BOMBS = (
    *_TOO_LARGE,
    *_TOO_COMPLEX,
    *_OPT_IN_TOO_LARGE,
    *_OPT_IN_TOO_COMPLEX,
    "bmp with run-length encoding",
)
