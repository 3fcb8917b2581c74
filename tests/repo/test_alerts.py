"""Each alert fires for its fault, and not for what is no fault: Prometheus' own tool decides."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULE = yaml.safe_load((ROOT / "k8s/components/prometheus-rules/prometheus-rule.yaml").read_text())
ALERTS = [
    rule["alert"] for group in RULE["spec"]["groups"] for rule in group["rules"] if "alert" in rule
]
OK = 'fivecrop_requests_total{code="ok"}'
FAILED = 'fivecrop_requests_total{code="internal"}'
BAD_INPUT = 'fivecrop_requests_total{code="image_corrupt"}'
LATENCY = 'fivecrop_request_seconds_bucket{route="POST /v1/classify",le="%s"}'
SCORES = "fivecrop_top1_score_%s"
GPU = 'fivecrop_gpu_memory_total_bytes{instance="a",device="0"}'
LOADED = 'fivecrop_model_info{instance="a",model="m",provider="%s"}'
# Alert: when it is asked, a minute apart the samples that fire it, and others that do not.
CASES = {
    "FivecropErrorBudgetBurnsFast": (
        "2h",
        {OK: "0+1000x180", FAILED: "0+20x180"},
        {OK: "0+1000x180", FAILED: "0+10x180", BAD_INPUT: "0+500x180"},
    ),
    "FivecropErrorBudgetBurnsSlowly": (
        "7h",
        {OK: "0+1000x500", FAILED: "0+7x500"},
        {OK: "0+1000x500", FAILED: "0+5x500", BAD_INPUT: "0+500x500"},
    ),
    "FivecropOverloaded": (
        "20m",
        {'fivecrop_rejected_total{reason="queue_full"}': "0+1x30"},
        {'fivecrop_rejected_total{reason="rate_limited"}': "0+1x30"},
    ),
    "FivecropSlow": (
        "20m",
        {LATENCY % "1": "0+98x30", LATENCY % "2.5": "0+100x30", LATENCY % "+Inf": "0+100x30"},
        {LATENCY % "1": "0+100x30", LATENCY % "2.5": "0+100x30", LATENCY % "+Inf": "0+100x30"},
    ),
    "FivecropQueueFilling": (
        "20m",
        {"fivecrop_queue_views": "300x30"},
        {"fivecrop_queue_views": "300x2 10 300x2 10 300x2 10 300x2 10 300x2 10 300x2 10 300x2"},
    ),
    "FivecropWorkersMissing": (
        "10m",
        {"fivecrop_workers_alive": "1x20", "fivecrop_workers_configured": "2x20"},
        {"fivecrop_workers_alive": "2x8 1 2x11", "fivecrop_workers_configured": "2x20"},
    ),
    "FivecropRolledBack": (
        "10m",
        {'fivecrop_rollbacks_total{model="m"}': "0x5 1x10"},
        {'fivecrop_rollbacks_total{model="m"}': "1x20"},
    ),
    "FivecropModelLoadFailed": (
        "10m",
        {'fivecrop_model_load_failures_total{model="m"}': "0x5 1x10"},
        {'fivecrop_model_load_failures_total{model="m"}': "1x20"},
    ),
    "FivecropRepositoryUnreadable": (
        "15m",
        {"fivecrop_model_repository_failures_total": "0+1x20"},
        {"fivecrop_model_repository_failures_total": "0x5 1x15"},
    ),
    "FivecropNonfiniteOutputs": (
        "10m",
        {'fivecrop_requests_total{code="nonfinite_output"}': "0x5 1x10"},
        {'fivecrop_requests_total{code="nonfinite_output"}': "1x20", OK: "0+9x20"},
    ),
    "FivecropOnCpu": (
        "10m",
        {LOADED % "cpu": "1x20", GPU: "8x20"},
        {LOADED % "cpu": "0x20", LOADED % "cuda": "1x20", GPU: "8x20"},
    ),
    "FivecropConfidenceFell": (
        "26h",
        {
            SCORES % 'bucket{model="m",le="0.5"}': "0+10x1380 13800+60x300",
            SCORES % 'count{model="m"}': "0+100x1700",
        },
        {
            SCORES % 'bucket{model="m",le="0.5"}': "0+10x1700",
            SCORES % 'count{model="m"}': "0+100x1700",
        },
    ),
    "FivecropDrift": (
        "2h",
        {'fivecrop_drift_stability_index{model="m",of="predictions"}': "0.3x180"},
        {
            'fivecrop_drift_stability_index{model="m",of="predictions"}': "0.1x180",
            'fivecrop_drift_embedding_distance{model="m"}': "0.2x180",
        },
    ),
    "FivecropAbsent": ("10m", {"up": "0x20"}, {"fivecrop_workers_alive": "1x20"}),
}


@pytest.fixture
def promtool(tmp_path):
    """Runs promtool where the rules are in rules.yaml."""
    if (tool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULE["spec"]))

    def run(*words):
        return subprocess.run(
            [tool, *words], capture_output=True, check=False, text=True, cwd=tmp_path
        )

    return run


def test_every_alert_is_tested_and_explained():
    assert sorted(ALERTS) == sorted(CASES)
    text = (ROOT / "docs/operations.md").read_text()
    assert [name for name in ALERTS if f"| `{name}` |" not in text] == []


def test_rules_are_valid(promtool):
    checked = promtool("check", "rules", "rules.yaml")
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("alert", CASES)
@pytest.mark.parametrize("fires", [True, False], ids=["fires", "is quiet"])
def test_alert(promtool, tmp_path, alert, fires):
    when, firing, quiet = CASES[alert]
    series = [
        {"series": name, "values": values} for name, values in (firing if fires else quiet).items()
    ]
    # promtool names every label that an alert has; which they are is not what is tested here.
    count = {
        "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) > bool 0',
        "eval_time": when,
        "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
    }
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [count]}
    suite = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(suite))
    told = promtool("test", "rules", "test.yaml")
    assert told.returncode == 0, told.stdout + told.stderr
