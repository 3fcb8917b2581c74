"""Each alert fires for its fault, and not for what is no fault: Prometheus' own tool decides."""

from __future__ import annotations

import json
import re
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
STARTED = 'process_start_time_seconds{instance="a"}'
FAILED_TO_LOAD = 'fivecrop_model_load_failures_total{model="m",reason="%s"}'
PROGRESS = "fivecrop_score_last_progress_timestamp_seconds"
# A series that is born with its first event, and one whose events are long ago.
FIRST, LONG_AGO = "_x20 1x20", "1x40"
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
    "FivecropWorkersDying": (
        "20m",
        {"fivecrop_worker_starts_total": "2x10 3 4 5 6x10"},
        {"fivecrop_worker_starts_total": "2x10 3x20", STARTED: "0+60x30"},
    ),
    "FivecropRolledBack": (
        "30m",
        {'fivecrop_rollbacks_total{model="m"}': FIRST},
        {'fivecrop_rollbacks_total{model="m"}': LONG_AGO},
    ),
    "FivecropModelLoadFailed": (
        "30m",
        {FAILED_TO_LOAD % "bundle": FIRST},
        {FAILED_TO_LOAD % "bundle": LONG_AGO, FAILED_TO_LOAD % "golden": FIRST},
    ),
    "FivecropGoldenFailed": (
        "30m",
        {FAILED_TO_LOAD % "golden": FIRST},
        {FAILED_TO_LOAD % "golden": LONG_AGO, FAILED_TO_LOAD % "bundle": FIRST},
    ),
    "FivecropRepositoryUnreadable": (
        "15m",
        {"fivecrop_model_repository_failures_total": "0+1x20"},
        {"fivecrop_model_repository_failures_total": "0x5 1x15"},
    ),
    "FivecropNonfiniteOutputs": (
        "30m",
        {'fivecrop_requests_total{code="nonfinite_output"}': FIRST, OK: "0+9x40"},
        {'fivecrop_requests_total{code="nonfinite_output"}': LONG_AGO, OK: "0+9x40"},
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
    "FivecropScoringStuck": ("30m", {PROGRESS: "0+60x10 600x20"}, {PROGRESS: "0+60x30"}),
    "FivecropAbsent": ("10m", {"up": "0x20"}, {"fivecrop_workers_alive": "1x20"}),
}


