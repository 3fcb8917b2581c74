"""`fivecrop models`: what a repository holds, and what a running service serves of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import click
from rich.console import Console
from rich.table import Table

from service.bundle_source import open_source
from service.environment import load_settings
from service.errors import StartError
from service.models_listing import list_repository, make_table
from service.service_client import ServiceClient
from service.settings import CLIENT_KEY

_JSON = click.option("--json", "as_json", is_flag=True, help="Write JSON.")


def _of_service(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of a command that speaks to a running service."""
    url = click.option(
        "--url", default="http://127.0.0.1:3000", show_default=True, help="Of the service."
    )
    key = click.option(
        "--key", envvar=CLIENT_KEY, help=f"API key with the scope `admin`; or in {CLIENT_KEY}."
    )
    return url(key(command))


@click.group(invoke_without_command=True)
@click.option("--model-repository", metavar="FOLDER", help="Folder of bundles, or its URL.")
@click.option(
    "--verify",
    is_flag=True,
    help="Compare every file, and the members of combinations, with the recorded digests first.",
)
@_JSON
@click.pass_context
def models(
    ctx: click.Context, model_repository: str | None, *, verify: bool, as_json: bool
) -> None:
    """List the bundles, ensembles and cascades of a repository, their digests and accuracy.

    With a command: say what a running service should serve of them.
    """
    if ctx.invoked_subcommand is None:
        _list_repository(model_repository, verify=verify, as_json=as_json)


@models.command("list")
@_JSON
@_of_service
def list_served(url: str, key: str | None, *, as_json: bool) -> None:
    """List what a running service serves, and what it does not and why."""
    _show(ServiceClient(url, key).ask("GET", "/v1/models"), as_json=as_json)


@models.command()
@click.argument("reference", metavar="NAME[@VERSION]")
@_of_service
def load(reference: str, url: str, key: str | None) -> None:
    """Serve a version; without one, what the version policy chooses."""
    _show(ServiceClient(url, key).ask("POST", f"{_path(reference)}:load"))


@models.command()
@click.argument("reference", metavar="NAME[@VERSION]")
@_of_service
def unload(reference: str, url: str, key: str | None) -> None:
    """Serve a version no more; without one, the whole model."""
    _show(ServiceClient(url, key).ask("POST", f"{_path(reference)}:unload"))


@models.command()
@click.argument("name")
@_of_service
def reload(name: str, url: str, key: str | None) -> None:
    """Serve what the repository holds now."""
    _show(ServiceClient(url, key).ask("POST", f"{_path(name)}:reload"))


@models.command()
@click.argument("reference", metavar="NAME@VERSION")
@click.argument("label")
@click.option("--remove", is_flag=True, help="Take the label away; then a NAME is enough.")
@_of_service
def label(reference: str, label: str, url: str, key: str | None, *, remove: bool) -> None:
    """Let NAME@LABEL mean a version; `stable` is what NAME alone means."""
    name, _, version = reference.partition("@")
    path = f"{_path(name)}/labels/{quote(label, safe='')}"
    client = ServiceClient(url, key)
    if remove:
        _show(client.ask("DELETE", path))
    elif version.isdecimal():
        _show(client.ask("PUT", path, {"version": int(version)}))
    else:
        raise StartError(f"{reference!r} names no version: NAME@VERSION")


@models.command()
@click.argument("name")
@click.argument("shares", metavar="TARGET=SHARE...", nargs=-1)
@click.option(
    "--max-error-excess",
    type=click.FloatRange(0, 1, max_open=True),
    help="Roll a target back when its error rate is that much above the stable one's; 0.02 unless "
    "told.",
)
@click.option("--never-roll-back", is_flag=True, help="Let a target fail as often as it may.")
@_of_service
def split(
    name: str,
    shares: tuple[str, ...],
    max_error_excess: float | None,
    url: str,
    key: str | None,
    *,
    never_roll_back: bool,
) -> None:
    """Let labels or versions answer shares of the requests for a NAME: `split NAME canary=0.1`.

    The stable version answers the rest; without a share, all of them.
    """
    path = f"{_path(name)}/split"
    client = ServiceClient(url, key)
    if not shares:
        _show(client.ask("DELETE", path))
        return
    document: dict[str, Any] = {"shares": dict(map(_read_share, shares))}
    if never_roll_back or max_error_excess is not None:
        document["max_error_excess"] = None if never_roll_back else max_error_excess
    _show(client.ask("PUT", path, document))


