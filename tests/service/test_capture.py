"""Images kept for training: which, in what form, how many, and that nobody waits for it."""

from __future__ import annotations

import asyncio
import errno
import io
import itertools
import logging
import os
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from service.bundle.image_source import NormalisedView, PixelImage
from service.capture import Capture
from service.capture_parts import CapturedImage, CaptureParts
from service.classifier import Options
from service.errors import StartError
from service.http_api import build_http_app
from service.proto import image_classifier_pb2 as messages
from service.proto import open_inference_pb2
from service.proto.image_classifier_pb2_grpc import ImageClassifierStub
from service.proto.open_inference_pb2_grpc import GRPCInferenceServiceStub

MIB = 1024 * 1024
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "captured"


@pytest.fixture
def captured(folder):
    """Returns `captured()`: the rows of all parts, oldest first."""

    def read():
        parts = sorted(folder.glob("*@*/*.parquet"), key=lambda path: path.name)
        return [row for part in parts for row in pq.read_table(part).to_pylist()]

    return read


@pytest.fixture
def make(make_settings, make_tiny_model, folder):
    """Returns `make(**settings)`: a tiny model whose answers are all kept."""

    def make(**given):
        return make_tiny_model(
            make_settings(**{"capture_folder": folder, "capture_share": 1.0, **given})
        )

    return make


def counted(metrics, result):
    return metrics.capture._images.labels(result)._value.get()


async def test_all_protocols_are_kept_with_their_request(
    make, make_png, metrics, make_settings, serving_grpc, captured
):
    model = make()
    classifier = model.classifier
    images = {name: make_png((9, 8), colour) for name, colour in COLOURS.items()}
    app = build_http_app(classifier, metrics, make_settings())
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://fivecrop")
    async with client, serving_grpc(classifier, metrics, make_settings()) as served:
        await client.post(
            "/v1/classify", content=images["red"], headers={"x-request-id": "over-http"}
        )
        await client.post(
            "/v2/models/tiny/infer",
            content=images["green"],
            headers={"x-request-id": "over-v2", "inference-header-content-length": "0"},
        )
        await ImageClassifierStub(served.channel).Classify(
            messages.ClassifyRequest(image=images["blue"]),
            metadata=(("x-request-id", "over-grpc"),),
        )
        tensor = open_inference_pb2.ModelInferRequest.InferInputTensor(
            name="image", datatype="BYTES", shape=[1]
        )
        tensor.contents.bytes_contents.append(images["red"])
        await GRPCInferenceServiceStub(served.channel).ModelInfer(
            open_inference_pb2.ModelInferRequest(model_name="tiny", inputs=[tensor]),
            metadata=(("x-request-id", "over-v2-grpc"),),
        )
    await classifier.close()
    rows = captured()
    assert [(row["request_id"], row["prediction"]) for row in rows] == [
        ("over-http", "red"),
        ("over-v2", "green"),
        ("over-grpc", "blue"),
        ("over-v2-grpc", "red"),
    ]
    for row in rows:
        assert row["image"]["bytes"] == images[row["prediction"]]
        assert row["label"] is None
        assert (row["model"], row["version"], row["is_abstained"]) == ("tiny", 1, False)
        assert row["predicted"] == list(COLOURS).index(row["prediction"])
    assert len({row["image"]["path"] for row in rows}) == 4
    assert all(row["image"]["path"].endswith(".png") for row in rows)
    assert counted(metrics, "written") == 4


async def test_nothing_is_kept_unless_it_was_asked_for(make_settings, make_tiny_model, make_png):
    model = make_tiny_model(make_settings())
    assert model.classifier._capture is None
    await model.classifier.classify(make_png((8, 8), (255, 0, 0)), Options())
    assert not any(thread.name == "fivecrop-capture" for thread in threading.enumerate())


async def test_unsure_answers_are_kept_besides_a_share(make, make_png, captured, folder):
    model = make(capture_share=0.0, capture_below_score=0.6)
    for colour in ((255, 0, 0), (90, 80, 80), (255, 0, 0)):
        await model.classifier.classify(make_png((8, 8), colour), Options())
    await model.classifier.close()
    (row,) = captured()
    assert row["score"] < 0.6


