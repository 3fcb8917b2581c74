"""Input tensors of the Open Inference Protocol -> the images in them."""

from __future__ import annotations

from typing import Final, Never

import numpy as np
from numpy.typing import DTypeLike

from service.bundle.image_source import ImageSource, NormalisedView, PixelImage
from service.errors import ErrorCode, RequestError
from service.open_inference_messages import InputTensor
from service.url_guard import refuse_url

_LENGTH_BYTES = 4

# What the one input takes, by datatype; H and W of FP32 are those of the model.
FORMS: Final = {
    "BYTES": "[N] or [N, 1]: image files",
    "UINT8": "[N, H, W, 3] or [N, 3, H, W]: RGB pixels of images; or [N, L]: image files",
    "FP32": "[N, 3, H, W]: RGB pixels as the model sees them, normalised",
}


def read_images(tensor: InputTensor, *, max_images: int) -> list[ImageSource]:
    """Returns the images of a tensor in one of the `FORMS`.

    Raises:
        RequestError: `invalid_argument` when datatype, shape and content do not fit together or
            there are more than `max_images`; `url_not_allowed`.
    """
    if tensor.datatype not in FORMS:
        _refuse(f"input {tensor.name} takes {', '.join(FORMS)}")
    if not tensor.shape or not 1 <= tensor.shape[0] <= max_images:
        _refuse(f"one request has between 1 and {max_images} images")
    if tensor.datatype == "BYTES":
        return _read_elements(tensor)
    if tensor.datatype == "UINT8":
        return _read_uint8(tensor)
    return _read_fp32(tensor)


def _read_elements(tensor: InputTensor) -> list[ImageSource]:
    count, *rest = tensor.shape
    if rest not in ([], [1]):
        _refuse_shape(tensor)
    content = tensor.content
    images = _unpack(content, count) if isinstance(content, memoryview) else list(content)
    if len(images) != count:
        _refuse(f"input {tensor.name} has {len(images)} elements, and {count} by its shape")
    for image in images:
        refuse_url(image)
    return list(images)


def _read_uint8(tensor: InputTensor) -> list[ImageSource]:
    match tensor.shape:
        case (count, length):
            files = [bytes(one) for one in _split(tensor, count, length, np.uint8)]
            for file in files:
                refuse_url(file)
            return list(files)
        case (count, *sizes) if len(sizes) == 3:
            is_planar = _is_planar(tensor)
            height, width = sizes[1:] if is_planar else sizes[:2]
            return [
                PixelImage(content=one, width=width, height=height, is_planar=is_planar)
                for one in _split(tensor, count, height * width * 3, np.uint8)
            ]
        case _:
            _refuse_shape(tensor)


def _is_planar(tensor: InputTensor) -> bool:
    """Whether pixels are NCHW: as the client says, or as only one place for the colours allows."""
    _, first, _, last = tensor.shape
    layouts = {"NHWC": last == 3, "NCHW": first == 3}
    possible = [name for name, fits in layouts.items() if fits and tensor.layout in ("", name)]
    if len(possible) > 1:
        _refuse(
            f"the shape of input {tensor.name} is NHWC as well as NCHW: say which in its "
            "parameter layout"
        )
    if not possible:
        _refuse_shape(tensor)
    return possible == ["NCHW"]


def _read_fp32(tensor: InputTensor) -> list[ImageSource]:
    match tensor.shape:
        case (count, 3, height, width):
            parts = _split(tensor, count, 3 * height * width, np.float32)
            return [NormalisedView(content=one, width=width, height=height) for one in parts]
        case _:
            _refuse_shape(tensor)


def _split(tensor: InputTensor, count: int, elements: int, dtype: DTypeLike) -> list[memoryview]:
    """Returns the little-endian content of each of `count` images."""
    content = tensor.content
    if not isinstance(content, memoryview):
        content = _pack(tensor, dtype)
    size = elements * np.dtype(dtype).itemsize
    if size == 0 or len(content) != count * size:
        _refuse(f"the content of input {tensor.name} is not what its shape says")
    return [content[start : start + size] for start in range(0, len(content), size)]


def _pack(tensor: InputTensor, dtype: DTypeLike) -> memoryview:
    """Returns the elements as raw content; nested ones must be nested as the shape says."""
    is_float = np.issubdtype(dtype, np.floating)
    try:
        values = np.array(tensor.content)
        if values.ndim != 1 and values.shape != tensor.shape:
            raise ValueError
        if values.dtype.kind not in ("iuf" if is_float else "iu"):
            raise ValueError
        if not is_float and not (values.min() >= 0 and values.max() <= 255):
            raise ValueError
    except (ValueError, OverflowError):
        _refuse(f"the data of input {tensor.name} is not {tensor.datatype} of its shape")
    with np.errstate(over="ignore"):  # too large for float32 is infinite, and refused as that
        return memoryview(values.astype(np.dtype(dtype).newbyteorder("<")).tobytes())


def _unpack(content: memoryview, count: int) -> list[bytes]:
    """Returns `count` elements, each of which stands after its length, and no byte is left."""
    images = []
    start, end = 0, len(content)
    for _ in range(count):
        first = start + _LENGTH_BYTES
        start = first + int.from_bytes(content[start:first], "little")
        if first > end or start > end:
            _refuse("the content of a BYTES tensor ends inside an element")
        images.append(bytes(content[first:start]))
    if start != end:
        _refuse("the content of a BYTES tensor has more elements than its shape")
    return images


def _refuse_shape(tensor: InputTensor) -> Never:
    _refuse(f"input {tensor.name} takes {tensor.datatype} of the shape {FORMS[tensor.datatype]}")


def _refuse(detail: str) -> Never:
    raise RequestError(ErrorCode.INVALID_ARGUMENT, detail)
