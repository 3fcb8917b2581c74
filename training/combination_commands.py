"""The sub-commands `make-ensemble` and `tune-cascade` of `fivecrop`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from training.cli import ANY_PATH, TTA, repository_option
from training.image_progress import show_progress

if TYPE_CHECKING:
    from service.bundle.manifest import TtaPolicy
    from training.combining import Candidate

_MEMBER = "NAME@VERSION[:TTA]"

_data_option = click.option(
    "--data", type=ANY_PATH, help="Folder or Parquet; default: the validation of the recipe's."
)
_name_option = click.option("--name", required=True, help="Of the combination in the repository.")
_json_option = click.option("--json", "is_json", is_flag=True, help="Print one JSON object.")


@click.command("make-ensemble")
@click.argument("members", nargs=-1, required=True, metavar=f"{_MEMBER}...")
@_name_option
@click.option("--weights", help="One a member, with commas between them; default: all the same.")
@repository_option
@_data_option
@_json_option
def make_ensemble(
    members: tuple[str, ...],
    name: str,
    weights: str | None,
    repository: Path,
    data: Path | None,
    is_json: bool,
) -> None:
    """Publish the weighted mean of MEMBERS as a model of its own and print its folder.

    Each is a bundle of the repository, with the views it is shown: resnet50@1:ten_crop.
    """
    from training.combining import make_ensemble as make
    from training.images import choose_images

    candidates = [find_candidate(member, repository) for member in members]
    dataset = choose_images(data, candidates[0].bundle.manifest)
    with show_progress(len(dataset) * len(candidates)) as on_progress:
        folder = make(
            candidates,
            [1.0] * len(candidates) if weights is None else _read_weights(weights),
            dataset,
            name=name,
            repository=repository,
            on_progress=on_progress,
        )
    _print(folder, is_json)


@click.command("tune-cascade")
@click.argument("first", metavar=_MEMBER)
@click.argument("last", metavar=_MEMBER)
@_name_option
@click.option(
    "--accuracy", type=click.FloatRange(0, 1), help="Take the cheapest threshold that reaches it."
)
@click.option(
    "--max-cost",
    type=click.FloatRange(0, min_open=True),
    help="Take the most accurate threshold that costs at most this share of always asking LAST.",
)
@repository_option
@_data_option
@_json_option
def tune_cascade(
    first: str,
    last: str,
    name: str,
    accuracy: float | None,
    max_cost: float | None,
    repository: Path,
    data: Path | None,
    is_json: bool,
) -> None:
    """Publish a model that asks FIRST, and LAST when FIRST is not sure; print its folder.

    The threshold is chosen on one half of the images and measured on the other. LAST may be the
    same bundle with more views: small@1 small@1:ten_crop.
    """
    from training.combining import tune_cascade as tune
    from training.images import choose_images

    candidates = find_candidate(first, repository), find_candidate(last, repository)
    dataset = choose_images(data, candidates[0].bundle.manifest)
    with show_progress(2 * len(dataset)) as on_progress:
        folder = tune(
            *candidates,
            dataset,
            name=name,
            repository=repository,
            accuracy=accuracy,
            cost_share=max_cost,
            on_progress=on_progress,
        )
    _print(folder, is_json)


def find_candidate(member: str, repository: Path) -> Candidate:
    """Returns the bundle and the views of NAME[@VERSION][:TTA], its files verified.

    Raises:
        TrainingError: There are no such views.
        BundleError: There is no such bundle, or it is damaged.
    """
    from service.bundle.preprocess import is_tta_policy
    from service.bundle.repository import read_bundle, resolve, verify_files
    from training.combining import Candidate
    from training.errors import TrainingError

    reference, _, tta = member.partition(":")
    tta = tta or "none"
    if not is_tta_policy(tta):
        raise TrainingError(f"{member}: the views are one of {', '.join(TTA)}")
    bundle = read_bundle(resolve(repository, reference))
    verify_files(bundle)
    return Candidate(bundle=bundle, tta=cast("TtaPolicy", tta))


def _read_weights(text: str) -> list[float]:
    from training.errors import TrainingError

    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        raise TrainingError(f"{text!r} is not a list of weights") from None
    if not all(0 < weight < float("inf") for weight in weights):
        raise TrainingError("weights are above 0")
    return weights


def _print(folder: Path, is_json: bool) -> None:
    import json

    document = json.loads((folder / "combination.json").read_text(encoding="utf-8"))
    if is_json:
        click.echo(json.dumps({"folder": str(folder), **document}))
        return
    measured = document["measured"]
    click.echo(str(folder))
    click.echo(
        f"top-1 {measured['top1']:.2%} of {measured['images']} images"
        + (f", {measured['escalated']:.1%} of them escalated" if "escalated" in measured else "")
        + (f", at {measured['cost_share']:.2f} of the cost" if "cost_share" in measured else ""),
        err=True,
    )
