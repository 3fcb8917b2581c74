"""The `fivecrop` command. Data goes to standard output, everything else to standard error.

Exit codes: 0 done, 1 done but not well, 2 asked for something impossible. Nothing heavy is imported
until a command needs it, so `fivecrop --help` answers in a fraction of a second.
"""

from __future__ import annotations

import typing
from enum import Enum, EnumType
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import click

from service.command_group import CommandGroup

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


def _make_serve() -> click.Command:
    from service.settings import Settings

    options: list[click.Parameter] = [
        _make_option(name, field)
        for name, field in Settings.model_fields.items()
        if name != "supervisor_fd"
    ]
    return click.Command(
        "serve",
        callback=_serve,
        params=options,
        help="Serve the models of a repository over HTTP and gRPC.\n\n"
        "Each option can also be given as an environment variable, FIVECROP_ and its name.",
    )


def _make_option(name: str, field: FieldInfo) -> click.Option:
    """Returns the option of one setting; its value is checked where all settings are."""
    help_text = field.description or ""
    metavar = _read_metavar(field.annotation, help_text)
    if field.default not in (None, ()):
        default = field.default
        shown = ",".join(default) if isinstance(default, tuple) else str(default).lower()
        help_text += f" [default: {shown}]"
    flag = name.replace("_", "-")
    if field.annotation is bool:
        return click.Option([f"--{flag}/--no-{flag}", name], default=None, help=help_text)
    names = [f"--{flag}", "--model"] if name == "models" else [f"--{flag}"]
    return click.Option([*names, name], metavar=metavar, help=help_text)


def _read_metavar(annotation: object, description: str) -> str:
    options = typing.get_args(annotation) or (annotation,)
    for option in options:
        if isinstance(option, EnumType):
            members: list[Enum] = list(option)
            return "|".join(member.value for member in members)
    path = "FOLDER" if description.startswith("Folder ") else "FILE"
    for kind, metavar in ((Path, path), (int, "N"), (float, "X")):
        if kind in options:
            return metavar
    return "TEXT"


def _serve(**options: object) -> None:
    from service.environment import load_settings
    from service.log import configure_log
    from service.supervisor import run_server

    given = {name: value for name, value in options.items() if value is not None}
    settings = load_settings(**given)
    configure_log(settings.log_level, settings.log_format)
    has_ended_well = run_server(settings, announce=lambda line: click.echo(line, err=True))
    if not has_ended_well:
        click.get_current_context().exit(1)


def _make_models() -> click.Command:
    from service.models_command import models

    return models


def _make_score() -> click.Command:
    from service.environment import opt_out_of_telemetry

    opt_out_of_telemetry()
    from service.score_command import score

    return score


def _make_compare() -> click.Command:
    from service.environment import opt_out_of_telemetry

    opt_out_of_telemetry()
    from service.score_command import compare

    return compare


def _make_keys() -> click.Command:
    from service.keys_command import keys

    return keys


def _make_probe() -> click.Command:
    from service.probe_command import probe

    return probe


class _Commands(CommandGroup):
    LAZY: ClassVar = {
        "serve": (_make_serve, "Serve models over HTTP and gRPC."),
        "models": (
            _make_models,
            "List models; load, unload and label what a service serves.",
        ),
        "score": (_make_score, "Score folders, buckets and tables of images; resumable."),
        "compare": (_make_compare, "Compare what two models said of the same images."),
        "probe": (_make_probe, "Ask the server of this machine whether it lives."),
        "keys": (_make_keys, "Make, list and revoke API keys."),
    }


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fivecrop")
def main() -> None:
    """Trains image classifiers, and serves exactly what was validated."""
