"""Fixtures that more than one package of tests uses."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from service.errors import ErrorCode


@pytest.fixture(scope="session")
def tiny_bundle_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one real bundle: model `digits-linear`, version 1.

    Ten classes named "0" to "9", input 32x32, outputs `probabilities` [10] and `embedding` [64];
    a linear classifier, about 95 % right on scikit-learn's handwritten digits. It goes through
    every gate of an export but needs no PyTorch, so it is there in a few seconds.
    """
    import numpy as np
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
