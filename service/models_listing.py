"""What a model repository holds, as `fivecrop models` tells it without a running service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from service.bundle.combination import FoundCombination
from service.bundle.repository import Bundle, verify_files
from service.bundle_source import BundleSource
from service.errors import BundleError

_COLUMNS = ("model", "version", "digest", "kind", "classes", "variants", "top-1", "measured on")


def list_repository(source: BundleSource, *, verify: bool) -> list[dict[str, Any]]:
    """Returns the facts of each bundle, then of each ensemble and cascade.

    Raises:
        BundleError: One cannot be read; or, if they are to be verified, a file is not the one that
            was published, or a member not the one that its combination was made of.
    """
    bundles = [
        source.fetch(name, version)
        for name, versions in source.list_versions().items()
        for version in versions
    ]
    combinations = [
        source.read_combination(name, version)
        for name, versions in source.list_combinations().items()
        for version in versions
    ]
    if verify:
        for bundle in bundles:
            verify_files(bundle)
        digests = {f"{one.manifest.name}@{one.manifest.version}": one.digest for one in bundles}
        for combination in combinations:
            _verify_members(combination, digests)
    return [*map(_describe_bundle, bundles), *map(_describe_combination, combinations)]


def make_table(rows: list[dict[str, Any]]) -> Table:
    """Returns them for people."""
    table = Table(*_COLUMNS)
    for row in rows:
        table.add_row(
            row["name"],
            str(row["version"]),
            row["digest"][:12],
            " ".join((row["kind"], *row.get("members", ()))),
            str(row.get("classes", "-")),
            " ".join(row.get("variants", "-")),
            "-" if row["top1"] is None else f"{row['top1']:.2%}",
            row["measured_on"] or "-",
        )
    return table


def _verify_members(combination: FoundCombination, digests: Mapping[str, str]) -> None:
    for member in combination.manifest.members:
        digest = digests.get(member.model)
        if digest != member.digest:
            fault = "is not there" if digest is None else "is not the one it was validated with"
            raise BundleError(
                f"{combination.manifest.reference}: its member {member.model} {fault}"
            )


def _describe_bundle(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    measured = next((m for m in manifest.metrics if m.variant == "fp32"), None)
    return {
        "name": manifest.name,
        "version": manifest.version,
        "digest": bundle.digest,
        "kind": "bundle",
        "classes": len(manifest.labels),
        "variants": [variant.precision for variant in manifest.variants],
        "top1": None if measured is None else measured.top1,
        "measured_on": None if measured is None else f"{measured.dataset} {measured.split}",
    }


def _describe_combination(combination: FoundCombination) -> dict[str, Any]:
    manifest = combination.manifest
    measured = manifest.measured
    return {
        "name": manifest.name,
        "version": manifest.version,
        "digest": combination.digest,
        "kind": manifest.kind,
        "members": [member.model for member in manifest.members],
        "top1": None if measured is None else measured.top1,
        "measured_on": None if measured is None else f"{measured.dataset} {measured.split}",
    }
