"""Fixtures that more than one package of tests uses."""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from service.errors import ErrorCode


@pytest.fixture(scope="session")
def tiny_bundle_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one real bundle: model `digits-linear`, version 1.

    Ten classes named "0" to "9", input 32x32, outputs `probabilities` [10] and `embedding` [64];
    a linear classifier, about 95 % right on scikit-learn's handwritten digits. It goes through
    every gate of an export but needs no PyTorch, so it is there in a few seconds.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from sklearn.linear_model import LogisticRegression

    from service.bundle.manifest import Label, Normalisation, Preprocess, Provenance, Resize, Size
    from training.bundle_writer import BundleFacts, BundleWriter
    from training.data import load_digits_images, split_stratified
    from training.evaluate import image_views

    size = Size(height=32, width=32)
    preprocess = Preprocess(
        resize=Resize(policy="shorter_side", size=32, interpolation="bilinear"),
        crop=size,
        background=(0, 0, 0),
    )
    splits = split_stratified(load_digits_images(), 0.3, seed=0)

    def embed(views: np.ndarray) -> np.ndarray:
        """uint8 [N, 32, 32, 3] -> float32 [N, 64]: grey means of 4x4 pixels, 0..1."""
        grey = views.astype(np.float32).mean(axis=3) / 255
        return grey.reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4)).reshape(-1, 64)

    train = splits.train
    views = np.concatenate([image_views(train, index, preprocess) for index in range(len(train))])
    linear = LogisticRegression(C=10.0, max_iter=1000).fit(embed(views), train.labels)

    def constant(name: str, value: np.ndarray) -> onnx.TensorProto:
        return numpy_helper.from_array(np.ascontiguousarray(value), name)

    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["planes"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["floats", "scale"], ["pixels"]),
            helper.make_node(
                "AveragePool", ["pixels"], ["cells"], kernel_shape=[4, 4], strides=[4, 4]
            ),
            helper.make_node("ReduceMean", ["cells", "channel"], ["grey"], keepdims=0),
            helper.make_node("Flatten", ["grey"], ["embedding"]),
            helper.make_node("Gemm", ["embedding", "weight", "bias"], ["logits"], transB=1),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "digits-linear",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 32, 32, 3])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 64]),
        ],
        [
            constant("scale", np.float32(1 / 255)),
            constant("channel", np.array([1], np.int64)),
            constant("weight", linear.coef_.astype(np.float32)),
            constant("bias", linear.intercept_.astype(np.float32)),
        ],
    )
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    facts = BundleFacts(
        name="digits-linear",
        architecture="test:linear",
        licence="CC-BY-4.0",
        preprocess=preprocess,
        normalisation=Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        labels=tuple(Label(name=name) for name in train.class_names),
        provenance=Provenance(
            recipe={},
            code_revision="unknown",
            dataset_fingerprint="unknown",
            seed=0,
            hardware="unknown",
            libraries={},
        ),
    )
    repository = tmp_path_factory.mktemp("tiny") / "exported_models"
    BundleWriter(
        facts=facts,
        graphs={"fp32": model},
        images=splits.validation,
        expected=lambda views: linear.predict_proba(embed(views)).astype(np.float32),
    ).publish(repository)
    return repository


class GrowingRepository:
    """A copy of the tiny repository that a test publishes to, and damages.

    Version V answers with every class moved on by V - 1, so an answer's scores tell the version
    that they came from.
    """

    NAME = "digits-linear"

    def __init__(self, folder: Path, original: Path) -> None:
        self.folder = folder
        shutil.copytree(original, folder)
        golden = json.loads((folder / self.NAME / "1/golden/golden.json").read_text())
        sample = golden["samples"][0]
        self.image = (folder / self.NAME / "1" / sample["file"]).read_bytes()
        self.first_class = sample["top"][0]

    def expected_class(self, version: int) -> int:
        """The best class of `image` that a version answers."""
        return (self.first_class + version - 1) % 10

    def upload(self, files, place: str, version: int) -> None:
        """Puts a version below a place of an fsspec file system, its manifest last."""
        folder = self.folder / self.NAME / str(version)
        for path in sorted(folder.rglob("*"), key=lambda path: path.name == "bundle.json"):
            if path.is_file():
                files.put_file(str(path), f"{place}/{path.relative_to(self.folder)}")

    def publish(
        self,
        version: int,
        *,
        name: str = NAME,
        answers_as: int | None = None,
        padding_mib: int = 0,
        fails_on_white: bool = False,
    ) -> Path:
        """Publishes a version at once, as an export does; returns its folder."""
        import onnx
        from onnx import numpy_helper

        from service.bundle.repository import record_file

        step = (version if answers_as is None else answers_as) - 1
        with tempfile.TemporaryDirectory(prefix=".staging-", dir=self.folder) as parent:
            staging = Path(parent) / str(version)
            shutil.copytree(self.folder / self.NAME / "1", staging)
            model = onnx.load(staging / "model.onnx")
            for constant in model.graph.initializer:
                if constant.name in ("weight", "bias"):
                    moved = np.roll(numpy_helper.to_array(constant), step, axis=0)
                    constant.CopyFrom(numpy_helper.from_array(moved.copy(), constant.name))
            if padding_mib:
                _pad(model, padding_mib)
            if fails_on_white:
                _fail_on_white(model)
            onnx.save(model, staging / "model.onnx")
            golden = json.loads((staging / "golden/golden.json").read_text())
            for sample in golden["samples"]:
                sample["top"] = [(index + step) % 10 for index in sample["top"]]
                sample["probabilities"] = list(np.roll(sample["probabilities"], step))
            (staging / "golden/golden.json").write_text(json.dumps(golden))
            facts = json.loads((staging / "bundle.json").read_text())
            facts.update(name=name, version=version)
            facts["variants"][0].update(record_file(staging / "model.onnx").model_dump())
            record = record_file(staging / "golden/golden.json").model_dump()
            facts["files"]["golden/golden.json"] = record
            (staging / "bundle.json").write_text(json.dumps(facts))
            (self.folder / name).mkdir(exist_ok=True)
            final = self.folder / name / str(version)
            if final.exists():  # a version that is replaced, which nobody should do
                final.rename(Path(parent) / "old")
            return staging.rename(final)

    def publish_broken(self, version: int, *, name: str = NAME) -> Path:
        """Publishes a version with one flipped bit in its weights."""
        folder = self.publish(version, name=name)
        file = folder / "model.onnx"
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        return folder


