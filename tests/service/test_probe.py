"""`fivecrop probe` answers by its exit code, and says why it says no."""

from __future__ import annotations

import ssl
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import trustme
from click.testing import CliRunner

from service.cli import main


@pytest.fixture
def start_answering(monkeypatch):
    """Starts a server that answers each path with a status; the settings say where it is."""
    servers = []

    def start(statuses, tls=None):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(statuses.get(self.path, 404))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        monkeypatch.setenv("FIVECROP_HTTP_PORT", str(server.server_port))
        monkeypatch.setenv("FIVECROP_HOST", "0.0.0.0")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def probe(*flags):
    return CliRunner().invoke(main, ["probe", *flags])


def test_server_that_lives_and_is_ready(start_answering):
    start_answering({"/livez": 200, "/readyz": 200})
    assert probe().exit_code == 0
    assert probe("--ready").exit_code == 0


def test_server_that_lives_and_is_not_ready(start_answering):
    start_answering({"/livez": 200, "/readyz": 503})
    assert probe().exit_code == 0
    said = probe("--ready")
    assert (said.exit_code, said.output) == (2, "fivecrop: error: /readyz answers 503\n")


def test_nobody_there(monkeypatch, start_answering):
    start_answering({})
    monkeypatch.setenv("FIVECROP_HTTP_PORT", "1")
    said = probe()
    assert said.exit_code == 2
    assert said.output.startswith("fivecrop: error: port 1 does not answer: ")
    assert said.output.count("\n") == 1


def test_server_that_speaks_tls_for_another_name(start_answering, monkeypatch, tmp_path):
    certificate = trustme.CA().issue_cert("classifier.example")
    for name, pem in (
        ("cert", certificate.cert_chain_pems),
        ("key", [certificate.private_key_pem]),
    ):
        file = tmp_path / name
        file.write_bytes(b"".join(part.bytes() for part in pem))
        monkeypatch.setenv(f"FIVECROP_TLS_{name.upper()}", str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    start_answering({"/livez": 200}, tls=context)
    assert probe().exit_code == 0, probe().output
