"""Whatever is sent to a method, and whatever happens inside: no answer tells of the machine."""

from __future__ import annotations

import contextlib

import grpc
import pytest
from failing import SECRET, Babbling, Failing
from google.protobuf import message_factory
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from machine import WORDS

from service.access import AccessControl
from service.proto import image_classifier_pb2, open_inference_pb2

SERVICES = [
    service
    for file in (image_classifier_pb2, open_inference_pb2, health_pb2, reflection_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
]
METHODS = {
    f"/{service.full_name}/{method.name}": message_factory.GetMessageClass(method.input_type)
    for service in SERVICES
    for method in service.methods
}
# These ask the classifier nothing.
APART = {"ServerLive", "ServerMetadata", "List", "ServerReflectionInfo"}
LIMIT_S = 60  # only bounds a hang

INFER = {
    "model_name": "toy",
    "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}],
    "raw_input_contents": [b"\x03\0\0\0img"],
}
FILLED = {
    "Classify": {"image": b"img"},
    "ClassifyStream": {"id": "1", "request": {"image": b"img"}},
    "Explain": {"image": b"img"},
    "ModelInfer": INFER,
    "ModelStreamInfer": INFER,
    "ModelReady": {"name": "toy", "version": "3"},
    "ModelMetadata": {"name": "toy"},
    "ModelConfig": {"name": "toy"},
    "ModelStatistics": {"name": "toy"},
    "RepositoryModelLoad": {"model_name": "toy"},
    "RepositoryModelUnload": {"model_name": "toy"},
}


def fill(method):
    return METHODS[method](**FILLED.get(method.rpartition("/")[2], {})).SerializeToString()


async def call(channel, method, content, metadata=()):
    """Returns all that a client is sent for one message, and the status."""
    # Bytes on the wire are the same whether a method streams or not.
    answers = channel.stream_stream(method)(iter([content]), metadata=metadata, timeout=LIMIT_S)
    sent = []
    with contextlib.suppress(grpc.aio.AioRpcError):
        sent.append(await answers.initial_metadata())
        while (part := await answers.read()) is not grpc.aio.EOF:
            sent.append(part)
            if method.endswith("/Watch"):
                return sent, grpc.StatusCode.OK
    sent += [await answers.trailing_metadata(), await answers.details()]
    return sent, await answers.code()


def check(sent):
    text = "".join(one.decode("latin-1") if isinstance(one, bytes) else str(one) for one in sent)
    text = text.replace("onnxruntime", "")  # the platform and the backend, as Triton names them
    assert WORDS.search(text) is None, text


@pytest.fixture
async def serve(metrics, make_settings, serving_grpc):
    """Returns a function from a classifier to a channel on which everybody may call everything."""
    control = AccessControl(None)
    control.needs_key = lambda access: False
    async with contextlib.AsyncExitStack() as stack:

        async def serve(classifier):
            server = serving_grpc(classifier, metrics, make_settings(), control)
            return (await stack.enter_async_context(server)).channel

        yield serve


@pytest.mark.parametrize("method", METHODS)
async def test_no_answer_to_a_message_tells_of_the_machine(serve, stub_classifier, method):
    channel = await serve(stub_classifier)
    for content in (b"", b"\xff\xff", fill(method)):
        answer, status = await call(channel, method, content)
        check(answer)
        is_garbage = content == b"\xff\xff" and not method.endswith("/List")
        assert (status is grpc.StatusCode.INVALID_ARGUMENT) >= is_garbage


@pytest.mark.parametrize("method", METHODS)
async def test_no_unforeseen_error_tells_of_the_machine(serve, method, caplog):
    answer, status = await call(await serve(Failing()), method, fill(method))
    check(answer)
    has_failed = method.rpartition("/")[2] not in APART
    assert (SECRET in caplog.text or "AttributeError" in caplog.text) == has_failed
    # A stream tells of an error in its messages.
    assert (status is grpc.StatusCode.INTERNAL) == (has_failed and "Stream" not in method)


@pytest.mark.parametrize("method", METHODS)
async def test_no_answer_that_cannot_be_told_tells_of_the_machine(serve, method, caplog):
    answer, status = await call(await serve(Babbling()), method, fill(method))
    check(answer)
    name = method.rpartition("/")[2]
    has_failed = name not in APART | {"Check", "Watch"}
    assert ("unexpected error" in caplog.text) == has_failed
    assert (status is grpc.StatusCode.INTERNAL) == (has_failed and name != "ModelStreamInfer")


@pytest.mark.parametrize(
    ("method", "content", "metadata"),
    [
        ("/fivecrop.v1.ImageClassifier/Nothing", b"", ()),
        ("/nowhere.Service/Nothing", b"", ()),
        ("nothing", b"", ()),
        ("/fivecrop.v1.ImageClassifier/Classify", bytes(20 << 20), ()),
        ("/fivecrop.v1.ImageClassifier/Classify", b"", (("x", "x" * 100_000),)),
    ],
)
async def test_what_the_library_refuses_itself_tells_nothing_either(
    serve, stub_classifier, method, content, metadata
):
    answer, status = await call(await serve(stub_classifier), method, content, metadata)
    assert status in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    check(answer)


async def test_the_library_alone_tells_of_it():
    """The control: an error that nobody guards against goes to the client as it is."""

    async def fail(request, context):
        Failing().classify(request, context)

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(fail)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a", {"b": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer, _ = await call(channel, "/a/b", b"")
    await server.stop(0)
    with pytest.raises(AssertionError):
        check(answer)