# Other histories that fire: events beside those that were counted before, a worker that is alone.
MORE = {
    "FivecropWorkersDying": {
        STARTED: "0x9 1 2 3x10",
        'fivecrop_workers_alive{instance="a"}': "1x20",
    },
    "FivecropRolledBack": {'fivecrop_rollbacks_total{model="m"}': "1x20 2x20"},
    "FivecropModelLoadFailed": {FAILED_TO_LOAD % "memory": "1x20 2x20"},
    "FivecropGoldenFailed": {FAILED_TO_LOAD % "golden": "1x20 2x20"},
    "FivecropNonfiniteOutputs": {'fivecrop_requests_total{code="nonfinite_output"}': "1x20 2x20"},
    "FivecropDrift": {'fivecrop_drift_embedding_distance{model="m"}': "0.4x180"},
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


def read_table(title):
    """The cells of the rows of a table of docs/operations.md, by its first heading."""
    text = (ROOT / "docs/operations.md").read_text()
    rows = text.split(f"| {title} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_every_alert_is_tested_and_has_its_entry_in_the_runbook():
    assert sorted(ALERTS) == sorted(CASES)
    entries = read_table("alert | what it means | look at | do")
    assert sorted(name.strip("`") for name, *_ in entries) == sorted(ALERTS)
    assert [name for name, *cells in entries if len(cells) != 3 or not all(cells)] == []


def test_every_alert_was_fired_once_by_its_fault():
    fired = (ROOT / "tests/e2e/test_alerts_fire.py").read_text()
    assert sorted(re.findall(r'"(Fivecrop\w+)"', fired)) == sorted(ALERTS)
    recorded = read_table("alert | fault | fired after")
    names = " ".join(name for name, *_ in recorded)
    assert sorted(re.findall(r"Fivecrop\w+", names)) == sorted(ALERTS)
    assert all(re.fullmatch(r"\d+ s", seconds) for *_, seconds in recorded)


def test_compose_has_the_same_rules():
    assert yaml.safe_load((ROOT / "compose/alerts.yml").read_text()) == RULE["spec"]


def test_rules_are_valid(promtool):
    checked = promtool("check", "rules", "rules.yaml")
    assert checked.returncode == 0, checked.stderr


def test_expressions_of_the_dashboard_are_valid(promtool, tmp_path):
    dashboard = json.loads((ROOT / "compose/grafana/dashboards/fivecrop.json").read_text())
    drawn = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = [
        {"record": f"line{number}", "expr": line.replace("$__rate_interval", "1m")}
        for number, line in enumerate(drawn)
    ]
    assert len(rules) > 25
    (tmp_path / "drawn.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]})
    )
    checked = promtool("check", "rules", "drawn.yaml")
    assert checked.returncode == 0, checked.stderr


def read_scaling_queries():
    """What KEDA asks, and what prometheus-adapter makes of its rule for two pods."""
    components = ROOT / "k8s/components"
    scaled = yaml.safe_load((components / "keda/scaled-object.yaml").read_text())
    (trigger,) = scaled["spec"]["triggers"]
    text = (components / "hpa-queue/prometheus-adapter-rule.yaml").read_text()
    (rule,) = yaml.safe_load(text)["rules"]
    adapted = rule["metricsQuery"]
    for name, value in (
        ("Series", rule["name"]["as"]),
        ("LabelMatchers", 'namespace="fivecrop",pod=~"a|b"'),
        ("GroupBy", "pod"),
    ):
        adapted = adapted.replace(f"<<.{name}>>", value)
    return trigger["metadata"]["query"], adapted


def test_autoscalers_see_the_most_that_waited_within_a_minute(promtool, tmp_path):
    def waiting(pod, values, namespace="fivecrop"):
        name = f'fivecrop_queue_views{{namespace="{namespace}",pod="{pod}"}}'
        return {"series": name, "values": values}

    series = [waiting("a", "0 9 40 2"), waiting("b", "0 0 1 3"), waiting("c", "99x3", "other")]
    by_pod = [{"labels": '{pod="a"}', "value": 40}, {"labels": '{pod="b"}', "value": 3}]
    keda, adapter = read_scaling_queries()
    asked = [
        {"expr": keda, "eval_time": "45s", "exp_samples": [{"labels": "{}", "value": 43}]},
        {"expr": adapter, "eval_time": "45s", "exp_samples": by_pod},
    ]
    test = {"interval": "15s", "input_series": series, "promql_expr_test": asked}
    (tmp_path / "test.yaml").write_text(
        yaml.safe_dump({"evaluation_interval": "15s", "tests": [test]})
    )
    told = promtool("test", "rules", "test.yaml")
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.fixture
def assert_fires(promtool, tmp_path):
    def check(alert, when, samples, fires):
        # promtool names every label that an alert has; which they are is not what is tested here.
        count = {
            "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) > bool 0',
            "eval_time": when,
            "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
        }
        series = [{"series": name, "values": values} for name, values in samples.items()]
        test = {"interval": "1m", "input_series": series, "promql_expr_test": [count]}
        suite = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}
        (tmp_path / "test.yaml").write_text(yaml.safe_dump(suite))
        told = promtool("test", "rules", "test.yaml")
        assert told.returncode == 0, told.stdout + told.stderr

    return check


@pytest.mark.parametrize("alert", CASES)
@pytest.mark.parametrize("fires", [True, False], ids=["fires", "is quiet"])
def test_alert(assert_fires, alert, fires):
    when, firing, quiet = CASES[alert]
    assert_fires(alert, when, firing if fires else quiet, fires)


@pytest.mark.parametrize("alert", MORE)
def test_alert_fires_for_another_history(assert_fires, alert):
    assert_fires(alert, CASES[alert][0], MORE[alert], True)
