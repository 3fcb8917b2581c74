"""What the tests of bundles share: a way to preprocess, and a bundle made by hand."""

from __future__ import annotations

import datetime
import functools
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from service.bundle.decode import Limits, decode
from service.bundle.manifest import Preprocess
from service.bundle.repository import publishing, record_file

# A busy machine is no failure; `--hypothesis-seed` and the printed blob repeat one.
settings.register_profile("bundle", deadline=None, max_examples=60, print_blob=True)
settings.load_profile("bundle")

ALL_FORMATS = ("jpeg", "png", "webp", "gif", "bmp", "tiff")


@pytest.fixture(scope="session")
def all_formats() -> Limits:
    """The default limits with every format on."""
    return Limits(formats=ALL_FORMATS)


@pytest.fixture(scope="session")
def decode_pixels(all_formats) -> Callable[..., np.ndarray]:
    """Returns a function from a file to its pixels as the service sees them, int [H, W, 3]."""

    def decode_pixels(data: bytes, **options: object) -> np.ndarray:
        background = options.pop("background", (10, 20, 30))
        image = decode(data, all_formats, background=background, **options)
        assert image.rgb.mode == "RGB"
        return np.asarray(image.rgb).astype(int)

    return decode_pixels


@pytest.fixture(scope="session")
def make_preprocess() -> Callable[..., Preprocess]:
    """Returns a function that makes a `Preprocess`: (size, crop, policy, interpolation, ...)."""

    def make_preprocess(
        size: int = 64,
        crop: int | tuple[int, int] = 56,
        *,
        policy: str = "shorter_side",
        interpolation: str = "bilinear",
        **options: object,
    ) -> Preprocess:
        height, width = crop if isinstance(crop, tuple) else (crop, crop)
        resize = {"policy": policy, "size": size, "interpolation": interpolation}
        facts = {"resize": resize, "crop": {"height": height, "width": width}}
        return Preprocess.model_validate({**facts, "background": (1, 2, 3), **options})

    return make_preprocess


