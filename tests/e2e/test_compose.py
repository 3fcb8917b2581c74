"""The Prometheus of compose.yaml: the same files and options, with its hosts on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from live_prometheus import LivePrometheus

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["prometheus"]
FOLDER = "/etc/prometheus/"


def read_rules(prometheus):
    return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]


def test_the_prometheus_of_compose_scrapes_and_has_every_alert(
    start_server, tmp_path, unused_ports, wait_until
):
    mounted = (volume.split(":")[:2] for volume in COMPOSE["volumes"])
    for here, there in mounted:
        if there.startswith(FOLDER):
            shutil.copy(ROOT / here, tmp_path / there.removeprefix(FOLDER))
    config = (tmp_path / "prometheus.yml").read_text()
    # The name and port of the service of compose.
    assert config.count('"fivecrop:3000"') == 1
    server = start_server().wait_ready()
    config = config.replace("fivecrop:3000", f"127.0.0.1:{server.http_port}")
    (tmp_path / "prometheus.yml").write_text(config)
    options = [option.replace(FOLDER, "") for option in COMPOSE["command"]]
    (port,) = unused_ports(1)
    with LivePrometheus(tmp_path, port, options=options) as prometheus:
        wait_until(lambda: prometheus.ask('up{job="fivecrop"} == 1'), "scraped", 120)
        wait_until(
            lambda: all(rule["health"] == "ok" for rule in read_rules(prometheus)),
            "every rule was evaluated",
            180,
        )
        assert not prometheus.firing()
        rules = read_rules(prometheus)
    alerts = {rule["name"] for rule in rules if rule["type"] == "alerting"}
    written = yaml.safe_load((ROOT / "compose/alerts.yml").read_text())["groups"]
    assert alerts == {
        rule["alert"] for group in written for rule in group["rules"] if "alert" in rule
    }
    assert len(alerts) > 15
