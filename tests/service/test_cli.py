"""The `fivecrop` command: what it says, where, with which exit code, and what it leaves alone."""

from __future__ import annotations

import http.server
import importlib.metadata
import json
import shutil
import subprocess
import sys
import threading
from datetime import UTC, datetime

import click
import pytest
from click.testing import CliRunner

from service import command_group, supervisor
from service.bundle.combination import Ensemble, WeightedMember, publish_combination
from service.bundle.repository import read_bundle
from service.cli import main
from service.errors import BundleError
from service.settings import ProviderChoice, Settings


@pytest.fixture
def run():
    def invoke(*arguments):
        return CliRunner().invoke(main, [str(one) for one in arguments], prog_name="fivecrop")

    return invoke


@pytest.fixture
def served(monkeypatch):
    """The settings that `fivecrop serve` would serve with."""
    seen = []

    def run_server(settings, announce):
        seen.append(settings)
        announce("fivecrop is ready")
        return True

    monkeypatch.setattr(supervisor, "run_server", run_server)
    return seen


@pytest.fixture
def add_plugin(monkeypatch):
    """Registers what an entry point of the group `fivecrop.commands` loads."""

    def add(name, load):
        class Plugin:
            value = f"elsewhere:{name}"

            def load(self):
                return load()

        plugin = Plugin()
        plugin.name = name
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [plugin])

    return add


def test_help_names_every_command_and_imports_nothing_heavy():
    check = (
        "import sys\n"
        "from service.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'bentoml', 'grpc', 'numpy', 'onnxruntime', 'pydantic', 'torch', 'training'}\n"
        "found = heavy & set(sys.modules)\n"
        "assert not found, found\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, check=False, text=True
    )
    assert shown.returncode == 0, shown.stderr
    for name in ("serve", "models", "train", "export", "evaluate", "import"):
        assert name in shown.stdout


def test_every_setting_is_an_option_of_serve_with_its_sentence(run):
    shown = " ".join(run("serve", "--help").output.split())
    for name, field in Settings.model_fields.items():
        if name != "supervisor_fd":
            assert f"--{name.replace('_', '-')}" in shown
            # The terminal breaks long words, so a sentence is compared without its blanks.
            assert field.description.replace(" ", "") in shown.replace(" ", "")


def test_options_win_over_variables_and_both_reach_the_server(run, served, monkeypatch):
    monkeypatch.setenv("FIVECROP_PROVIDER", "openvino")
    monkeypatch.setenv("FIVECROP_WORKERS", "3")
    result = run("serve", "--provider", "cpu", "--model", "a,b@2", "--require-gpu", "--drain-s", 1)
    assert result.exit_code == 0, result.output
    (settings,) = served
    assert settings.provider is ProviderChoice.CPU
    assert (settings.workers, settings.models, settings.drain_s) == (3, ("a", "b@2"), 1)
    assert settings.require_gpu


def test_serve_writes_nothing_to_standard_output(run, served):
    result = run("serve")
    assert result.stdout == ""
    assert result.stderr == "fivecrop is ready\n"


def test_server_that_did_not_end_in_order_is_exit_code_1(run, monkeypatch):
    monkeypatch.setattr(supervisor, "run_server", lambda settings, announce: False)
    assert run("serve").exit_code == 1


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--workers", "0", "setting FIVECROP_WORKERS: Input should be greater than or equal to 1"),
        ("--provider", "tpu", "setting FIVECROP_PROVIDER: Input should be 'auto', 'cuda', 'cpu'"),
        ("--http-port", "many", "setting FIVECROP_HTTP_PORT: Input should be a valid integer"),
        ("--tls-cert", "cert.pem", "settings: tls_cert and tls_key go together"),
    ],
)
def test_impossible_option_is_one_line_and_exit_code_2(run, served, option, value, text):
    result = run("serve", option, value)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"fivecrop: error: {text}")
    assert result.stderr.count("\n") == 1
    assert served == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--nope"], "No such option '--nope'. See fivecrop --help."),
        (["nope"], "No such command 'nope'. See fivecrop --help."),
        (["serve", "--http-prt"], "No such option '--http-prt'. (Did you mean one of: "),
        (["score", "--out"], "Option '--out' requires an argument."),
        (["models", "lod"], "No such command 'lod'. (Did you mean one of: 'load'"),
        (["models", "load"], "Missing argument 'NAME[@VERSION]'. See fivecrop models load --help."),
    ],
)
def test_misspelt_command_line_is_one_line_and_exit_code_2(run, arguments, text):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"fivecrop: error: {text}")
    assert result.stderr.count("\n") == 1


