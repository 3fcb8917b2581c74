"""The sub-command `arch` of `fivecrop`: which architectures there are, and their arithmetic."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import groupby

import click

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


def _describe(row: Architecture) -> str:
    sizes = f"{row.parameters:>11,} params {row.multiply_adds / 1e6:>10,.1f} M mult-adds"
    return f"{row.title:<45} {sizes}  {row.size:>3} px {row.classes:>4} classes  {row.source}"