async def test_a_share_is_about_that_share(make, make_png, captured):
    model = make(capture_share=0.25)
    image = make_png((8, 8), (255, 0, 0))
    for _ in range(400):
        await model.classifier.classify(image, Options())
    await model.classifier.close()
    assert 60 < len(captured()) < 140  # four standard deviations


@pytest.mark.parametrize("is_planar", [False, True])
async def test_pixels_become_a_file_and_tensors_are_left_out(make, captured, metrics, is_planar):
    model = make()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    content = (pixels.transpose(2, 0, 1) if is_planar else pixels).tobytes()
    source = PixelImage(content=memoryview(content), width=9, height=6, is_planar=is_planar)
    await model.classifier.classify(source, Options())
    tensor = np.zeros((3, 8, 8), np.float32)
    source = NormalisedView(content=tensor.tobytes(), width=8, height=8)
    await model.classifier.classify(source, Options())
    await model.classifier.close()
    (row,) = captured()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))), pixels)
    assert row["image"]["path"].endswith(".png")
    assert counted(metrics, "skipped") == 1


async def test_a_tensor_is_answered_over_both_wires_and_counted_as_skipped(
    make, metrics, make_settings, serving_grpc, captured
):
    classifier = make().classifier
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8]}
    app = build_http_app(classifier, metrics, make_settings())
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://fivecrop")
    async with client, serving_grpc(classifier, metrics, make_settings()) as served:
        answer = await client.post(
            "/v2/models/tiny/infer", json={"inputs": [{**tensor, "data": [1.0] * 192}]}
        )
        assert answer.status_code == 200, answer.text
        request = open_inference_pb2.ModelInferRequest(model_name="tiny", inputs=[tensor])
        request.raw_input_contents.append(np.ones(192, "<f4").tobytes())
        await GRPCInferenceServiceStub(served.channel).ModelInfer(request)
    await classifier.close()
    assert captured() == []
    text = metrics.render()[0].decode()
    assert 'fivecrop_capture_images_total{result="skipped"} 2.0' in text


async def test_errors_are_not_kept(make, captured):
    model = make()
    with pytest.raises(Exception, match="image"):
        await model.classifier.classify(b"no image", Options())
    await model.classifier.close()
    assert captured() == []


async def test_a_part_appears_after_its_time_without_another_request(
    make, make_png, captured, folder
):
    model = make(capture_part_s=1.0)
    await model.classifier.classify(make_png((8, 8), (255, 0, 0)), Options())
    assert captured() == []
    async with asyncio.timeout(20):
        while not captured():
            await asyncio.sleep(0.05)
    assert next(folder.glob("*@*/*.parquet")).stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0


async def test_a_full_queue_drops_images_and_delays_nobody(make, make_png, metrics, monkeypatch):
    writing, go_on = threading.Event(), threading.Event()

    def write(self, *_):
        writing.set()
        go_on.wait()
        return 0

    monkeypatch.setattr(CaptureParts, "write", write)
    monkeypatch.setattr("service.capture._MOST_WAITING", 5)
    monkeypatch.setattr("service.capture._MOST_PART_BYTES", 1_000)
    model = make()
    image = make_png((8, 8), (255, 0, 0))
    while not writing.is_set():
        await model.classifier.classify(image, Options())
    for _ in range(10):
        await model.classifier.classify(image, Options())
    assert counted(metrics, "dropped") >= 5
    go_on.set()


