"""TLS for both transports: certificates that change in a running server, clients that show one."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from types import SimpleNamespace

import grpc
import pytest
import trustme

from service import tls
from service.environment import load_settings
from service.errors import SettingsError
from service.grpc_api import GrpcServer
from service.http_api import build_http_app
from service.http_host import make_connection
from service.proto import image_classifier_pb2 as messages
from service.proto.image_classifier_pb2_grpc import ImageClassifierStub
from service.settings import Settings
from service.tls import TlsFiles, make_http_context
from service.watched_files import WatchedFiles

LIMIT_S = 60  # only bounds a hang


@pytest.fixture(scope="module")
def authorities():
    """Two authorities: a client that trusts one proves by that whose certificate it was shown."""
    return trustme.CA(), trustme.CA()


@pytest.fixture
def files(tmp_path, authorities):
    files = SimpleNamespace(
        cert=tmp_path / "tls.crt", key=tmp_path / "tls.key", ca=tmp_path / "ca.crt"
    )

    def issue(authority):
        issued = authority.issue_cert("127.0.0.1", "localhost")
        files.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        files.key.write_bytes(issued.private_key_pem.bytes())

    files.issue = issue
    issue(authorities[0])
    authorities[0].cert_pem.write_to_path(files.ca)
    return files


@pytest.fixture
def clock(monkeypatch):
    """A clock that only a test moves, in the place of the monotonic one of watched files."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(WatchedFiles.__init__, "__kwdefaults__", {"monotonic": lambda: clock.now})
    return clock


@pytest.fixture
def settings(files, make_settings):
    return make_settings(tls_cert=files.cert, tls_key=files.key)


def root_of(authority):
    return authority.cert_pem.bytes()


# ---- HTTP ----


@pytest.fixture
async def https(stub_classifier, metrics, settings, serving_http, clock):
    """`connect(authority)`: an async context with reader and writer of a TLS connection."""
    app = build_http_app(stub_classifier, metrics, settings)
    context = make_http_context(TlsFiles.of(settings))
    async with serving_http(app, make_connection(settings, metrics), ssl=context) as port:

        @contextlib.asynccontextmanager
        async def connect(authority, name="localhost"):
            context = authority
            if isinstance(authority, trustme.CA):
                context = ssl.create_default_context()
                authority.configure_trust(context)
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=context, server_hostname=name
            )
            yield reader, writer
            writer.close()

        connect.port = port
        yield connect


async def ask(reader, writer):
    writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT_S)
    length = int(head.decode().split("content-length: ")[1].split("\r\n")[0])
    await reader.readexactly(length)
    return head


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
async def test_http_is_answered_over_tls_with_and_without_a_server_name(https, authorities, name):
    """A client that connects to an address sends no name."""
    async with https(authorities[0], name) as connection:
        assert b" 200 " in await ask(*connection)
        assert connection[1].get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")


async def test_http_without_tls_gets_no_answer_and_is_cut_off(https):
    reader, writer = await asyncio.open_connection("127.0.0.1", https.port)
    writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        assert b"alive" not in await asyncio.wait_for(reader.read(), LIMIT_S)
    writer.close()


async def test_old_versions_of_tls_are_refused(https, authorities):
    context = ssl.create_default_context()
    authorities[0].configure_trust(context)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        async with https(context):
            pass


async def test_a_new_certificate_is_shown_to_the_next_client_and_open_connections_stay(
    https, authorities, files, clock
):
    old, new = authorities
    async with https(old) as kept:
        await ask(*kept)
        files.issue(new)
        clock.now = 1.0
        for _ in range(2):
            async with https(new) as connection:
                assert b" 200 " in await ask(*connection)
            with pytest.raises(ssl.SSLCertVerificationError):
                async with https(old):
                    pass
        assert b" 200 " in await ask(*kept)


async def test_a_half_replaced_certificate_leaves_the_old_one_in_use(
    https, authorities, files, clock, caplog
):
    old, new = authorities
    old_key = files.key.read_bytes()
    files.issue(new)
    new_key = files.key.read_bytes()
    for damaged in (old_key, b"", b"-----BEGIN PRIVATE KEY-----\n"):
        files.key.write_bytes(damaged)
        clock.now += 1.0
        async with https(old) as connection:
            assert b" 200 " in await ask(*connection)
        assert "stays in use" in caplog.text
    files.key.write_bytes(new_key)
    clock.now += 1.0
    async with https(new) as connection:
        assert b" 200 " in await ask(*connection)


# ---- gRPC ----


@contextlib.asynccontextmanager
async def serving(classifier, metrics, settings):
    server = GrpcServer(classifier, metrics, settings)
    port = await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


