"""The gRPC edge over a stub classifier, through real channels."""

from __future__ import annotations

import asyncio
import socket
import time

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from service.classifier import Options
from service.errors import ErrorCode, RequestError, StartError
from service.grpc_api import SERVICE_NAME, STATUS, GrpcServer
from service.proto import image_classifier_pb2 as messages
from service.proto import rpc_status_pb2
from service.proto.image_classifier_pb2_grpc import ImageClassifierStub

PATIENCE_S = 30  # for what takes milliseconds on a machine with nothing else to do

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture
async def served(stub_classifier, metrics, make_settings, serving_grpc):
    async with serving_grpc(stub_classifier, metrics, make_settings()) as served:
        served.stub = ImageClassifierStub(served.channel)
        yield served


def read_details(error):
    """Returns (reason, retry delay in seconds or None) of an error's google.rpc.Status."""
    trailing = dict(error.trailing_metadata())
    status = rpc_status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    reason = delay_s = None
    for detail in status.details:
        if detail.type_url == "type.googleapis.com/google.rpc.ErrorInfo":
            info = rpc_status_pb2.ErrorInfo.FromString(detail.value)
            assert info.domain == "fivecrop"
            reason = info.reason
        elif detail.type_url == "type.googleapis.com/google.rpc.RetryInfo":
            retry = rpc_status_pb2.RetryInfo.FromString(detail.value)
            delay_s = retry.retry_delay.ToMilliseconds() / 1000
    return reason, delay_s


def test_every_error_code_has_a_grpc_status():
    assert set(STATUS) == set(ErrorCode)


# ---- Classify ----


async def test_an_image_is_classified(served, stub_classifier):
    answer = await served.stub.Classify(messages.ClassifyRequest(image=b"img"))
    assert stub_classifier.calls == [(b"img", Options())]
    assert (answer.model, answer.version, answer.abstained) == ("toy", 3, False)
    assert [(one.label, one.index, one.score) for one in answer.predictions] == [
        ("cát", 2, 0.75),
        ("dog", 0, 0.25),
    ]
    assert (answer.image.width, answer.image.height, answer.image.format) == (4, 2, "png")
    assert answer.timings == messages.Timings(decode_ms=1, queue_ms=2, infer_ms=3, total_ms=6.5)


async def test_options_and_deadline_reach_the_classifier(served, stub_classifier):
    given = {"model": "toy@3", "top_k": 7, "tta": "hflip", "priority": "low"}
    await served.stub.Classify(messages.ClassifyRequest(image=b"img", **given), timeout=600)
    options = stub_classifier.calls[0][1]
    assert {name: getattr(options, name) for name in given} == given
    assert 500_000 < options.timeout_ms <= 610_000  # the library rounds up


async def test_a_zero_is_not_taken_for_an_option_left_out(served, stub_classifier):
    await served.stub.Classify(messages.ClassifyRequest(image=b"img", model="", top_k=0, tta=""))
    assert stub_classifier.calls[0][1] == Options(model="", top_k=0, tta="")


async def test_a_request_id_is_echoed_and_a_bad_one_replaced(served):
    for offered, echoed in (("abc-1", True), ("a b", False), ("a" * 65, False)):
        call = served.stub.Classify(
            messages.ClassifyRequest(image=b"img"), metadata=(("x-request-id", offered),)
        )
        answer = await call
        trailing = dict(await call.trailing_metadata())
        assert trailing["x-request-id"] == answer.request_id
        assert (answer.request_id == offered) is echoed


@pytest.mark.parametrize("code", list(ErrorCode))
async def test_errors_carry_their_code_in_the_details(served, stub_classifier, code):
    stub_classifier.error = RequestError(code, "not today")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.Classify(
            messages.ClassifyRequest(image=b"img"), metadata=(("x-request-id", "id1"),)
        )
    assert caught.value.code() is STATUS[code]
    assert caught.value.details() == "not today"
    assert read_details(caught.value) == (code.value, None)
    assert dict(caught.value.trailing_metadata())["x-request-id"] == "id1"


