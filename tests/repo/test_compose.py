"""compose.yaml, Prometheus' configuration and what Grafana is provisioned with fit each other.

tests/e2e/test_compose.py runs a real Prometheus on that configuration. No Grafana runs here: its
files are held against the fields that its documentation names.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SERVICES = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
GRAFANA = ROOT / "compose/grafana"
PROVISIONED = "/etc/grafana/provisioning"
# https://grafana.com/docs/grafana/v11.4/administration/provisioning/
DATA_SOURCE = {
    *("name", "type", "access", "orgId", "uid", "url", "user", "database", "basicAuth"),
    *("basicAuthUser", "withCredentials", "isDefault", "jsonData", "secureJsonData", "version"),
    "editable",
}
PROVIDER = {
    *("name", "orgId", "folder", "folderUid", "type", "disableDeletion", "updateIntervalSeconds"),
    *("allowUiUpdates", "options"),
}


def read_mounts(service):
    """What a service sees, by the path that it sees it on; named volumes left out."""
    volumes = (volume.split(":") for volume in SERVICES[service]["volumes"])
    return {parts[1]: ROOT / parts[0] for parts in volumes if parts[0].startswith(".")}


def test_prometheus_takes_the_configuration_of_compose():
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed")
    file = ROOT / "compose/prometheus.yml"
    checked = subprocess.run(
        [promtool, "check", "config", file], capture_output=True, check=False, text=True
    )
    assert checked.returncode == 0, checked.stderr


def test_compose_mounts_files_that_exist():
    mounted = [path for service in SERVICES for path in read_mounts(service).values()]
    assert len(mounted) > 5
    assert [path for path in mounted if not path.exists()] == []
    assert SERVICES["fivecrop"]["healthcheck"]["test"] == ["CMD", "fivecrop", "probe"]
    assert 'CMD ["fivecrop", "probe"]' in (ROOT / "Dockerfile").read_text()


def test_grafana_is_given_the_prometheus_of_compose():
    """The data source is mounted where Grafana looks, and has what it needs and nothing unknown."""
    mounted = read_mounts("grafana")[f"{PROVISIONED}/datasources/fivecrop.yaml"]
    document = yaml.safe_load(mounted.read_text())
    assert document.keys() <= {"apiVersion", "deleteDatasources", "prune", "datasources"}
    assert document["apiVersion"] == 1
    (source,) = document["datasources"]
    assert {"name", "type", "access"} <= source.keys() <= DATA_SOURCE
    assert (source["type"], source["access"]) == ("prometheus", "proxy")
    url = urlsplit(source["url"])
    assert url.hostname == "prometheus"
    assert SERVICES["prometheus"]["ports"] == [f"127.0.0.1:{url.port}:{url.port}"]


def test_grafana_finds_the_dashboard_and_the_dashboard_its_data():
    mounts = read_mounts("grafana")
    mounted = mounts[f"{PROVISIONED}/dashboards/fivecrop.yaml"]
    document = yaml.safe_load(mounted.read_text())
    assert document.keys() == {"apiVersion", "providers"}
    (provider,) = document["providers"]
    assert {"name", "type", "options"} <= provider.keys() <= PROVIDER
    assert provider["type"] == "file"
    folder = mounts[provider["options"]["path"]]
    (file,) = folder.iterdir()
    dashboard = json.loads(file.read_text())
    # A new dashboard has no number of its own; the file, not the database, says which one it is.
    assert dashboard.get("id") is None
    assert dashboard["uid"]
    (source,) = yaml.safe_load((GRAFANA / "datasource.yaml").read_text())["datasources"]
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    for panel in panels:
        place = panel["gridPos"]
        assert place.keys() == {"x", "y", "w", "h"}
        assert place["x"] + place["w"] <= 24
        assert panel["type"] in ("timeseries", "heatmap")
        assert panel["datasource"] == {"type": source["type"], "uid": source["uid"]}
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs) > 0