def test_a_group_without_a_command_shows_its_help(run):
    assert "Usage: " in run().output
    assert "keys" in run().output
    assert "Usage: " in run("keys").output


def test_unknown_variable_is_refused_by_name(run, served, monkeypatch):
    monkeypatch.setenv("FIVECROP_WORKER", "2")
    result = run("serve")
    assert (result.exit_code, result.stderr) == (
        2,
        "fivecrop: error: unknown setting FIVECROP_WORKER\n",
    )


def test_models_lists_bundles_for_people_and_for_programs(run, tiny_bundle_repository):
    table = run("models", "--model-repository", tiny_bundle_repository)
    assert table.exit_code == 0
    assert "digits-linear" in table.stdout
    rows = json.loads(run("models", "--model-repository", tiny_bundle_repository, "--json").stdout)
    (row,) = rows
    assert (row["name"], row["version"], row["classes"]) == ("digits-linear", 1, 10)
    assert row["variants"] == ["fp32"]
    assert len(row["digest"]) == 64


def test_models_are_verified_when_asked(run, growing_repository):
    repository = growing_repository.folder
    told = run("models", "--model-repository", repository, "--verify")
    assert (told.exit_code, told.stderr) == (0, "every file is the one that its manifest names\n")
    growing_repository.publish_broken(2)
    assert run("models", "--model-repository", repository).exit_code == 0
    result = run("models", "--model-repository", repository, "--verify")
    assert result.exit_code == 2
    assert "model.onnx" in result.stderr
    assert result.stderr.count("\n") == 1


def test_models_lists_combinations_and_verifies_their_members(run, growing_repository):
    repository = growing_repository.folder
    bundle = read_bundle(repository / "digits-linear" / "1")
    members = tuple(
        WeightedMember(model="digits-linear@1", digest=bundle.digest, tta=tta)
        for tta in ("none", "hflip")
    )
    made = Ensemble(name="both", version=1, created=datetime.now(UTC), members=members)
    publish_combination(repository, made)
    told = run("models", "--model-repository", repository, "--json", "--verify")
    bundle_row, row = json.loads(told.stdout)
    assert (bundle_row["kind"], row["kind"]) == ("bundle", "ensemble")
    assert (row["name"], row["members"]) == ("both", ["digits-linear@1", "digits-linear@1"])
    table = run("models", "--model-repository", repository).stdout
    assert "ensemble digits-linear@1 digits-linear@1" in table
    shutil.rmtree(bundle.folder)
    result = run("models", "--model-repository", repository, "--verify")
    assert (result.exit_code, result.stderr) == (
        2,
        "fivecrop: error: both@1: its member digits-linear@1 is not there\n",
    )


def test_models_of_no_repository_is_one_line_and_exit_code_2(run, tmp_path):
    result = run("models", "--model-repository", tmp_path / "absent", "--json")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("fivecrop: error: model repository")


def test_command_of_another_package_runs(run, add_plugin):
    @click.command("bake")
    def bake():
        click.echo("baked")

    add_plugin("bake", lambda: bake)
    assert run("bake").stdout == "baked\n"
    assert "bake" in run("--help").stdout


def test_command_whose_packages_are_not_installed_says_how_to_install_them(run, add_plugin):
    def load():
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    add_plugin("bake", load)
    result = run("bake")
    assert result.exit_code == 2
    assert result.stderr == (
        "fivecrop: error: this command needs torch: pip install 'fivecrop[train]', "
        "or `make setup` in a clone\n"
    )


def test_module_of_ours_that_is_missing_is_a_bug_and_not_an_installation(run, add_plugin):
    def load():
        raise ModuleNotFoundError("No module named 'training.lost'", name="training.lost")

    add_plugin("bake", load)
    assert isinstance(run("bake").exception, ModuleNotFoundError)


def test_error_with_line_breaks_is_still_one_line(run, add_plugin):
    @click.command("bake")
    def bake():
        raise BundleError("first\n  second")

    add_plugin("bake", lambda: bake)
    assert run("bake").stderr == "fivecrop: error: first second\n"


