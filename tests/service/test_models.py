"""Loading is proving: every way in which a bundle or a machine can be wrong stops the load."""

from __future__ import annotations

import json
import shutil

import pytest

from service import model as model_module
from service.bundle.repository import read_bundle, record_file
from service.engine import Engine
from service.errors import BundleError, ErrorCode, ProviderError, RequestError, SettingsError
from service.metrics import Metrics
from service.rollout import Rollout
from service.settings import Settings

NAME = "digits-linear"


@pytest.fixture
def repository(tiny_bundle_repository, tmp_path):
    """A copy of the tiny repository that a test may damage."""
    copy = tmp_path / "models"
    shutil.copytree(tiny_bundle_repository, copy)
    return copy


def load(repository, **given):
    metrics = Metrics()
    settings = Settings(model_repository=repository, **given)
    rollout = Rollout.start(settings, metrics, device=0)
    rollout.batcher.close(0)
    return rollout.models, metrics


def add_version(repository, version, *, name=NAME):
    folder = repository / name / str(version)
    shutil.copytree(repository / NAME / "1", folder)
    edit(folder, lambda facts: facts.update(version=version, name=name))
    return folder


def edit(folder, change):
    """Changes `bundle.json`, as someone with an editor could."""
    manifest = folder / "bundle.json"
    facts = json.loads(manifest.read_text())
    change(facts)
    manifest.write_text(json.dumps(facts))


def edit_golden(folder, change):
    """Changes the golden samples and makes the manifest agree, so that only the model disagrees."""
    file = folder / "golden/golden.json"
    golden = json.loads(file.read_text())
    change(golden)
    file.write_text(json.dumps(golden))
    record = record_file(file).model_dump()
    edit(folder, lambda facts: facts["files"].update({"golden/golden.json": record}))


def test_a_proven_model_can_be_asked_for_in_three_ways(repository):
    models, metrics = load(repository)
    (model,) = models
    for reference in (None, NAME, f"{NAME}@1"):
        assert models.find(reference) is model
    assert models.is_default(model)
    assert 'fivecrop_model_info{digest="' in metrics.render()[0].decode()


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "cat",
        f"{NAME}@2",
        f"{NAME}@01",
        f"{NAME}@",
        f"{NAME}@1/../1",
        "../etc/passwd",
        "@",
        "\0",
    ],
)
def test_an_unknown_reference_is_not_found_and_touches_no_file(repository, reference):
    models, _ = load(repository)
    shutil.rmtree(repository)
    with pytest.raises(RequestError) as refused:
        models.find(reference)
    assert refused.value.code is ErrorCode.MODEL_NOT_FOUND


def test_the_newest_version_is_served_by_number_not_by_text(repository):
    add_version(repository, 2)
    add_version(repository, 10)
    models, _ = load(repository)
    assert [model.version for model in models] == [10]
    models, _ = load(repository, models=(f"{NAME}@2", f"{NAME}@10"))
    assert models.find(NAME).version == 10
    assert models.find(f"{NAME}@2").version == 2


def test_several_models_need_a_name_or_a_default(repository):
    add_version(repository, 1, name="other")
    models, _ = load(repository)
    with pytest.raises(RequestError) as refused:
        models.find(None)
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT
    models, _ = load(repository, default_model="other")
    assert models.find(None).name == "other"
    with pytest.raises(SettingsError, match="'absent'"):
        load(repository, default_model="absent")


