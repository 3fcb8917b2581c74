"""The README and what it leads to, executed: commands and answers, against the bundled model."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / ".venv/clients/bin/python"  # of other servers; `make e2e` installs them


@pytest.fixture(scope="module")
def readme():
    return (ROOT / "README.md").read_text()


def document(name):
    """The text of docs/NAME.md."""
    return (ROOT / f"docs/{name}.md").read_text()


@pytest.fixture
def bundled(start_server):
    return start_server(ROOT / "exported_models").wait_ready()


def on_ports(text, server):
    """Return the text with the addresses of `server`; any other 3000 in it stays."""
    ports = {"3000": server.http_port, "3001": server.grpc_port}
    return re.sub(r"(127\.0\.0\.1:)(3000|3001)\b", lambda m: f"{m[1]}{ports[m[2]]}", text)


def section(readme, title):
    """The text under a heading of the second level."""
    return readme.split(f"\n## {title}\n")[1].split("\n## ")[0]


def run_block(block, server, python):
    """What a block prints, run beside the bundled model by the given interpreter."""
    run = subprocess.run(
        [python, "-c", on_ports(block, server)],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    return run.stdout


def test_the_ready_line_is_the_one_of_the_readme(readme, bundled):
    (line,) = re.findall(r"^fivecrop is ready: .*$", readme, re.M)
    assert bundled.stderr.strip().splitlines()[-1] == on_ports(line, bundled)


def test_the_example_answer_is_the_real_one(readme, bundled):
    (command,) = re.findall(r"^curl -T .*/v1/classify$", readme, re.M)
    (example,) = re.findall(r"```json\n(.*?)```", readme, re.S)
    curl = shlex.split(on_ports(command, bundled))
    shown = subprocess.run([*curl, "-s"], cwd=ROOT, capture_output=True, check=True).stdout
    answer, expected = json.loads(shown), json.loads(example)
    assert answer.pop("request_id")
    assert expected.pop("request_id")
    scores, expected_scores = (
        [one.pop("score") for one in document["predictions"]] for document in (answer, expected)
    )
    # Another processor rounds otherwise, so not to the last digit.
    assert answer.pop("decision") == pytest.approx(expected.pop("decision"), abs=1e-3)
    assert answer == expected
    assert scores == pytest.approx(expected_scores, abs=1e-3)


def test_the_python_block_prints_one_answer_from_both_clients(readme, bundled):
    (block,) = re.findall(r"```python\n(.*?)```", section(readme, "Serve"), re.S)
    over_grpc, over_bentoml = run_block(block, bundled, sys.executable).split()
    assert over_grpc == over_bentoml


def test_the_clients_of_other_servers_are_answered(start_server):
    (block,) = re.findall(r"```\n(IMAGE=.*?)```", document("clients"), re.S)
    drop_ins = {"torchserve": True, "tfserving": True, "sagemaker": True}
    server = start_server(ROOT / "exported_models", **drop_ins).wait_ready()
    script = on_ports(block, server).replace("curl ", "echo; curl -sSf ")
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    torchserve, tfserving, sagemaker = map(json.loads, run.stdout.split("\n")[1:])
    assert next(iter(torchserve)) == "airplane"
    assert tfserving["predictions"][0]["label"] == "airplane"
    assert sagemaker["predictions"][0]["label"] == "airplane"


def test_the_block_for_triton_clients_prints_what_is_shown(bundled):
    text = section(document("clients"), "Triton and KServe")
    ((block, shown),) = re.findall(r"```python\n(.*?)```\n.*?```\n(.*?)```", text, re.S)
    # Another processor rounds otherwise, so not to the last digits.
    told, expected = (
        re.findall(r"b'([\d.]+):(\d+:\w+)'", output)
        for output in (run_block(block, bundled, CLIENTS), shown)
    )
    assert [name for _, name in told] == [name for _, name in expected]
    scores, expected_scores = ([float(score) for score, _ in one] for one in (told, expected))
    assert scores == pytest.approx(expected_scores, abs=1e-3)


def test_the_lines_about_keys_lock_the_server(start_server, tmp_path):
    lines = re.search(r"^(KEY=.*)\n(.* serve .*)\n(curl .*)$", document("serve"), re.M)
    make_key, serve, ask = lines.groups()
    keys = tmp_path / "keys.json"
    make_key = make_key.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    script = make_key.replace("keys.json", str(keys)) + " && echo $KEY"
    key = subprocess.run(["bash", "-c", script], capture_output=True, check=True, text=True).stdout
    assert serve.endswith("--api-keys keys.json")
    server = start_server(ROOT / "exported_models", api_keys=keys).wait_ready()
    for given, code in ((key.strip(), None), ("fc_0_wrong", "unauthenticated")):
        curl = shlex.split(on_ports(ask.replace("$KEY", given), server))
        shown = subprocess.run([*curl, "-s"], cwd=ROOT, capture_output=True, check=True).stdout
        assert json.loads(shown).get("code") == code


def test_the_roll_out_moves_the_label_from_one_version_to_the_next(
    start_server, tmp_path, wait_until
):
    text = document("rollout")
    (start, steps, trial) = re.findall(r"```\n(.*?)```", text, re.S)
    make_key, serve = start.strip().splitlines()
    assert serve.endswith("serve --api-keys keys.json --model-watch")
    repository = tmp_path / "models"
    shutil.copytree(ROOT / "exported_models", repository)
    keys = tmp_path / "keys.json"
    programs = f"{Path(sys.executable).parent}/"

    def run(line):
        script = line.replace(".venv/bin/", programs).replace("keys.json", str(keys))
        if "fivecrop models" in script:
            script += f" --url http://127.0.0.1:{server.http_port}"
        shown = subprocess.run(
            ["bash", "-ec", script],
            cwd=ROOT,
            env={**os.environ, "FIVECROP_KEY": key},
            capture_output=True,
            check=True,
            text=True,
        )
        return shown.stdout

    key = ""
    key = run(make_key.removeprefix("export FIVECROP_KEY=$(").removesuffix(")")).strip()
    server = start_server(repository, api_keys=keys, model_watch=True).wait_ready()
    label, export, canary, ask = steps.strip().splitlines()
    shadow, split, report, promote, show = trial.strip().splitlines()
    run(label)
    # What the export does in the end: a new version appears at once.
    assert " export " in export
    new = repository / "cifar10-airbench/2"
    shutil.copytree(repository / "cifar10-airbench/1", repository / ".staging/2")
    manifest = repository / ".staging/2/bundle.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 2}))
    (repository / ".staging/2").rename(new)
    wait_until(lambda: len(json.loads(run(f"{show} --json"))["models"]) == 2, "version 2 serves")
    run(canary)
    for line, version in ((ask, 2), (ask.replace("@canary", ""), 1)):
        answer = run(on_ports(line, server).replace("curl ", "curl -s "))
        assert json.loads(answer)["version"] == version
    run(shadow)
    assert "10.0% to canary" in run(split)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        run(promote)
    assert "0 images were compared, 200 are needed (promotion_refused)" in refused.value.stderr
    image = (repository / "cifar10-airbench/1/golden/0.jpeg").read_bytes()
    answered = Counter()

    def is_enough():
        for _ in range(60):
            answered[server.classify(image, {"Authorization": f"Bearer {key}"})["version"]] += 1
        return json.loads(run(f"{report} --json"))["comparisons"][0]["images"] >= 200

    wait_until(is_enough, "200 comparisons")
    assert 0.02 < answered[2] / answered.total() < 0.25
    assert "100.00%" in run(report)
    run(promote)
    wait_until(lambda: len(json.loads(run(f"{show} --json"))["models"]) == 1, "version 1 is freed")
    assert re.search(r"cifar10-airbench +│ 2 +│ ready +│ stable", run(show))


def test_the_commands_about_architectures_answer():
    commands = re.findall(r"^\.venv/bin/(fivecrop) (arch .*)$", document("train"), re.M)
    told = [
        subprocess.run(
            [Path(sys.executable).with_name(program), *shlex.split(arguments)],
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for program, arguments in commands
    ]
    assert len(told) == 3
    for text, word in zip(told, ("resnet50", "layer", "96"), strict=True):
        assert word in text


def test_the_commands_that_explain_give_a_picture_and_numbers(bundled, tmp_path):
    picture, numbers = re.findall(r"^curl -T .*/v1/explain.*$", document("serve"), re.M)
    command = shlex.split(on_ports(picture, bundled))
    command[command.index("evidence.png")] = str(tmp_path / "evidence.png")
    subprocess.run([*command, "-s"], cwd=ROOT, check=True)
    assert (tmp_path / "evidence.png").read_bytes().startswith(b"\x89PNG")
    shown = subprocess.run(
        [*shlex.split(on_ports(numbers, bundled)), "-s"], cwd=ROOT, capture_output=True, check=True
    )
    answer = json.loads(shown.stdout)
    assert (answer["method"], answer["prediction"]["label"]) == ("occlusion", "ship")
    evidence = answer["evidence"]
    assert (len(evidence["values"]), len(evidence["values"][0])) == (7, 7)
