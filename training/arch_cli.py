"""The sub-command `arch` of `fivecrop`: which architectures there are, and their arithmetic."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import asdict
from itertools import groupby
from typing import Any

import click

from training.errors import TrainingError
from training.models.architecture import Architecture
from training.models.catalogue import ARCHITECTURES


@click.group()
def arch() -> None:
    """Know the architectures: which there are, and what each layer sees and costs."""


@arch.command("list")
@click.option("--family", help="Only those whose family contains this text.")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON array.")
def list_architectures(family: str | None, is_json: bool) -> None:
    """List the architectures with parameters, multiply-adds and input size.

    Any other classifier of torchvision and timm works too, as `torchvision:NAME` or `timm:NAME`.
    """
    wanted = (family or "").lower()
    found = [row for row in ARCHITECTURES if wanted in row.family.lower()]
    if is_json:
        click.echo(json.dumps([asdict(row) for row in found]))
        return
    for name, rows in groupby(found, key=lambda row: row.family):
        click.echo(f"{name}")
        for row in rows:
            click.echo(f"  {_describe(row)}")


@arch.command()
@click.argument("name")
@click.option(
    "--input", "size", help="SIDE or HEIGHTxWIDTH in pixels; by default that of the list, or 224."
)
@click.option("--classes", type=click.IntRange(1), help="Default: that of the list, or 1000.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As shortcut=A.")
@click.option(
    "--format",
    "shown_as",
    type=click.Choice(["text", "json", "csv"]),
    default="text",
    show_default=True,
)
def show(
    name: str, size: str | None, classes: int | None, settings: tuple[str, ...], shown_as: str
) -> None:
    """Show the layers of NAME: what each puts out, sees of the image, and costs.

    NAME is `provider:name`, or the name alone if `arch list` has it. `sees` is the size of the
    receptive field in pixels, `every` how far the next output's is, `from` where the first begins
    (below 0 is padding).
    """
    # Takes a second or more.
    from training.layer_table import LayerTable
    from training.layer_trace import trace_layers
    from training.models.registry import build_model
    from training.shapes_alone import on_meta_device

    row = _find(name)
    options = dict(_read_setting(setting) for setting in settings)
    architecture = name if row is None else row.name
    with on_meta_device():
        net = build_model(
            architecture,
            classes=classes or (1000 if row is None else row.classes),
            options=options if options or row is None else row.options,
        ).eval()
    pixels = _read_size(size or str(224 if row is None else row.size))
    rows = trace_layers(net, pixels, int(options.get("channels", 3)))
    own = sum(parameter.numel() for parameter in net.parameters())
    used = sum(one.parameters for one in rows)
    table = LayerTable(architecture=architecture, rows=rows, unused_parameters=own - used)
    shown = {"text": table.to_text, "json": table.to_json, "csv": table.to_csv}
    click.echo(shown[shown_as]())


@arch.command("explain-size")
@click.argument("size", metavar="HEIGHTxWIDTH[xCHANNELS]")
@click.argument("layers", nargs=-1, required=True, metavar="LAYER...")
def explain_size(size: str, layers: tuple[str, ...]) -> None:
    r"""Tell what comes out of each LAYER on an input of this size, and how that is reckoned.

    \b
    A LAYER is KIND KERNEL[,sSTRIDE][,pPADDING][,dDILATION][,gGROUPS][,ceil][,nobias][:OUTPUTS]
    KIND is conv, deconv, local, maxpool, avgpool or fc (which has no kernel):
      fivecrop arch explain-size 256x256x3 conv11,s4,p5:96 maxpool3,s2,p1 conv5,p2:256
    """
    from training.size_explanation import explain, format_steps

    click.echo(format_steps(explain(size, layers)))


def _find(name: str) -> Architecture | None:
    """Return the first row of the catalogue with this name, with or without its provider."""
    for row in ARCHITECTURES:
        if name in (row.name, row.name.partition(":")[2]):
            return row
    return None


def _read_size(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text):
        raise TrainingError(f"--input {text}: expected SIDE or HEIGHTxWIDTH")
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def _read_setting(setting: str) -> tuple[str, Any]:
    """Return key and value of KEY=VALUE; what is no TOML counts as text."""
    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise TrainingError(f"--set {setting}: expected KEY=VALUE")
    try:
        return key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key, text


def _describe(row: Architecture) -> str:
    sizes = f"{row.parameters:>11,} params {row.multiply_adds / 1e6:>10,.1f} M mult-adds"
    return f"{row.title:<45} {sizes}  {row.size:>3} px {row.classes:>4} classes  {row.source}"
