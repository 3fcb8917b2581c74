"""The engine over a real ONNX file; CUDA through fakes where there is no GPU."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from service.engine import Engine, blame
from service.errors import BundleError, ProviderError


@pytest.fixture(scope="module")
def model_file(tiny_bundle_repository):
    return tiny_bundle_repository / "digits-linear/1/model.onnx"


@pytest.fixture
def views():
    return np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)


def test_probabilities_are_distributions_whatever_the_batch(model_file, views):
    engine = Engine(model_file, provider="cpu")
    together = engine.run(views)
    assert together.shape == (7, 10)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-5)
    alone = np.concatenate([engine.run(views[i : i + 1]) for i in range(7)])
    np.testing.assert_allclose(alone, together, atol=1e-6)


def test_optional_outputs_come_when_named(model_file, views):
    probabilities, embedding = Engine(model_file, provider="cpu").run_outputs(
        views, ["probabilities", "embedding"]
    )
    assert (probabilities.shape, embedding.shape) == ((7, 10), (7, 64))


def test_warm_up_returns_a_batch_size_that_was_timed(model_file):
    assert Engine(model_file, provider="cpu").warm_up() in (1, 2, 4, 8)


@pytest.mark.parametrize(
    "content", [b"", b"<html>404</html>", b"\x08\x0a" + bytes(100)], ids=["empty", "html", "zeros"]
)
def test_a_file_that_is_no_model_is_one_clear_error(tmp_path, content):
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx"):
        Engine(file, provider="cpu")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "running Conv node. cuda_call.cc:121 CUDA failure 2: out of memory ; GPU=0",
            ProviderError,
        ),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", ProviderError),
        ("Failed to allocate memory for requested buffer of size 4096", ProviderError),
        ("running MatMul node. Status Message: std::bad_alloc", ProviderError),
        ("running Reshape node. Input shape:{1,10}, requested shape:{7,10}", BundleError),
    ],
)
def test_a_fault_of_the_machine_is_not_one_of_the_graph(text, told):
    with pytest.raises(told, match=r"^toy@1: .* run") as raised, blame("toy@1"):
        raise RuntimeError(text)
    assert text not in raised.value.without_cause
    assert text in str(raised.value)


@pytest.mark.parametrize("error", [MemoryError(), OSError(), BundleError("known")])
def test_what_is_known_to_be_wrong_is_told_as_it_is(error):
    with pytest.raises(type(error)) as raised, blame("toy@1"):
        raise error
    assert raised.value is error


def test_a_provider_that_is_not_built_in_is_refused(model_file):
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(ProviderError, match="cuda"):
        Engine(model_file, provider="cuda")


class FakeSession:
    """A session of an onnxruntime with CUDA; what it ran is in `batches`."""

    providers = ("CUDAExecutionProvider", "CPUExecutionProvider")

    def __init__(self, path, options, providers):
        self.asked = providers
        self.batches = []
        self.real = ort_session(path, options, providers=["CPUExecutionProvider"])

    def get_providers(self):
        return list(self.providers)

    def get_inputs(self):
        return self.real.get_inputs()

    def io_binding(self):
        return FakeBinding()

    def run_with_iobinding(self, binding):
        self.batches.append(len(binding.value))
        binding.outputs = self.real.run(binding.names, {"image": binding.value})


class FakeBinding:
    def __init__(self):
        self.names = []

    def bind_ortvalue_input(self, name, value):
        self.value = value

    def bind_output(self, name, device):
        self.names.append(name)

    def copy_outputs_to_cpu(self):
        return self.outputs


ort_session = ort.InferenceSession


@pytest.fixture
def faked_cuda(monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(FakeSession.providers))
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(ort, "InferenceSession", FakeSession)
    monkeypatch.setattr(
        ort.OrtValue, "ortvalue_from_numpy", staticmethod(lambda array, kind, device: array)
    )


def test_a_silent_fall_back_to_the_cpu_is_an_error(model_file, faked_cuda, monkeypatch):
    monkeypatch.setattr(FakeSession, "providers", ("CPUExecutionProvider",))
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(ProviderError, match="cannot use the cuda provider"):
        Engine(model_file, provider="cuda")


def test_what_onnx_runtime_prints_is_for_who_debugs(
    model_file, faked_cuda, monkeypatch, caplog, capfd
):
    monkeypatch.setattr(ort, "preload_dlls", lambda: print("Failed to load libcublas.so.13"))  # noqa: T201
    levels = []
    monkeypatch.setattr(ort, "set_default_logger_severity", levels.append)
    caplog.set_level("INFO", "service.engine")
    Engine(model_file, provider="cuda")
    assert (levels, caplog.messages) == ([4], [])
    caplog.set_level("DEBUG", "service.engine")
    Engine(model_file, provider="cuda")
    assert (levels, caplog.messages) == ([4], ["Failed to load libcublas.so.13"])
    assert capfd.readouterr() == ("", "")


def test_a_gpu_runs_only_the_batch_sizes_that_were_warmed_up(model_file, faked_cuda, views):
    engine = Engine(model_file, provider="cuda", device=3, max_batch_views=6)
    assert engine.batch_sizes == (1, 2, 4, 6)
    assert engine.warm_up() == 6
    session = engine._session
    assert session.asked == [("CUDAExecutionProvider", {"device_id": "3", "use_tf32": "0"})]
    warmed = set(session.batches)
    session.batches.clear()
    padded = engine.run(views)
    assert session.batches == [6, 1]
    assert set(session.batches) <= warmed
    engine.run(views[:3])
    assert session.batches[-1] == 4
    np.testing.assert_allclose(padded, Engine.run(engine, views), atol=1e-6)
    assert padded.shape == (7, 10)


@pytest.mark.gpu
def test_a_real_gpu_agrees_with_the_cpu(model_file, views):
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("needs onnxruntime-gpu and an NVIDIA GPU")
    gpu = Engine(model_file, provider="cuda")
    gpu.warm_up()
    np.testing.assert_allclose(
        gpu.run(views), Engine(model_file, provider="cpu").run(views), atol=1e-4
    )
