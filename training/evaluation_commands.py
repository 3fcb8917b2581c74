"""The sub-commands `evaluate` and `compare-bundles` of `fivecrop`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from training.cli import ANY_PATH, TTA, repository_option
from training.combination_commands import find_candidate
from training.image_progress import show_progress

if TYPE_CHECKING:
    from service.bundle.manifest import TtaPolicy
    from training.studies import StudyName

_STUDIES = ("tta", "size", "rotation", "shift", "flip", "corruption")

_data_option = click.option(
    "--data", type=ANY_PATH, help="Folder or Parquet; default: the validation of the recipe's."
)
_images_option = click.option(
    "--images", "limit", type=click.IntRange(1), help="Look at so many of them only, by chance."
)
_json_option = click.option("--json", "is_json", is_flag=True, help="Print one JSON object.")


@click.command()
@click.argument("bundle")
@repository_option
@_data_option
@_images_option
@click.option("--tta", type=click.Choice(TTA), default="none", show_default=True)
@click.option(
    "--average",
    type=click.Choice(["arithmetic", "geometric"]),
    default="arithmetic",
    show_default=True,
    help="How views are averaged; what is served is always the arithmetic mean.",
)
@click.option(
    "--variant", type=click.Choice(["fp32", "fp16", "int8"]), default="fp32", show_default=True
)
@click.option(
    "--study",
    "studies",
    type=click.Choice([*_STUDIES, "all"]),
    multiple=True,
    help="How accuracy depends on the views, the image's size, rotation, shift, reflection, "
    "corruption (noise, blur, JPEG, brightness, contrast in five severities).",
)
@click.option(
    "--study-images",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Images that a study looks at.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write evaluation.json, plots and the worst images into this folder.",
)
@_json_option
def evaluate(
    bundle: str,
    repository: Path,
    data: Path | None,
    limit: int | None,
    tta: TtaPolicy,
    average: Literal["arithmetic", "geometric"],
    variant: str,
    studies: tuple[StudyName | Literal["all"], ...],
    study_images: int,
    out: Path | None,
    is_json: bool,
) -> None:
    """Measure BUNDLE (a folder, or NAME[@VERSION] of the repository) through the served path."""
    from service.bundle.repository import find_bundle, verify_files
    from training.images import choose_images
    from training.measurement import Request, count_images, measure, write_measurement
    from training.report import format_evaluation, format_study
    from training.studies import STUDIES

    found = find_bundle(repository, bundle)
    verify_files(found)
    images = choose_images(data, found.manifest)
    request = Request(
        images=limit,
        precision=variant,
        tta=tta,
        average=average,
        studies=[one for one in STUDIES if one in studies or "all" in studies],
        study_images=study_images,
    )
    with show_progress(count_images(found, images, request)) as on_progress:
        measured = measure(found, images, request, on_progress)
    if out is not None:
        write_measurement(measured, found, images, out)
    if is_json:
        click.echo(json.dumps(measured.to_dict()))
        return
    click.echo(f"bundle  {found.reference} {variant}\n{format_evaluation(measured.evaluation)}")
    for study in measured.studies:
        click.echo(format_study(study))


@click.command("compare-bundles")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@repository_option
@_data_option
@_images_option
@_json_option
def compare_bundles(
    first: str,
    second: str,
    repository: Path,
    data: Path | None,
    limit: int | None,
    is_json: bool,
) -> None:
    """Tell whether B is better than A on the same images, or whether that may be chance.

    Each is NAME[@VERSION][:TTA] of the repository: small@1 small@1:hflip.
    """
    from training.comparison import compare, format_comparison
    from training.evaluate import check_labelled, open_bundle, score_images
    from training.images import choose_images, match_classes, sample_places

    members = [find_candidate(one, repository) for one in (first, second)]
    images = choose_images(data, members[0].bundle.manifest)
    images = images.subset(sample_places(images, limit))
    check_labelled(images)
    hits = []
    with show_progress(2 * len(images)) as on_progress:
        for one in members:
            manifest = one.bundle.manifest
            asked = match_classes(images, manifest.labels)
            session = open_bundle(one.bundle)
            scored = score_images(
                session, asked, manifest.preprocess, tta=one.tta, on_progress=on_progress
            )
            hits.append(scored.probabilities.argmax(axis=1) == asked.labels)
    found = compare(*hits)
    names = [one.reference for one in members]
    if is_json:
        document = {"first": names[0], "second": names[1], "data": images.name}
        click.echo(json.dumps({**document, **dataclasses.asdict(found)}))
    else:
        click.echo(format_comparison(found, names[0], names[1]))
