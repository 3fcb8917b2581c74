"""What Prometheus sees of a job while it runs."""

from __future__ import annotations

import http.client
import re
import socket
from collections import Counter

import pytest

from service.score.errors import ScoreError
from service.score.job_metrics import serve_metrics
from service.score.progress import Progress


@pytest.fixture
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host, port = free.getsockname()
    return f"{host}:{port}"


def scrape(address):
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return dict(re.findall(r"^(fivecrop_score_\S+) (\S+)$", text, re.M))


def test_a_scrape_shows_how_far_the_job_is(address):
    told = []
    progress = Progress(total=9, resumed=0, counts=Counter(ok=5, image_corrupt=1), workers=1)
    with serve_metrics(address, told.append) as watch:
        before = scrape(address)
        watch(progress)
        after = scrape(address)
    began, moved = (
        float(shown.pop("fivecrop_score_last_progress_timestamp_seconds"))
        for shown in (before, after)
    )
    assert before == {}
    assert after == {
        'fivecrop_score_images_total{code="ok"}': "5.0",
        'fivecrop_score_images_total{code="image_corrupt"}': "1.0",
        "fivecrop_score_images_expected": "9.0",
    }
    assert began < moved
    assert told == [progress]
    with pytest.raises(ConnectionRefusedError):
        scrape(address)


def test_a_port_in_use_is_one_line(address):
    with serve_metrics(address, print):
        refused = pytest.raises(ScoreError, match=r"cannot listen on .*: Address already in use")
        with refused, serve_metrics(address, print):
            pass