@pytest.mark.parametrize("fault", ["unwritable", "disk full"])
async def test_what_cannot_be_written_is_counted_logged_once_and_answered(
    make, make_png, metrics, folder, monkeypatch, caplog, fault, captured
):
    is_full = True

    def fsync(_):
        if is_full:
            raise OSError(errno.ENOSPC, "No space left on device")

    if fault == "unwritable":
        folder.write_text("a file where the folder should be")
    else:
        monkeypatch.setattr("service.capture_parts.os.fsync", fsync)
    monkeypatch.setattr("service.capture._MOST_PART_BYTES", 1)
    caplog.set_level(logging.WARNING)
    model = make()
    image = make_png((8, 8), (255, 0, 0))
    # An image as large as a part is a part of its own; larger ones are left out.
    monkeypatch.setattr(model.classifier._capture, "_part_bytes", len(image))
    for _ in range(3):
        answer = await model.classifier.classify(image, Options())
        assert answer.predictions[0].label == "red"
    async with asyncio.timeout(20):
        while counted(metrics, "failed") < 3:
            await asyncio.sleep(0.01)
    assert sum("cannot be written" in record.message for record in caplog.records) == 1
    assert list(folder.glob("*@*/.*")) == []
    if fault == "unwritable":
        folder.unlink()
    is_full = False
    await model.classifier.classify(image, Options())
    await model.classifier.close()
    assert len(captured()) == 1
    assert sum("again" in record.message for record in caplog.records) == 1


def rows_of(size, count):
    return [
        CapturedImage(
            image={"bytes": os.urandom(size), "path": f"{number}.jpeg"},
            predicted=0,
            prediction="red",
            score=0.5,
            is_abstained=False,
            model="tiny",
            version=1,
            time=datetime.now(UTC),
            request_id="x",
        )
        for number in range(count)
    ]


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def test_the_oldest_parts_make_room_and_nothing_else_goes(folder, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(
        "service.capture_parts.time.strftime", lambda *_: f"20261121T{next(ticks):06d}"
    )
    parts = CaptureParts(folder, max_bytes=10_000)
    names = []
    for name in ("one@1", "two@1"):
        parts.write(name, ["red"], rows_of(1_000, 1))
        names += [path.name for path in folder.glob(f"{name}/*.parquet")]
    precious = folder / "one@1" / "labelled.parquet"
    precious.write_bytes(b"x" * 20_000)
    for _ in range(20):
        size = parts.write("two@1", ["red"], rows_of(1_000, 1))
        found = [path for path in folder.rglob("*.parquet") if path != precious]
        assert size == sum(path.stat().st_size for path in found) <= 10_000
    assert precious.exists()
    assert not {path.name for path in found} & set(names)
    newest = sorted(path.name for path in found)
    assert newest[-1].startswith("20261121T000021")
    assert len(newest) > 1


def test_several_processes_stay_within_the_size_together(folder):
    workers = [CaptureParts(folder, max_bytes=60_000) for _ in range(4)]

    def write(parts):
        for _ in range(10):
            parts.write("tiny@1", ["red"], rows_of(2_000, 2))

    threads = [threading.Thread(target=write, args=(one,)) for one in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 30_000 < size_of(folder) <= 60_000
    for path in folder.rglob("*.parquet"):
        assert pq.read_table(path).num_rows == 2


def test_what_a_killed_process_left_half_written_is_removed(folder):
    (folder / "tiny@1").mkdir(parents=True)
    left = folder / "tiny@1" / ".writing-20261121T101500-0123abcd.parquet"
    left.write_bytes(b"half")
    CaptureParts(folder, max_bytes=MIB).write("tiny@1", ["red"], rows_of(10, 1))
    assert not left.exists()


def test_a_part_has_row_groups_and_the_names_of_its_classes(folder):
    CaptureParts(folder, max_bytes=64 * MIB).write("tiny@1", ["réd", "x"], rows_of(MIB, 9))
    (path,) = folder.rglob("*.parquet")
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)] == [
        *(4, 4, 1),
    ]
    assert file.schema_arrow.metadata[b"classes"] == b'["r\\u00e9d", "x"]'


def test_without_the_packages_the_start_ends_with_one_line(monkeypatch, make_settings, metrics):
    monkeypatch.delitem(sys.modules, "service.capture_parts", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    settings = make_settings(capture_folder=Path("somewhere"))
    with pytest.raises(StartError, match=r"^capture needs .* fivecrop\[capture\]$"):
        Capture.build(settings, metrics, lambda _: ())
    assert Capture.build(make_settings(), metrics, lambda _: ()) is None
