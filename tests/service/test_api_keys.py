"""API keys: what is kept of them, how they are told apart, how a changed file is noticed."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import stat

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from service.api_keys import (
    KeyFile,
    KeyRing,
    KeyScope,
    make_key,
    read_keys,
    write_keys,
)
from service.cli import main
from service.errors import SettingsError
from service.watched_files import WatchedFiles


@pytest.fixture
def key_file(tmp_path):
    return tmp_path / "keys.json"


@pytest.fixture
def run(key_file):
    """Runs `fivecrop keys` on the key file."""

    def invoke(command, *arguments):
        return CliRunner().invoke(main, ["keys", command, "--file", str(key_file), *arguments])

    return invoke


def keep(path, *kept):
    write_keys(path, KeyRing(keys=kept))


# ---- keys ----


def test_a_key_is_known_again_and_is_not_in_its_file(key_file):
    text, kept = make_key([KeyScope.INFER], "me")
    keep(key_file, kept)
    assert KeyFile(key_file).find(text) == kept
    assert text.split("_", 2)[2] not in key_file.read_text()
    assert hashlib.sha256(text.encode()).hexdigest() in key_file.read_text()


def test_a_secret_has_256_bits_and_no_two_keys_are_the_same():
    texts = [make_key([KeyScope.INFER])[0] for _ in range(100)]
    assert len(set(texts)) == 100
    assert all(len(text.split("_", 2)[2]) == 43 for text in texts)  # 43 characters of 6 bits


def test_only_the_whole_key_is_the_key(key_file):
    text, kept = make_key([KeyScope.INFER])
    other, other_kept = make_key([KeyScope.INFER])
    keep(key_file, kept, other_kept)
    keys = KeyFile(key_file)
    head = "_".join(text.split("_", 2)[:2])
    for wrong in (
        "",
        kept.id,
        head,
        head + "_",
        text[:-1],
        text + "a",
        text.upper(),
        text.removeprefix("fc_"),
        kept.sha256,
        text.replace(kept.id, other_kept.id),
        text + "\0",
        text + "\udcff",
    ):
        assert keys.find(wrong) is None, wrong
    assert keys.find(other) == other_kept


def test_every_text_costs_one_comparison_that_does_not_end_early(key_file, monkeypatch):
    """The time taken tells neither which ids there are nor how much of a secret is right."""
    text, kept = make_key([KeyScope.INFER])
    keep(key_file, kept)
    keys = KeyFile(key_file)
    compared = []

    def compare(left, right):
        compared.append((len(left), len(right)))
        return left == right

    monkeypatch.setattr(hmac, "compare_digest", compare)
    texts = (text, text[:-1] + "!", "fc_00000000_" + text[12:], text[:12], "", "no key", "_" * 9)
    assert [keys.find(one) is not None for one in texts] == [True] + [False] * 6
    assert compared == [(64, 64)] * len(texts)


@pytest.fixture(scope="module")
def some_keys(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    keep(path, make_key([KeyScope.INFER])[1])
    return KeyFile(path)


@given(text=st.text())
def test_no_text_is_a_key_by_chance_or_an_exception(some_keys, text):
    assert some_keys.find(text) is None


# ---- the file ----


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"keys": [{}]}',
        b'{"keys": [], "more": 1}',
        b'{"keys": [{"id": "a", "sha256": "0", "scopes": ["infer"], "created": "2026-01-01"}]}',
    ],
)
def test_a_damaged_file_is_refused_in_one_line(key_file, content):
    key_file.write_bytes(content)
    with pytest.raises(SettingsError, match="not a key file") as caught:
        read_keys(key_file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(key_file):
    with pytest.raises(SettingsError, match="cannot read the key file"):
        KeyFile(key_file)


@pytest.mark.parametrize(
    "change", [{"scopes": []}, {"scopes": ["root"]}, {"id": "../x"}, {"extra": 1}]
)
def test_a_key_that_makes_no_sense_is_refused(key_file, change):
    _, kept = make_key([KeyScope.INFER])
    key_file.write_text(json.dumps({"keys": [kept.model_dump(mode="json") | change]}))
    with pytest.raises(SettingsError):
        read_keys(key_file)


def test_two_keys_of_one_id_are_refused(key_file):
    _, kept = make_key([KeyScope.INFER])
    key_file.write_text(json.dumps({"keys": [kept.model_dump(mode="json")] * 2}))
    with pytest.raises(SettingsError, match="same id"):
        read_keys(key_file)


def test_a_new_file_is_only_for_its_owner_and_an_old_one_keeps_its_mode(key_file):
    keep(key_file)
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    key_file.chmod(0o640)
    keep(key_file, make_key([KeyScope.INFER])[1])
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o640
    assert [path.name for path in key_file.parent.iterdir()] == ["keys.json"]


# ---- changes ----


@pytest.fixture
def clock(monkeypatch):
    """A clock that only a test moves, in the place of the monotonic one of watched files."""

    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(WatchedFiles.__init__, "__kwdefaults__", {"monotonic": clock})
    return clock


def test_keys_added_and_revoked_count_within_a_second(key_file, clock):
    old, old_kept = make_key([KeyScope.INFER])
    new, new_kept = make_key([KeyScope.ADMIN])
    keep(key_file, old_kept)
    keys = KeyFile(key_file)
    keep(key_file, new_kept)
    assert (keys.find(old), keys.find(new)) == (old_kept, None)
    clock.now = 1.0
    assert (keys.find(old), keys.find(new)) == (None, new_kept)


def test_a_file_that_becomes_unreadable_leaves_the_keys_in_force(key_file, clock, caplog):
    text, kept = make_key([KeyScope.INFER])
    keep(key_file, kept)
    keys = KeyFile(key_file)
    for damage in (lambda: key_file.write_text("{"), key_file.unlink):
        damage()
        clock.now += 1.0
        assert keys.find(text) == kept
        assert "stay in force" in caplog.text
    keep(key_file)
    clock.now += 1.0
    assert keys.find(text) is None


def test_a_swapped_symbolic_link_is_a_change(tmp_path, clock):
    """As Kubernetes changes a mounted secret."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_text("same")
    link = tmp_path / "now"
    link.symlink_to("a")
    watched = WatchedFiles([link / "keys"])
    clock.now = 1.0
    assert not watched.have_changed()
    (tmp_path / "new").symlink_to("b")
    (tmp_path / "new").replace(link)
    assert not watched.have_changed()  # not looked at again yet
    clock.now = 2.0
    assert watched.have_changed()
    clock.now = 3.0
    assert not watched.have_changed()


