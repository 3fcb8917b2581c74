"""The dashboard has the types that Grafana publishes, of the version that compose.yaml starts.

`make k8s-check` installs them; without them these tests are skipped.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / ".venv/schemas"
TEXT = (ROOT / "compose/grafana/dashboards/fivecrop.json").read_text()


@pytest.fixture
def check():
    if not (SCHEMAS / "node_modules/@grafana/schema").is_dir():
        pytest.skip("Grafana's types are not installed; `make k8s-check` does that")

    def run(text):
        command = ["node", ROOT / "scripts/check-dashboard.mjs", SCHEMAS]
        return subprocess.run(command, input=text, capture_output=True, check=False, text=True)

    return run


def test_types_are_of_the_grafana_that_compose_starts():
    (wanted,) = re.findall(r"@grafana/schema@(\S+)", (ROOT / "Makefile").read_text())
    image = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["grafana"]["image"]
    assert image == f"grafana/grafana:{wanted}"


def test_the_dashboard_has_the_types_of_grafana(check):
    assert check(TEXT).stderr == ""
    assert check(TEXT).returncode == 0


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('"schemaVersion"', '"schemaversion"'),
        ('"type": "timeseries"', '"type": "timeserie"'),
        ('"w": 8', '"w": "8"'),
        ('"unit": "reqps"', '"unit": 1'),
        ('"overrides"', '"override"'),
        ('"uid": "prometheus"', '"id": "prometheus"'),
        ('"mode": "single"', '"mode": "one"'),
        ('"yAxis"', '"yaxis"'),
        ('"legendFormat"', '"legend"'),
    ],
)
def test_a_damaged_one_is_refused_with_its_line(check, right, wrong):
    damaged = TEXT.replace(right, wrong, 1)
    json.loads(damaged)
    told = check(damaged)
    assert told.returncode == 1
    line = damaged[: damaged.index(wrong)].count("\n") + 1
    assert [int(fault.split(":")[0]) for fault in told.stderr.splitlines()] == [line], told.stderr
