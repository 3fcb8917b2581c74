"""A click group whose commands are made when they are asked for."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable, Mapping
from typing import IO, Any, ClassVar, Final

import click
from click.exceptions import NoArgsIsHelpError

from service.errors import FivecropError, StartError

_PLUGIN_GROUP: Final = "fivecrop.commands"


class OneLineError(click.ClickException):
    """An error as its user sees it: one line, no traceback."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        """Writes the line to standard error."""
        text = " ".join(self.format_message().split())
        click.echo(f"fivecrop: error: {text}", err=True, file=file)


class CommandGroup(click.Group):
    """The commands of `LAZY`, and those that other packages register as entry points.

    Listing them imports neither: a command of our own is a maker with a line of help, and one of
    the entry-point group `fivecrop.commands` (training, which needs torch) only a name.
    """

    LAZY: ClassVar[Mapping[str, tuple[Callable[[], click.Command], str]]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Returns the names, our own first."""
        return [*self.LAZY, *sorted(_find_plugins())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Returns the command, having imported what it needs."""
        if cmd_name in self.LAZY:
            make, _ = self.LAZY[cmd_name]
            return make()
        plugin = _find_plugins().get(cmd_name)
        return None if plugin is None else _load_plugin(plugin)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Writes the names and what is known of them without an import."""
        with formatter.section("Serve"):
            formatter.write_dl([(name, text) for name, (_, text) in self.LAZY.items()])
        if plugins := sorted(_find_plugins()):
            with formatter.section("Train (each tells more with --help)"):
                formatter.write_text(", ".join(plugins))

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Reads the command line; what is wrong with it is one line."""
        try:
            return super().make_context(*args, **extra)
        except click.UsageError as error:
            raise _in_one_line(error) from error

    def invoke(self, ctx: click.Context) -> object:
        """Runs the command; what it raises on purpose becomes one line and exit code 2."""
        _open_closed_streams()
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _in_one_line(error) from error
        except FivecropError as error:
            raise OneLineError(str(error)) from error
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in ("", "service", "training"):
                raise
            raise OneLineError(
                f"this command needs {error.name}: pip install 'fivecrop[train]', "
                "or `make setup` in a clone"
            ) from error


def _in_one_line(error: click.UsageError) -> click.ClickException:
    """Returns the error without the usage that click prints above it; help that is due stays."""
    if isinstance(error, NoArgsIsHelpError):
        return error
    command = "fivecrop" if error.ctx is None else error.ctx.command_path
    return OneLineError(f"{error.format_message()} See {command} --help.")


def _open_closed_streams() -> None:
    """Opens the null device as each standard stream that the caller has closed (`2>&-`).

    The next file that is opened would get its number, and what libraries and workers write there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest that is free
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode))


def _find_plugins() -> dict[str, importlib.metadata.EntryPoint]:
    return {found.name: found for found in importlib.metadata.entry_points(group=_PLUGIN_GROUP)}


def _load_plugin(plugin: importlib.metadata.EntryPoint) -> click.Command:
    # Imported late, as everything that only some commands need.
    from service.environment import opt_out_of_telemetry

    opt_out_of_telemetry()
    command = plugin.load()
    if not isinstance(command, click.Command):
        raise StartError(f"{plugin.value} is not a command")
    return command
