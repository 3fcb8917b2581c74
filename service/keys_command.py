"""`fivecrop keys`: makes, lists and revokes API keys. A running server notices within a second."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

import click

from service.api_keys import KeyRing, KeyScope, hold_folder, make_key, read_keys, write_keys
from service.environment import load_settings
from service.errors import SettingsError
from service.settings import PREFIX

_FILE = click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"The key file; by default the one of {PREFIX}API_KEYS.",
)


@click.group()
def keys() -> None:
    """Make, list and revoke API keys."""


@keys.command()
@_FILE
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in KeyScope]),
    default=[KeyScope.INFER.value],
    show_default=True,
    help="What the key is for; can be given several times.",
)
@click.option("--note", default="", help="Whose key it is, for the list.")
@click.option(
    "--expires",
    type=click.DateTime(["%Y-%m-%d"]),
    help="The last day, by UTC, on which the key is valid; without it, it is until revoked.",
)
def add(
    file: Path | None, scopes: tuple[str, ...], note: str, expires: datetime.datetime | None
) -> None:
    """Make a key, and the file if there is none.

    The key goes to standard output, once; the file keeps only its hash.
    """
    if expires and expires.date() < datetime.datetime.now(datetime.UTC).date():
        raise SettingsError(f"{expires.date()} is past: such a key would never be valid")
    path = _find_file(file)
    _require_folder(path)
    text, kept = make_key(map(KeyScope, scopes), note, expires.date() if expires else None)
    with hold_folder(path.parent):
        ring = read_keys(path) if path.exists() else KeyRing()
        write_keys(path, KeyRing(keys=(*ring.keys, kept)))
    click.echo(text)
    click.echo(f"key {kept.id} ({', '.join(sorted(scopes))}) is shown only this once", err=True)


@keys.command("list")
@_FILE
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def list_keys(file: Path | None, *, as_json: bool) -> None:
    """List the keys: id, scopes, day of making, last day, note."""
    ring = read_keys(_find_file(file))
    if as_json:
        fields = {"id", "scopes", "created", "expires", "note"}
        rows = [key.model_dump(mode="json", include=fields) for key in ring.keys]
        click.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "scopes", "created", "expires", "note")
    for key in ring.keys:
        last = "never" if key.expires is None else key.expires.isoformat()
        table.add_row(key.id, " ".join(key.scopes), key.created.isoformat(), last, key.note)
    Console(file=sys.stdout, width=10_000, markup=False).print(table)


@keys.command()
@_FILE
@click.argument("key_id", metavar="ID")
def revoke(file: Path | None, key_id: str) -> None:
    """Take a key away."""
    path = _find_file(file)
    _require_folder(path)
    with hold_folder(path.parent):
        ring = read_keys(path)
        kept = tuple(key for key in ring.keys if key.id != key_id)
        if len(kept) == len(ring.keys):
            raise SettingsError(f"there is no key {key_id!r} in {path}")
        write_keys(path, KeyRing(keys=kept))
    click.echo(f"key {key_id} is revoked", err=True)


def _find_file(given: Path | None) -> Path:
    path = given if given is not None else load_settings().api_keys
    if path is None:
        raise SettingsError(f"name the key file with --file or {PREFIX}API_KEYS")
    # Through symbolic links, so that replacing the file leaves them where they are.
    return path.resolve()


def _require_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise SettingsError(f"there is no folder {path.parent}")
