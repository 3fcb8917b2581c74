"""Bad files and bad options, each with the code that every edge must answer it with."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encode(format="JPEG", size=(64, 48), **options):
    y, x = np.mgrid[: size[1], : size[0]]
    pixels = np.stack([x * 3 % 256, y * 5 % 256, (x * y) % 256], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width, height):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + header + data + png_chunk(b"IEND", b"")


def black_png(width, height):
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


def jpeg_that_claims(width, height):
    """A small JPEG with another size written over the one in its frame header."""
    data = bytearray(encode())
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def scan_bomb(scans):
    data = encode(progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


JPEG = encode()
RANDOM = np.random.default_rng(0).bytes(10_000)
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><rect width="9"/></svg>'
PICKLE = b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93."

FILES = {
    "nothing": (b"", "empty_body"),
    "random bytes": (RANDOM, "unsupported_media"),
    "a PNG of 100,000 x 100,000 by its header": (png_that_claims(10**5, 10**5), "image_too_large"),
    "a PNG of 2^31 - 1 wide by its header": (png_that_claims(2**31 - 1, 1), "image_too_large"),
    "a PNG of no pixels": (png_that_claims(0, 0), "image_corrupt"),
    "a PNG of 41 megapixels": (black_png(8200, 5000), "image_too_large"),
    "a JPEG of 65,500 x 65,500 by its header": (jpeg_that_claims(65500, 65500), "image_too_large"),
    "a JPEG with 1,000 scans": (scan_bomb(1000), "image_too_complex"),
    "an image 101 times as wide as high": (black_png(1010, 10), "image_too_complex"),
    "SVG": (SVG, "unsupported_media"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n", "unsupported_media"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported_media"),
    "HTML": (b"<!doctype html><title>404</title>", "unsupported_media"),
    "text": (b"hello", "unsupported_media"),
    "one byte": (b"\xff", "unsupported_media"),
    "a GIF, which is off by default": (encode("GIF"), "unsupported_media"),
    "a TIFF, which is off by default": (encode("TIFF"), "unsupported_media"),
    "a ZIP": (b"PK\x03\x04" + bytes(100), "unsupported_media"),
    "a pickle": (PICKLE, "unsupported_media"),
    "an npy file": (b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}" + bytes(100), "unsupported_media"),
    "a JPEG header and nothing else": (b"\xff\xd8\xff\xe0", "image_corrupt"),
    "a PNG signature and nothing else": (b"\x89PNG\r\n\x1a\n", "image_corrupt"),
    "a WebP header and nothing else": (b"RIFF\x04\x00\x00\x00WEBP", "image_corrupt"),
    "a JPEG without scan": (JPEG[: JPEG.index(b"\xff\xda")] + b"\xff\xd9", "image_corrupt"),
    "a URL": (b"http://127.0.0.1/a.jpg", "url_not_allowed"),
    "a file URL": (b"file:///etc/passwd", "url_not_allowed"),
    **{
        f"a JPEG cut at {part} of 17": (JPEG[: len(JPEG) * part // 17], "image_corrupt")
        for part in range(1, 17)
    },
    **{
        f"a {form} cut in the middle": (encode(form)[: len(encode(form)) // 2], "image_corrupt")
        for form in ("PNG", "WebP")
    },
}

OPTIONS = {
    "an unknown model": ({"model": "nope"}, "model_not_found"),
    "an empty model": ({"model": ""}, "model_not_found"),
    "a model in another folder": ({"model": "../tiny"}, "model_not_found"),
    "a model at the end of a path": ({"model": "../../etc/passwd"}, "model_not_found"),
    "a model with a NUL": ({"model": "tiny\0"}, "model_not_found"),
    "a model with a long name": ({"model": "a" * 4000}, "model_not_found"),
    "a model in upper case": ({"model": "TINY"}, "model_not_found"),
    "an unknown version": ({"model": "tiny@2"}, "model_not_found"),
    "a version that is no number": ({"model": "tiny@latest"}, "model_not_found"),
    "a version with a path": ({"model": "tiny@1/../1"}, "model_not_found"),
    "no predictions": ({"top_k": 0}, "invalid_argument"),
    "less than no predictions": ({"top_k": -1}, "invalid_argument"),
    "unknown augmentation": ({"tta": "mirror"}, "invalid_argument"),
    "empty augmentation": ({"tta": ""}, "invalid_argument"),
    "augmentation in upper case": ({"tta": "HFLIP"}, "invalid_argument"),
    "unknown priority": ({"priority": "highest"}, "invalid_argument"),
    "empty priority": ({"priority": ""}, "invalid_argument"),
}