@models.command()
@click.argument("name")
@click.argument("target", metavar="LABEL|VERSION", required=False)
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Of the requests for NAME that it is asked too.",
)
@_of_service
def shadow(name: str, target: str | None, share: float, url: str, key: str | None) -> None:
    """Also ask a version, in spare time, and compare what it says; without one, ask none."""
    path = f"{_path(name)}/shadow"
    client = ServiceClient(url, key)
    if target is None:
        _show(client.ask("DELETE", path))
    else:
        _show(client.ask("PUT", path, {"target": target, "share": share}))


@models.command()
@click.argument("name")
@_JSON
@_of_service
def report(name: str, url: str, key: str | None, *, as_json: bool) -> None:
    """Tell how often a new version failed, and agreed with the one that serves."""
    answer = ServiceClient(url, key).ask("GET", f"{_path(name)}/report")
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    table = Table("version", "answered", "failed")
    for row in answer["versions"]:
        table.add_row(str(row["version"]), str(row["answered"]), str(row["failed"]))
    _print(table)
    table = Table(
        "serving",
        "shadow",
        "images",
        "agreement",
        "failed",
        "skipped",
        "score diff.",
        "ms",
        "shadow ms",
    )
    for row in answer["comparisons"]:
        numbers = ("mean_score_difference", "mean_serving_ms", "mean_shadow_ms")
        agreement = row["agreement"]
        table.add_row(
            *(str(row[column]) for column in ("serving", "shadow", "images")),
            "-" if agreement is None else f"{agreement:.2%}",
            *(str(row[column]) for column in ("failed", "skipped")),
            *("-" if row[column] is None else f"{row[column]:.3g}" for column in numbers),
        )
    _print(table)
    _tell_trial(answer["trial"])


@models.command()
@click.argument("name")
@click.argument("target", metavar="LABEL|VERSION", default="canary")
@click.option("--min-samples", type=click.IntRange(0), help="Images compared; 200 unless told.")
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    help="Share of them with the same best class; 0.9 unless told.",
)
@_of_service
def promote(
    name: str,
    target: str,
    min_samples: int | None,
    min_agreement: float | None,
    url: str,
    key: str | None,
) -> None:
    """Make a version the stable one, if it agreed with that often enough as its shadow."""
    asked = {"target": target, "min_samples": min_samples, "min_agreement": min_agreement}
    document = {name: value for name, value in asked.items() if value is not None}
    _show(ServiceClient(url, key).ask("POST", f"{_path(name)}:promote", document))


def _read_share(text: str) -> tuple[str, float]:
    target, _, share = text.partition("=")
    try:
        return target, float(share)
    except ValueError:
        raise StartError(f"{text!r} is not a share: TARGET=0.1") from None


def _path(reference: str) -> str:
    name, _, version = reference.partition("@")
    path = f"/v1/models/{quote(name, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _show(answer: dict[str, Any], *, as_json: bool = False) -> None:
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    table = Table("model", "version", "state", "labels", "runs on", "digest")
    for row in answer["models"]:
        table.add_row(
            row["name"],
            str(row["version"]),
            row["state"],
            " ".join(row["version_labels"]),
            f"{row['provider']} {row['variant']}",
            row["digest"][:12],
        )
    for row in answer["unavailable"]:
        reason = f": {row['reason']}" if row["reason"] else ""
        table.add_row(row["name"], str(row["version"]), row["state"] + reason, "", "", "")
    _print(table)
    for row in answer["trials"]:
        _tell_trial(row)


def _tell_trial(row: dict[str, Any]) -> None:
    name = row["name"]
    if split := row["split"]:
        shares = ", ".join(f"{share:.1%} to {to}" for to, share in split["shares"].items())
        click.echo(f"{name}: {shares}")
    if shadow := row["shadow"]:
        click.echo(f"{name}: {shadow['share']:.1%} also to the shadow {shadow['target']}")
    if past := row["rolled_back"]:
        click.echo(
            f"{name}: {past['target']} (version {past['version']}) was rolled back at "
            f"{past['at']}: {past['reason']}"
        )


def _list_repository(model_repository: str | None, *, verify: bool, as_json: bool) -> None:
    given = {} if model_repository is None else {"model_repository": model_repository}
    rows = list_repository(open_source(load_settings(**given)), verify=verify)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        _print(make_table(rows))
        if verify:
            click.echo("every file is the one that its manifest names", err=True)


def _print(table: Table) -> None:
    # As wide as the table needs: the width of a terminal means nothing to a file or a pipe.
    Console(file=sys.stdout, width=10_000, markup=False).print(table)
