"""A client of a stream that does not read its answers holds nothing for long."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from service.proto import image_classifier_pb2, open_inference_pb2, rpc_status_pb2
from service.proto.image_classifier_pb2_grpc import ImageClassifierStub
from service.proto.open_inference_pb2_grpc import GRPCInferenceServiceStub

PATIENCE_S = 60  # for what takes a fraction of a second on a machine with nothing else to do
SHORT_S = 0.3
CONTROL_S = 1.5
CUT_OFF = 'fivecrop_connections_cut_off_total{reason="slow_reader"} '
# Echoed, and more of them than the library lets a server send to a client that does not read: on
# one machine that may be tens of megabytes.
ID, REQUESTS = "x" * 100_000, 600


def classify(channel, sent):
    request = image_classifier_pb2.ClassifyRequest(image=b"image")
    item = image_classifier_pb2.ClassifyStreamRequest(id=ID, request=request)
    return ImageClassifierStub(channel).ClassifyStream(_repeat(item, sent))


def infer(channel, sent):
    tensor = open_inference_pb2.ModelInferRequest.InferInputTensor(
        name="image", datatype="BYTES", shape=[1]
    )
    request = open_inference_pb2.ModelInferRequest(
        model_name="toy", id=ID, inputs=[tensor], raw_input_contents=[b"\1\0\0\0x"]
    )
    return GRPCInferenceServiceStub(channel).ModelStreamInfer(_repeat(request, sent))


async def _repeat(item, sent):
    for _ in range(REQUESTS):
        yield item
        sent.append(item)


@pytest.fixture
def serve(stub_classifier, metrics, make_settings, serving_grpc):
    return lambda **given: serving_grpc(stub_classifier, metrics, make_settings(**given))


def count_cut_off(metrics):
    return float(metrics.render()[0].decode().split(CUT_OFF)[1].split("\n")[0])


@pytest.mark.parametrize("ask", [classify, infer])
async def test_a_client_that_does_not_read_is_cut_off_and_told(
    serve, stub_classifier, metrics, ask
):
    async with serve(write_timeout_s=SHORT_S) as served, asyncio.timeout(PATIENCE_S):
        stream = ask(served.channel, [])
        while count_cut_off(metrics) == 0:
            await asyncio.sleep(0.02)
        while stub_classifier.running:
            await asyncio.sleep(0.02)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stream:
                pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    details = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
    packed = rpc_status_pb2.Status.FromString(details).details[0]
    assert rpc_status_pb2.ErrorInfo.FromString(packed.value).reason == "request_timeout"


@pytest.mark.parametrize("ask", [classify, infer])
async def test_the_control_waits_and_a_slow_reader_who_reads_gets_it_all(serve, metrics, ask):
    async with serve(write_timeout_s=60) as served, asyncio.timeout(PATIENCE_S):
        stream = ask(served.channel, sent := [])
        await asyncio.sleep(CONTROL_S)
        assert len(sent) < REQUESTS
        assert count_cut_off(metrics) == 0
        assert len([answer async for answer in stream]) == REQUESTS
