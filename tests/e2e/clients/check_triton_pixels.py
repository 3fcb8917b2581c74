"""tritonclient over both wires: pixels and tensors that the client made of an image."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from PIL import Image
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

MODEL = "cifar10-airbench"
OUTPUT = "probabilities"


@pytest.fixture(params=["http", "grpc"])
def triton(request):
    """One of the two client libraries; they have the same interface."""
    return {"http": triton_http, "grpc": triton_grpc}[request.param]


@pytest.fixture
def client(triton, http_address, grpc_address):
    address = http_address if triton is triton_http else grpc_address
    with triton.InferenceServerClient(address) as client:
        yield client


def as_input(triton, array, datatype):
    tensor = triton.InferInput("image", array.shape, datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def read_rgb(image):
    return Image.open(io.BytesIO(image)).convert("RGB")


def as_png(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_pixels_are_answered_as_their_image(triton, client, images, classify, layout):
    for image in images:
        picture = read_rgb(image)
        pixels = np.array(picture)[None]
        if layout == "NCHW":
            pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        row = client.infer(MODEL, [as_input(triton, pixels, "UINT8")]).as_numpy(OUTPUT)[0]
        expected = [score for _, _, score in sorted(classify(as_png(picture)))]
        np.testing.assert_allclose(row, expected, atol=1e-6)


def test_preprocessed_tensors_are_answered_as_their_image(
    triton, client, normalised, images, expected
):
    views = normalised(images[:3])
    rows = client.infer(MODEL, [as_input(triton, views, "FP32")]).as_numpy(OUTPUT)
    np.testing.assert_allclose(rows, expected[:3], atol=1e-6)
    with pytest.raises(InferenceServerException, match="8-bit pixels"):
        client.infer(MODEL, [as_input(triton, views + np.float32(0.01), "FP32")])


# ---- what Triton's example image_client.py does: it asks what the model takes, and sends that ----


class ImageClient:
    """Reads metadata and configuration as that client does, and refuses what it refuses."""

    def __init__(self, triton, client):
        self.triton, self.client = triton, client
        if triton is triton_grpc:
            metadata = client.get_model_metadata(MODEL, as_json=True)
            config = client.get_model_config(MODEL, as_json=True)["config"]
        else:
            metadata, config = client.get_model_metadata(MODEL), client.get_model_config(MODEL)
        (told,), (output,) = metadata["inputs"], metadata["outputs"]
        (configured,) = config["input"]
        self.input, self.output, self.datatype = told["name"], output["name"], told["datatype"]
        self.most = int(config["max_batch_size"])
        assert output["datatype"] == "FP32"
        batch, *sizes = [int(size) for size in output["shape"]]
        assert batch == -1
        assert sum(size > 1 for size in sizes) == 1
        batch, *sizes = [int(size) for size in told["shape"]]
        assert batch == -1
        assert sizes == [int(size) for size in configured["dims"]]
        self.is_planar = configured["format"] == "FORMAT_NCHW"
        assert self.is_planar or configured["format"] == "FORMAT_NHWC"
        _, self.height, self.width = sizes if self.is_planar else (sizes[2], *sizes[:2])

    def prepare(self, image):
        """Resizes the whole image to what the model takes, whatever its proportions are."""
        picture = read_rgb(image).resize((self.width, self.height), Image.Resampling.BILINEAR)
        pixels = np.array(picture).astype(triton_to_np_dtype(self.datatype))
        return pixels.transpose(2, 0, 1) if self.is_planar else pixels

    def ask(self, images, classes):
        """Returns rows of (score, index, label), read as text between colons."""
        batch = np.ascontiguousarray(np.stack([self.prepare(image) for image in images]))
        tensor = as_input(self.triton, batch, self.datatype)
        wanted = self.triton.InferRequestedOutput(self.output, class_count=classes)
        answer = self.client.infer(MODEL, [tensor], outputs=[wanted], request_id="1")
        return [
            [tuple(text.decode().split(":")) for text in row]
            for row in answer.as_numpy(self.output)
        ]


def test_a_client_that_goes_by_the_metadata_gets_the_answer_to_its_pixels(
    triton, client, images, classify
):
    image_client = ImageClient(triton, client)
    assert len(images) <= image_client.most
    rows = image_client.ask(images, 3)
    for image, row in zip(images, rows, strict=True):
        sent = Image.fromarray(image_client.prepare(image))
        best = classify(as_png(sent))[:3]
        assert [(int(index), label) for _, index, label in row] == [one[:2] for one in best]
        for (told, _, _), (_, _, score) in zip(row, best, strict=True):
            assert float(told) == pytest.approx(score, abs=1e-6)


def test_what_it_resizes_is_resized_no_more(triton, client, images, classify):
    """A square image that is resized by the client gives what it gives as a file."""
    square = [as_png(read_rgb(image).resize((96, 96))) for image in images[:3]]
    rows = ImageClient(triton, client).ask(square, 1)
    for image, ((told, _, _),) in zip(square, rows, strict=True):
        assert float(told) == pytest.approx(classify(image)[0][2], abs=1e-6)
