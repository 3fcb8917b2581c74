"""Encoded bytes -> an upright RGB image, within limits that are checked before pixels exist.

The decoders are called by name. `PIL.Image.open` would also try every format that Pillow knows,
and reads its pixel limit from a process-wide variable.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageCms
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service.bundle.structure import Format, Limits, check_size, check_structure, sniff
from service.errors import ErrorCode, RequestError

__all__ = ["DecodedImage", "Format", "Limits", "decode", "sniff"]


class _JpegImageFile(JpegImageFile):
    """A JPEG whose EXIF stays unread: Pillow parses all of it, and warns, for the resolution."""

    def getexif(self) -> Image.Exif:
        """Returns no tags; the orientation is read by `_orientation`."""
        return Image.Exif()


class _WebPImageFile(WebPImageFile):
    """A WebP image that frees the canvases of libwebp before Pillow has its own."""

    def load_prepare(self) -> None:
        """Frees the decoder, whose first frame was copied out of it."""
        del self._decoder
        super().load_prepare()


_DECODERS: dict[Format, Callable[[io.BytesIO], ImageFile]] = {
    "jpeg": _JpegImageFile,
    "png": PngImageFile,
    "webp": _WebPImageFile,
    "gif": GifImageFile,
    "bmp": BmpImageFile,
    "tiff": TiffImageFile,
}

# What Pillow 13 raised in 4 million mutations of small files: the first three in every format, the
# next two in TIFF. MemoryError is an allocation that failed, the bomb an opt-in format under raised
# limits; the last three were not seen, but parsers in Python raise them sooner than others.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    OverflowError,
    MemoryError,
    Image.DecompressionBombError,
    EOFError,
    LookupError,
    struct.error,
)

_ORIENTATION_TAG = 0x0112
_EXIF_PREFIX = b"Exif\0\0"
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')

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

_BAND_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """An upright RGB image with the size and format of the file it came from, before rotation."""

    rgb: Image.Image
    width: int
    height: int
    format: Format


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
    check_structure(data, form, limits)
    try:
        with _DECODERS[form](io.BytesIO(data)) as image:
            width, height = image.size
            check_size(width, height, limits)
            if form == "webp" and getattr(image, "n_frames", 1) > limits.max_frames:
                raise RequestError(
                    ErrorCode.IMAGE_TOO_COMPLEX, f"more than {limits.max_frames} frames"
                )
            if scaled_to is not None and form == "jpeg":
                image.draft("RGB", scaled_to)
            image.load()
            if form == "png":
                _scale_colour_key(image, depth=data[24])
            rgb = _to_rgb(image, background, to_srgb)
            # Most images are upright, and then no copy is made. Pillow turns TIFF by itself.
            turn = _UPRIGHT.get(_orientation(image.info))
            rgb = rgb if turn is None else rgb.transpose(turn)
    except _DAMAGE as error:
        raise RequestError(ErrorCode.IMAGE_CORRUPT, f"damaged {form} image") from error
    return DecodedImage(rgb=rgb, width=width, height=height, format=form)


def _orientation(info: dict[str | tuple[int, int], object]) -> int:
    """Returns the orientation that EXIF or XMP gives, looked for as Pillow's `getexif` does.

    Pillow's own parser takes 0.1 s for 65,000 tags and warns about damaged ones.
    """
    exif = info.get("exif")
    # ImageMagick keeps EXIF in PNG text, as hexadecimal digits after three lines.
    if exif is None and isinstance(text := info.get("Raw profile type exif"), str):
        try:
            exif = bytes.fromhex("".join(text.split("\n")[3:]))
        except ValueError:
            exif = None
    if isinstance(exif, bytes) and (orientation := _exif_orientation(exif)):
        return orientation
    xmp = info.get("xmp")
    found = _XMP_ORIENTATION.search(xmp) if isinstance(xmp, bytes) else None
    return int(found[1]) if found else 1


def _exif_orientation(exif: bytes) -> int | None:
    """Returns the orientation in the first directory of EXIF data (TIFF 6.0, section 2)."""
    exif = exif.removeprefix(_EXIF_PREFIX).removeprefix(_EXIF_PREFIX)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return None
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (tags,) = struct.unpack_from(order + "H", exif, at)
        for start in range(at + 2, at + 2 + 12 * tags, 12):
            tag, kind, count = struct.unpack_from(order + "HHI", exif, start)
            if tag == _ORIENTATION_TAG and count == 1 and kind in (3, 4):
                # 3 is a 16-bit number, 4 one of 32 bits.
                form = order + ("H" if kind == 3 else "I")
                return int(struct.unpack_from(form, exif, start + 8)[0])
    except struct.error:
        # A photograph with damaged EXIF is still a photograph.
        pass
    return None


def _scale_colour_key(image: Image.Image, *, depth: int) -> None:
    """Scales the transparent grey of a 2- or 4-bit PNG as Pillow scales its samples, to 8 bits."""
    key = image.info.get("transparency")
    if image.mode == "L" and depth in (2, 4) and isinstance(key, int):
        image.info["transparency"] = key * 255 // (2**depth - 1)


def _to_rgb(image: Image.Image, background: tuple[int, int, int], to_srgb: bool) -> Image.Image:
    if image.mode == "F":
        raise RequestError(
            ErrorCode.UNSUPPORTED_CODEC, "floating-point samples have no defined range"
        )
    image, alpha = _apart(image)
    if to_srgb and isinstance(profile := image.info.get("icc_profile"), bytes):
        if image.mode in ("P", "PA", "RGBA"):
            image = image.convert("RGB")
        image = _converted_to_srgb(image, profile)
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    if alpha is not None:
        # Painting the background over the image costs a third less memory than the other way.
        rgb.paste(background, mask=ImageChops.invert(alpha))
    return rgb


def _apart(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Returns an image of 8-bit samples, whose own alpha no longer matters, and its alpha."""
    key = image.info.get("transparency")
    if image.mode.startswith("I"):
        return _eight_bits(image, key if isinstance(key, int) else None)
    if image.mode in ("La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode in ("LA", "PA", "RGBA"):
        alpha = image.getchannel("A")
        return (image.convert("L") if image.mode == "LA" else image), alpha
    if key is None:
        return image, None
    alpha = image.convert("RGBA").getchannel("A")
    # Pillow's conversion to RGB would warn about it.
    del image.info["transparency"]
    return image, alpha


def _eight_bits(image: Image.Image, key: int | None) -> tuple[Image.Image, Image.Image | None]:
    """Returns 16-bit grey as 8-bit, scaled where Pillow's own conversion clips, and its alpha."""
    samples = np.asarray(image)
    scaled = np.empty(samples.shape, np.uint8)
    # In bands, because 40 megapixels of intermediate 64-bit numbers are a gigabyte.
    for top in range(0, len(samples), _BAND_ROWS):
        band = samples[top : top + _BAND_ROWS].clip(0, 65_535).astype(np.uint32)
        scaled[top : top + _BAND_ROWS] = (band + 128) // 257
    alpha = None if key is None else Image.fromarray((samples != key).astype(np.uint8) * 255)
    return Image.fromarray(scaled), alpha


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
