"""A real Prometheus on this machine, scraping servers every second, with our rules in it."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest
import yaml

RULES = Path(__file__).parents[2] / "k8s/components/prometheus-rules/prometheus-rule.yaml"
UNITS = {"m": "1s", "h": "60s", "d": "1440s"}


def shorten(text):
    """Makes each minute a second, in `for:` and in the ranges and offsets of expressions.

    With a scrape every second, a range then holds as many samples as it does with one a minute.
    """

    def divide(found):
        return f"{int(found[1]) * int(UNITS[found[2]][:-1])}s"

    return re.sub(r"(?<=\[|\s)(\d+)([mhd])(?=\]|\b)", divide, text)


def read_short_rules():
    """The rules as they are deployed, with every duration a sixtieth of what it is."""
    groups = yaml.safe_load(RULES.read_text())["spec"]["groups"]
    for group in groups:
        group["interval"] = "1s"
        for rule in group["rules"]:
            rule["expr"] = shorten(rule["expr"])
            if "for" in rule:
                rule["for"] = shorten(f" {rule['for']}").strip()
    return {"groups": groups}


class LivePrometheus:
    """Runs from `with` to its end; `targets` are ports of this machine.

    Without them the folder has a configuration, which the `options` name.
    """

    def __init__(self, folder, port, targets=None, *, key=None, with_rules=False, options=None):
        if shutil.which("prometheus") is None:
            pytest.skip("prometheus is not installed; `make e2e` does that")
        self._url = f"http://127.0.0.1:{port}"
        self._folder = folder
        self._address = f"127.0.0.1:{port}"
        self._options = options or ["--config.file=prometheus.yml"]
        if targets is not None:
            self._write_config(targets, key, with_rules=with_rules)

    def _write_config(self, targets, key, *, with_rules):
        job = {
            "job_name": "fivecrop",
            "static_configs": [{"targets": [f"127.0.0.1:{target}" for target in targets]}],
        }
        if key is not None:
            job["authorization"] = {"credentials": key}
        config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}
        if with_rules:
            config["rule_files"] = ["rules.yaml"]
            (self._folder / "rules.yaml").write_text(yaml.safe_dump(read_short_rules()))
        (self._folder / "prometheus.yml").write_text(yaml.safe_dump(config))

    def __enter__(self):
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--web.listen-address={self._address}",
                    *self._options,
                    "--storage.tsdb.path=series",
                ],
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(30)

    def ask(self, expression):
        """The series of an instant query; none while Prometheus starts."""
        try:
            answer = httpx.get(f"{self._url}/api/v1/query", params={"query": expression})
        except httpx.TransportError:
            assert self._process.poll() is None, (self._folder / "prometheus.log").read_text()
            return []
        if answer.status_code == 503:  # it replays its log
            return []
        assert answer.is_success, answer.text
        return answer.json()["data"]["result"]

    def get(self, path):
        """The data of `/api/v1/PATH`."""
        return httpx.get(f"{self._url}/api/v1/{path}").raise_for_status().json()["data"]

    def firing(self):
        """The names of the alerts that fire."""
        return {one["metric"]["alertname"] for one in self.ask('ALERTS{alertstate="firing"}')}

    def wait_firing(self, *alerts, limit_s=240.0, meanwhile=lambda: time.sleep(0.2)):
        """The seconds until each of the alerts fired, having done something meanwhile."""
        began, seconds = time.monotonic(), {}
        while set(alerts) - seconds.keys():
            passed = time.monotonic() - began
            assert passed < limit_s, f"{set(alerts) - seconds.keys()} did not fire in {limit_s} s"
            for alert in self.firing() & set(alerts):
                seconds.setdefault(alert, round(passed))
            meanwhile()
        return seconds