async def classify(port, **credentials):
    """Returns "ok", or the status of a call on a connection of its own."""
    # Kept apart, or channels to one address would share a connection.
    options = (("grpc.use_local_subchannel_pool", 1),)
    channel = grpc.aio.secure_channel(
        f"localhost:{port}", grpc.ssl_channel_credentials(**credentials), options
    )
    async with channel:
        try:
            await ImageClassifierStub(channel).Classify(
                messages.ClassifyRequest(image=b"img"), timeout=LIMIT_S
            )
        except grpc.aio.AioRpcError as error:
            return error.code()
    return "ok"


async def test_grpc_shows_a_new_certificate_to_the_next_client_and_open_channels_stay(
    stub_classifier, metrics, settings, authorities, files, clock
):
    old, new = authorities
    async with serving(stub_classifier, metrics, settings) as port:
        credentials = grpc.ssl_channel_credentials(root_of(old))
        async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as kept:
            stub = ImageClassifierStub(kept)
            await stub.Classify(messages.ClassifyRequest(image=b"img"), timeout=LIMIT_S)
            files.issue(new)
            assert await classify(port, root_certificates=root_of(old)) == "ok"
            clock.now = 1.0
            assert await classify(port, root_certificates=root_of(new)) == "ok"
            unavailable = grpc.StatusCode.UNAVAILABLE
            assert await classify(port, root_certificates=root_of(old)) is unavailable
            await stub.Classify(messages.ClassifyRequest(image=b"img"), timeout=LIMIT_S)


async def test_a_half_replaced_certificate_of_grpc_leaves_the_old_one_in_use(
    stub_classifier, metrics, settings, authorities, files, clock
):
    old, new = authorities
    async with serving(stub_classifier, metrics, settings) as port:
        old_key = files.key.read_bytes()
        files.issue(new)
        new_key = files.key.read_bytes()
        files.key.write_bytes(old_key)
        clock.now = 1.0
        assert await classify(port, root_certificates=root_of(old)) == "ok"
        files.key.write_bytes(new_key)
        clock.now = 2.0
        assert await classify(port, root_certificates=root_of(new)) == "ok"


async def test_with_a_client_authority_only_its_clients_get_in(
    stub_classifier, metrics, make_settings, authorities, files
):
    ours, other = authorities
    settings = make_settings(tls_cert=files.cert, tls_key=files.key, grpc_client_ca=files.ca)
    async with serving(stub_classifier, metrics, settings) as port:
        for authority, expected in ((ours, "ok"), (other, None), (None, None)):
            shown = {}
            if authority is not None:
                issued = authority.issue_cert("client")
                shown["private_key"] = issued.private_key_pem.bytes()
                shown["certificate_chain"] = issued.cert_chain_pems[0].bytes()
            answer = await classify(port, root_certificates=root_of(ours), **shown)
            assert answer == (expected or grpc.StatusCode.UNAVAILABLE)
    assert len(stub_classifier.calls) == 1


async def test_without_a_client_authority_nobody_has_to_show_a_certificate(
    stub_classifier, metrics, settings, authorities
):
    """The control of the test above."""
    async with serving(stub_classifier, metrics, settings) as port:
        assert await classify(port, root_certificates=root_of(authorities[0])) == "ok"


# ---- files that cannot be used ----


@pytest.mark.parametrize("part", ["cert", "key"])
@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
@pytest.mark.parametrize("make", ["make_http_context", "make_grpc_credentials"])
def test_a_certificate_that_cannot_be_used_stops_the_start_with_one_line(
    files, settings, part, content, make
):
    path = getattr(files, part)
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(SettingsError, match="cannot use the certificate") as caught:
        getattr(tls, make)(TlsFiles.of(settings))
    assert "\n" not in str(caught.value)


def test_an_encrypted_key_is_refused_and_not_asked_for(files, settings):
    from cryptography.hazmat.primitives import serialization as pem

    key = pem.load_pem_private_key(files.key.read_bytes(), None)
    secret = pem.BestAvailableEncryption(b"secret")
    form = pem.PrivateFormat.TraditionalOpenSSL
    files.key.write_bytes(key.private_bytes(pem.Encoding.PEM, form, secret))
    with pytest.raises(SettingsError):
        make_http_context(TlsFiles.of(settings))


@pytest.mark.parametrize(
    "given", [{"tls_cert": "a"}, {"tls_key": "a"}, {"grpc_client_ca": "a"}], ids=str
)
def test_settings_that_need_each_other_are_told_in_one_line(given):
    with pytest.raises(SettingsError, match=r"^settings: .*tls_cert"):
        load_settings(**given)
    assert TlsFiles.of(Settings()) is None
