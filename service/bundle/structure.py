"""What an encoded image may cost, proved by walking the file's own structure before decoding it.

C decoders cannot be interrupted, and Pillow reads headers in Python, a few microseconds for each
segment, chunk, block or tag. So whatever buys much work for few bytes is counted here first. The
figures are Pillow 13's, measured for one file of at most 10 MB that this module refuses.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from service.errors import ErrorCode, RequestError

Format = Literal["jpeg", "png", "webp", "gif", "bmp", "tiff"]

# Bytes between the segments of a JPEG, which Pillow skips one at a time: 3.4 s for 8 MB of them.
_MAX_JPEG_PADDING_BYTES = 65_536
# 40 scans of 40 megapixels take 1.8 s.
_MAX_JPEG_SCANNED_PIXELS = 1_600_000_000
_JPEG_START_OF_SCAN = 0xDA
_JPEG_END_OF_IMAGE = 0xD9
_JPEG_SEQUENTIAL = frozenset({0xC0, 0xC1, 0xC9})
_JPEG_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
# Markers without a length: everything below SOF0, RST, SOI, EOI, and the JPG extensions, after
# which libjpeg stops (ITU-T T.81, table B.1).
_JPEG_BARE = frozenset({*range(0xC0), 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff]")
# Entropy-coded data holds ff 00 for the byte ff, and restart markers.
_JPEG_MARKER_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")

# As Pillow's limit of one text chunk; four thousand profiles of 1 MB, 1 kB each here, took 19 s.
_MAX_PNG_CHUNK_INFLATED_BYTES = 1_048_576
_MAX_PNG_INFLATED_BYTES = 4 * _MAX_PNG_CHUNK_INFLATED_BYTES

# Comments and extensions before a GIF's first frame: 0.9 s for 4 million blocks.
_MAX_GIF_BLOCKS = 65_536
_GIF_COMMENT = 0xFE

# 65,000 tags took 0.5 s; 1.2 million strips 4 s; one tile of 30,000 x 30,000, 900 MB.
_MAX_TIFF_TAGS = 1_024
_MAX_TIFF_PIECES = 16_384
_MAX_TIFF_PLANES = 6
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_STRIP_HEIGHT = 256, 257, 278
_TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 322, 323
_TIFF_PIECES = (273, 324)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an image may cost; the defaults are those of `service.settings`."""

    max_pixels: int = 40_000_000
    max_side: int = 16_384
    max_aspect: int = 100
    max_jpeg_scans: int = 100
    max_jpeg_segments: int = 4_096
    max_png_chunks: int = 4_096
    max_frames: int = 64
    formats: tuple[str, ...] = ("jpeg", "png", "webp")


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


def check_size(width: int, height: int, limits: Limits) -> None:
    """Refuses an image, or a part of one, that has too many pixels or none.

    Raises:
        RequestError: `image_corrupt`, `image_too_large` or `image_too_complex`.
    """
    if width < 1 or height < 1:
        raise RequestError(ErrorCode.IMAGE_CORRUPT, "the image has no pixels")
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise RequestError(
            ErrorCode.IMAGE_TOO_LARGE,
            f"{width} x {height} is over {limits.max_pixels} pixels or {limits.max_side} a side",
        )
    if max(width, height) > limits.max_aspect * min(width, height):
        # Its shorter side grows to the resize size, and the longer one with it.
        raise _too_complex(f"one side is over {limits.max_aspect} times the other")


def check_structure(data: bytes, form: Format, limits: Limits) -> None:
    """Refuses what costs much to decode for few bytes, and what is cut off.

    Raises:
        RequestError: `image_corrupt`, `image_too_large`, `image_too_complex` or
            `unsupported_codec`.
    """
    try:
        match form:
            case "jpeg":
                _check_jpeg(data, limits)
            case "png":
                _check_png(data, limits)
            case "webp":
                # The decoder allocates the canvas when it is created, so Pillow's size is too late.
                check_size(*read_webp_canvas(data), limits)
            case "gif":
                _check_gif(data, limits)
            case "bmp":
                _check_bmp(data)
            case "tiff":
                _check_tiff(data, limits)
    except (struct.error, IndexError) as error:
        raise _corrupt(form) from error