def test_every_registered_command_can_be_called():
    plugins = command_group._find_plugins()
    assert len(plugins) > 10
    for name, plugin in plugins.items():
        # A command of the service under the same name would hide it.
        assert main.get_command(click.Context(main), name) is plugin.load(), name


def test_help_tells_files_from_folders(run):
    told = run("serve", "--help").stdout
    assert "--api-keys FILE " in told
    assert "--model-cache FOLDER " in told


class FakeService:
    """Answers as a service does, and remembers what it was asked."""

    def __init__(self):
        self.asked = []
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                length = int(self.headers.get("content-length", 0))
                body = self.rfile.read(length).decode()
                key = self.headers.get("authorization")
                service.asked.append((self.command, self.path, body, key))
                is_wrong = "absent" in self.path
                document = {
                    "models": [],
                    "unavailable": [
                        {"name": "m", "version": 3, "state": "failed", "reason": "a [flipped] bit"}
                    ],
                    "trials": [],
                }
                problem = {"detail": "no such model", "code": "model_not_found"}
                self.send_response(404 if is_wrong else 200)
                self.end_headers()
                self.wfile.write(json.dumps(problem if is_wrong else document).encode())

            do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def service():
    fake = FakeService()
    thread = threading.Thread(target=fake.server.serve_forever)
    thread.start()
    yield fake
    fake.server.shutdown()
    thread.join()
    fake.server.server_close()


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (("list",), ("GET", "/v1/models", "")),
        (("load", "m"), ("POST", "/v1/models/m:load", "")),
        (("load", "m@2"), ("POST", "/v1/models/m/versions/2:load", "")),
        (("unload", "m@2"), ("POST", "/v1/models/m/versions/2:unload", "")),
        (("reload", "a/b?c"), ("POST", "/v1/models/a%2Fb%3Fc:reload", "")),
        (("label", "m@2", "stable"), ("PUT", "/v1/models/m/labels/stable", '{"version": 2}')),
        (("label", "m", "stable", "--remove"), ("DELETE", "/v1/models/m/labels/stable", "")),
        (
            ("split", "m", "canary=0.1"),
            ("PUT", "/v1/models/m/split", '{"shares": {"canary": 0.1}}'),
        ),
        (
            ("split", "m", "2=1", "--never-roll-back"),
            ("PUT", "/v1/models/m/split", '{"shares": {"2": 1.0}, "max_error_excess": null}'),
        ),
        (("split", "m"), ("DELETE", "/v1/models/m/split", "")),
        (
            ("shadow", "m", "canary", "--share", "0.5"),
            ("PUT", "/v1/models/m/shadow", '{"target": "canary", "share": 0.5}'),
        ),
        (("shadow", "m"), ("DELETE", "/v1/models/m/shadow", "")),
        (("promote", "m"), ("POST", "/v1/models/m:promote", '{"target": "canary"}')),
        (
            ("promote", "m", "2", "--min-samples", "5"),
            ("POST", "/v1/models/m:promote", '{"target": "2", "min_samples": 5}'),
        ),
    ],
)
def test_models_commands_ask_the_service_with_the_key(run, service, monkeypatch, arguments, asked):
    monkeypatch.setenv("FIVECROP_KEY", "fc_a_b")
    result = run("models", *arguments, "--url", service.url)
    assert result.exit_code == 0, result.output
    assert service.asked == [(*asked, "Bearer fc_a_b")]
    assert "failed: a [flipped] bit" in result.stdout


def test_models_tell_in_one_line_why_the_service_refused(run, service):
    result = run("models", "load", "absent", "--url", service.url)
    assert result.exit_code == 2
    assert result.stderr == "fivecrop: error: no such model (model_not_found)\n"
    for url, text in (("http://127.0.0.1:1", "does not answer"), ("file:///x", "not an http")):
        result = run("models", "list", "--url", url)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert text in result.stderr
    result = run("models", "label", "m", "stable", "--url", service.url)
    assert "NAME@VERSION" in result.stderr


def test_the_key_of_the_client_is_no_unknown_setting(run, served, monkeypatch):
    monkeypatch.setenv("FIVECROP_KEY", "fc_a_b")
    assert run("serve").exit_code == 0
