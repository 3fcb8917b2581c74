"""A client of a stream that does not read its answers holds nothing for long."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import numpy as np
import psutil
import pytest

from service.bundle.postprocess import Prediction
from service.proto import image_classifier_pb2, open_inference_pb2, rpc_status_pb2
from service.proto.image_classifier_pb2_grpc import ImageClassifierStub
from service.proto.open_inference_pb2_grpc import GRPCInferenceServiceStub

PATIENCE_S = 60  # for what takes a fraction of a second on a machine with nothing else to do
SHORT_S = 0.3
CONTROL_S = 1.5
CUT_OFF = 'fivecrop_connections_cut_off_total{reason="slow_reader"} '
# More of them than the library lets a server send to a client that does not read: on one machine
# that may be tens of megabytes.
ANSWER_BYTES, REQUESTS = 100_000, 600


@pytest.fixture
def stub_classifier(stub_classifier, monkeypatch):
    """The stub with large answers, whichever protocol they are told in."""
    classify = stub_classifier.classify
    large = Prediction(label="x" * ANSWER_BYTES, index=0, score=1.0)
    probabilities = np.zeros(ANSWER_BYTES // 4, np.float32)

    async def answer(image, options):
        result = await classify(image, options)
        return replace(result, predictions=(large,), probabilities=probabilities)

    monkeypatch.setattr(stub_classifier, "classify", answer)
    return stub_classifier


def classify(channel):
    request = image_classifier_pb2.ClassifyRequest(image=b"image")
    item = image_classifier_pb2.ClassifyStreamRequest(id="x", request=request)
    return ImageClassifierStub(channel).ClassifyStream(_repeat(item))


def infer(channel):
    tensor = open_inference_pb2.ModelInferRequest.InferInputTensor(
        name="image", datatype="BYTES", shape=[1]
    )
    request = open_inference_pb2.ModelInferRequest(
        model_name="toy", inputs=[tensor], raw_input_contents=[b"\1\0\0\0x"]
    )
    return GRPCInferenceServiceStub(channel).ModelStreamInfer(_repeat(request))


def _repeat(item):
    return iter([item] * REQUESTS)


# With the probe off a client's window stays at 64 kB, and a message waits within the library.
@pytest.fixture(params=["window as it grows", "window of 64 kB"])
def options(request):
    return [] if "grows" in request.param else [("grpc.http2.bdp_probe", 0)]


@pytest.fixture
def serve(options, stub_classifier, metrics, make_settings, serving_grpc):
    return lambda **given: serving_grpc(
        stub_classifier, metrics, make_settings(**given), options=options
    )


def count_cut_off(metrics):
    return float(metrics.render()[0].decode().split(CUT_OFF)[1].split("\n")[0])


def read_to_the_end(stream):
    with pytest.raises(grpc.RpcError) as caught:
        for _ in stream:
            pass
    return caught.value


@pytest.mark.parametrize("ask", [classify, infer])
async def test_a_client_that_does_not_read_is_cut_off_and_told(
    serve, stub_classifier, metrics, options, ask
):
    # The client without asyncio, because the other one may lose the status of a stream that ends
    # while it sends.
    async with serve(write_timeout_s=SHORT_S) as served, asyncio.timeout(PATIENCE_S):
        with grpc.insecure_channel(f"127.0.0.1:{served.port}", options=options) as channel:
            stream = ask(channel)
            while count_cut_off(metrics) == 0:
                await asyncio.sleep(0.02)
            while stub_classifier.running:
                await asyncio.sleep(0.02)
            error = await asyncio.to_thread(read_to_the_end, stream)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    packed = rpc_status_pb2.Status.FromString(details).details[0]
    assert rpc_status_pb2.ErrorInfo.FromString(packed.value).reason == "request_timeout"


@pytest.mark.parametrize("ask", [classify, infer])
async def test_the_control_waits_and_a_slow_reader_who_reads_gets_it_all(
    serve, stub_classifier, metrics, ask
):
    async with serve(write_timeout_s=60) as served, asyncio.timeout(PATIENCE_S):
        stream = ask(served.channel)
        await asyncio.sleep(CONTROL_S)
        assert len(stub_classifier.calls) < REQUESTS
        assert count_cut_off(metrics) == 0
        assert len([answer async for answer in stream]) == REQUESTS


class Tap:
    """Between a client and a server: from some byte on it reads nothing more of the answers."""

    def __init__(self, port, open_bytes):
        self._port, self._open_bytes = port, open_bytes
        self._pipes = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    async def _serve(self, reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", self._port, limit=2**16)
        self._pipes += [
            asyncio.create_task(self._pipe(reader, back, float("inf"))),
            asyncio.create_task(self._pipe(there, writer, self._open_bytes)),
        ]

    async def _pipe(self, reader, writer, left):
        try:
            while left > 0 and (data := await reader.read(2**16)):
                left -= len(data)
                writer.write(data)
                await writer.drain()
            await asyncio.Event().wait()
        finally:
            writer.transport.abort()


def count_connections(port):
    found = psutil.Process().net_connections("tcp")
    return sum(one.status == "ESTABLISHED" and one.laddr.port == port for one in found)


@pytest.mark.parametrize("is_short", [True, False])
async def test_a_connection_that_nothing_is_read_from_is_closed(
    stub_classifier, metrics, make_settings, serving_grpc, is_short
):
    settings = make_settings(write_timeout_s=SHORT_S if is_short else 60)
    async with (
        serving_grpc(stub_classifier, metrics, settings) as served,
        Tap(served.port, 300_000) as tap,
        grpc.aio.insecure_channel(f"127.0.0.1:{tap.port}") as channel,
        asyncio.timeout(PATIENCE_S),
    ):
        stream = classify(channel)
        await stream.read()
        assert count_connections(served.port) == 1
        if is_short:
            while count_connections(served.port):
                await asyncio.sleep(0.05)
            assert not stub_classifier.running
        else:
            await asyncio.sleep(CONTROL_S)
            assert count_connections(served.port) == 1
        stream.cancel()


@pytest.mark.parametrize("age_s", [0.5, None])
async def test_a_connection_may_have_an_age_even_if_its_library_is_alive(
    stub_classifier, metrics, make_settings, serving_grpc, age_s
):
    given = {} if age_s is None else {"grpc_max_connection_age_s": age_s}
    settings = make_settings(write_timeout_s=SHORT_S, **given)
    async with (
        serving_grpc(stub_classifier, metrics, settings) as served,
        asyncio.timeout(PATIENCE_S),
    ):
        stream = classify(served.channel)
        await stream.read()
        if age_s is None:
            await asyncio.sleep(CONTROL_S)
            assert count_connections(served.port) == 1
            return
        while count_connections(served.port):
            await asyncio.sleep(0.05)
        assert not stub_classifier.running


async def test_an_error_that_ends_a_stream_waits_for_the_answer_that_is_on_its_way(serve):
    async def send(count):
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}
        for item in range(count):
            content = b"\3\0\0\0bad" if item == count - 1 else b"\1\0\0\0x"
            yield open_inference_pb2.ModelInferRequest(
                model_name="toy",
                inputs=[open_inference_pb2.ModelInferRequest.InferInputTensor(**tensor)],
                raw_input_contents=[content],
            )

    async with serve(write_timeout_s=60) as served, asyncio.timeout(PATIENCE_S):
        ends = (("triton_grpc_error", "true"),)
        stub = GRPCInferenceServiceStub(served.channel)
        stream = stub.ModelStreamInfer(send(20), metadata=ends)
        await asyncio.sleep(SHORT_S)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stream:
                pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