async def test_an_overloaded_service_says_when_to_come_back(served, stub_classifier):
    stub_classifier.error = RequestError(ErrorCode.OVERLOADED, "full", retry_after_s=1.25)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.Classify(messages.ClassifyRequest(image=b"img"))
    assert read_details(caught.value) == ("overloaded", 1.25)


async def test_unknown_errors_are_answered_without_their_text_and_logged(
    served, stub_classifier, caplog
):
    stub_classifier.error = KeyError("secret path")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.Classify(messages.ClassifyRequest(image=b"img"))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value)
    assert read_details(caught.value) == ("internal", None)
    assert "secret path" in caplog.text


async def test_a_cancelled_call_cancels_its_work(served, stub_classifier, metrics):
    stub_classifier.gate = asyncio.Event()
    call = served.stub.Classify(messages.ClassifyRequest(image=b"img"))
    await asyncio.wait_for(stub_classifier.arrived.wait(), PATIENCE_S)
    call.cancel()
    await asyncio.wait_for(stub_classifier.cancelled.wait(), PATIENCE_S)
    assert 'code="cancelled",route="/fivecrop.v1.ImageClassifier/Classify"' in (
        metrics.render()[0].decode()
    )


async def test_a_call_whose_deadline_passes_cancels_its_work(served, stub_classifier):
    stub_classifier.gate = asyncio.Event()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.Classify(messages.ClassifyRequest(image=b"img"), timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(stub_classifier.cancelled.wait(), PATIENCE_S)


async def test_calls_are_counted_by_method_and_code(served, metrics):
    await served.stub.Classify(messages.ClassifyRequest(image=b"img"))
    with pytest.raises(grpc.aio.AioRpcError):
        await served.stub.Classify(messages.ClassifyRequest(image=b"bad"))
    await served.stub.Models(messages.ModelsRequest())
    text = metrics.render()[0].decode()
    for code, method in (("ok", "Classify"), ("image_corrupt", "Classify"), ("ok", "Models")):
        labels = f'code="{code}",route="/{SERVICE_NAME}/{method}",transport="grpc"'
        assert f"fivecrop_requests_total{{{labels}}} 1.0" in text


# ---- limits ----


@pytest.mark.parametrize("bytes_over", [1, 10_000])
async def test_an_image_just_over_the_limit_is_refused_with_its_code(
    stub_classifier, metrics, make_settings, serving_grpc, bytes_over
):
    settings = make_settings(max_body_bytes=1000)
    async with serving_grpc(stub_classifier, metrics, settings) as served:
        stub = ImageClassifierStub(served.channel)
        await stub.Classify(messages.ClassifyRequest(image=b"a" * 1000))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Classify(messages.ClassifyRequest(image=b"a" * (1000 + bytes_over)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert read_details(caught.value) == ("body_too_large", None)


async def test_a_message_far_over_the_limit_is_not_read(
    stub_classifier, metrics, make_settings, serving_grpc
):
    settings = make_settings(max_body_bytes=1000)
    async with serving_grpc(stub_classifier, metrics, settings) as served:
        stub = ImageClassifierStub(served.channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Classify(messages.ClassifyRequest(image=b"a" * 1_000_000))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await stub.Classify(messages.ClassifyRequest(image=b"img"))
    assert len(stub_classifier.calls) == 1


async def test_a_compressed_message_is_refused_so_that_none_can_be_a_bomb(served, stub_classifier):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.Classify(
            messages.ClassifyRequest(image=bytes(1_000_000)), compression=grpc.Compression.Gzip
        )
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert not stub_classifier.calls


async def test_garbage_instead_of_a_message_does_no_harm(served, stub_classifier):
    raw = served.channel.unary_unary(f"/{SERVICE_NAME}/Classify")
    with pytest.raises(grpc.aio.AioRpcError):
        await raw(b"\xff" * 100)
    assert not stub_classifier.calls
    await served.stub.Classify(messages.ClassifyRequest(image=b"img"))


async def test_an_unknown_method_is_unimplemented(served):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.channel.unary_unary(f"/{SERVICE_NAME}/Nope")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# ---- ClassifyStream ----


def item(name, image=b"img", **options):
    request = messages.ClassifyRequest(image=image)
    return messages.ClassifyStreamRequest(id=name, request=request, **options)


async def test_a_stream_answers_each_image_by_id_and_a_bad_one_disturbs_no_other(served):
    names = [str(n) for n in range(100)]
    items = [item(name, b"bad" if name == "7" else b"img") for name in names]
    answers = {answer.id: answer async for answer in served.stub.ClassifyStream(iter(items))}
    assert set(answers) == set(names)
    assert answers["7"].error == messages.ClassifyError(code="image_corrupt", detail="damaged")
    assert all(answers[name].response.model == "toy" for name in names if name != "7")


async def test_a_stream_answers_while_it_is_still_being_sent(served):
    call = served.stub.ClassifyStream()
    for name in ("a", "b"):
        await call.write(item(name))
        assert (await asyncio.wait_for(call.read(), PATIENCE_S)).id == name
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_a_stream_works_on_a_bounded_number_of_images_at_once(
    stub_classifier, metrics, make_settings, serving_grpc
):
    stub_classifier.gate = asyncio.Event()
    settings = make_settings(max_request_images=4)
    async with serving_grpc(stub_classifier, metrics, settings) as served:
        call = ImageClassifierStub(served.channel).ClassifyStream(
            iter([item(str(n)) for n in range(20)])
        )
        async with asyncio.timeout(PATIENCE_S):
            while stub_classifier.running < 4:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # for those that should not come
        stub_classifier.gate.set()
        assert len([answer async for answer in call]) == 20
    assert stub_classifier.most_running == 4


async def test_a_cancelled_stream_cancels_all_its_work(served, stub_classifier, caplog):
    stub_classifier.gate = asyncio.Event()
    call = served.stub.ClassifyStream(iter([item("a"), item("b")]))
    async with asyncio.timeout(PATIENCE_S):
        while stub_classifier.running < 2:
            await asyncio.sleep(0.01)
        call.cancel()
        while stub_classifier.running:
            await asyncio.sleep(0.01)
    assert not caplog.records


async def test_the_nearer_deadline_counts_for_an_image_of_a_stream(served, stub_classifier):
    requests = [item("a"), item("b", timeout_ms=5), item("c", timeout_ms=1e9)]
    async for _ in served.stub.ClassifyStream(iter(requests), timeout=600):
        pass
    a, b, c = (options.timeout_ms for _, options in stub_classifier.calls)
    assert 500_000 < a <= 610_000  # the library rounds a deadline up
    assert b == 5
    assert 500_000 < c <= 610_000


async def test_an_unknown_error_fails_only_its_image_of_a_stream(served, stub_classifier, caplog):
    stub_classifier.error = KeyError("secret")
    answers = [answer async for answer in served.stub.ClassifyStream(iter([item("a")]))]
    assert answers[0].error.code == "internal"
    assert "secret" not in answers[0].error.detail
    assert "secret" in caplog.text


# ---- Models, health, reflection ----


async def test_models_are_listed(served):
    model = (await served.stub.Models(messages.ModelsRequest())).models[0]
    assert (model.name, model.version, model.is_default) == ("toy", 3, True)
    assert list(model.labels) == ["dog", "bird", "cát"]
    assert not model.HasField("top1")


@pytest.mark.parametrize("service", ["", SERVICE_NAME])
async def test_health_follows_the_classifier(served, stub_classifier, service):
    health = health_pb2_grpc.HealthStub(served.channel)
    request = health_pb2.HealthCheckRequest(service=service)
    assert (await health.Check(request)).status == SERVING
    stub_classifier.is_ready = False
    assert (await health.Check(request)).status == NOT_SERVING
    stub_classifier.is_ready = True
    served.server.set_not_serving()
    assert (await health.Check(request)).status == NOT_SERVING


async def test_the_health_of_an_unknown_service_is_not_found(served):
    health = health_pb2_grpc.HealthStub(served.channel)
    request = health_pb2.HealthCheckRequest(service="nope")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health.Check(request)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watch = health.Watch(request)
    assert (await watch.read()).status == SERVICE_UNKNOWN
    watch.cancel()


async def test_watchers_are_told_of_the_drain_and_do_not_hold_up_the_stop(served):
    watch = health_pb2_grpc.HealthStub(served.channel).Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == SERVING
    served.server.set_not_serving()
    assert (await asyncio.wait_for(watch.read(), PATIENCE_S)).status == NOT_SERVING
    started = time.monotonic()
    await served.server.stop(10 * PATIENCE_S)
    assert time.monotonic() - started < PATIENCE_S
    assert await watch.read() is grpc.aio.EOF


async def test_a_stop_lets_calls_in_flight_finish(served, stub_classifier):
    stub_classifier.gate = asyncio.Event()
    call = served.stub.Classify(messages.ClassifyRequest(image=b"img"))
    await asyncio.wait_for(stub_classifier.arrived.wait(), PATIENCE_S)
    stopping = asyncio.create_task(served.server.stop(PATIENCE_S))
    await asyncio.sleep(0.05)
    assert not stopping.done()
    stub_classifier.gate.set()
    assert (await call).model == "toy"
    await asyncio.wait_for(stopping, PATIENCE_S)


async def test_reflection_tells_what_is_served(served):
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    questions = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE_NAME),
    ]
    listed, described = [answer async for answer in stub.ServerReflectionInfo(iter(questions))]
    names = {service.name for service in listed.list_services_response.service}
    assert names == {
        SERVICE_NAME,
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    files = described.file_descriptor_response.file_descriptor_proto
    file = descriptor_pb2.FileDescriptorProto.FromString(files[0])
    methods = {method.name for method in file.service[0].method}
    assert methods == {"Classify", "ClassifyStream", "Explain", "Models"}


async def test_a_client_without_our_files_asks_by_what_reflection_tells_it(served):
    """The reflection client of grpcio, which builds its messages from the answers."""

    def ask():
        with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            told = ProtoReflectionDescriptorDatabase(channel)
            pool = DescriptorPool(told)
            method = pool.FindServiceByName(SERVICE_NAME).methods_by_name["Classify"]
            request = GetMessageClass(method.input_type)(image=b"img", top_k=1)
            call = channel.unary_unary(
                f"/{SERVICE_NAME}/{method.name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            return told.get_services(), call(request, timeout=PATIENCE_S)

    services, answer = await asyncio.to_thread(ask)
    assert "inference.GRPCInferenceService" in services
    assert (answer.model, answer.predictions[0].label) == ("toy", "cát")


# ---- ports ----


async def test_a_port_in_use_is_an_error_in_one_line(stub_classifier, metrics, make_settings):
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = make_settings(grpc_port=other.getsockname()[1])
        with pytest.raises(StartError, match="port is in use") as caught:
            await GrpcServer(stub_classifier, metrics, settings).start()
    assert "\n" not in str(caught.value)


async def test_one_worker_does_not_share_its_port_and_several_do(
    stub_classifier, metrics, make_settings
):
    one = make_settings()
    first = GrpcServer(stub_classifier, metrics, one)
    await first.start()
    with pytest.raises(StartError):
        await GrpcServer(stub_classifier, metrics, one).start()
    await first.stop(0)
    several = make_settings(workers=2)
    servers = [GrpcServer(stub_classifier, metrics, several) for _ in range(2)]
    assert [await server.start() for server in servers] == [several.grpc_port] * 2
    for server in servers:
        await server.stop(0)
