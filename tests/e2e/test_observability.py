"""What an operator sees of a server of two workers: JSON lines, traces, exemplars, its level."""

from __future__ import annotations

import json
import signal

import grpc
import httpx
import pytest
from otlp_collector import OtlpCollector
from prometheus_client.openmetrics.parser import text_string_to_metric_families

pytestmark = pytest.mark.e2e

TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = f"00-{TRACE}-b7ad6b7169203331-01"


def read_log(server):
    return [json.loads(line) for line in server.stderr.splitlines() if line.startswith("{")]


def test_server_of_two_workers_can_be_watched(start_server, image, wait_until, end_in_order):
    with OtlpCollector() as collector:
        server = start_server(
            workers=2,
            log_format="json",
            access_log=True,
            traces_endpoint=collector.endpoint,
            drain_s=0,
        ).wait_ready()
        url = f"http://127.0.0.1:{server.http_port}"
        headers = {"traceparent": SAMPLED}
        assert httpx.post(f"{url}/v1/classify", content=image, headers=headers).is_success
        check_access_log(server, wait_until)
        check_exemplars(url, wait_until)
        send_malformed_form(url)
        send_compressed_call(server.grpc_port)
        check_log_level(server, wait_until)
        code, _ = end_in_order(server)
        assert code == 0
        # The last spans are sent before the worker ends.
        roots = [span for span in collector.spans if span.kind == span.SPAN_KIND_SERVER]
        assert TRACE in [root.trace_id.hex() for root in roots]
    # Every line is JSON but the one that is for whoever started the server.
    plain = [line for line in server.stderr.splitlines() if not line.startswith("{")]
    assert [line for line in plain if not line.startswith("fivecrop is ready")] == []
    assert {line["logger"].partition(".")[0] for line in read_log(server)} == {"service"}


def send_malformed_form(url):
    """Its parser has a log of its own."""
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert httpx.post(f"{url}/v1/classify", content=b"hello", headers=headers).status_code == 400


def send_compressed_call(port):
    """gRPC's core has a log too."""
    with (
        grpc.insecure_channel(f"127.0.0.1:{port}", compression=grpc.Compression.Gzip) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.unary_unary("/fivecrop.v1.ImageClassifier/Classify")(bytes(5000), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def check_access_log(server, wait_until):
    def find():
        return [line for line in read_log(server) if line["logger"] == "service.access_log"]

    (line,) = wait_until(find, "a line in the access log")
    assert line["trace_id"] == TRACE
    assert line["model"] == "digits-linear"


def check_exemplars(url, wait_until):
    """The worker that was asked shows its trace on the buckets of both."""

    def find():
        accept = {"accept": "application/openmetrics-text", "connection": "close"}
        families = text_string_to_metric_families(httpx.get(f"{url}/metrics", headers=accept).text)
        return [
            sample
            for family in families
            for sample in family.samples
            if sample.name == "fivecrop_request_seconds_bucket" and sample.exemplar
        ]

    samples = wait_until(find, "the worker that answered is asked")
    assert {sample.exemplar.labels["trace_id"] for sample in samples} == {TRACE}


def check_log_level(server, wait_until):
    def find(level):
        said = f"the log level is now {level}"
        lines = [line for line in read_log(server) if line.get("message") == said]
        return {line["pid"] for line in lines} if len(lines) == 3 else None

    for level in ("debug", "info"):
        server.process.send_signal(signal.SIGUSR1)
        pids = wait_until(lambda level=level: find(level), f"the log level {level}")
        assert pids == {server.process.pid, *server.worker_pids()}
