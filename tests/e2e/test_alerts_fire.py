"""Each alert, fired by its fault: a real server, a real Prometheus, the rules that are deployed.

Only their durations differ: a minute is a second (tests/tables/live_prometheus.py).
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import cycle
from pathlib import Path

import numpy as np
import psutil
import pytest
from live_prometheus import LivePrometheus
from PIL import Image, ImageFilter

from service.api_keys import KeyRing, KeyScope, make_key, write_keys
from service.bundle.repository import record_file
from training.data import load_digits_images, split_stratified

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
NAME = "digits-linear"
logger = logging.getLogger(__name__)


@pytest.fixture
def watch(tmp_path_factory, unused_ports):
    """`watch(*ports)`: a Prometheus that scrapes them, with the rules."""
    with contextlib.ExitStack() as stack:

        def start(*targets, key=None):
            (port,) = unused_ports(1)
            folder = tmp_path_factory.mktemp("prometheus")
            prometheus = stack.enter_context(
                LivePrometheus(folder, port, targets, key=key, with_rules=True)
            )
            begin = time.monotonic()
            while not prometheus.ask("up == 1"):
                assert time.monotonic() < begin + 60, "nothing is scraped"
                time.sleep(0.1)
            return prometheus

        yield start


@pytest.fixture
def fires():
    """Waits until alerts fire that did not, and logs the seconds that it took."""

    def wait(prometheus, *alerts, **how):
        begin = time.monotonic()
        # A machine that is slow may have looked absent before it was first scraped.
        while found := prometheus.firing() & set(alerts):
            assert time.monotonic() < begin + 60, f"{found} fire without a fault"
            time.sleep(0.2)
        for alert, seconds in prometheus.wait_firing(*alerts, **how).items():
            logger.info("%s fired after %d s", alert, seconds)

    return wait


@contextlib.contextmanager
def sending(server, images, *, clients=4, query="", headers=None):
    """Clients that send the images over and over, whatever is answered."""
    is_over = threading.Event()

    def send(number):
        turn = number
        while not is_over.is_set():
            connection = server.connect()
            turn += 1
            with contextlib.suppress(OSError, http.client.HTTPException):
                body = images[turn % len(images)]
                connection.request("POST", f"/v1/classify{query}", body, headers or {})
                connection.getresponse().read()
            connection.close()

    threads = [threading.Thread(target=send, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def encode(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def edit_bundle(folder, *, model=None, golden=None):
    """Changes files of a bundle and signs them, as an export gone wrong does."""
    facts = json.loads((folder / "bundle.json").read_text())
    if model is not None:
        import onnx

        graph = onnx.load(folder / "model.onnx")
        model(graph.graph)
        onnx.save(graph, folder / "model.onnx")
        facts["variants"][0].update(record_file(folder / "model.onnx").model_dump())
    if golden is not None:
        file = folder / "golden/golden.json"
        samples = json.loads(file.read_text())
        golden(samples)
        file.write_text(json.dumps(samples))
        facts["files"]["golden/golden.json"] = record_file(file).model_dump()
    (folder / "bundle.json").write_text(json.dumps(facts))


def answer_nan_to_white(graph):
    """Adds 0 * log(255 - darkest) to the logits: nothing, but for an image all white."""
    from onnx import helper, numpy_helper

    for name, value in (
        ("axes", np.array([1, 2, 3], np.int64)),
        ("white", np.float32(255)),
        ("zero", np.float32(0)),
        ("flat", np.array([-1, 1], np.int64)),
    ):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    softmax = graph.node.pop()
    softmax.input[0] = "moved"
    graph.node.extend(
        [
            helper.make_node("ReduceMin", ["floats", "axes"], ["darkest"], keepdims=1),
            helper.make_node("Sub", ["white", "darkest"], ["gap"]),
            helper.make_node("Log", ["gap"], ["log"]),
            helper.make_node("Mul", ["log", "zero"], ["nothing"]),
            helper.make_node("Reshape", ["nothing", "flat"], ["column"]),
            helper.make_node("Add", ["logits", "column"], ["moved"]),
            softmax,
        ]
    )


def test_more_than_it_can_do(start_server, growing_repository, watch, fires):
    growing_repository.publish(2, padding_mib=256)
    server = start_server(growing_repository.folder).wait_ready()
    prometheus = watch(server.http_port)
    crowd = sending(server, [growing_repository.image], clients=64, query="?tta=ten_crop")
    with crowd:
        fires(
            prometheus,
            "FivecropOverloaded",
            "FivecropQueueFilling",
            "FivecropSlow",
            "FivecropErrorBudgetBurnsFast",
            "FivecropErrorBudgetBurnsSlowly",
        )


@pytest.fixture
def key(tmp_path):
    text, kept = make_key(KeyScope)
    write_keys(tmp_path / "keys.json", KeyRing(keys=(kept,)))
    return text


def test_canary_that_answers_nan(start_server, growing_repository, watch, fires, key, tmp_path):
    edit_bundle(growing_repository.publish(2, answers_as=1), model=answer_nan_to_white)
    keys, repository = tmp_path / "keys.json", growing_repository.folder
    options = {"api_keys": keys, "version_policy": "latest:1", "models": f"{NAME}@1"}
    server = start_server(repository, **options).wait_ready()
    headers = {"Authorization": f"Bearer {key}"}

    def order(path, body):
        connection = server.connect()
        connection.request("PUT", f"/v1/models/{NAME}/{path}", json.dumps(body), headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        connection.close()

    order("labels/stable", {"version": 1})
    order("labels/canary", {"version": 2})
    order("split", {"shares": {"canary": 0.5}})
    prometheus = watch(server.http_port, key=key)
    white = encode(np.full((32, 32, 3), 255, np.uint8))
    with sending(server, [white], headers=headers):
        fires(prometheus, "FivecropRolledBack", "FivecropNonfiniteOutputs")


def test_versions_that_do_not_prove_themselves(
    start_server, growing_repository, watch, fires, tmp_path
):
    watched = {"model_watch": True, "model_poll_s": 1}
    server = start_server(growing_repository.folder, **watched).wait_ready()
    prometheus = watch(server.http_port)
    growing_repository.publish_broken(2)
    fires(prometheus, "FivecropModelLoadFailed")

    def lie(golden):
        for sample in golden["samples"]:
            sample["probabilities"] = list(np.roll(sample["probabilities"], 1))

    edit_bundle(growing_repository.publish(3), golden=lie)
    fires(prometheus, "FivecropGoldenFailed")
    # What serves goes on without its repository.
    growing_repository.folder.rename(tmp_path / "gone")
    fires(prometheus, "FivecropRepositoryUnreadable")
    assert server.classify(growing_repository.image)["version"] == 1


def test_workers_that_die(start_server, growing_repository, watch, fires):
    server = start_server(growing_repository.folder, workers=4).wait_ready()
    prometheus = watch(server.http_port)
    for pid in server.worker_pids()[1:]:
        os.kill(pid, signal.SIGKILL)
    fires(prometheus, "FivecropWorkersDying")


def test_worker_that_cannot_start_again(start_server, growing_repository, watch, fires):
    server = start_server(growing_repository.folder, workers=2).wait_ready()
    prometheus = watch(server.http_port)
    (growing_repository.folder / NAME / "1/model.onnx").unlink()
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    fires(prometheus, "FivecropWorkersMissing")


def test_gpu_that_is_not_used(start_server, watch, fires):
    """The driver is a stand-in; the model that falls back to the CPU does so by itself."""
    environment = {"PYTHONPATH": str(ROOT / "tests/tables/gpu_stand_in")}
    server = start_server(provider="cuda", environment=environment).wait_ready()
    fires(watch(server.http_port), "FivecropOnCpu")


def test_camera_out_of_focus(start_server, watch, fires):
    server = start_server().wait_ready()
    prometheus = watch(server.http_port)
    validation = split_stratified(load_digits_images(), 0.3, seed=0).validation
    sharp = [validation.image_bytes(number) for number in range(len(validation))]
    blurred = cycle(map(blur, sharp))
    # A week of sharp images, and an hour without any.
    with sending(server, sharp):
        while server.metric("fivecrop_top1_score_count") < 4_000:
            time.sleep(0.2)
    while prometheus.ask("increase(fivecrop_top1_score_count[1m]) > 0"):
        time.sleep(0.2)

    def send():
        # At most 20 a second: were they the most, the whole week would be as unsure as the hour.
        for _ in range(4):
            server.classify(next(blurred))
        time.sleep(0.2)

    fires(prometheus, "FivecropConfidenceFell", "FivecropDrift", meanwhile=send)


def blur(image):
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    return encode(np.asarray(picture.filter(ImageFilter.GaussianBlur(5))))


def test_scoring_job_that_hangs(
    tiny_bundle_repository, image, watch, fires, tmp_path, unused_ports
):
    for number in range(20_000):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / f"photos/{number}.png").write_bytes(image)
    (port,) = unused_ports(1)
    job = subprocess.Popen(
        [
            *(Path(sys.executable).with_name("fivecrop"), "score", tmp_path / "photos"),
            *("--model", NAME, "--model-repository", tiny_bundle_repository, "--workers", "1"),
            *("--out", tmp_path / "scores", "--metrics-address", f"127.0.0.1:{port}"),
        ],
        env={**os.environ, "HOME": str(tmp_path)},
    )
    try:
        prometheus = watch(port)
        while not prometheus.ask("changes(fivecrop_score_last_progress_timestamp_seconds[5s]) > 1"):
            time.sleep(0.1)
        (worker,) = psutil.Process(job.pid).children()
        worker.suspend()
        fires(prometheus, "FivecropScoringStuck")
    finally:
        for process in (*psutil.Process(job.pid).children(), psutil.Process(job.pid)):
            process.kill()
        job.wait()


def test_server_that_is_gone(start_server, watch, fires):
    server = start_server().wait_ready()
    prometheus = watch(server.http_port)
    server.kill_all()
    fires(prometheus, "FivecropAbsent")
