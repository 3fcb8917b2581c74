"""What the checks of upstream clients share; they run in an environment of their own.

`tests/e2e/test_upstream_clients.py` starts the server and runs them.
"""

from __future__ import annotations

import io
import json
import os
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def http_address():
    return os.environ["FIVECROP_TEST_HTTP"]


@pytest.fixture(scope="session")
def grpc_address():
    return os.environ["FIVECROP_TEST_GRPC"]


@pytest.fixture(scope="session")
def images():
    """Encoded images of several sizes and formats: golden ones and larger ones made of them."""
    golden = Path(os.environ["FIVECROP_TEST_GOLDEN"])
    files = [path.read_bytes() for path in sorted(golden.glob("*.jpeg"))[:3]]
    for size, kind in (((96, 64), "PNG"), ((70, 111), "WEBP"), ((300, 200), "JPEG")):
        file = io.BytesIO()
        Image.open(io.BytesIO(files[0])).resize(size).save(file, kind)
        files.append(file.getvalue())
    return files


@pytest.fixture(scope="session")
def classify(http_address):
    """Returns `classify(image)`: (index, label, score) of every class, best first, by our API."""

    def ask(image):
        url = f"http://{http_address}/v1/classify?top_k=1000"
        with urllib.request.urlopen(urllib.request.Request(url, image)) as answer:
            predictions = json.load(answer)["predictions"]
        return [(one["index"], one["label"], one["score"]) for one in predictions]

    return ask


@pytest.fixture(scope="session")
def expected(classify, images):
    """Probabilities of the images by our own API, [N, C] in the order of the classes."""
    return np.array([[score for _, _, score in sorted(classify(image))] for image in images])


@pytest.fixture
def normalised():
    """Returns `normalised(images)`: float32 [N, 3, H, W], as torchvision makes them for the model.

    Of images that have the model's size, so that there is nothing to resize.
    """
    golden = Path(os.environ["FIVECROP_TEST_GOLDEN"])
    facts = json.loads((golden.parent / "bundle.json").read_text())["normalisation"]
    mean, std = (np.array(facts[key], np.float32) for key in ("mean", "std"))

    def normalise(images):
        pixels = [np.array(Image.open(io.BytesIO(image)).convert("RGB")) for image in images]
        scaled = np.stack(pixels).astype(np.float32) / np.float32(255)
        return np.ascontiguousarray(((scaled - mean) / std).transpose(0, 3, 1, 2))

    return normalise