# ---- fivecrop keys ----


def test_a_key_is_added_listed_and_revoked(run, key_file):
    added = run("add", "--scope", "infer", "--scope", "metrics", "--note", "dash [red]")
    assert added.exit_code == 0, added.output
    text = added.stdout.strip()
    assert text not in added.stderr
    kept = KeyFile(key_file).find(text)
    assert (set(kept.scopes), kept.note) == ({KeyScope.INFER, KeyScope.METRICS}, "dash [red]")

    second = run("add")
    (first_row, second_row) = json.loads(run("list", "--json").stdout)
    assert first_row == {
        "id": kept.id,
        "scopes": ["infer", "metrics"],
        "created": kept.created.isoformat(),
        "expires": None,
        "note": "dash [red]",
    }
    assert second_row["scopes"] == ["infer"]
    table = run("list").stdout
    assert "never" in table
    assert kept.id in table
    assert "dash [red]" in table
    assert kept.sha256 not in table

    assert run("revoke", kept.id).exit_code == 0
    keys = KeyFile(key_file)
    assert keys.find(text) is None
    assert keys.find(second.stdout.strip()) is not None


def test_a_key_may_have_a_last_day(run, key_file):
    text = run("add", "--expires", "2999-01-31").stdout.strip()
    assert KeyFile(key_file).find(text).expires == datetime.date(2999, 1, 31)
    assert "2999-01-31" in run("list").stdout
    assert json.loads(run("list", "--json").stdout)[0]["expires"] == "2999-01-31"
    for wrong in ("31.1.2999", "2020-01-31"):
        refused = run("add", "--expires", wrong)
        assert (refused.exit_code, refused.stdout) == (2, "")
    assert "2020-01-31 is past" in refused.stderr


def test_keys_are_added_through_a_symbolic_link(run, key_file, tmp_path):
    real = tmp_path / "real.json"
    keep(real)
    key_file.symlink_to(real)
    assert run("add").exit_code == 0
    assert key_file.is_symlink()
    assert len(read_keys(real).keys) == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("revoke", "nope"), "no key 'nope'"),
        (("add", "--scope", "root"), "root"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(run, key_file, arguments, text):
    keep(key_file)
    result = run(*arguments)
    assert result.exit_code == 2
    assert text in result.stderr
    assert read_keys(key_file) == KeyRing()


def test_the_file_can_come_from_the_settings(key_file, monkeypatch):
    monkeypatch.setenv("FIVECROP_API_KEYS", str(key_file))
    assert CliRunner().invoke(main, ["keys", "add"]).exit_code == 0
    assert len(read_keys(key_file).keys) == 1
    monkeypatch.delenv("FIVECROP_API_KEYS")
    nameless = CliRunner().invoke(main, ["keys", "add"])
    assert nameless.exit_code == 2
    assert "FIVECROP_API_KEYS" in nameless.stderr
