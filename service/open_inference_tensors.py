"""Input tensors of the Open Inference Protocol -> the encoded images in them."""

from __future__ import annotations

from typing import Never

from service.errors import ErrorCode, RequestError
from service.open_inference_messages import InputTensor
from service.url_guard import refuse_url

_LENGTH_BYTES = 4


def read_images(tensor: InputTensor, *, max_images: int) -> list[bytes]:
    """Returns the encoded images of a tensor of datatype BYTES and shape [N] or [N, 1].

    Raises:
        RequestError: `invalid_argument` when datatype, shape and content do not fit together or
            there are more than `max_images`; `url_not_allowed`.
    """
    if tensor.datatype != "BYTES":
        _refuse(f"input {tensor.name} takes BYTES")
    shape = tensor.shape
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
        _refuse(f"input {tensor.name} has the shape [N] or [N, 1]")
    count = shape[0]
    if not 1 <= count <= max_images:
        _refuse(f"one request has between 1 and {max_images} images")
    content = tensor.content
    images = _unpack(content, count) if isinstance(content, memoryview) else list(content)
    if len(images) != count:
        _refuse(f"input {tensor.name} has {len(images)} elements, and {count} by its shape")
    for image in images:
        refuse_url(image)
    return images


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


def _refuse(detail: str) -> Never:
    raise RequestError(ErrorCode.INVALID_ARGUMENT, detail)