def _pad(model, mebibytes: int) -> None:
    """Gives a graph weights that do nothing but take memory."""
    from onnx import helper, numpy_helper

    noise = np.random.default_rng(0)
    padding = noise.standard_normal((10, mebibytes * 2**18 // 20), np.float32)
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(padding, "padding"))
    graph.initializer.append(numpy_helper.from_array(np.zeros_like(padding.T), "nothing"))
    softmax = graph.node.pop()
    softmax.input[0] = "padded"
    graph.node.extend(
        [
            helper.make_node("MatMul", ["logits", "padding"], ["wide"]),
            helper.make_node("MatMul", ["wide", "nothing"], ["zeros"]),
            helper.make_node("Add", ["logits", "zeros"], ["padded"]),
            softmax,
        ]
    )


def _fail_on_white(model) -> None:
    """Lets a graph answer NaN for an image that is white all over, and for that alone."""
    from onnx import helper, numpy_helper

    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.float32(0.999), "white"))
    softmax = graph.node.pop()
    logits = softmax.input[0]
    softmax.input[0] = "damaged"
    graph.node.extend(
        [
            helper.make_node("ReduceMean", ["embedding"], ["brightness"]),
            helper.make_node("Sub", ["white", "brightness"], ["below_white"]),
            helper.make_node("Sqrt", ["below_white"], ["not_a_number"]),  # of what is negative
            helper.make_node("Sub", ["not_a_number", "not_a_number"], ["nothing_or_nan"]),
            helper.make_node("Add", [logits, "nothing_or_nan"], ["damaged"]),
            softmax,
        ]
    )


@pytest.fixture
def growing_repository(tmp_path, tiny_bundle_repository):
    """A repository of one model, version 1, that a test publishes further versions to."""
    return GrowingRepository(tmp_path / "models", tiny_bundle_repository)


@pytest.fixture
def bucket(s3, growing_repository):
    """Returns `upload(version)`; the bucket is `s3://models/live` of a local server.

    Version 1 of the growing repository is in it.
    """
    s3.mkdir("models")
    upload = partial(growing_repository.upload, s3, "models/live")
    upload(1)
    return upload


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data sets and photographs beside the repository."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    return folder


def _load_hostile_images() -> ModuleType:
    path = Path(__file__).parent / "bundle" / "hostile_images.py"
    spec = importlib.util.spec_from_file_location("hostile_images", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_HOSTILE_IMAGES = _load_hostile_images()


@pytest.fixture(scope="session")
def hostile_images() -> ModuleType:
    """tests/bundle/hostile_images.py: makers of image files, and tables of hostile ones."""
    return _HOSTILE_IMAGES


@pytest.fixture
def hostile_image(request) -> tuple[bytes, ErrorCode]:
    """Each hostile image in turn, with the code that it must be answered with."""
    make, code = _HOSTILE_IMAGES.HOSTILE_IMAGES[request.param]
    return make(), code


def pytest_generate_tests(metafunc):
    """Runs a test that asks for `hostile_image` with each of them."""
    if "hostile_image" in metafunc.fixturenames:
        metafunc.parametrize("hostile_image", list(_HOSTILE_IMAGES.HOSTILE_IMAGES), indirect=True)


@pytest.fixture
def s3(monkeypatch):
    """The file system of an empty local S3, which the environment points at."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem(use_listings_cache=False)
    yield files
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def shared_squeezenet_reference(shared_data):
    """SqueezeNet's probabilities for the photographs of a folder, in the order of their names.

    Without any code of ours: torchvision's network and its PIL transforms.
    """
    import numpy as np
    import torch
    import torchvision
    from PIL import Image
    from safetensors.torch import load_file

    network = torchvision.models.squeezenet1_1().eval()
    network.features[0].padding = (0, 0)
    network.load_state_dict(load_file(shared_data / "squeezenet1_1-imagenet.safetensors"))
    transforms = torchvision.transforms.Compose(
        [torchvision.transforms.Resize(256), torchvision.transforms.CenterCrop(227)]
    )
    mean = torch.tensor([123.0, 117.0, 104.0]).view(3, 1, 1)

    def answer(folder):
        rows = []
        for path in sorted(folder.iterdir()):
            view = np.array(transforms(Image.open(path).convert("RGB")))
            pixels = torch.from_numpy(view).permute(2, 0, 1).float() - mean
            with torch.inference_mode():
                rows.append(network(pixels[None]).softmax(dim=1)[0].numpy())
        return np.stack(rows)

    return answer
