"""What only the real host can show: that its connections, its TLS and its answers are ours."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import ssl
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import trustme
from PIL import Image

from service.proto import image_classifier_pb2 as messages
from service.proto import image_classifier_pb2_grpc as stubs

pytestmark = pytest.mark.e2e

LIMIT_S = 60  # only bounds a hang


def read_all(connection):
    connection.settimeout(LIMIT_S)
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


@pytest.mark.parametrize("through_bentoml", [False, True])
def test_slow_and_large_heads_are_cut_off_in_the_service_itself(
    start_server, wait_until, through_bentoml
):
    """The one test that would notice a host which no longer takes our connections."""
    server = start_server(
        header_timeout_s=0.5, max_header_bytes=2048, through_bentoml=through_bentoml
    )
    if through_bentoml:
        wait_until(lambda: is_answering(server), "the port")
    else:
        server.wait_ready()
    cases = {
        b"POST /v1/classify HTTP/1.1\r\nHost: x\r\n": b"request_timeout",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 3000 + b"\r\n\r\n": b"headers_too_large",
        b"nonsense\r\n\r\n": b"invalid_argument",
    }
    for head, code in cases.items():
        with socket.create_connection(("127.0.0.1", server.http_port)) as connection:
            connection.sendall(head)
            answer = read_all(connection)
        assert b'"code":"%s"' % code in answer
        assert b"\r\nserver:" not in answer.lower()
    assert server.get("/livez")[1]["server"] is None
    assert "Invalid HTTP request" not in server.stderr


def is_answering(server):
    with contextlib.suppress(OSError):
        return server.get("/readyz")[0] == 200


def test_a_client_that_never_opens_http_2_is_cut_off_by_grpc(start_server):
    server = start_server(header_timeout_s=0.5).wait_ready()
    with socket.create_connection(("127.0.0.1", server.grpc_port)) as connection:
        read_all(connection)  # ends


def test_tls_and_keys_together_and_a_renewed_certificate(start_server, tmp_path, image, wait_until):
    old, new = trustme.CA(), trustme.CA()
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def issue(authority):
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(key)
        cert.write_bytes(issued.cert_chain_pems[0].bytes())

    issue(old)
    server = start_server(tls_cert=cert, tls_key=key)
    wait_until(lambda: "fivecrop is ready: HTTP https://127.0.0.1" in server.stderr, "ready")

    def classify(authority):
        context = ssl.create_default_context()
        authority.configure_trust(context)
        connection = http.client.HTTPSConnection(
            "127.0.0.1", server.http_port, timeout=LIMIT_S, context=context
        )
        with contextlib.closing(connection):
            connection.request("POST", "/v1/classify", image)
            return json.loads(connection.getresponse().read())["predictions"][0]["label"]

    def classify_grpc(authority):
        credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        options = (("grpc.use_local_subchannel_pool", 1),)
        address = f"127.0.0.1:{server.grpc_port}"
        with grpc.secure_channel(address, credentials, options) as channel:
            request = messages.ClassifyRequest(image=image)
            answer = stubs.ImageClassifierStub(channel).Classify(request, timeout=LIMIT_S)
            return answer.predictions[0].label

    assert classify(old) == classify_grpc(old)
    issue(new)

    def is_renewed():
        with contextlib.suppress(ssl.SSLError, grpc.RpcError):
            return classify(new) == classify_grpc(new)

    wait_until(is_renewed, "the new certificate")
    with pytest.raises(ssl.SSLError):
        classify(old)


def test_a_client_that_never_ends_its_tls_handshake_is_cut_off(start_server, tmp_path, wait_until):
    """The host would wait for a minute."""
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "tls.key")
    (tmp_path / "tls.crt").write_bytes(issued.cert_chain_pems[0].bytes())
    server = start_server(
        tls_cert=tmp_path / "tls.crt", tls_key=tmp_path / "tls.key", header_timeout_s=0.5
    )
    wait_until(lambda: "fivecrop is ready" in server.stderr, "ready")
    hello = b"\x16\x03\x01\x02\x00\x01\x00"  # a record of 512 bytes, which do not come
    for port in (server.http_port, server.grpc_port):
        for sent in (b"", hello):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                connection.sendall(sent)
                with contextlib.suppress(ConnectionResetError):
                    while connection.recv(4096):
                        pass


def test_a_certificate_that_cannot_be_used_stops_the_start_with_one_line(start_server, tmp_path):
    (tmp_path / "tls.crt").write_text("nonsense")
    server = start_server(tls_cert=tmp_path / "tls.crt", tls_key=tmp_path / "tls.crt")
    assert server.wait_ended() == 2
    assert "cannot use the certificate" in server.stderr
    assert "Traceback" not in server.stderr


def turned_photograph():
    """A JPEG of 39 megapixels that is to be turned, which decodes to 315 MB."""
    colours = np.random.default_rng(0).integers(0, 255, (100, 128, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x112] = 6
    file = io.BytesIO()
    Image.fromarray(colours).resize((7040, 5600), 0).save(file, "JPEG", quality=60, exif=exif)
    return file.getvalue()


def memory(pid, what):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) * 1024


def test_an_upload_of_several_large_images_takes_the_memory_of_one(start_server):
    """It took 719 MB while eight threads kept what each of them had once needed."""
    server = start_server(compute_threads=8).wait_ready()
    (pid,) = server.worker_pids()
    before = memory(pid, "VmRSS")
    photograph = turned_photograph()
    answer = httpx.post(
        f"http://127.0.0.1:{server.http_port}/v1/classify",
        files=[("image", photograph)] * 4,
        timeout=LIMIT_S,
    )
    assert [one["image"]["width"] for one in answer.json()["results"]] == [7040] * 4
    assert memory(pid, "VmHWM") - before < 450e6