def flip_a_bit_of_the_weights(folder):
    file = folder / "model.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def swap_the_weights_and_sign_them(folder):
    """The sha256 is right, the model is not: only the golden samples can tell."""
    import onnx
    from onnx import numpy_helper

    file = folder / "model.onnx"
    model = onnx.load(file)
    weight = next(i for i in model.graph.initializer if i.name == "weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[::-1].copy(), "weight"))
    onnx.save(model, file)
    record = record_file(file).model_dump()
    edit(folder, lambda facts: facts["variants"][0].update(record))


def nan_in_golden(folder):
    def change(golden):
        golden["samples"][0]["probabilities"][0] = 1.0

    edit_golden(folder, change)


DAMAGE = {
    "a flipped bit": (flip_a_bit_of_the_weights, "is not the file that was published"),
    "other weights": (swap_the_weights_and_sign_them, "does not reproduce"),
    "other golden answers": (nan_in_golden, "does not reproduce"),
    "no model file": (lambda f: (f / "model.onnx").unlink(), r"there is no file model\.onnx"),
    "no manifest": (lambda f: (f / "bundle.json").unlink(), "no bundle"),
    "a torn manifest": (
        lambda f: (f / "bundle.json").write_text((f / "bundle.json").read_text()[:500]),
        "bundle.json",
    ),
    "an unknown key": (lambda f: edit(f, lambda m: m.update(mean=0.5)), "mean"),
    "another version inside": (lambda f: edit(f, lambda m: m.update(version=9)), "NAME/VERSION"),
    "a label too few": (
        lambda f: edit(f, lambda m: m["labels"].pop()),
        "the number of labels is not the number of classes",
    ),
    "another input size": (
        lambda f: edit(
            f,
            lambda m: (
                m.update(input={"height": 16, "width": 16}),
                m["preprocess"].update(crop={"height": 16, "width": 16}),
            ),
        ),
        "input is not 16x16",
    ),
    "an output that the graph has not": (
        lambda f: edit(f, lambda m: m["outputs"].append({"name": "cam", "shape": [10, 8, 8]})),
        "the graph cannot be run",
    ),
    "an output of another shape": (
        lambda f: edit(f, lambda m: (m["outputs"][1].update(shape=[32]), m.update(reference=None))),
        r"the graph's embedding has the shape \[64\], not \[32\]",
    ),
    "no fp32 variant": (
        lambda f: edit(
            f, lambda m: (m["variants"][0].update(precision="int8"), m.update(metrics=[]))
        ),
        "no fp32 variant",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bundle_that_is_not_what_it_claims_never_serves(repository, damage):
    break_it, message = DAMAGE[damage]
    folder = repository / NAME / "1"
    assert load(repository)
    break_it(folder)
    with pytest.raises(BundleError, match=message) as refused:
        load(repository)
    assert "\n" not in str(refused.value)


def test_the_naive_control_serves_a_flipped_bit(repository):
    folder = repository / NAME / "1"
    flip_a_bit_of_the_weights(folder)
    Engine(folder / "model.onnx", provider="cpu").warm_up()


def test_an_empty_repository_is_one_clear_error(tmp_path):
    with pytest.raises(BundleError, match="no bundle in"):
        load(tmp_path)
    with pytest.raises(BundleError, match="No such file"):
        load(tmp_path / "absent")


class FakeEngine(Engine):
    """Says which providers were tried; those in `broken` cannot be used."""

    broken: frozenset[str] = frozenset()
    tried: list[str] = []  # noqa: RUF012 - reset by the fixture

    def __init__(self, model_file, *, provider, **options):
        FakeEngine.tried.append(provider)
        if provider in FakeEngine.broken:
            raise ProviderError(f"ONNX Runtime cannot use the {provider} provider on this machine")
        super().__init__(model_file, provider="cpu")
        self.provider = provider


@pytest.fixture
def engines(monkeypatch):
    monkeypatch.setattr(model_module, "Engine", FakeEngine)
    monkeypatch.setattr(FakeEngine, "tried", [])
    monkeypatch.setattr(FakeEngine, "broken", frozenset())
    monkeypatch.setattr(model_module, "has_provider", lambda provider: True)
    return FakeEngine


def provider_of(repository, **given):
    (model,), _ = load(repository, **given)
    return model.engine.provider


def test_auto_takes_the_gpu_and_falls_back_loudly(repository, engines, monkeypatch, caplog):
    assert provider_of(repository) == "cuda"
    monkeypatch.setattr(engines, "broken", frozenset({"cuda"}))
    with caplog.at_level("WARNING"):
        assert provider_of(repository) == "cpu"
    assert "cannot use the cuda provider" in caplog.text
    assert provider_of(repository, provider="cuda") == "cpu"


def test_a_gpu_that_is_required_is_never_replaced(repository, engines, monkeypatch):
    monkeypatch.setattr(engines, "broken", frozenset({"cuda"}))
    with pytest.raises(ProviderError):
        provider_of(repository, require_gpu=True)
    assert engines.tried == ["cuda"]


def test_an_explicit_cpu_never_asks_for_the_gpu(repository, engines):
    assert provider_of(repository, provider="cpu") == "cpu"
    assert engines.tried == ["cpu"]


def test_a_gpu_waits_a_little_for_larger_batches(repository, engines):
    (model,), _ = load(repository)
    assert (model.lane.max_batch_views, model.lane.max_delay_s) == (64, 0.002)
    (model,), _ = load(repository, provider="cpu")
    assert (model.lane.max_batch_views, model.lane.max_delay_s) == (16, 0.0)
    (model,), _ = load(repository, provider="cpu", max_batch_views=2, max_batch_delay_ms=5)
    assert (model.lane.max_batch_views, model.lane.max_delay_s) == (2, 0.005)
    assert model.lane.good_batch_views <= 2


def test_an_untouched_bundle_is_read_back_with_its_digest(repository):
    bundle = read_bundle(repository / NAME / "1")
    (model,), _ = load(repository)
    assert model.bundle.digest == bundle.digest
