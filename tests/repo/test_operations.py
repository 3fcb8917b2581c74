"""docs/operations.md knows every metric there is, and the alerts ask for none that is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.live_workers import WorkersCollector
from service.metrics import Metrics
from service.processes import ProcessesCollector, this_process
from service.score.job_metrics import JobMetrics

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/operations.md").read_text()
RULES = (ROOT / "k8s/components/prometheus-rules/prometheus-rule.yaml").read_text()
TABLE = re.search(r"\| metric \|.*?\n\n", TEXT, re.S)[0]
# Only a machine with a GPU shows them.
OF_GPUS = {
    "fivecrop_gpu_utilisation_ratio",
    "fivecrop_gpu_memory_used_bytes",
    "fivecrop_gpu_memory_total_bytes",
}


@pytest.fixture(scope="module")
def existing():
    workers = WorkersCollector(1, lambda: 1)
    collectors = (ProcessesCollector(this_process), workers, JobMetrics())
    text = Metrics(collectors=collectors).render()[0].decode()
    return set(re.findall(r"^# TYPE (\w+) ", text, re.M)) | OF_GPUS


def test_every_metric_is_explained_and_no_other(existing):
    explained = set(re.findall(r"`((?:fivecrop|process)_\w+)`", TABLE))
    assert explained == existing


def test_alerts_ask_only_for_metrics_that_exist(existing):
    asked = set(re.findall(r"\b(?:fivecrop|process)_\w+", RULES))
    assert len(asked) > 5
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked} <= existing
