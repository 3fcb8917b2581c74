"""Encoded bytes -> an upright RGB image, within limits that are checked before pixels exist.

The decoders are called by name. `PIL.Image.open` would also try every format that Pillow knows,
and reads its pixel limit from a process-wide variable.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageCms
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service.errors import ErrorCode, RequestError

Format = Literal["jpeg", "png", "webp", "gif", "bmp", "tiff"]

_DECODERS: dict[Format, Callable[[io.BytesIO], ImageFile]] = {
    "jpeg": JpegImageFile,
    "png": PngImageFile,
    "webp": WebPImageFile,
    "gif": GifImageFile,
    "bmp": BmpImageFile,
    "tiff": TiffImageFile,
}

# Everything that Pillow's decoders were seen to raise on damaged files.
_DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

_JPEG_START_OF_SCAN = b"\xff\xda"
_PNG_SIGNATURE_BYTES = 8
_ORIENTATION_TAG = 0x0112

# EXIF 2.32, table 6: what undoes each orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an image may cost; the defaults are those of `service.settings`."""

    max_pixels: int = 40_000_000
    max_side: int = 16_384
    max_aspect: int = 100
    max_jpeg_scans: int = 100
    max_png_chunks: int = 4_096
    max_frames: int = 64
    formats: tuple[str, ...] = ("jpeg", "png", "webp")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """An upright RGB image with the size and format of the file it came from, before rotation."""

    rgb: Image.Image
    width: int
    height: int
    format: Format


def sniff(data: bytes) -> Format | None:
    """Returns the format that the first bytes claim, or None; content types are not believed."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if data.startswith(b"BM"):
        return "bmp"
    if data.startswith((b"II*\x00", b"MM\x00*")):
        return "tiff"
    return None


def decode(
    data: bytes,
    limits: Limits,
    *,
    background: tuple[int, int, int],
    scaled_to: tuple[int, int] | None = None,
    to_srgb: bool = False,
) -> DecodedImage:
    """Returns the image in `data`, upright and RGB; transparency is laid over `background`.

    `scaled_to` (width, height) lets the JPEG decoder shrink to no less than that size. 16-bit
    samples are scaled, not clipped. Of an animation the first frame is taken.

    Raises:
        RequestError: `empty_body`, `unsupported_media`, `image_too_large`, `image_too_complex`,
            `unsupported_codec` or `image_corrupt`.
    """
    if not data:
        raise RequestError(ErrorCode.EMPTY_BODY, "the image is empty")
    form = sniff(data)
    if form is None or form not in limits.formats:
        raise RequestError(
            ErrorCode.UNSUPPORTED_MEDIA,
            f"not an image in one of the formats {', '.join(limits.formats)}",
        )
    _check_structure(data, form, limits)
    try:
        with _DECODERS[form](io.BytesIO(data)) as image:
            width, height = image.size
            _check_size(width, height, limits)
            if form in ("png", "webp") and getattr(image, "n_frames", 1) > limits.max_frames:
                raise RequestError(
                    ErrorCode.IMAGE_TOO_COMPLEX, f"more than {limits.max_frames} frames"
                )
            if scaled_to is not None and form == "jpeg":
                image.draft("RGB", scaled_to)
            image.load()
            rgb = _to_rgb(_upright(image), background, to_srgb)
    except _DAMAGE as error:
        raise RequestError(ErrorCode.IMAGE_CORRUPT, f"damaged {form} image") from error
    return DecodedImage(rgb=rgb, width=width, height=height, format=form)


def _check_size(width: int, height: int, limits: Limits) -> None:
    if width < 1 or height < 1:
        raise RequestError(ErrorCode.IMAGE_CORRUPT, "the image has no pixels")
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise RequestError(
            ErrorCode.IMAGE_TOO_LARGE,
            f"{width} x {height} is over {limits.max_pixels} pixels or {limits.max_side} a side",
        )
    if max(width, height) > limits.max_aspect * min(width, height):
        # Its shorter side grows to the resize size, and the longer one with it.
        raise RequestError(
            ErrorCode.IMAGE_TOO_COMPLEX, f"one side is over {limits.max_aspect} times the other"
        )


def _check_structure(data: bytes, form: Format, limits: Limits) -> None:
    """Refuses what costs much to decode for few bytes, by walking the file's own structure.

    C decoders cannot be interrupted, so the cost is bounded before they start.
    """
    if form == "jpeg":
        # Entropy-coded data never holds this marker: its 0xff bytes are followed by 0x00.
        if data.count(_JPEG_START_OF_SCAN) > limits.max_jpeg_scans:
            raise RequestError(
                ErrorCode.IMAGE_TOO_COMPLEX, f"more than {limits.max_jpeg_scans} scans"
            )
    elif form == "png":
        _check_png(data, limits)
    elif form == "webp":
        size = _webp_canvas(data)
        if size is None:
            raise RequestError(ErrorCode.IMAGE_CORRUPT, "damaged webp image")
        # The WebP decoder allocates the canvas when it is created, so Pillow's size is too late.
        _check_size(*size, limits)


def _check_png(data: bytes, limits: Limits) -> None:
    if len(data) < 24:
        raise RequestError(ErrorCode.IMAGE_CORRUPT, "damaged png image")
    width, height = struct.unpack_from(">II", data, 16)
    _check_size(width, height, limits)
    at = _PNG_SIGNATURE_BYTES
    for _ in range(limits.max_png_chunks):
        if at + 8 > len(data):
            return
        at += 12 + int(struct.unpack_from(">I", data, at)[0])
    raise RequestError(ErrorCode.IMAGE_TOO_COMPLEX, f"more than {limits.max_png_chunks} chunks")


def _webp_canvas(data: bytes) -> tuple[int, int] | None:
    """Returns (width, height) of a WebP file (RFC 9649, section 2), or None when it is damaged."""
    if len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 ":
        width = int.from_bytes(data[26:28], "little") & 0x3FFF
        height = int.from_bytes(data[28:30], "little") & 0x3FFF
    else:
        return None
    return width, height


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DAMAGE:
        # A photograph with damaged EXIF is still a photograph.
        return image
    # Values outside 2..8 mean nothing; most images have none, and then no copy is made.
    transposition = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if transposition is None else image.transpose(transposition)


def _to_rgb(image: Image.Image, background: tuple[int, int, int], to_srgb: bool) -> Image.Image:
    if to_srgb and (profile := image.info.get("icc_profile")):
        image = _converted_to_srgb(image, profile)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        # Pillow's own conversion clips at 255; 16-bit samples are scaled instead.
        samples = np.asarray(image).astype(np.int64).clip(0, 65_535)
        return Image.fromarray(((samples + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise RequestError(
            ErrorCode.UNSUPPORTED_CODEC, "floating-point samples have no defined range"
        )
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", rgba.size, background)
        canvas.paste(rgba, mask=rgba.getchannel("A"))
        return canvas
    return image.convert("RGB")


def _converted_to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Returns the image in sRGB, or as it is when its profile is damaged or for another mode."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(
            image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return image if converted is None else converted
