"""Every line of the dashboard is drawn from what a real Prometheus scrapes off a real server."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.e2e

FILE = Path(__file__).parents[2] / "compose/grafana/dashboards/fivecrop.json"
PANELS = json.loads(FILE.read_text())["panels"]
# Only a machine with a GPU shows it.
OF_GPUS = "fivecrop_gpu_"


@pytest.fixture
def query(server, tmp_path, unused_ports, wait_until):
    """Asks a Prometheus that scrapes the server every second."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    (port,) = unused_ports(1)
    target = f"127.0.0.1:{server.http_port}"
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        f'scrape_configs: [{{job_name: fivecrop, static_configs: [{{targets: ["{target}"]}}]}}]\n'
    )
    process = subprocess.Popen(
        ["prometheus", f"--web.listen-address=127.0.0.1:{port}", "--config.file=prometheus.yml"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ask(expression):
        answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": expression})
        assert answer.is_success, answer.text
        return answer.json()["data"]["result"]

    def is_scraped():
        try:
            return ask("fivecrop_workers_alive")
        except httpx.TransportError:
            return []

    try:
        wait_until(is_scraped, "a scrape")
        yield ask
    finally:
        process.terminate()
        process.wait(30)


def test_every_line_shows_something(server, image, query, wait_until):
    # Drift is measured once there are a few answers.
    for _ in range(200):
        server.classify(image)
    drawn = [
        target["expr"].replace("$__rate_interval", "1m")
        for panel in PANELS
        for target in panel["targets"]
    ]
    assert len(drawn) > 15

    def find_empty():
        server.classify(image)
        empty = [one for one in drawn if OF_GPUS not in one and not query(one)]
        return "all are drawn" if not empty else None

    wait_until(find_empty, "each line is drawn", 60)