def _corrupt(form: Format) -> RequestError:
    return RequestError(ErrorCode.IMAGE_CORRUPT, f"damaged {form} image")


def _too_complex(detail: str) -> RequestError:
    return RequestError(ErrorCode.IMAGE_TOO_COMPLEX, detail)


def _check_jpeg(data: bytes, limits: Limits) -> None:
    """Bounds the segments before the first scan, then the scans: each is a pass over the image.

    After a first scan that holds every component of a sequential image, libjpeg reads no other
    (jdinput.c, has_multiple_scans). Else the walk goes on when the marker's bytes are frequent. In
    entropy-coded data they cannot be, but in what follows the image (the film of a motion
    photograph) they are, by chance, once in 64 kB.
    """
    scans = components = 0
    allowed = limits.max_jpeg_scans
    for segments, (code, at) in enumerate(_jpeg_markers(data), start=1):
        if segments > limits.max_jpeg_segments:
            raise _too_complex(f"more than {limits.max_jpeg_segments} segments")
        if code == _JPEG_END_OF_IMAGE:
            break
        if code in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            check_size(width, height, limits)
            components = data[at + 7] if code in _JPEG_SEQUENTIAL else 0
            allowed = min(limits.max_jpeg_scans, _MAX_JPEG_SCANNED_PIXELS // (width * height))
        if code == _JPEG_START_OF_SCAN:
            scans += 1
            if scans > allowed:
                raise _too_complex(f"more than {allowed} scans for an image of this size")
            if scans == 1 and (data[at + 2] == components or data.count(b"\xff\xda") <= allowed):
                break
    if not scans:
        raise _corrupt("jpeg")


def _jpeg_markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields (code, position after it) of each marker, found as libjpeg and Pillow find them."""
    at, pattern, padding = 2, _JPEG_MARKER, _MAX_JPEG_PADDING_BYTES
    while found := pattern.search(data, at, at + padding + 2):
        padding -= found.start() - at
        at = found.end()
        code = data[at - 1]
        yield code, at
        if code not in _JPEG_BARE:
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
        if code == _JPEG_START_OF_SCAN:
            pattern, padding = _JPEG_MARKER_AFTER_SCAN, len(data)


def _check_png(data: bytes, limits: Limits) -> None:
    """Walks the chunks up to IEND: their number, their checksums, and what they inflate to.

    Pillow leaves the checksum of image data unread.
    """
    if data[12:16] != b"IHDR":
        raise _corrupt("png")
    width, height = struct.unpack_from(">II", data, 16)
    check_size(width, height, limits)
    at, inflated, is_animated = 8, 0, False
    for _ in range(limits.max_png_chunks):
        length, kind = struct.unpack_from(">I4s", data, at)
        content = memoryview(data)[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
        if kind == b"IDAT" and zlib.crc32(content, zlib.crc32(kind)) != checksum:
            raise _corrupt("png")
        if kind in (b"iCCP", b"zTXt", b"iTXt"):
            inflated += _count_inflated(kind, bytes(content))
            if inflated > _MAX_PNG_INFLATED_BYTES:
                raise _too_complex(f"more than {_MAX_PNG_INFLATED_BYTES} bytes of metadata")
        elif kind == b"acTL":
            frames = int(struct.unpack_from(">I", content)[0])
            if frames > limits.max_frames:
                raise _too_complex(f"more than {limits.max_frames} frames")
            # Pillow would warn, once for each request.
            if is_animated or not frames:
                raise _corrupt("png")
            is_animated = True
        elif kind == b"IEND":
            return
        at += 12 + length
    raise _too_complex(f"more than {limits.max_png_chunks} chunks")


def _count_inflated(kind: bytes, content: bytes) -> int:
    """Returns how many bytes a compressed metadata chunk inflates to (W3C PNG, 11.3)."""
    _, _, rest = content.partition(b"\0")
    if kind != b"iTXt":
        deflated = rest[1:]
    elif rest.startswith(b"\1"):
        deflated = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    else:
        return 0
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(deflated, _MAX_PNG_CHUNK_INFLATED_BYTES)
    except zlib.error:
        # Damaged metadata is dropped; the picture is still one.
        return 0
    if inflater.unconsumed_tail:
        raise _too_complex(f"more than {_MAX_PNG_CHUNK_INFLATED_BYTES} bytes in one text chunk")
    return len(inflated)


def read_webp_canvas(data: bytes) -> tuple[int, int]:
    """Returns (width, height) of a WebP file (RFC 9649, section 2)."""
    match data[12:16]:
        case b"VP8X":
            low, high, low2, high2 = struct.unpack_from("<HBHB", data, 24)
            return 1 + low + (high << 16), 1 + low2 + (high2 << 16)
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
    raise _corrupt("webp")


def _check_gif(data: bytes, limits: Limits) -> None:
    """Walks to the first frame: Pillow grows the canvas to it, and may paint one of its size."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    in_extension = False
    for _ in range(_MAX_GIF_BLOCKS):
        if in_extension:
            in_extension = data[at] > 0
            at += 1 + data[at]
        elif data[at] == ord("!"):
            if data[at + 2] == 0 and data[at + 1] != _GIF_COMMENT:
                # Pillow would read on as if it had not ended, and find other frames than these.
                raise _corrupt("gif")
            in_extension = True
            at += 2
        else:
            break
    else:
        raise _too_complex(f"more than {_MAX_GIF_BLOCKS} blocks before the first frame")
    if data[at] != ord(","):
        raise _corrupt("gif")
    left, top, across, down = struct.unpack_from("<4H", data, at + 1)
    check_size(max(width, left + across), max(height, top + down), limits)


def _check_bmp(data: bytes) -> None:
    """Refuses run-length encoding, which Pillow decodes in Python: 4.5 s for 40 megapixels."""
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    if header_bytes > 12 and struct.unpack_from("<I", data, 30)[0] in (1, 2):
        raise RequestError(ErrorCode.UNSUPPORTED_CODEC, "a run-length encoded bmp image")


def _check_tiff(data: bytes, limits: Limits) -> None:
    """Walks the first directory: its tags, the size of the image, and the pieces it comes in."""
    order = "<" if data.startswith(b"II") else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    (tags,) = struct.unpack_from(order + "H", data, at)
    if tags > _MAX_TIFF_TAGS:
        raise _too_complex(f"more than {_MAX_TIFF_TAGS} tags")
    numbers: dict[int, int] = {}
    pieces = 0
    for start in range(at + 2, at + 2 + 12 * tags, 12):
        tag, kind, count = struct.unpack_from(order + "HHI", data, start)
        if tag in numbers:
            raise _corrupt("tiff")
        # A number has 16 bits (type 3) or 32.
        form = order + ("H" if kind == 3 else "I")
        numbers[tag] = int(struct.unpack_from(form, data, start + 8)[0])
        if tag in _TIFF_PIECES:
            pieces = max(pieces, count)
    width, height = numbers.get(_TIFF_WIDTH, 0), numbers.get(_TIFF_HEIGHT, 0)
    check_size(width, height, limits)
    across = numbers.get(_TIFF_TILE_WIDTH, width)
    down = numbers.get(_TIFF_TILE_HEIGHT, min(numbers.get(_TIFF_STRIP_HEIGHT, height), height))
    if across < 1 or down < 1:
        raise _corrupt("tiff")
    if across * down > limits.max_pixels:
        raise RequestError(ErrorCode.IMAGE_TOO_LARGE, f"a tile is over {limits.max_pixels} pixels")
    # A piece more than the image has is decoded over those before it, time after time.
    needed = -(-width // across) * -(-height // down) * _MAX_TIFF_PLANES
    if pieces > min(needed, _MAX_TIFF_PIECES):
        raise _too_complex("more strips or tiles than the image has")