@pytest.fixture(scope="session")
def make_photograph() -> Callable[..., Image.Image]:
    """Returns a function from (width, height) to a picture with structure at every scale."""

    @functools.cache
    def make_photograph(width: int, height: int, seed: int = 0) -> Image.Image:
        random = np.random.default_rng(seed)
        layers = []
        for cells in (2, 5, 17, 61):
            coarse = random.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
            layers.append(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        half = Image.blend(layers[0], layers[1], 0.5), Image.blend(layers[2], layers[3], 0.5)
        noise = Image.effect_noise((width, height), 40).convert("RGB")
        return Image.blend(Image.blend(*half, 0.5), noise, 0.1)

    return make_photograph


@pytest.fixture(scope="session")
def exif_block() -> Callable[..., bytes]:
    """Returns a function that makes EXIF data with an orientation, after another tag."""

    def exif_block(orientation: int, *, order: str = "<", kind: int = 3) -> bytes:
        value = struct.pack(order + ("HH" if kind == 3 else "I"), *[orientation, 0][: 5 - kind])
        start = b"II*\0" if order == "<" else b"MM\0*"
        entries = struct.pack(order + "HHI4s", 0x0100, 3, 1, bytes(4))
        entries += struct.pack(order + "HHI", 0x0112, kind, 1) + value
        return start + struct.pack(order + "IH", 8, 2) + entries + bytes(4)

    return exif_block


@pytest.fixture(scope="session")
def manifest_facts() -> Callable[[], dict]:
    """Returns a function that makes the whole of a good `bundle.json`, as plain data."""
    sha256 = "0" * 64

    def manifest_facts() -> dict:
        return {
            "name": "handmade",
            "version": 1,
            "created": "2026-01-02T03:04:05Z",
            "licence": "CC0-1.0",
            "architecture": "mean colour",
            "input": {"height": 6, "width": 8},
            "preprocess": {
                "resize": {"policy": "shorter_side", "size": 8, "interpolation": "bilinear"},
                "crop": {"height": 6, "width": 8},
                "background": [0, 0, 0],
            },
            "normalisation": {"mean": [0, 0, 0], "std": [1, 1, 1]},
            "labels": [{"name": "red"}, {"name": "green", "id": "n01"}, {"name": "blue"}],
            "outputs": [
                {"name": "probabilities", "shape": [3]},
                {"name": "embedding", "shape": [3]},
            ],
            "variants": [
                {
                    "file": "model.onnx",
                    "precision": "fp32",
                    "sha256": sha256,
                    "bytes": 1,
                    "opset": 20,
                    "parity": {"max_abs": 0, "top1_agreement": 1, "images": 64},
                    "golden_tolerance": 1e-4,
                }
            ],
            "metrics": [
                {
                    "variant": "fp32",
                    "dataset": "colours",
                    "split": "validation",
                    "images": 64,
                    "tta": "none",
                    "top1": 0.5,
                    "top1_interval": [0.4, 0.6],
                    "top5": 1,
                    "nll": 1.5,
                    "ece": 0.01,
                }
            ],
            "files": {"golden/golden.json": {"sha256": sha256, "bytes": 1}},
            "reference": {
                "predicted_classes": [20, 22, 22],
                "confidence_histogram": [0, 64],
                "embedding_mean": [0, 0, 0],
                "embedding_variance": [1, 1, 1],
            },
            "provenance": {
                "recipe": {"epochs": 1},
                "code_revision": "test",
                "dataset_fingerprint": "test",
                "seed": 0,
                "hardware": "test",
                "libraries": {"numpy": "2"},
            },
        }

    return manifest_facts


def _mean_colour_graph() -> onnx.ModelProto:
    """uint8 [batch, 6, 8, 3] -> probabilities [batch, 3]: softmax of the mean of each channel."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["floats", "scale"], ["pixels"]),
            helper.make_node("ReduceMean", ["pixels", "axes"], ["embedding"], keepdims=0),
            helper.make_node("Softmax", ["embedding"], ["probabilities"], axis=1),
        ],
        "mean-colour",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 6, 8, 3])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 3]),
        ],
        [
            numpy_helper.from_array(np.float32(1 / 255), "scale"),
            numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
        ],
    )
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(scope="session")
def write_bundle(manifest_facts, hostile_images) -> Callable[..., None]:
    """Returns a function that writes a whole bundle into a folder, `bundle.json` last."""
    graph = _mean_colour_graph().SerializeToString(deterministic=True)

    def write_bundle(folder: Path, *, version: int = 1, name: str = "handmade") -> None:
        (folder / "model.onnx").write_bytes(graph)
        (folder / "MODEL_CARD.md").write_text("# Mean colour\n", encoding="utf-8")
        (folder / "golden").mkdir()
        samples = []
        for index, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)]):
            file = f"golden/{index}.png"
            image = hostile_images.encoded(Image.new("RGB", (8, 8), colour), "PNG")
            (folder / file).write_bytes(image)
            weights = np.exp(np.array(colour) / 255)
            top = [int(weights.argmax())]
            share = (weights / weights.sum()).tolist()
            samples.append({"file": file, "top": top, "probabilities": share})
        (folder / "golden" / "golden.json").write_text(json.dumps({"samples": samples}))
        facts = manifest_facts()
        records = {
            path.relative_to(folder).as_posix(): record_file(path).model_dump()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        facts["variants"][0] |= records.pop("model.onnx")
        facts |= {"name": name, "version": version, "files": records}
        facts["created"] = datetime.datetime.now(datetime.UTC).isoformat()
        (folder / "bundle.json").write_text(json.dumps(facts), encoding="utf-8")

    return write_bundle


@pytest.fixture
def handmade_bundle(tmp_path, write_bundle) -> Path:
    """The folder of a published bundle, `handmade` version 1; its repository is two above."""
    repository = tmp_path / "models"
    with publishing(repository, "handmade") as (staging, version):
        write_bundle(staging, version=version)
    return repository / "handmade" / "1"


@pytest.fixture(scope="session")
def photographs(shared_data) -> dict[str, bytes]:
    """Ten real photographs, 75 to 700 kB."""
    paths = sorted((shared_data / "imagenet-sample").glob("*.JPEG"))[::10]
    return {path.name: path.read_bytes() for path in paths}
