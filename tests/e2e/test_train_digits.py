"""From a recipe to a measured bundle, by the commands that a person would type."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx
import pytest
from documents import documented as commands_of

from service.bundle.repository import read_bundle, verify_files

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
documented = partial(commands_of, "docs/train.md")


def fivecrop(*arguments: str | Path) -> str:
    command = [Path(sys.executable).with_name("fivecrop"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_lenet5_learns_digits_and_is_served_as_well_as_it_was_trained(tmp_path, start_server):
    """LeNet-5, 61,706 parameters: 98 % or more of 360 images that it never saw."""
    run_dir, repository = tmp_path / "run", tmp_path / "models"
    train = documented(r"train \S+digits-lenet5\.toml(?! )")
    trained = json.loads(fivecrop(*train, "--run-dir", run_dir, "--quiet", "--json"))
    export = [
        run_dir if word == "runs/digits-lenet5-0" else word for word in documented("export runs")
    ]
    assert run_dir in export
    exported = json.loads(fivecrop(*export, "--repository", repository, "--json"))
    measured = json.loads(
        fivecrop("evaluate", "digits-lenet5", "--repository", repository, "--json")
    )
    verify = commands_of("docs/quickstart.md", "models --verify")
    assert "digits-lenet5" in fivecrop(*verify, "--model-repository", repository)

    assert measured["images"] == 360
    assert measured["top1"] >= 0.98
    # The export changes no answer, and measures as `evaluate` does.
    assert measured["top1"] == pytest.approx(trained["top1"], abs=1e-9)
    assert measured["top1"] == exported["metrics"][0]["top1"]
    assert measured["ece"] < 0.02

    bundle = read_bundle(Path(exported["folder"]))
    verify_files(bundle)
    assert bundle.manifest.variants[0].parity.top1_agreement == 1.0
    assert "report/learning_curves.png" in bundle.manifest.files

    checked = fivecrop(*documented("export --check"), "--repository", repository)
    assert "ok      top-1 of fp32, none: " in checked
    check_studies(repository, tmp_path / "evaluation")
    check_cascade(repository, bundle, start_server)


def check_studies(repository, folder):
    """What the model depends on, and whether more views are worth it, as the document does it."""
    command = documented("evaluate digits-lenet5 --study all")
    command[command.index("--out") + 1] = str(folder)
    fivecrop(*command, "--repository", repository, "--study-images", "60")
    assert {path.suffix for path in folder.iterdir()} >= {".json", ".png"}
    compared = json.loads(
        fivecrop(*documented("compare-bundles"), "--repository", repository, "--json")
    )
    assert sum(compared[key] for key in ("both", "first_only", "second_only", "neither")) == 360


def check_cascade(repository, bundle, start_server):
    """More views only where the plain answer is not sure, as the document does it."""
    command = documented("tune-cascade")
    made = json.loads(fivecrop(*command, "--repository", repository, "--json"))
    measured = made["measured"]
    assert measured["images"] == 180
    assert measured["top1"] >= 0.97
    assert measured["cost_share"] < 2

    serve = documented("serve")
    assert serve == ["serve", "--model", "digits-lenet5"]
    server = start_server(repository).wait_ready()
    image = next(bundle.folder.glob("golden/*.png")).read_bytes()
    url = f"http://127.0.0.1:{server.http_port}/v1/classify?model=digits-careful"
    answer = httpx.post(url, content=image).json()
    assert answer["model"] == "digits-careful"
    first = answer["members"][0]
    threshold = made["members"][0]["escalate_below"]
    assert [one["tta"] for one in answer["members"]] == (
        ["none"] if first["score"] >= threshold else ["none", "multi_scale"]
    )
